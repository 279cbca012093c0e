"""The trace bridge: its kinds, its ids and times, and payloads that hold nothing of what anybody said."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatturn.agent_runtime.shown.trace_bridge import (
    _PAYLOADS,
    TraceBridge,
    TraceBridgeOptions,
    TraceEvent,
    create_trace_bridge,
    to_agent_eval_trace,
)
from chatturn.agent_runtime.values.events import (
    EVENT_CLASSES,
    ArtifactEvent,
    BackendErrorEvent,
    FinalEvent,
    LlmCallEvent,
    ProposalCreatedEvent,
    ReadinessEndEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TaskEndEvent,
    TaskStartEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessDecision
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, AgentTaskStatus
from tests.support.runtime_values import KEYS, PRIVATE, events, private, with_a_key

NOW = "2026-01-01T00:00:00.000Z"
NOW_MS = 1_767_225_600_000
TASK = AgentTaskSpec(id="t", intent="Answer.")
ABOUT: dict[str, Any] = {"task": TASK, "timestamp": NOW}


def options(**other: Any) -> TraceBridgeOptions:
    return TraceBridgeOptions(**{"run_id": "r", "now_ms": lambda: 7, **other})


def bridge(**other: Any) -> TraceBridge:
    return create_trace_bridge(options(**other))


def mark(event: RuntimeStreamEvent, **other: Any) -> TraceEvent:
    made = bridge(**other).to_trace_event(event)
    assert made is not None
    return made


def readiness(*, passed: bool) -> ReadinessEndEvent:
    decision = KnowledgeReadinessDecision(
        passed=passed,
        status="ready" if passed else "blocked",
        reason="it lacks what it must know",
        readiness_score=0.5,
        recommended_action="run_agent",
        severity="info",
        blocking_gap_ids=("a",),
        non_blocking_gap_ids=(),
    )
    knowledge: Any = None  # the bridge reads the decision only
    return ReadinessEndEvent(**ABOUT, knowledge=knowledge, decision=decision)


def end(cls: type[TaskEndEvent | FinalEvent], status: AgentTaskStatus) -> TaskEndEvent | FinalEvent:
    return cls(**ABOUT, status=status, reason="suspended")


ERROR = BackendErrorEvent(**ABOUT, backend="openai", message="no", recoverable=True)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (TaskStartEvent(**ABOUT), "log"),
        (readiness(passed=True), "log"),
        (readiness(passed=False), "policy_violation"),
        (ERROR, "error"),
        *((end(cls, AgentTaskStatus.COMPLETED), "log") for cls in (TaskEndEvent, FinalEvent)),
        *((end(cls, AgentTaskStatus.BLOCKED), "log") for cls in (TaskEndEvent, FinalEvent)),
        *((end(cls, AgentTaskStatus.FAILED), "error") for cls in (TaskEndEvent, FinalEvent)),
        *((end(cls, AgentTaskStatus.ABORTED), "error") for cls in (TaskEndEvent, FinalEvent)),
        (ArtifactEvent(artifact_id="a"), "state_mutation"),
        (ProposalCreatedEvent(proposal_id="p", title="t"), "state_mutation"),
        (ToolCallEvent(tool_name="t"), "log"),
        (LlmCallEvent(model="m"), "log"),
    ],
)
def test_each_event_has_its_kind(event: RuntimeStreamEvent, kind: str) -> None:
    """Failures are errors, a gate that is not passed violates a policy, what was made changes state."""
    assert kind == mark(event).kind


@pytest.mark.parametrize("event", [TextDeltaEvent(text="a"), ReasoningDeltaEvent(text="a")])
def test_pieces_of_an_answer_are_no_marks(event: RuntimeStreamEvent) -> None:
    """They use up no id either."""
    made = bridge()

    assert made.to_trace_event(event) is None
    assert "evt-1" == next(iter(made.drain([event, ERROR]))).event_id


def test_every_other_event_is_a_mark() -> None:
    """A type that nobody has thought about is an error of this test."""
    assert set(EVENT_CLASSES.values()) - {TextDeltaEvent, ReasoningDeltaEvent} == set(_PAYLOADS)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (TaskStartEvent(**ABOUT), {"phase": "task_start", "taskId": "t", "intent": "Answer."}),
        (ERROR, {"backend": "openai", "message": "[redacted]", "recoverable": True}),
        (ToolCallEvent(tool_name="f", tool_call_id="1", args={"a": 1}), {"phase": "tool_call", "toolName": "f", "toolCallId": "1"}),
        (ToolResultEvent(tool_name="f", result="x"), {"phase": "tool_result", "toolName": "f"}),
        (LlmCallEvent(model="m", tokens_in=3, tokens_out=0, cost_usd=0.5, latency_ms=9, finish_reason="stop"),
         {"phase": "llm_call", "model": "m", "tokensIn": 3, "tokensOut": 0, "costUsd": 0.5, "latencyMs": 9, "finishReason": "stop"}),
        (ArtifactEvent(artifact_id="a", name="n", mime_type="m", content="c", uri="u"), {"phase": "artifact", "artifactId": "a", "mimeType": "m"}),
        (ProposalCreatedEvent(proposal_id="p", title="t", status="pending", content="c"), {"phase": "proposal_created", "proposalId": "p", "status": "pending"}),
        (end(TaskEndEvent, AgentTaskStatus.FAILED), {"phase": "task_end", "status": "failed", "reason": "suspended"}),
        (FinalEvent(**ABOUT, status=AgentTaskStatus.COMPLETED, reason="so it is", text="x"), {"phase": "final", "status": "completed", "reason": "[redacted]"}),
        (readiness(passed=False),
         {"phase": "readiness_end", "taskId": "t", "status": "blocked", "readinessScore": 0.5, "blockingGapIds": ["a"], "nonBlockingGapIds": [], "reason": "[redacted]"}),
    ],
)  # fmt: skip
def test_payloads_have_ids_and_counts(event: RuntimeStreamEvent, payload: dict[str, Any]) -> None:
    """What is not known is left out; what anybody said is not there."""
    assert payload == mark(event).payload


@given(events(private))
def test_nothing_that_anybody_said_is_in_a_payload(event: RuntimeStreamEvent) -> None:
    """Nor why it failed, which agent-runtime's bridge lets through."""
    marks = bridge().drain([event])

    assert PRIVATE not in json.dumps([made.to_json() for made in marks])


@given(events(with_a_key))
@settings(max_examples=50)
def test_a_key_never_passes(event: RuntimeStreamEvent) -> None:
    """Even where reasons are asked for."""
    marks = bridge(include_reasons=True).drain([event])

    assert [] == [key for key in KEYS if key in json.dumps([made.to_json() for made in marks])]


def test_reasons_pass_if_they_are_asked_for() -> None:
    """For who keeps the trace where the words belong."""
    assert "no" == mark(ERROR, include_reasons=True).payload["message"]


def test_a_mark_is_the_evaluation_package_s() -> None:
    """Ids, kind, time in milliseconds, payload; the span if there is one."""
    members = {"eventId": "evt-1", "runId": "r", "kind": "error", "timestamp": NOW_MS}
    payload = {"backend": "openai", "message": "[redacted]", "recoverable": True}

    assert members | {"payload": payload} == mark(ERROR).to_json()
    assert members | {"payload": payload, "spanId": "s"} == mark(ERROR, span_id="s").to_json()


def test_ids_count_up_per_bridge() -> None:
    """Or are what the options give; a bridge for one event always says evt-1."""
    ids = iter("xy")

    assert ["evt-1", "evt-2"] == [made.event_id for made in bridge().drain([ERROR, ERROR])]
    assert ["x", "y"] == [made.event_id for made in bridge(new_event_id=lambda: next(ids)).drain([ERROR, ERROR])]
    once = [to_agent_eval_trace(ERROR, options()) for _ in range(2)]
    assert ["evt-1", "evt-1"] == [made.event_id for made in once if made]


@pytest.mark.parametrize(
    ("timestamp", "expected"), [(NOW, NOW_MS), (None, 7), ("yesterday", 7), ("2026-01-01T01:00:00+01:00", NOW_MS)]
)
def test_an_event_without_a_time_happens_now(timestamp: str | None, expected: int) -> None:
    """And so does one whose time is none."""
    assert expected == mark(ToolCallEvent(tool_name="t", timestamp=timestamp)).timestamp


def test_a_run_without_an_id_is_refused() -> None:
    """Its trace events would belong nowhere."""
    with pytest.raises(ValueError, match="run_id"):
        create_trace_bridge(options(run_id=""))


@given(st.lists(events(lambda _: st.text("ab")), max_size=4))
@settings(max_examples=20)
def test_draining_is_mapping_one_after_another(seen: list[RuntimeStreamEvent]) -> None:
    """In their order, without those that are no marks."""
    one_by_one = bridge()

    assert [made for event in seen if (made := one_by_one.to_trace_event(event))] == bridge().drain(seen)
