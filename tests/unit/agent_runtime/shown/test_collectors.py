"""Collectors: what a stream came to, sanitized and bounded, however long it is."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatturn.agent_runtime.shown.collectors import (
    MAX_EVENTS,
    RuntimeStreamEventCollector,
    RuntimeStreamEventSink,
    create_runtime_event_collector,
    create_runtime_stream_event_collector,
)
from chatturn.agent_runtime.shown.sanitize import RuntimeTelemetryOptions, sanitize_runtime_stream_event
from chatturn.agent_runtime.values.control import AgentRuntimeEvent
from chatturn.agent_runtime.values.events import (
    BackendErrorEvent,
    BackendStartEvent,
    FinalEvent,
    LlmCallEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TaskStartEvent,
    TextDeltaEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, AgentTaskStatus, RuntimeSession, SessionStatus
from tests.support.runtime_values import events

NOW = "2026-01-01T00:00:00.000Z"
TASK = AgentTaskSpec(id="t", intent="Answer.")
SESSION = RuntimeSession(id="s", backend="b", status=SessionStatus.ACTIVE, created_at=NOW, updated_at=NOW)
TEXT = RuntimeTelemetryOptions(include_text=True)
ABOUT: dict[str, Any] = {"task": TASK, "timestamp": NOW}

BEGUN = (
    TaskStartEvent(**ABOUT),
    SessionCreatedEvent(**ABOUT, session=SESSION),
    BackendStartEvent(**ABOUT, session=SESSION, backend="b"),
)
SAID = (TextDeltaEvent(text="Hel"), TextDeltaEvent(text="lo"))


def final(text: str | None = None, **other: Any) -> FinalEvent:
    members = {"status": AgentTaskStatus.COMPLETED, "reason": "backend completed", **other}
    return FinalEvent(**ABOUT, text=text, **members)


def collected(*seen: RuntimeStreamEvent, options: RuntimeTelemetryOptions = TEXT) -> RuntimeStreamEventCollector:
    collector = create_runtime_stream_event_collector(options)
    for event in seen:
        collector.on_event(event)
    return collector


def test_it_is_a_sink() -> None:
    """Whoever hands out events can be given one: the type checker sees to it."""
    sink: RuntimeStreamEventSink = create_runtime_stream_event_collector().on_event

    sink(TextDeltaEvent(text="a"))


def test_a_summary_says_what_a_stream_came_to() -> None:
    """How many of what, in which session, how it ended, and the answer."""
    summary = collected(*BEGUN, *SAID, LlmCallEvent(model="m"), final("Hello")).summary()

    assert 7 == summary.event_count
    assert {
        "task_start": 1,
        "session_created": 1,
        "backend_start": 1,
        "text_delta": 2,
        "llm_call": 1,
        "final": 1,
    } == summary.event_counts_by_type
    assert ("s", "completed", "backend completed", "Hello") == (
        summary.first_session_id,
        summary.final_status,
        summary.final_reason,
        summary.final_text,
    )


def test_nothing_is_a_summary_too() -> None:
    """Of a stream that has not begun."""
    summary = collected().summary()

    assert (0, {}, None, None, None, "") == (
        summary.event_count,
        summary.event_counts_by_type,
        summary.first_session_id,
        summary.final_status,
        summary.final_reason,
        summary.final_text,
    )


@given(st.lists(events(lambda _: st.text("ab")), max_size=4))
@settings(max_examples=30)
def test_what_is_kept_is_sanitized(seen: list[RuntimeStreamEvent]) -> None:
    """As the sanitizer alone would, under the same options."""
    collector = collected(*seen, options=TEXT)

    assert [sanitize_runtime_stream_event(event, TEXT) for event in seen] == collector.events


def test_the_answer_is_not_in_a_summary_unless_it_is_asked_for() -> None:
    """agent-runtime's collector joins the text whatever is redacted; ours says only that there is one."""
    collector = collected(*BEGUN, *SAID, final("Hello"), options=RuntimeTelemetryOptions(include_control_payloads=True))

    assert "[redacted]" == collector.summary().final_text
    assert "Hello" not in json.dumps([event for event in collector.events if event["type"] != "final"])


def test_a_reason_is_not_in_a_summary_unless_it_is_asked_for() -> None:
    """Why it ended may be an exception's text."""
    end = final(status=AgentTaskStatus.FAILED, reason="SELECT failed near 'Miller'")

    assert "[redacted]" == collected(end).summary().final_reason
    asked = RuntimeTelemetryOptions(include_reasons=True)
    assert "SELECT failed near 'Miller'" == collected(end, options=asked).summary().final_reason


def test_a_key_in_pieces_is_not_in_the_answer() -> None:
    """The pieces alone do not look like one; joined, they do."""
    pieces = (TextDeltaEvent(text="use sk-live-abc"), TextDeltaEvent(text="defgh12345678 now"))

    assert "use [redacted] now" == collected(*pieces).summary().final_text


def test_o6_the_end_s_text_is_the_answer_and_is_not_added() -> None:
    """What was said before it is what it says, or what was redacted since."""
    assert "Hello!" == collected(*SAID, final("Hello!")).summary().final_text
    assert "Hello" == collected(*SAID, final()).summary().final_text


def test_what_a_lost_attempt_said_is_no_answer() -> None:
    """Where the backend starts again, the answer begins anew."""
    lost = BackendErrorEvent(**ABOUT, backend="b", message="lost", recoverable=True)
    again = SessionResumedEvent(**ABOUT, session=SESSION)

    assert "Hello" == collected(*BEGUN, SAID[0], lost, again, BEGUN[2], *SAID).summary().final_text


@pytest.mark.parametrize(
    "session", [SessionCreatedEvent(**ABOUT, session=SESSION), SessionResumedEvent(**ABOUT, session=SESSION)]
)
def test_the_first_session_counts(session: RuntimeStreamEvent) -> None:
    """Created or resumed; later ones do not replace it."""
    other = RuntimeSession(id="other", backend="b", status=SessionStatus.ACTIVE, created_at=NOW, updated_at=NOW)

    assert "s" == collected(session, SessionCreatedEvent(**ABOUT, session=other)).summary().first_session_id


# The bounds


def test_the_first_events_are_kept_and_all_are_counted() -> None:
    """A stream that never stops talking has a bounded record, and a whole summary."""
    collector = collected(*BEGUN, *(SAID[0] for _ in range(MAX_EVENTS)), final("Hello", reason="suspended"))

    assert (MAX_EVENTS, 4) == (len(collector.events), collector.dropped)
    assert "task_start" == collector.events[0]["type"]
    assert (MAX_EVENTS + 4, "suspended", "Hello") == (
        collector.summary().event_count,
        collector.summary().final_reason,
        collector.summary().final_text,
    )


def test_what_is_kept_is_bounded_in_characters() -> None:
    """Events that are few and long are cut off as well, and nothing is kept after the first that was not."""
    asked = RuntimeTelemetryOptions(include_text=True)
    collector = create_runtime_stream_event_collector(asked, max_characters=500)
    for event in (TextDeltaEvent(text="a" * 200), TextDeltaEvent(text="b" * 300), TextDeltaEvent(text="c")):
        collector.on_event(event)

    assert (1, 2) == (len(collector.events), collector.dropped)
    assert "a" * 200 + "b" * 300 == collector.summary().final_text
    collector.on_event(TextDeltaEvent(text="d"))
    assert 500 == len(collector.summary().final_text)


def test_without_room_nothing_is_kept_and_everything_counted() -> None:
    """A collector may be used for its summary alone."""
    collector = create_runtime_stream_event_collector(max_events=0)
    collector.on_event(SAID[0])

    assert ([], 1, 1) == (collector.events, collector.dropped, collector.summary().event_count)


# The loop of control


def test_a_loop_s_events_are_collected() -> None:
    """Sanitized and bounded in the same way."""
    collector = create_runtime_event_collector(max_events=2)
    for kind in ("task_start", "readiness_start"):
        collector.on_event(AgentRuntimeEvent(type=kind, task=TASK))
    collector.on_event(AgentRuntimeEvent(type="task_end", task=TASK, status=AgentTaskStatus.FAILED, reason="x"))

    assert ["task_start", "readiness_start"] == [event["type"] for event in collector.events]
    assert {"type": "task_start", "task": {"id": "t", "intent": "Answer."}} == collector.events[0]
    assert 1 == collector.dropped
