"""
The law of the projections: however a client was cut off and comes back, it ends with the whole, nothing doubled.

Random attempts, of which all but the last were lost, or waited for an approval; random parts of what they had said were
stored; models give way to others midway.  Clients see the live lines of whichever attempt, are cut off anywhere, and
come back to the stored log.
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.events import (
    TOOL_OUTCOMES,
    ChatStreamEvent,
    encode_lines,
    reasoning_delta,
    stored_event,
    text_delta,
    text_so_far,
    tool_approval,
    tool_call,
    tool_client,
    tool_error,
    tool_result,
    usage_event,
)
from chatturn.wire.ai_sdk import UiMessageStream
from chatturn.wire.lines import last_seq, piece_of_answer, read_line
from chatturn.wire.openai_chat import ChatCompletion, ChatCompletionChunks, CompletionHead
from tests.support.chat_clients import CompletionView, UiMessageView, frames_of

RUN_ID = "chat:acme:thread-1:0"
HEAD = CompletionHead(id="chatcmpl-1", created=1, model="m")
AHEAD = 10_000

Words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


def use_of_a_tool(name: str, outcome: str) -> list[ChatStreamEvent]:
    calls = [tool_call(tool_call_id=name, tool_name="look", args={"q": name})]
    if outcome == "approved":
        calls.append(tool_approval(tool_call_id=name, tool_name="look", args={}, key="approve:1.1.0"))
    if outcome in {"failed", "denied"}:
        return [*calls, tool_error(tool_call_id=name, tool_name="look", code=outcome, message="no")]
    return [*calls, tool_result(tool_call_id=name, tool_name="look", result=[1])]


Said = st.one_of(
    Words.map(text_delta).map(lambda event: [event]),
    Words.map(text_delta).map(lambda event: [event]),
    Words.map(reasoning_delta).map(lambda event: [event]),
    st.builds(use_of_a_tool, st.sampled_from(["a", "b"]), st.sampled_from(["done", "approved", "failed", "denied"])),
    st.just([usage_event(model="m", tokensIn=3, tokensOut=2, finishReason="stop")]),
    st.just([ChatStreamEvent("citation", {"url": "https://example.com"})]),
    st.just([ChatStreamEvent("answer.citations", {"citations": [{"url": "https://example.com", "title": "t"}, {}]})]),
    st.just([ChatStreamEvent("answer.images", {"images": [{"url": "data:image/png;base64,AA=="}, {"characters": 9}]})]),
    st.just([ChatStreamEvent("message.part.updated", {"delta": "y", "part": {"id": "other", "type": "text"}})]),
).map(list)


@st.composite
def rounds(draw: st.DrawFn) -> list[ChatStreamEvent]:
    """Make the client's calls of a round, and what came of them."""
    calls = range(draw(st.integers(1, 3)))
    asked = [tool_client(tool_call_id=f"call_{n}", tool_name="do", args={"n": n}, key=f"tool:call_{n}") for n in calls]
    return [*asked, *(tool_result(tool_call_id=f"call_{n}", tool_name="do", result=n) for n in calls)]


Rounds = rounds()

GIVES_WAY = "gives way"
"""Stands for the whole text of a part, that of a model which takes the place of another one midway."""

GivesWay = st.builds(
    lambda keeps, new: [ChatStreamEvent(GIVES_WAY, {"keeps": keeps, "new": new})],
    st.sampled_from(["all", "some", "nothing"]),
    st.just("") | Words,
)


def _with_wholes(events: list[ChatStreamEvent]) -> list[ChatStreamEvent]:
    """Put in the whole texts: they keep as much of what was said behind the last tool as the placeholders say."""
    made, said = [], ""
    for event in events:
        data = event.data or {}
        if event.type == GIVES_WAY:
            kept = {"all": said, "some": said[: len(said) // 2], "nothing": ""}
            said = kept[data["keeps"]] + data["new"]
            made += text_so_far(said)
            continue
        made.append(event)
        if event.type in TOOL_OUTCOMES:
            said = ""
        elif event.type == "message.part.updated" and data["part"]["id"] == "text":
            said += data["delta"]
    return made


def _with_ids(events: list[ChatStreamEvent], mark: str = "") -> list[ChatStreamEvent]:
    """Give the client's calls ids that no other call of the run has."""
    named, number = [], 0
    for event in events:
        number += event.type == "tool.client" and (event.data or {})["toolCallId"] == "call_0"
        is_clients = str((event.data or {}).get("toolCallId")).startswith("call_")
        data = {**(event.data or {}), "toolCallId": f"{(event.data or {}).get('toolCallId')}.{mark}{number}"}
        named.append(ChatStreamEvent(event.type, data) if is_clients else event)
    return named


ASKS = [
    tool_call(tool_call_id="asked", tool_name="send", args={}),
    tool_approval(tool_call_id="asked", tool_name="send", args={}, key="approve:2"),
    ChatStreamEvent("session.run.suspended", {"key": "approve:2", "wakeAt": None}),
]
ENDS = {
    "completed": [ChatStreamEvent("session.run.completed", {"replayed": False})],
    "cancelled": [ChatStreamEvent("session.run.cancelled", {"reason": "requested"})],
    "suspended": [ChatStreamEvent("session.run.suspended", {"key": "k", "wakeAt": None})],
    "failed": [
        ChatStreamEvent("error", {"code": "backend_timeout", "message": "too long", "retryable": True}),
        ChatStreamEvent("session.run.failed", {"code": "backend_timeout", "message": "too long", "retryable": True}),
    ],
}


@dataclass
class Attempt:
    """
    One attempt.

    Attributes:
        said: All its lines.
        stored: How many of them were stored.
    """

    said: list[str]
    stored: int


@dataclass
class Turn:
    """A turn whose attempts are over, all but the last; and what the log of a product that redacts has of it."""

    attempts: list[Attempt]
    redacted: list[str] | None

    @property
    def log(self) -> list[str]:
        if self.redacted is not None:
            return self.redacted
        return [line for attempt in self.attempts for line in attempt.said[: attempt.stored]]


@st.composite
def turns(
    draw: st.DrawFn,
    *,
    lost: int = 3,
    redacts: bool = False,
    same: bool = False,
    clients: bool = False,
    midway: bool = False,
    waits: bool = False,
) -> Turn:
    """
    Make a turn.

    Args:
        draw: Draws.
        lost: How many attempts there may be before the last.
        redacts: Whether its product redacts.
        same: Whether all attempts say the same.
        clients: Whether their client does tools, too.
        midway: Whether models give way to others midway.
        waits: Whether attempts may have waited for an approval instead of being lost.
    """
    said = Said
    said = said | Rounds if clients else said
    said = said | GivesWay if midway else said
    first = [event for events in draw(st.lists(said, min_size=1, max_size=8)) for event in events]
    attempts, seq = [], 0
    redacted: list[str] = []
    number = draw(st.integers(1, 1 + lost))
    for attempt in range(1, number + 1):
        events = [ChatStreamEvent("session.run.started" if attempt == 1 else "session.run.restarted", {})]
        own = first if same or attempt == 1 else [e for events in draw(st.lists(said, max_size=8)) for e in events]
        events += _with_ids(_with_wholes(own))
        left = [event for event in draw(Rounds) if event.type == "tool.client"] if clients else []
        waited = waits and attempt < number and draw(st.booleans())
        if waited:
            events += ASKS
        if redacts:
            kept = [stored_event(event) for event in events]
        if attempt == number:
            end = ENDS[draw(st.sampled_from(sorted(ENDS)))]
            if end is ENDS["suspended"]:
                end = [*_with_ids(left, "z"), *end]
            if redacts:
                end = [ChatStreamEvent("result", {"finalText": "[redacted]"}), *end]
            events += end
            if redacts:
                kept += end
        lines = encode_lines(events, seq, attempt)
        stored = len(lines) if attempt == number or waited else draw(st.integers(0, len(lines)))
        attempts.append(Attempt(lines, stored))
        if redacts:
            redacted += encode_lines(kept, seq, attempt)[:stored]
        seq += stored + AHEAD
    return Turn(attempts, redacted if redacts else None)


def whole(turn: Turn) -> UiMessageView:
    """Return what a client sees that comes when the turn is over."""
    view = UiMessageView()
    view.read(UiMessageStream(RUN_ID, attempt=len(turn.attempts)).feed("".join(turn.log)))
    return view


def live(turn: Turn, attempt: int, upto: int) -> list[str]:
    """Return what a client has seen live, up to a line of an attempt, that came when the turn began."""
    before = [line for each in turn.attempts[: attempt - 1] for line in each.said[: each.stored]]
    return before + turn.attempts[attempt - 1].said[:upto]


@st.composite
def cut_off(draw: st.DrawFn, turn: Turn) -> tuple[int, str]:
    """Cut a client off that read from the beginning; return at which attempt, and the characters it had by then."""
    attempt = draw(st.integers(1, len(turn.attempts)))
    lines = live(turn, attempt, draw(st.integers(0, len(turn.attempts[attempt - 1].said))))
    text = UiMessageStream(RUN_ID).feed("".join(lines))
    return attempt, text[: draw(st.integers(0, len(text)))]


@given(st.data())
@pytest.mark.parametrize(("redacts", "clients"), [(False, False), (True, False), (False, True)])
def test_a_client_that_counts_ends_with_the_whole(redacts: bool, clients: bool, data: st.DataObject) -> None:
    """WorkflowChatTransport: it comes back with the number of chunks it has, as often as it is cut off."""
    turn = data.draw(turns(redacts=redacts, clients=clients, midway=not redacts))
    at, text = data.draw(cut_off(turn))
    view = UiMessageView()
    view.read(text)
    for _ in range(3):
        if view.finished:
            break
        rest = UiMessageStream(RUN_ID, seen=view.chunks, attempt=len(turn.attempts)).feed("".join(turn.log))
        cut = data.draw(st.integers(0, len(rest)) | st.just(len(rest)))
        view.read(rest[:cut])
    if not view.finished:
        view.read(UiMessageStream(RUN_ID, seen=view.chunks, attempt=len(turn.attempts)).feed("".join(turn.log)))

    assert view.finished
    assert whole(turn).shown() == view.shown() or (redacts and at == len(turn.attempts) and view.text == "[redacted]")
    assert whole(turn).finish_reason == view.finish_reason
    assert 1 >= [part["type"] for part in view.parts].count("step-start")


@dataclass(frozen=True, order=True)
class Moment:
    """When an attempt, from 1, has said so many of its lines."""

    attempt: int
    said: int


def _lines_until(turn: Turn, begin: Moment, end: Moment) -> tuple[str, str]:
    """Return the log at a moment, and what is said from then on to another moment, live."""
    log = "".join(live(turn, begin.attempt, begin.said))
    if begin.attempt == end.attempt:
        return log, "".join(turn.attempts[begin.attempt - 1].said[begin.said : end.said])
    between = [line for each in turn.attempts[begin.attempt : end.attempt - 1] for line in each.said]
    rest = turn.attempts[begin.attempt - 1].said[begin.said :]
    return log, "".join([*rest, *between, *turn.attempts[end.attempt - 1].said[: end.said]])


def _waits(attempt: Attempt) -> bool:
    return attempt.said[-1].startswith('{"type":"session.run.suspended"')


@given(st.data())
def test_a_client_that_counts_and_decides_ends_with_the_whole(data: st.DataObject) -> None:
    """WorkflowChatTransport: cut off anywhere, it counts on; behind an approval it holds the message, and counts anew."""
    turn = data.draw(turns(clients=data.draw(st.booleans()), midway=True, waits=True))
    moments = [Moment(at, said) for at, each in enumerate(turn.attempts, 1) for said in range(1, len(each.said) + 1)]
    now, view = moments[0], UiMessageView()
    stream = UiMessageStream(RUN_ID)
    for _ in range(20):
        over = next(
            (at for at, each in enumerate(turn.attempts, 1) if at >= now.attempt and _waits(each)), len(moments)
        )
        until = data.draw(st.sampled_from([at for at in moments if at >= now and at.attempt <= over]))
        before, behind = _lines_until(turn, now, until)
        text = stream.feed(before) + stream.feed(behind)
        view.read(text[: data.draw(st.integers(0, len(text)) | st.just(len(text)))])
        now = until
        if view.finished:
            if view.finish_reason != "tool-calls" or not (later := [at for at in moments if at.attempt > now.attempt]):
                break
            view.asks_again()
            now = data.draw(st.sampled_from(later))
            stream = UiMessageStream(RUN_ID, attempt=now.attempt, given={"asked"})
        else:
            stream = UiMessageStream(RUN_ID, seen=view.chunks, attempt=now.attempt)
    if not view.finished:
        view.read(UiMessageStream(RUN_ID, seen=view.chunks, attempt=len(turn.attempts)).feed("".join(turn.log)))

    shown_last = now.attempt == len(turn.attempts) or view.finish_reason != "tool-calls"
    assert view.finished
    assert not shown_last or whole(turn).shown() == view.shown()
    assert 1 >= [part["type"] for part in view.parts].count("step-start")


@given(st.data())
def test_a_client_that_replays_ends_with_the_whole(data: st.DataObject) -> None:
    """DefaultChatTransport: it clears the message at the first chunk of what it comes back to."""
    turn = data.draw(turns(midway=True, waits=True))
    _, text = data.draw(cut_off(turn))
    view = UiMessageView()
    view.read(text)
    view.resume_from_the_start()
    view.read(UiMessageStream(RUN_ID, attempt=len(turn.attempts)).feed("".join(turn.log)))

    assert (whole(turn).shown(), RUN_ID, True) == (view.shown(), view.id, view.done)


@given(st.data())
def test_a_client_that_stays_ends_with_the_whole(data: st.DataObject) -> None:
    """Takeovers while it reads, in whatever pieces the lines come: at most one step, cleared and said again."""
    turn = data.draw(turns(clients=data.draw(st.booleans()), midway=True))
    lines = live(turn, len(turn.attempts), len(turn.attempts[-1].said))
    stream, view = UiMessageStream(RUN_ID), UiMessageView()
    at = 0
    while at < len(lines):
        size = data.draw(st.integers(1, 5))
        view.read(stream.feed("".join(lines[at : at + size])))
        at += size

    assert (whole(turn).shown(), True) == (view.shown(), stream.ended)
    assert 1 == [part["type"] for part in view.parts].count("step-start")


@given(st.data())
def test_a_client_that_knows_no_reset_is_never_sent_one(data: st.DataObject) -> None:
    """AI SDK 5 and 6: the body breaks off instead, and the replay that they come back to is whole."""
    turn = data.draw(turns(midway=True))
    stream, view = UiMessageStream(RUN_ID, sdk=6), UiMessageView()
    text = ""
    for line in live(turn, len(turn.attempts), len(turn.attempts[-1].said)):
        text += stream.feed(line)
    view.read(text)
    if stream.broken:
        replay = UiMessageStream(RUN_ID, attempt=len(turn.attempts), sdk=6, stored_to=last_seq("".join(turn.log)))
        again = "".join(map(replay.feed, turn.log))
        assert not replay.broken
        view.resume_from_the_start()
        view.read(again)
        text += again

    assert '"reset-step"' not in text
    assert whole(turn).shown() == view.shown()


ROUND = [
    text_delta("let me see"),
    tool_call(tool_call_id="a", tool_name="look", args={}),
    tool_approval(tool_call_id="a", tool_name="look", args={}, key="approve:1"),
]
DENIED = tool_error(tool_call_id="a", tool_name="look", code="denied", message="no")


def test_a_client_that_knows_no_approvals_is_told_them_as_data() -> None:
    """AI SDK 5 throws at what it does not know: its page learns as data what waits, and a denial as an error."""
    lines = encode_lines([*ROUND, DENIED, *ENDS["completed"]], 0, 1)
    said = [json.loads(frame) for frame in frames_of(UiMessageStream(RUN_ID, sdk=5).feed("".join(lines)))[:-1]]

    assert {"type": "data-tool.approval", "data": {"approvalId": "approve:1", "toolCallId": "a"}} in said
    assert ["tool-input-available", "tool-output-error"] == [
        chunk["type"] for chunk in said if chunk["type"].startswith("tool")
    ]


@given(st.data())
def test_a_client_that_holds_a_part_is_told_the_rest(data: st.DataObject) -> None:
    """AI SDK 6 behind an approval: what it has stays, the rest comes behind it, in whichever pieces the lines come."""
    rest = [event for events in data.draw(st.lists(Said, max_size=6)) for event in events]
    end = ENDS[data.draw(st.sampled_from(sorted(ENDS)))]
    first = UiMessageStream(RUN_ID, sdk=6).feed("".join(encode_lines([*ROUND, *ENDS["suspended"]], 0, 1)))
    again = [*ROUND, tool_result(tool_call_id="a", tool_name="look", result=1), *rest, *end]
    lines = encode_lines([ChatStreamEvent("session.run.restarted", {}), *again], AHEAD, 2)
    view, at_once = UiMessageView(), UiMessageView()
    view.read(first)
    view.finished = view.done = False
    stream = UiMessageStream(RUN_ID, sdk=6, attempt=2, given={"a"})
    view.read("".join(map(stream.feed, lines)))
    at_once.read(UiMessageStream(RUN_ID, attempt=2).feed("".join(lines)))

    shown = [{name: value for name, value in part.items() if name != "approval"} for part in at_once.shown()]
    assert shown == [{name: value for name, value in part.items() if name != "approval"} for part in view.shown()]
    assert (True, at_once.finish_reason) == (stream.ended, view.finish_reason)


def test_a_turn_that_is_lost_behind_an_approval_is_begun_again() -> None:
    """Only once something of the rest was told: before that there is nothing to take back."""
    result = tool_result(tool_call_id="a", tool_name="look", result=1)
    second = encode_lines([*ROUND, result, text_delta("do")], AHEAD, 2)
    third = encode_lines([*ROUND, result, text_delta("done"), *ENDS["completed"]], 2 * AHEAD, 3)
    for told in range(len(second) + 1):
        stream = UiMessageStream(RUN_ID, sdk=6, attempt=2, given={"a"})
        stream.feed("".join(second[:told]))
        text = stream.feed("".join(third))

        assert stream.broken is (told > len(ROUND))
        assert stream.broken or '"delta":"done"' in text


@given(st.data())
def test_the_projection_does_not_depend_on_how_the_lines_come(data: st.DataObject) -> None:
    """Line by line, or all at once: the same chunks."""
    turn = data.draw(turns())
    seen = data.draw(st.integers(0, 40))
    attempt = data.draw(st.integers(1, len(turn.attempts)))
    one_by_one = UiMessageStream(RUN_ID, seen=seen, attempt=attempt)
    at_once = UiMessageStream(RUN_ID, seen=seen, attempt=attempt)

    assert at_once.feed("".join(turn.log)) == "".join(map(one_by_one.feed, turn.log))


@given(st.data())
def test_a_completion_says_no_character_twice(data: st.DataObject) -> None:
    """Attempts that say the same cost its reader nothing; one that says something else is an error, not a mixture."""
    turn = data.draw(turns(same=data.draw(st.booleans()), midway=True))
    view, again = CompletionView(), CompletionView()
    chunks = ChatCompletionChunks(HEAD)
    view.read("".join(map(chunks.feed, live(turn, len(turn.attempts), len(turn.attempts[-1].said)))))
    replay = ChatCompletionChunks(HEAD, attempt=len(turn.attempts), stored_to=last_seq("".join(turn.log)))
    again.read("".join(map(replay.feed, turn.log)))
    late = ChatCompletion(HEAD, attempt=len(turn.attempts))
    late.feed("".join(turn.log))

    assert chunks.ended
    assert (again.error or {}).get("code") != "answer_restarted", "asked again, it gets the whole"
    assert not again.done or late.members()["choices"][0]["message"]["content"] == again.text
    if view.done:
        assert late.members()["choices"][0]["message"]["content"] == view.text
        assert "stop" == view.finish_reason
    else:
        assert view.error is not None
        expected = {"answer_restarted"} if late.failure is None else {"answer_restarted", late.failure.code}
        assert view.error["code"] in expected


@given(st.data())
def test_a_turn_whose_client_does_tools_is_several_completions(data: st.DataObject) -> None:
    """Each ends with the calls that it may answer; together they say everything once, in however many lines it comes."""
    turn = data.draw(turns(lost=0, clients=True))
    events = [read_line(line.rstrip("\n")) for line in turn.log]
    views, answered = list[CompletionView](), set[str]()
    while not views or views[-1].calls:
        chunks, view = ChatCompletionChunks(HEAD, answered=frozenset(answered)), CompletionView()
        view.read("".join(map(chunks.feed, turn.log)))
        whole = ChatCompletion(HEAD, answered=frozenset(answered))
        whole.feed("".join(turn.log))
        assert (True, True) == (chunks.ended, whole.ended)
        if view.done:
            message = whole.members()["choices"][0]["message"]
            assert (view.text or None, list(view.calls.values())) == (
                message["content"] or None,
                message.get("tool_calls", []),
            )
            assert ("tool_calls" in message) is (view.finish_reason == "tool_calls")
        views.append(view)
        answered |= {call["id"] for call in view.calls.values()}
        if (
            turn.log[-1].startswith('{"type":"session.run.suspended"')
            and view.calls
            and not chunks_follow(turn, answered)
        ):
            break

    assert [e.data["toolCallId"] for e in events if e.type == "tool.client"] == [
        call["id"] for view in views for call in view.calls.values()
    ]
    assert "".join(map(_answered_text, events)) == "".join(view.text for view in views)


def chunks_follow(turn: Turn, answered: set[str]) -> bool:
    """Say whether anything comes behind the results of these calls."""
    outcomes = [read_line(line.rstrip("\n")) for line in turn.log if '"tool.result"' in line]
    return answered <= {line.data["toolCallId"] for line in outcomes}


def _answered_text(line: Any) -> str:
    kind = line.data.get("part", {}).get("type", "text") if line.type == "message.part.updated" else ""
    return str(line.data.get("delta", "")) if kind == "text" else ""


@given(st.data())
def test_attempts_that_say_the_same_are_one_completion(data: st.DataObject) -> None:
    """A model that repeats itself, or goes on where it was: the reader does not see that its worker died."""
    turn = data.draw(turns(same=True))
    view = CompletionView()
    view.read(ChatCompletionChunks(HEAD).feed("".join(live(turn, len(turn.attempts), len(turn.attempts[-1].said)))))

    assert (view.error or {}).get("code") != "answer_restarted"


def test_what_was_said_so_far_is_not_sent_again() -> None:
    """A model that goes on from a prefix: it is told first, as a whole, and only what is new is sent."""
    first = encode_lines([ChatStreamEvent("session.run.started", {}), text_delta("Hel"), text_delta("lo, ")], 0, 1)
    again = [ChatStreamEvent("session.run.restarted", {}), *text_so_far("Hello"), text_delta(", world")]
    second = encode_lines([*again, *ENDS["completed"]], 20_000, 2)
    view, ui = CompletionView(), UiMessageView()
    view.read(ChatCompletionChunks(HEAD).feed("".join(first + second)))
    ui.read(UiMessageStream(RUN_ID).feed("".join(first + second)))

    assert ("Hello, world", "Hello, world") == (view.text, ui.text)


def test_an_answer_that_will_be_redacted_is_held_back() -> None:
    """OpenAI's format cannot take anything back: what the product has not seen is not sent."""
    events = [
        ChatStreamEvent("session.run.started", {}),
        text_delta("call 555-1234"),
        ChatStreamEvent("result", {"finalText": "call [telephone]"}),
        *ENDS["completed"],
    ]
    view, ui = CompletionView(), UiMessageView()
    view.read(ChatCompletionChunks(HEAD, hold=True).feed("".join(encode_lines(events, 0, 1))))
    ui.read(UiMessageStream(RUN_ID).feed("".join(encode_lines(events, 0, 1))))

    assert ("call [telephone]", "call [telephone]") == (view.text, ui.text)


def test_usage_and_finish_reason_are_the_models() -> None:
    """Tokens of several calls add up; an answer that was cut off says so."""
    usage = {"model": "m", "tokensIn": 3, "tokensOut": 2, "tokensCached": 1}
    events = [
        text_delta("x"),
        usage_event(**usage, finishReason="tool_calls"),
        usage_event(**usage, finishReason="length"),
        *ENDS["completed"],
    ]
    lines = "".join(encode_lines(events, 0, 1))
    view, ui = CompletionView(), UiMessageView()
    view.read(ChatCompletionChunks(HEAD, include_usage=True).feed(lines))
    ui.read(UiMessageStream(RUN_ID).feed(lines))
    whole = ChatCompletion(HEAD)
    whole.feed(lines)

    assert ("length", "length") == (view.finish_reason, ui.finish_reason)
    assert view.usage is not None
    assert view.usage == whole.members()["usage"]
    assert (6, 4, 10) == tuple(view.usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens"))


def test_an_end_that_is_in_no_log_is_none_if_it_can_be_retried() -> None:
    """A worker that lost its lease or its database: somebody else goes on, so the stream must."""
    lost = {"code": "lease_lost", "message": "another", "retryable": True}
    line = json.dumps({"type": "session.run.failed", "data": lost}) + "\n"
    for projection in (UiMessageStream(RUN_ID), ChatCompletionChunks(HEAD), ChatCompletion(HEAD)):
        projection.feed(line)
        assert not projection.ended


@given(Words, st.integers(0, 10**6), st.integers(1, 99))
def test_a_piece_is_read_without_parsing(text: str, seq: int, attempt: int) -> None:
    """The short way finds in a line what the parser finds."""
    [line] = encode_lines([text_delta(text)], seq, attempt)
    piece = piece_of_answer(line.rstrip("\n"))

    assert text == json.loads(f'"{piece}"') == read_line(line).data["delta"]
    assert seq == last_seq(line + '{"type":"ping"}\n')


def test_a_ping_is_a_comment() -> None:
    """No chunk, so it is not counted."""
    ping = '{"type":"ping"}\n'
    assert ": ping\n\n" == UiMessageStream(RUN_ID).feed(ping)
    assert [] == frames_of(UiMessageStream(RUN_ID).feed(ping))


BESIDES = [
    text_delta("Hi"),
    ChatStreamEvent(
        "answer.citations",
        {"citations": [{"type": "url_citation", "url": "https://a.test", "title": "A", "startIndex": 1}]},
    ),
    ChatStreamEvent("answer.citations", {"citations": [{"url": "javascript:alert(1)"}, "plain"]}),
    ChatStreamEvent("answer.images", {"images": [{"url": "data:image/png;base64,AA=="}, {"characters": 9}]}),
    ChatStreamEvent("answer.data", {"name": "plan", "value": [1]}),
    ChatStreamEvent("session.run.completed", {}),
]


def test_what_stands_beside_an_answer_reaches_the_ai_sdk() -> None:
    """Sources and files as such where they have an address of the web; all else as data."""
    text = UiMessageStream(RUN_ID).feed("".join(encode_lines(BESIDES, 0, 1)))
    said = [json.loads(frame) for frame in frames_of(text) if frame.startswith("{")]

    assert [chunk for chunk in said if chunk["type"].startswith(("source", "file", "data-"))] == [
        {"type": "source-url", "sourceId": "1", "url": "https://a.test", "title": "A"},
        {"type": "data-answer.citations", "data": {"citations": [{"url": "javascript:alert(1)"}]}},
        {"type": "data-answer.citations", "data": {"citations": ["plain"]}},
        {"type": "file", "url": "data:image/png;base64,AA==", "mediaType": "image/png"},
        {"type": "data-answer.images", "data": {"images": [{"characters": 9}]}},
        {"type": "data-answer.data", "data": {"name": "plan", "value": [1]}},
    ]


def test_what_stands_beside_an_answer_reaches_openai_s_clients() -> None:
    """As annotations and images of the message, streamed or not."""
    text = "".join(encode_lines(BESIDES, 0, 1))
    whole = ChatCompletion(HEAD)
    whole.feed(text)
    message = whole.members()["choices"][0]["message"]
    deltas = [
        json.loads(frame)["choices"][0]["delta"]
        for frame in frames_of(ChatCompletionChunks(HEAD).feed(text))
        if frame.startswith("{")
    ]
    [beside] = [delta for delta in deltas if "annotations" in delta]

    assert message["annotations"][0] == {
        "type": "url_citation",
        "url_citation": {"url": "https://a.test", "title": "A", "start_index": 1},
    }
    assert message["images"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    assert beside == {name: message[name] for name in ("annotations", "images")}
