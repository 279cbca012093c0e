"""What backends say, in whatever form, as events of a stream."""

from collections.abc import Sequence
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.sayings import SayingMapper
from chatturn.agent_runtime.values.events import (
    ArtifactEvent,
    FinalEvent,
    LlmCallEvent,
    ProposalCreatedEvent,
    ReasoningDeltaEvent,
    TaskStartEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.errors import BackendProtocolError, BackendReportedError
from chatturn.events import TextDeltas, reasoning_delta, text_delta, tool_call, usage_event
from tests.support.agent_tasks import TASK


def said(*outputs: Any) -> list[Any]:
    """Return what *outputs* say, one after the other."""
    mapper = SayingMapper("sandbox")
    return [event for output in outputs for event in mapper.feed(output)]


@pytest.mark.parametrize(
    ("output", "event"),
    [
        ({"type": "text_delta", "text": "a"}, TextDeltaEvent(text="a")),
        ({"type": "delta", "data": {"delta": "a"}}, TextDeltaEvent(text="a")),
        ({"type": "message.part.updated", "data": {"text": "a"}}, TextDeltaEvent(text="a")),
        ({"type": "message.part.updated", "data": {"part": {"type": "text", "text": "a"}}}, TextDeltaEvent(text="a")),
        ({"type": "message.part.updated", "data": {"part": {"type": "reasoning"}, "delta": "a"}}, ReasoningDeltaEvent(text="a")),
        ({"type": "reasoning_delta", "text": "a"}, ReasoningDeltaEvent(text="a")),
        ({"type": "tool_call", "name": "find", "id": "c1", "input": {"q": 1}}, ToolCallEvent(tool_name="find", tool_call_id="c1", args={"q": 1})),
        ({"type": "tool_call", "data": {"toolName": "find", "args": 0}}, ToolCallEvent(tool_name="find", args=0)),
        ({"type": "tool_call"}, ToolCallEvent(tool_name="tool")),
        ({"type": "tool_result", "name": "find", "output": [1]}, ToolResultEvent(tool_name="find", result=[1])),
        ({"type": "artifact", "id": "a1", "uri": "s3://x"}, ArtifactEvent(artifact_id="a1", uri="s3://x")),
        ({"type": "filing", "id": "p1", "status": "sent"}, ProposalCreatedEvent(proposal_id="p1", title="p1")),
        ({"type": "proposal", "id": "p1", "title": "t", "status": "approved"}, ProposalCreatedEvent(proposal_id="p1", title="t", status="approved")),
        ({"type": "result", "text": "a"}, TextDeltaEvent(text="a")),
        ({"type": "final", "data": {"finalText": "a"}}, TextDeltaEvent(text="a")),
        ({"type": "llm_call", "model": "m", "tokensIn": 3}, LlmCallEvent(model="m", tokens_in=3)),
        (text_delta("a"), TextDeltaEvent(text="a")),
        (reasoning_delta("a"), ReasoningDeltaEvent(text="a")),
        (tool_call(tool_call_id="c1", tool_name="find", args={}), ToolCallEvent(tool_name="find", tool_call_id="c1", args={})),
        (usage_event(model="m", tokensOut=2), LlmCallEvent(model="m", tokens_out=2)),
        (TextDeltaEvent(text="a"), TextDeltaEvent(text="a")),
        (ToolResultEvent(tool_name="find"), ToolResultEvent(tool_name="find")),
    ],
)  # fmt: skip
def test_what_is_understood(output: Any, event: Any) -> None:
    assert [event] == said(output)


@pytest.mark.parametrize(
    "output", [{"type": "ping"}, {"type": "artifact"}, {"type": "text_delta"}, {"type": "session.run.completed"}, []]
)
def test_what_has_no_place_in_a_stream_is_left_out(output: Any) -> None:
    assert [] == said(output)


def test_chat_events_that_arrived_together_are_told_one_by_one() -> None:
    assert ["a", "b"] == [event.text for event in said(TextDeltas(["a", "b"]))]


def test_an_answer_that_is_said_whole_at_the_end_is_not_said_twice() -> None:
    """O6: agent-runtime appends the whole text to its pieces."""
    assert ["hel", "lo"] == [
        event.text for event in said({"type": "text_delta", "text": "hel"}, {"type": "result", "text": "hello"})
    ]
    assert ["hello"] == [e.text for e in said(TextDeltaEvent(text="hello"), {"type": "final", "text": "hello"})]
    end = FinalEvent(task=TASK, timestamp="", status=AgentTaskStatus.COMPLETED, reason="", text="hello")
    assert ["hel", "lo"] == [event.text for event in said(TextDeltaEvent(text="hel"), end)]


PART = {"type": "text", "id": "p"}


def so_far(text: str) -> dict[str, Any]:
    return {"type": "message.part.updated", "data": {"part": {**PART, "text": text}}}


@pytest.mark.parametrize(
    "outputs",
    [
        ("a\ud83d", "\ude00b"), ("a", "\ud83d", "", "\ude00", "b"), ("a\ud83d\ude00b",),
        ("a\ud83d", {"type": "result", "text": "a😀b"}), (so_far("a\ud83d"), so_far("a😀"), so_far("a😀b")),
        ({"type": "message.part.updated", "data": {"part": PART, "delta": "a\ud83d"}}, so_far("a\ud83d\ude00b")),
        (text_delta("a\ud83d"), [text_delta("\ude00"), text_delta("b")]),
    ],
)  # fmt: skip
def test_a_character_that_is_cut_over_two_pieces_is_one(outputs: Sequence[Any]) -> None:
    """A sandbox in JavaScript counts in UTF-16, and may cut there."""
    mapper = SayingMapper("sandbox")
    pieces = (TextDeltaEvent(text=each) if isinstance(each, str) else each for each in outputs)
    told = [event for piece in pieces for event in mapper.feed(piece)]

    assert "a😀b" == "".join(event.text for event in told if isinstance(event, TextDeltaEvent)) == mapper.text()
    assert [] == mapper.finish()


@pytest.mark.parametrize("cls", [TextDeltaEvent, ReasoningDeltaEvent])
def test_half_a_character_is_told_apart_where_nothing_completes_it(cls: Any) -> None:
    """Whoever tells it refuses that; it is no part of the answer."""
    mapper = SayingMapper("sandbox")
    call = ToolCallEvent(tool_name="a")

    assert [cls(text="a")] == mapper.feed(cls(text="a\ud83d"))
    assert [cls(text="\ud83d"), call] == mapper.feed(call)
    assert [] == mapper.feed(cls(text="\ud83d"))
    assert [cls(text="\ud83d")] == mapper.finish()
    assert mapper.text() == ("a" if cls is TextDeltaEvent else "")


@pytest.mark.parametrize("output", [{"type": "result", "text": "he\ud800"}, so_far("h\ud800e"), so_far("\udc00")])
def test_a_whole_text_with_half_a_character_is_refused(output: Any) -> None:
    """Also where it takes back what was said, so that no piece of it is told."""
    with pytest.raises(BackendProtocolError):
        said(TextDeltaEvent(text="hello"), output)


def test_what_is_said_before_a_tool_is_no_part_of_the_answer() -> None:
    mapper = SayingMapper("sandbox")
    for output in (text_delta("Let me look. "), {"type": "tool_result", "name": "find"}, text_delta("It is 4.")):
        mapper.feed(output)

    assert "It is 4." == mapper.text()


@pytest.mark.parametrize("kind", ["error", "backend_error"])
@pytest.mark.parametrize("more", [{}, {"recoverable": False}, {"recoverable": "yes"}])
def test_an_error_inside_the_stream_fails_the_answer(kind: str, more: dict[str, Any]) -> None:
    """O5: there it is ignored, and the run has completed."""
    with pytest.raises(BackendReportedError) as raised:
        said({"type": kind, "data": {"message": "overloaded", **more}})

    assert "overloaded" == raised.value.detail


def test_an_error_from_which_a_sandbox_recovers_fails_nothing() -> None:
    assert [] == said({"type": "backend_error", "data": {"message": "overloaded", "recoverable": True}})


@pytest.mark.parametrize(
    "output", [7, "text", None, {"text": "a"}, {"type": 7}, TaskStartEvent(task=TASK, timestamp="")]
)
def test_what_is_no_event_of_a_backend_is_refused(output: Any) -> None:
    """O3: there any text that is no JSON becomes a part of the answer."""
    with pytest.raises(BackendProtocolError):
        said(output)
