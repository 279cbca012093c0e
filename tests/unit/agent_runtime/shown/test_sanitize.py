"""Sanitizers: what nobody asked for is not in what comes out, and what must never be is not, whatever is asked for."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatturn.agent_runtime.shown.sanitize import (
    RuntimeTelemetryOptions,
    sanitize_agent_runtime_event,
    sanitize_knowledge_readiness_report,
    sanitize_runtime_stream_event,
)
from chatturn.agent_runtime.shown.sanitize_rules import RULES
from chatturn.agent_runtime.tasks.readiness import assess_knowledge
from chatturn.agent_runtime.values.codec import read_value, to_json
from chatturn.agent_runtime.values.control import AgentRuntimeEvent, ControlStep
from chatturn.agent_runtime.values.events import (
    EVENT_CLASSES,
    ArtifactEvent,
    BackendErrorEvent,
    FinalEvent,
    LlmCallEvent,
    QuestionsEndEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    TaskEndEvent,
    TextDeltaEvent,
    ToolCallEvent,
)
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport, KnowledgeRequirement, UserQuestion
from chatturn.agent_runtime.values.tasks import (
    AgentTaskSpec,
    AgentTaskStatus,
    BackendErrorDetail,
    RuntimeSession,
    SessionStatus,
)
from chatturn.errors import BackendTimeout
from chatturn.telemetry.redaction import without_uri_secrets
from tests.support.runtime_values import KEYS, PRIVATE, agent_events, events, private, values_of, with_a_key

NOW = "2026-01-01T00:00:00.000Z"
TASK = AgentTaskSpec(id="t", intent="Answer.")
ALL = RuntimeTelemetryOptions(**{item.name: True for item in fields(RuntimeTelemetryOptions)})

# By default


@given(events(private))
def test_nothing_that_anybody_said_is_in_an_event_by_default(event: RuntimeStreamEvent) -> None:
    """Wherever it stands in whatever event."""
    assert PRIVATE not in json.dumps(sanitize_runtime_stream_event(event))


@given(agent_events(private))
def test_nothing_that_anybody_said_is_in_a_loop_s_event_by_default(event: AgentRuntimeEvent) -> None:
    """Nor in what a loop of control says: its states, actions, results, checks."""
    assert PRIVATE not in json.dumps(sanitize_agent_runtime_event(event))


@given(values_of(KnowledgeReadinessReport, private))
def test_nothing_that_anybody_said_is_in_a_report_by_default(report: KnowledgeReadinessReport) -> None:
    """Nor in what is known of a task."""
    assert PRIVATE not in json.dumps(to_json(sanitize_knowledge_readiness_report(report)))


@given(events(private))
def test_what_happened_is_shown(event: RuntimeStreamEvent) -> None:
    """The type first, and the time; an event that was sanitized is still the same event."""
    members = sanitize_runtime_stream_event(event)

    assert "type" == next(iter(members))
    assert (event.type, event.timestamp) == (members["type"], members.get("timestamp"))


def test_every_member_of_every_value_has_its_rule() -> None:
    """A member that nobody has thought about is not shown: it is an error of this test."""
    for cls, rules in RULES.items():
        assert {item.name for item in fields(cls)} >= set(rules) - {"task", "session", "timestamp"}, cls
        assert {item.name for item in fields(cls)} <= set(rules), cls
    assert set(EVENT_CLASSES.values()) < set(RULES)


def test_what_has_no_rules_is_named_by_its_type() -> None:
    """Anything that is no JSON, wherever JSON was meant."""
    asked = RuntimeTelemetryOptions(include_control_payloads=True)
    members = sanitize_runtime_stream_event(
        ToolCallEvent(tool_name="t", args={"a": object(), "b": float("nan")}), asked
    )

    assert {"a": "<object>", "b": "<float>"} == members["args"]


# What agent-runtime lets through, one by one


def stream(event: RuntimeStreamEvent, **asked: bool) -> dict[str, Any]:
    return sanitize_runtime_stream_event(event, RuntimeTelemetryOptions(**asked))


@pytest.mark.parametrize("cls", [TextDeltaEvent, ReasoningDeltaEvent])
def test_text_does_not_pass_unless_it_is_asked_for(cls: type[TextDeltaEvent | ReasoningDeltaEvent]) -> None:
    """agent-runtime's sanitizer lets every piece of an answer through."""
    assert "[redacted]" == stream(cls(text=PRIVATE))["text"]
    assert PRIVATE == stream(cls(text=PRIVATE), include_text=True)["text"]


def failed(message: str) -> BackendErrorEvent:
    detail = BackendErrorDetail(kind="transport", message=message, status=502, body=message)
    return BackendErrorEvent(
        task=TASK, timestamp=NOW, backend="openai", message=message, recoverable=True, error=detail
    )


def test_an_upstream_s_words_do_not_pass_unless_they_are_asked_for() -> None:
    """A backend's error text may quote the request; its kind and status always show."""
    shown = stream(failed(PRIVATE))

    assert "[redacted]" == shown["message"]
    assert {"kind": "transport", "status": 502} == shown["error"]
    assert PRIVATE == stream(failed(PRIVATE), include_reasons=True)["message"]


def test_an_upstream_s_body_passes_with_the_end_only() -> None:
    """And only if payloads are asked for."""
    end = FinalEvent(task=TASK, timestamp=NOW, status=AgentTaskStatus.FAILED, reason="x", error=failed("a body").error)

    assert {"kind": "transport", "status": 502, "message": "[redacted]"} == stream(end)["error"]
    assert "a body" == stream(end, include_control_payloads=True)["error"]["body"]
    assert "body" not in stream(failed("a body"), include_control_payloads=True, include_reasons=True)["error"]


def test_a_reason_does_not_pass_unless_it_is_asked_for() -> None:
    """Why a task ended may be an exception's text."""
    end = TaskEndEvent(task=TASK, timestamp=NOW, status=AgentTaskStatus.FAILED, reason=PRIVATE)

    assert "[redacted]" == stream(end)["reason"]
    assert PRIVATE == stream(end, include_reasons=True)["reason"]


@pytest.mark.parametrize(
    "words", ["backend completed", "suspended", "requested", BackendTimeout.code, BackendTimeout.public]
)
def test_words_of_ours_pass(words: str) -> None:
    """They are fixed, tell nobody's data, and are what an operator counts by."""
    end = TaskEndEvent(task=TASK, timestamp=NOW, status=AgentTaskStatus.FAILED, reason=words)

    assert (words, words) == (stream(end)["reason"], stream(failed(words))["message"])


def requirement(**other: Any) -> KnowledgeRequirement:
    given_members: dict[str, Any] = {
        "id": "r",
        "description": "The build command",
        "required_for": ("build",),
        "category": "codebase_specific",
        "acquisition_mode": "ask_user",
        "importance": "blocking",
        "freshness": "static",
        "sensitivity": "private",
        "confidence_needed": 0.8,
        "current_confidence": 0.1,
        "evidence_ids": ("e1", "e2"),
        "fallback_policy": "ask",
    }
    return KnowledgeRequirement(**given_members | other)


def question(**other: Any) -> UserQuestion:
    given_members: dict[str, Any] = {
        "id": "q",
        "question": "What is it?",
        "reason": "The build command is needed.",
        "requirement_id": "r",
        "importance": "blocking",
        "answer_type": "free_text",
        "impact_if_unknown": "Nothing is built.",
        "options": ("a", "b"),
    }
    return UserQuestion(**given_members | other)


def answered(task: AgentTaskSpec, *questions: UserQuestion) -> QuestionsEndEvent:
    answers = {each.id: f"answer to {each.id}" for each in questions} | {"unasked": "hunter2"}
    return QuestionsEndEvent(task=task, timestamp=NOW, questions=questions, user_answers=answers)


def test_an_answer_that_is_a_credential_never_passes() -> None:
    """agent-runtime's flag for answers shows credentials too; so would an answer to a question that nobody knows."""
    key = requirement(id="key", category="credential_or_secret")
    task = AgentTaskSpec(id="t", intent="i", required_knowledge=(key,))
    questions = (
        question(),
        question(id="credential", answer_type="credential"),
        question(id="about-a-secret", requirement_id="key"),
        question(id="twice"),
        question(id="twice", answer_type="credential"),
    )
    event = answered(task, *questions)

    assert dict.fromkeys(event.user_answers, "[redacted]") == stream(event)["userAnswers"]
    assert {
        "q": "answer to q",
        "credential": "[redacted]",
        "about-a-secret": "[redacted]",
        "twice": "[redacted]",
        "unasked": "[redacted]",
    } == sanitize_runtime_stream_event(event, ALL)["userAnswers"]


def test_what_a_secret_is_about_never_passes() -> None:
    """Not in a report or a task that requires it, and not in the question that is made of it."""
    secret, open_one = requirement(sensitivity="secret"), requirement()
    report = assess_knowledge(AgentTaskSpec(id="t", intent="i", required_knowledge=(secret, open_one)))
    [hidden, seen] = sanitize_knowledge_readiness_report(report, ALL).blocking_missing_requirements
    assert (None, open_one.description) == (hidden.description, seen.description)

    task = AgentTaskSpec(id="t", intent="i", required_knowledge=(secret,))
    shown = sanitize_runtime_stream_event(answered(task, question(), question(answer_type="credential")), ALL)

    assert "description" not in shown["task"]["requiredKnowledge"][0]
    for each in shown["questions"]:
        assert set() == {"question", "reason", "impactIfUnknown"} & set(each)


def test_a_name_or_an_address_does_not_pass_unless_it_is_asked_for() -> None:
    """A file is named by its user; where it is, a password or a signature may be part of."""
    address = "https://ann:pw@files.example.com/a.pdf?X-Amz-Signature=abc#page=1"
    artifact = ArtifactEvent(artifact_id="a", name=PRIVATE, mime_type="application/pdf", uri=address)

    assert {"type": "artifact", "artifactId": "a", "mimeType": "application/pdf"} == stream(artifact)
    assert PRIVATE == stream(artifact, include_control_payloads=True)["name"]
    assert "https://files.example.com/a.pdf" == stream(artifact, include_evidence_ids=True)["uri"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("r2://bucket/a b", "r2://bucket/a b"),
        ("/files/a?token=x", "/files/a"),
        ("data:text/plain,secret", "data:[redacted]"),
        ("secret", "[redacted]"),
        ("http://[", "[redacted]"),
        ("", "[redacted]"),
    ],
)
def test_an_address_shows_where_it_is_and_not_what_lets_in(uri: str, shown: str) -> None:
    """What is no address, or may be the thing itself, is not shown."""
    assert shown == without_uri_secrets(uri)


def test_a_resume_token_never_passes() -> None:
    """Only whether there is one."""
    session = RuntimeSession(
        id="s", backend="b", status=SessionStatus.ACTIVE, created_at=NOW, updated_at=NOW, resume_token="tok-123"
    )
    shown = sanitize_runtime_stream_event(SessionCreatedEvent(task=TASK, timestamp=NOW, session=session), ALL)

    assert shown["session"]["hasResumeToken"] is True
    assert "tok-123" not in json.dumps(shown)


flags = st.builds(RuntimeTelemetryOptions, **{item.name: st.booleans() for item in fields(RuntimeTelemetryOptions)})


@given(events(with_a_key), flags)
def test_a_key_never_passes_whatever_is_asked_for(event: RuntimeStreamEvent, asked: RuntimeTelemetryOptions) -> None:
    """What looks like a key or a token, in any member of any event, identifiers included."""
    shown = json.dumps(sanitize_runtime_stream_event(event, asked))

    assert [] == [key for key in KEYS if key in shown]


@given(agent_events(with_a_key), flags)
def test_a_key_never_passes_in_a_loop_s_event(event: AgentRuntimeEvent, asked: RuntimeTelemetryOptions) -> None:
    """Likewise."""
    shown = json.dumps(sanitize_agent_runtime_event(event, asked))

    assert [] == [key for key in KEYS if key in shown]


def test_what_is_called_secret_never_passes() -> None:
    """Whatever it is, at any depth of what is asked for."""
    inputs = {"customer": "Acme", "login": {"password": "hunter2", "api_key": ["k"], "maxTokens": 7}}
    event = ToolCallEvent(task=AgentTaskSpec(id="t", intent="i", inputs=inputs), tool_name="t", args=inputs)
    shown = sanitize_runtime_stream_event(event, ALL)

    expected = {"customer": "Acme", "login": {"password": "[redacted]", "api_key": "[redacted]", "maxTokens": 7}}
    assert (expected, expected) == (shown["args"], shown["task"]["inputs"])


# What is asked for


@given(values_of(AgentTaskSpec, lambda _: st.text("ab")))
def test_a_task_shows_what_it_is_for(task: AgentTaskSpec) -> None:
    """Its inputs and metadata only that they are there."""
    shown = stream(ToolCallEvent(task=task, tool_name="t"))["task"]

    assert (task.id, task.intent, task.domain) == (shown["id"], shown["intent"], shown.get("domain"))
    for name, held in (("inputs", task.inputs), ("metadata", task.metadata)):
        assert (None if held is None else "[redacted]") == shown.get(name)


def test_evidence_is_counted() -> None:
    """Its ids are shown if they are asked for."""
    task = AgentTaskSpec(id="t", intent="i", required_knowledge=(requirement(),))
    event = ToolCallEvent(task=task, tool_name="t")

    [plain] = stream(event)["task"]["requiredKnowledge"]
    [asked] = stream(event, include_evidence_ids=True)["task"]["requiredKnowledge"]
    assert (2, None, 2, ["e1", "e2"]) == (
        plain["evidenceCount"],
        plain.get("evidenceIds"),
        asked["evidenceCount"],
        asked["evidenceIds"],
    )


def test_a_question_is_shown_if_it_is_asked_for() -> None:
    """By default only what kind it is, and how many options it has."""
    event = answered(TASK, question())

    [plain] = stream(event)["questions"]
    [asked] = stream(event, include_requirement_descriptions=True)["questions"]
    expected = {"id": "q", "requirementId": "r", "importance": "blocking", "answerType": "free_text", "optionCount": 2}
    assert expected == plain
    words = {"question": "What is it?", "reason": "The build command is needed."}
    assert expected | words | {"impactIfUnknown": "Nothing is built."} == asked


def test_a_model_call_passes_as_it_is() -> None:
    """It holds nothing that anybody said."""
    call = LlmCallEvent(model="m", tokens_in=3, tokens_out=0, cost_usd=0.1, latency_ms=5, finish_reason="stop")

    assert to_json(call) == stream(call)


@given(events(lambda _: st.text("ab")))
def test_all_that_is_asked_for_is_shown(event: RuntimeStreamEvent) -> None:
    """With every flag, what the event says beside its task and session is there: no member is forgotten."""
    shown = sanitize_runtime_stream_event(event, ALL)
    hidden = {"acquiredEvidenceIds", "error", "knowledge", "questions", "acquisitionPlans", "uri", "task", "session"}

    for name, held in to_json(event).items():
        if name not in hidden | {"userAnswers"}:
            assert held == shown[name]


@given(events(lambda _: st.text("ab")))
@settings(max_examples=30)
def test_what_comes_out_is_a_copy(event: RuntimeStreamEvent) -> None:
    """Changing it changes no event."""
    before = json.dumps(to_json(event))
    shown = sanitize_runtime_stream_event(event, ALL)
    for held in shown.values():
        if isinstance(held, dict):
            held.clear()

    assert before == json.dumps(to_json(event))


@given(values_of(KnowledgeReadinessReport, lambda _: st.text("ab")), flags)
@settings(max_examples=30)
def test_a_sanitized_report_keeps_the_numbers(report: KnowledgeReadinessReport, asked: RuntimeTelemetryOptions) -> None:
    """Score, action and gaps are what a report is read for."""
    shown = sanitize_knowledge_readiness_report(report, asked)

    assert (report.task_id, report.readiness_score, report.severity) == (
        shown.task_id,
        shown.readiness_score,
        shown.severity,
    )
    assert [each.id for each in report.non_blocking_gaps] == [each.id for each in shown.non_blocking_gaps]
    assert len(report.bundle.evidence_ids) == shown.evidence_count
    assert tuple(each.id for each in report.bundle.missing) == shown.missing_requirement_ids


def test_a_step_of_a_loop_is_flat() -> None:
    """The decision and its outcome are members of the step, their payloads if they are asked for."""
    members = {
        "index": 0,
        "decision": {"type": "continue", "action": {"do": "x"}, "reason": "because"},
        "evalsBefore": [{"id": "e", "passed": False, "detail": "d"}],
        "evalsAfter": [],
        "startedAt": NOW,
        "endedAt": NOW,
        "actionOutcome": {"ok": True, "durationMs": 5, "result": {"y": 1}},
    }
    event = AgentRuntimeEvent(type="control_step", task=TASK, step=read_value(ControlStep, members))

    checks = {"evalsBefore": [{"id": "e", "passed": False}], "evalsAfter": []}
    times = {"startedAt": NOW, "endedAt": NOW}
    plain = {"index": 0, "decisionType": "continue", "reason": "[redacted]", "actionOk": True, "durationMs": 5}
    assert plain | checks | times == sanitize_agent_runtime_event(event)["step"]
    asked = sanitize_agent_runtime_event(event, RuntimeTelemetryOptions(include_control_payloads=True))["step"]
    assert ({"do": "x"}, {"y": 1}) == (asked["action"], asked["result"])
