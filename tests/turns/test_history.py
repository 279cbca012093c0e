"""What of a session the model is shown: nothing falls out silently, and why an answer ended is told everywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.chat.thread.history import PastTurn, ShownHistory, recent, shortened_in_the_middle
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta, usage_event
from tests.support.isolates import Isolate
from tests.support.turns import IDENTITY, Desk, Product, Recorded, open_sqlite


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def tell(desk: Desk, *questions: str, **changes: Any) -> list[dict[str, Any]]:
    """Ask one question after the other in one session; return the lines of the last turn."""
    lines: list[dict[str, Any]] = []
    for index, question in enumerate(questions):
        lines = await desk.run(identity=replace(IDENTITY, turn_index=index), message=question, **changes)
    return lines


def context_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the lines say of the context."""
    return [line["data"] for line in lines if line["type"] == "context"]


def turn(index: int, question: str, answer: str) -> PastTurn:
    return PastTurn(turn_index=index, question=question, answer=answer)


TURNS = st.lists(st.tuples(st.integers(1, 5_000), st.integers(1, 5_000)), max_size=8)


@given(sizes=TURNS, most=st.integers(0, 12_000))
def test_what_is_shown_fits_and_what_is_not_is_counted(sizes: list[tuple[int, int]], most: int) -> None:
    """The latest turns without a gap, each with its question, and every one that is missing or not whole is named."""
    turns = [turn(index, "q" * asked, "a" * answered) for index, (asked, answered) in enumerate(sizes)]
    shown = recent(turns, most)

    size = sum(len(message["content"]) for message in shown.messages)
    assert size <= most
    assert len(turns) == shown.turns + shown.left_out
    assert 2 * shown.turns == len(shown.messages)
    kept = turns[len(turns) - shown.turns :]
    for each, (asked, answered) in zip(kept, zip(shown.messages[::2], shown.messages[1::2], strict=True), strict=True):
        assert ("user", "assistant") == (asked["role"], answered["role"])
        whole = (each.question, each.answer) == (asked["content"], answered["content"])
        assert whole == (each.turn_index not in shown.shortened)
    if sum(each.size for each in turns) <= most:
        assert shown.is_whole


@given(text=st.text(max_size=300), characters=st.integers(40, 300))
def test_a_shortened_text_says_how_much_is_missing(text: str, characters: int) -> None:
    short = shortened_in_the_middle(text, characters)

    assert len(short) <= max(characters, 40)
    if short != text:
        begins, _, rest = short.partition(" […")
        missing, _, ends = rest.partition(" characters left out…] ")
        assert text.startswith(begins)
        assert text.endswith(ends)
        assert len(text) == len(begins) + int(missing) + len(ends)


def test_one_message_of_120_000_characters_does_not_empty_the_history() -> None:
    """It is shortened in its middle; all others stay whole."""
    small = [turn(index, f"question {index}", "short") for index in range(6)]
    shown = recent([*small[:3], turn(3, "x" * 120_000, "long"), *small[4:]], 100_000)

    assert (6, 0, [3]) == (shown.turns, shown.left_out, list(shown.shortened))
    assert "question 0" == shown.messages[0]["content"]
    assert "long" == shown.messages[7]["content"]


async def test_a_line_says_what_was_left_out(database: SqliteDatabase) -> None:
    """In the log, right before the answer; there is none where nothing is missing."""
    desk = Desk(database, Product(text_delta("x" * 1_000)))
    assert [] == context_of(await tell(desk, *"abcd", history_characters=100_000))
    lines = await desk.run(identity=replace(IDENTITY, turn_index=4), message="e", history_characters=2_500)

    assert [{"turns": 2, "leftOut": 2, "shortened": []}] == context_of(lines)
    assert ["session.run.started", "context"] == [line["type"] for line in lines[:2]]
    assert [0, 1] == [line["seq"] for line in lines[:2]]


async def test_turns_beyond_the_number_are_told_of_too(database: SqliteDatabase) -> None:
    """One more than is shown is read: that there are more is known, how many is not."""
    desk = Desk(database)
    lines = await tell(desk, *"abcdef", history_turns=3)

    assert [{"turns": 3, "leftOut": 1, "shortened": []}] == context_of(lines)
    product: Any = desk.hooks
    assert ["c", "d", "e"] == [m["content"] for m in product.calls[-1].history if m["role"] == "user"]


async def test_a_history_that_is_switched_off_is_missed_by_nobody(database: SqliteDatabase) -> None:
    """Then nothing is read, and nothing said."""
    assert [] == context_of(await tell(Desk(database), *"abc", history_turns=0))


class Forgetful(Product):
    """A product with a rule of its own: the first turn only."""

    def show_history(self, turns: Sequence[PastTurn], most_characters: int) -> ShownHistory:
        """Show the first."""
        shown = recent(turns[:1], most_characters)
        return replace(shown, left_out=shown.left_out + len(turns[1:]))


async def test_a_product_may_have_a_rule_of_its_own(database: SqliteDatabase) -> None:
    """The line says what it says."""
    desk = Desk(database, Forgetful())
    lines = await tell(desk, *"abc")

    assert [{"turns": 1, "leftOut": 1, "shortened": []}] == context_of(lines)
    product: Any = desk.hooks
    assert ["a"] == [m["content"] for m in product.calls[-1].history if m["role"] == "user"]


class Broken(Product):
    """A product whose rule fails at its third turn."""

    def show_history(self, turns: Sequence[PastTurn], most_characters: int) -> ShownHistory:
        """Fail."""
        if len(turns) > 1:
            raise ValueError("secret")
        return recent(turns, most_characters)


async def test_a_rule_that_fails_fails_the_turn(database: SqliteDatabase) -> None:
    """With the code of a hook, before the model is asked; the next attempt may do better."""
    desk = Desk(database, Broken())
    lines = await tell(desk, *"abc")

    assert "hook_failed" == lines[-1]["data"]["code"]
    assert "secret" not in str(lines)


@pytest.mark.parametrize(
    ("said", "told"), [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("odd", "stop")]
)
async def test_why_an_answer_ended_is_told_everywhere(database: SqliteDatabase, said: str, told: str) -> None:
    """In the terminal line, its replay, the turn, the messages, the hooks, and to the next turn's rule."""
    seen: list[str | None] = []

    class Watching(Recorded):
        def show_history(self, turns: Sequence[PastTurn], most_characters: int) -> ShownHistory:
            seen.extend(turn.finish_reason for turn in turns)
            return recent(turns, most_characters)

    product = Watching(text_delta("a"), usage_event(model="m", finishReason=said))
    isolate = Isolate(database, product)
    assert told == (await (await isolate.post()).lines())[-1]["data"]["finishReason"]
    assert told == (await (await isolate.post()).lines())[-1]["data"]["finishReason"]
    assert told == (await isolate.ask("GET")).body["finishReason"]
    messages = (await isolate.ask("GET", "/v1/sessions/thread-1/messages")).body["messages"]
    assert [None, told] == [message.get("finishReason") for message in messages]
    assert [told] == [turn.finish_reason for turn in product.completed]
    await (await isolate.ask("POST", "/v1/sessions/thread-1/turns/1", {"message": "b"})).lines()
    assert [told] == seen


async def test_an_answer_from_before_says_nothing(database: SqliteDatabase) -> None:
    """What nobody has written down is not made up."""
    isolate = Isolate(database, Product())
    await (await isolate.post()).lines()
    await database.batch([Statement("UPDATE chat_turns SET finish_reason = NULL")])

    assert "finishReason" not in (await (await isolate.post()).lines())[-1]["data"]
    assert (await isolate.ask("GET")).body["finishReason"] is None
