"""agent-runtime's vocabulary: its types and members, its JSON in both directions, and its order."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.agent_runtime.values.codec import (
    MAX_JSON_DEPTH,
    InvalidRuntimeEvent,
    decode_runtime_event,
    encode_runtime_event,
    event_from_json,
    json_names,
    to_json,
)
from chatturn.agent_runtime.values.control import AgentRuntimeEvent
from chatturn.agent_runtime.values.event_order import PHASES, Phase, first_out_of_order
from chatturn.agent_runtime.values.events import (
    EVENT_CLASSES,
    BackendMadeEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolCallEvent,
    filled_in,
    without_tokens,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, RuntimeSession, SessionStatus
from chatturn.durable.records import TaskSpec
from chatturn.timestamps import epoch_ms, iso_timestamp
from tests.support.runtime_values import events, values_of

TASK = AgentTaskSpec(id="t", intent="Answer.")
SESSION = RuntimeSession(
    id="s",
    backend="echo",
    status=SessionStatus.ACTIVE,
    created_at="2026-01-01T00:00:00.000Z",
    updated_at="2026-01-01T00:00:00.000Z",
)

# docs/reference/agent-runtime.md, Stream events, and which members each event has besides: a "?" is optional.
RUNTIME_MADE, BACKEND_MADE = "task timestamp", "task? session? timestamp?"
VOCABULARY = {
    "task_start": RUNTIME_MADE,
    "readiness_start": RUNTIME_MADE,
    "readiness_end": f"{RUNTIME_MADE} knowledge decision",
    "questions_start": f"{RUNTIME_MADE} questions",
    "questions_end": f"{RUNTIME_MADE} questions userAnswers",
    "acquisition_start": f"{RUNTIME_MADE} acquisitionPlans",
    "acquisition_end": f"{RUNTIME_MADE} acquisitionPlans acquiredEvidenceIds",
    "session_created": f"{RUNTIME_MADE} session",
    "session_resumed": f"{RUNTIME_MADE} session",
    "backend_start": f"{RUNTIME_MADE} session backend",
    "text_delta": f"{BACKEND_MADE} text",
    "reasoning_delta": f"{BACKEND_MADE} text",
    "tool_call": f"{BACKEND_MADE} toolName toolCallId? args?",
    "tool_result": f"{BACKEND_MADE} toolName toolCallId? result?",
    "llm_call": f"{BACKEND_MADE} model tokensIn? tokensOut? costUsd? latencyMs? finishReason?",
    "artifact": f"{BACKEND_MADE} artifactId name? mimeType? uri? content? metadata?",
    "proposal_created": f"{BACKEND_MADE} proposalId title status? content?",
    "backend_error": f"{RUNTIME_MADE} backend message recoverable session? error?",
    "backend_end": f"{RUNTIME_MADE} session backend",
    "task_end": f"{RUNTIME_MADE} status reason",
    "final": f"{RUNTIME_MADE} status reason session? text? metadata? error?",
}


def members(cls: Any) -> Iterator[str]:
    for item in fields(cls):
        yield json_names(cls)[item.name] + ("" if item.default is MISSING else "?")


# The vocabulary


def test_the_types_and_their_members_are_agent_runtimes() -> None:
    """No type and no member is missing, none is added, and each is optional where it is for them."""
    expected = {kind: set(names.split()) for kind, names in VOCABULARY.items()}

    assert expected == {kind: set(members(cls)) for kind, cls in EVENT_CLASSES.items()}


def test_what_a_backend_leaves_out_is_filled_in() -> None:
    """Task, session and time come from whoever runs it; what the backend said stays."""
    said = TextDeltaEvent(text="a", timestamp="2026-01-01T00:00:05.000Z")
    filled = filled_in(said, task=TASK, session=SESSION, timestamp="2026-01-01T00:00:09.000Z")

    assert TextDeltaEvent(text="a", task=TASK, session=SESSION, timestamp="2026-01-01T00:00:05.000Z") == filled


def test_a_run_s_task_is_a_task() -> None:
    """What a durable run is for, in agent-runtime's shape."""
    spec = TaskSpec(id="t", intent="Answer.", domain="legal", metadata={"a": 1})

    assert AgentTaskSpec(id="t", intent="Answer.", domain="legal", metadata={"a": 1}) == AgentTaskSpec.of(spec)
    assert AgentTaskSpec(id="t", intent="Answer.") == AgentTaskSpec.of(TaskSpec(id="t", intent="Answer."))


# JSON


@given(events(lambda _: st.text()))
def test_every_event_is_read_as_it_was_written(event: RuntimeStreamEvent) -> None:
    """Encoding and decoding give the same value; but a resume token, which is a credential, is never written."""
    assert without_tokens(event) == decode_runtime_event(encode_runtime_event(event))


@given(values_of(AgentTaskSpec, lambda _: st.text()))
def test_what_is_not_there_is_left_out(task: AgentTaskSpec) -> None:
    """None never becomes null: it is not known, and agent-runtime says undefined."""
    assert None not in to_json(task).values()


def test_the_json_is_agent_runtimes() -> None:
    """Names in camelCase, the type first, one line without spaces, text as it is."""
    event = ToolCallEvent(tool_name="find", tool_call_id="1", args={"q": "Käse\n", "n": None})

    assert '{"type":"tool_call","toolName":"find","toolCallId":"1","args":{"q":"Käse\\n","n":null}}' == (
        encode_runtime_event(event)
    )


def test_members_that_are_not_known_are_ignored() -> None:
    """A later version of agent-runtime may say more."""
    assert TextDeltaEvent(text="a") == event_from_json({"type": "text_delta", "text": "a", "later": {"x": 1}})


def test_null_is_as_if_it_were_not_there() -> None:
    """Some writers say null for what is absent."""
    assert TextDeltaEvent(text="a") == event_from_json({"type": "text_delta", "text": "a", "session": None})


START = {"type": "task_start", "task": {"id": "t", "intent": "i"}, "timestamp": "2026-01-01T00:00:00.000Z"}
QUESTIONS = START | {"type": "questions_start", "questions": [{"id": "q"}]}


@pytest.mark.parametrize(
    ("given_members", "where"),
    [
        ([], ""),
        ({}, "type"),
        ({"type": "text"}, "type"),
        ({"type": []}, "type"),
        ({"type": "text_delta"}, "text"),
        ({"type": "text_delta", "text": 7}, "text"),
        ({"type": "text_delta", "text": "a", "session": {"id": "s"}}, "session.backend"),
        (START | {"task": "t"}, "task"),
        (START | {"task": {"id": "t", "intent": None}}, "task.intent"),
        (START | {"task": {"id": "t", "intent": "i", "budget": {"maxSteps": "8"}}}, "task.budget.maxSteps"),
        (START | {"type": "final", "status": "done", "reason": ""}, "status"),
        (START | {"type": "final", "status": ["failed"], "reason": ""}, "status"),
        (START | {"type": "backend_error", "backend": "b", "message": "", "recoverable": 1}, "recoverable"),
        (QUESTIONS, "questions[0].question"),
        (START | {"type": "questions_start", "questions": {}}, "questions"),
        ({"type": "llm_call", "model": "m", "tokensIn": "3"}, "tokensIn"),
        ({"type": "llm_call", "model": "m", "tokensIn": True}, "tokensIn"),
        ({"type": "llm_call", "model": "m", "costUsd": float("inf")}, "costUsd"),
        ({"type": "artifact", "artifactId": "a", "metadata": []}, "metadata"),
    ],
)
def test_what_is_no_event_is_refused_by_the_name_of_what_is_wrong(given_members: object, where: str) -> None:
    """The path leads to the member."""
    with pytest.raises(InvalidRuntimeEvent) as caught:
        event_from_json(given_members)

    assert where == caught.value.where


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"type":"tool_call","toolName":"t","args":NaN}',
        '{"type":"tool_call","toolName":"t","args":' + "[" * 65 + "]" * 65 + "}",
        '{"type":"llm_call","model":"m","tokensIn":' + "9" * 5_000 + "}",
    ],
)
def test_a_text_that_is_no_event_is_refused(text: str) -> None:
    """No JSON, more than JSON, or more than an interpreter can take."""
    with pytest.raises(InvalidRuntimeEvent):
        decode_runtime_event(text)

    assert MAX_JSON_DEPTH == 64


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "task", "text", "session", "status"]) | st.text(), inner | st.sampled_from(list(EVENT_CLASSES)))))  # fmt: skip
def test_any_json_is_an_event_or_is_refused(value: object) -> None:
    """Nothing else is raised."""
    try:
        event = event_from_json(value)
    except InvalidRuntimeEvent:
        return

    assert EVENT_CLASSES[event.type] is type(event)


def test_a_number_that_json_cannot_carry_is_not_written() -> None:
    """NaN would break whoever reads it."""
    with pytest.raises(ValueError, match="JSON"):
        encode_runtime_event(ToolCallEvent(tool_name="t", args=float("nan")))


# The order


def run_through(*kinds: str) -> Phase | None:
    """Return where a stream of these types stands; None if one may not come where it does."""
    phase: Phase | None = Phase.NEW
    for kind in kinds:
        phase = None if phase is None else PHASES[phase].get(kind)
    return phase


GATE = ("task_start", "readiness_start", "readiness_end")
ASKED = ("questions_start", "questions_end", "acquisition_start", "acquisition_end", "readiness_start")
RUN = ("session_created", "backend_start", "text_delta", "llm_call", "tool_call", "tool_result")
END = ("task_end", "final")


@pytest.mark.parametrize(
    "kinds",
    [
        (*GATE, *RUN, "backend_end", *END),
        (*GATE, *END),
        (*GATE[:2], *ASKED, GATE[2], *RUN, "backend_end", *END),
        (*GATE, "session_resumed", "backend_start", "text_delta", "backend_error", *END),
        (*GATE, "session_created", "backend_start", "backend_error", "text_delta", "backend_end", *END),
        ("task_start", *RUN, "backend_error", "session_resumed", "backend_start", "text_delta", "backend_end", *END),
    ],
)
def test_agent_runtimes_streams_are_in_order(kinds: tuple[str, ...]) -> None:
    """Ready, blocked, asked, failed, mended; and a turn that was taken over."""
    assert Phase.OVER is run_through(*kinds)


@pytest.mark.parametrize(
    "kinds",
    [
        ("text_delta",),
        ("task_start", "task_start"),
        ("task_start", "backend_start"),
        (*GATE[:2], "questions_start", "readiness_end"),
        (*GATE[:2], *ASKED, "questions_start"),
        (*GATE, *RUN, *END),
        (*GATE, *RUN, "backend_end", "text_delta"),
        (*GATE, *RUN, "backend_end", "final"),
        (*GATE, *END, "task_start"),
    ],
)
def test_what_is_out_of_order_is_found(kinds: tuple[str, ...]) -> None:
    """Each of these breaks the order somewhere."""
    assert run_through(*kinds) is None


def test_every_type_has_a_place_and_every_phase_leads_to_the_end() -> None:
    """The table knows the whole vocabulary, and from everywhere there is a way out."""
    reached = {Phase.OVER}
    while more := {phase for phase, moves in PHASES.items() if reached & set(moves.values())} - reached:
        reached |= more

    assert set(EVENT_CLASSES) == {kind for moves in PHASES.values() for kind in moves}
    assert set(Phase) == set(PHASES) == reached


def test_a_stream_s_first_misplaced_event_is_returned() -> None:
    """Or None for a stream in order."""
    said = TextDeltaEvent(text="a")

    assert first_out_of_order([]) is None
    assert said is first_out_of_order([said])
    assert {kind for kind, cls in EVENT_CLASSES.items() if issubclass(cls, BackendMadeEvent)} < set(
        PHASES[Phase.RUNNING]
    )


# Times


@given(st.integers(-(10**13), 10**14))
def test_a_timestamp_is_read_as_it_was_written(moment_ms: int) -> None:
    """24 characters, and the millisecond they stand for."""
    timestamp = iso_timestamp(moment_ms)

    assert 24 == len(timestamp)
    assert moment_ms == epoch_ms(timestamp)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("1970-01-01T00:00:01.500Z", 1_500),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:01", 1_000),
        ("1970-01-01", 0),
        ("1969-12-31T23:59:59.9999Z", -1),
        ("yesterday", None),
        ("", None),
    ],
)
def test_a_foreign_timestamp_is_read_or_is_none(timestamp: str, expected: int | None) -> None:
    """With and without a zone, and no guess where it is none."""
    assert expected == epoch_ms(timestamp)


@given(st.text() | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", fullmatch=True))
def test_any_text_is_a_time_or_none(text: str) -> None:
    """Nothing raises."""
    assert epoch_ms(text) is None or isinstance(epoch_ms(text), int)


# The loop of control


@pytest.mark.parametrize(
    "members_given", [{}, {"status": "completed"}, {"status": "completed", "reason": "", "step": 1}]
)
def test_an_event_of_the_loop_has_the_members_of_its_type(members_given: dict[str, Any]) -> None:
    """One that lacks a member, or has another type's, cannot be made."""
    with pytest.raises(ValueError, match="task_end has not the members that it must have"):
        AgentRuntimeEvent(type="task_end", task=TASK, **members_given)
