"""The test kit finds what it is made to find: products that lose, double or divide, and none in those that do not."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chatturn.product import ChatTurnHooks, FinishedTurn, StreamProducer, Tool, ToolContext, TurnContext, answer
from chatturn_testing import ScriptedModel, assert_law, call_tool, crash_everywhere, run_turn
from products.agent import Hooks as Agent
from products.legal import Hooks as Legal

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


class Plain(ChatTurnHooks):
    def produce(self, context: TurnContext) -> StreamProducer:
        return StreamProducer(answer(context))

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        del turn


def test_a_turn_is_told_as_values() -> None:
    """What the reader saw, what is stored, which hooks were called."""
    turn = run_turn(Legal(), "Who is it?", model=ScriptedModel("Ann, ann@example.com."), history=[("Hello?", "Yes.")])

    assert "completed" == turn.status
    assert "Ann, [e-mail]." == turn.text  # a product that redacts says its answer once more, at the end
    assert "Ann, [e-mail]." == turn.stored
    assert_law(turn.log)


def test_what_a_reader_saw_is_of_the_log() -> None:
    """The stored lines are those that went out."""
    turn = run_turn(Plain(), "Hello?", model=ScriptedModel("Yes, it is me."))

    assert_law(turn.log, turn.lines)
    assert ["on_turn_complete"] == [call.hook for call in turn.hook_calls]


def test_the_model_is_told_the_history() -> None:
    """A session's turns before are real ones."""
    model = ScriptedModel("Fine.")
    run_turn(Plain(), "And now?", model=model, history=[("Hello?", "Yes.")])

    assert ["Hello?", "Yes.", "And now?"] == [message["content"] for message in model.requests[0].messages]


def test_a_failure_is_told_by_its_code() -> None:
    """As a client would learn it."""
    turn = run_turn(Plain(), "Hello?", model=ScriptedModel(RuntimeError("boom")))

    assert ("failed", None) == (turn.status, turn.stored)
    assert turn.code


@pytest.mark.parametrize("approve", [True, False])
def test_approvals_are_answered(approve: bool) -> None:
    """A suspended turn is gone on with."""
    model = ScriptedModel(call_tool("send_note", to="Bob", text="hi"), "Done.")
    turn = run_turn(Agent(), "Tell Bob.", model=model, approve=approve)

    assert ("completed", "Done.") == (turn.status, turn.stored)
    assert (["send_note"] if approve else []) == [effect.tool for effect in turn.effects]


@pytest.mark.slow
def test_products_that_keep_the_rules_pass_every_kill() -> None:
    """Plain answers, redaction, hooks, tools and approvals."""
    report = crash_everywhere(Plain, "Hello?", model=ScriptedModel("The answer."))
    assert any("test_kit.py" in place for place in report.places)
    assert {"a turn of the event loop", "before a batch", "after a batch"} < set(report.places)

    crash_everywhere(Legal, "Who?", model=ScriptedModel("ann@example.com"))
    crash_everywhere(
        Agent, "Note it.", model=ScriptedModel(call_tool("add_note", text="a") & call_tool("add_note", text="b"), "Ok.")
    )
    crash_everywhere(Agent, "Send it.", model=ScriptedModel(call_tool("send_note", to="B", text="a"), "Sent."))


def test_an_effect_that_depends_on_the_attempt_is_found() -> None:
    """A tool that is called with other arguments at a second try has two effects."""
    attempts: list[int] = []

    class Careless(ChatTurnHooks):
        def __init__(self) -> None:
            super().__init__()
            attempts.append(1)
            self.tools = (Tool(name="note", description="", parameters=TEXT, run=self._note),)

        async def _note(self, args: Mapping[str, Any], call: ToolContext) -> Any:
            del args, call
            return len(attempts)

    class Wandering(ScriptedModel):
        def fresh(self) -> "ScriptedModel":
            return Wandering(call_tool("note", text=str(len(attempts))), "Ok.")

    with pytest.raises(AssertionError, match="killed at place"):
        crash_everywhere(Careless, "Note it.", model=Wandering(call_tool("note", text="0"), "Ok."))


def test_an_answer_that_depends_on_the_worker_is_found() -> None:
    """What is redacted in one worker and not in the next is another answer."""
    workers: list[int] = []

    class Forgetful(Plain):
        def __init__(self) -> None:
            super().__init__()
            workers.append(1)

        async def transform_final_text(self, text: str) -> str:
            return f"{text} {len(workers)}"

    with pytest.raises(AssertionError, match="is stored instead of"):
        crash_everywhere(Forgetful, "Hello?", model=ScriptedModel("The answer."))


@pytest.mark.parametrize(
    ("log", "what"),
    [
        ([], "empty"),
        ([("session.run.completed", 0, 1)], "begins with"),
        ([("session.run.started", 0, 1), ("x", 1, 1)], "terminal"),
        ([("session.run.started", 0, 1), ("x", 2, 1), ("session.run.completed", 3, 1)], "seq 2 follows on seq 0"),
        ([("session.run.started", 0, 2), ("x", 1, 1), ("session.run.completed", 2, 1)], "an earlier one"),
        ([("session.run.started", 0, 1), ("session.run.failed", 1, 1), ("session.run.completed", 2, 1)], "terminal"),
    ],
)
def test_the_law_names_what_breaks_it(log: list[tuple[str, int, int]], what: str) -> None:
    """Each rule by itself."""
    lines = [{"type": kind, "seq": seq, "attempt": attempt} for kind, seq, attempt in log]

    with pytest.raises(AssertionError, match=what):
        assert_law(lines)


def test_what_a_client_saw_twice_is_found() -> None:
    """Neither doubled nor of another log."""
    log = [
        {"type": "session.run.started", "seq": 0, "attempt": 1},
        {"type": "session.run.completed", "seq": 1, "attempt": 1},
    ]

    with pytest.raises(AssertionError, match="after seq"):
        assert_law(log, [log[0], log[0]])
    with pytest.raises(AssertionError, match="another line"):
        assert_law(log, [{**log[0], "type": "x"}])
    with pytest.raises(AssertionError, match="is lost"):
        assert_law(log, [{"type": "x", "seq": 7, "attempt": 1}])


PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "test-a-product.md").read_text("utf-8")


def test_the_pages_examples_are_tests_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand on the page: a whole file, and one test of what a product sends."""
    whole, sends = (
        _tests_of(source) for source in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    )

    assert (4, 1) == (len(whole), len(sends))
    for test in whole:
        test()
    sends[0](monkeypatch)


def _tests_of(source: str) -> list[Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "test-a-product.md", "exec"), names)  # noqa: S102 - our own page
    return [value for name, value in names.items() if name.startswith("test_")]
