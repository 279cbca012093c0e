"""
What telemetry shows of each value of agent-runtime's vocabulary: one rule for each member of each class.

A member without a rule is not shown, so a new member is shown on purpose only.  Identifiers, values of closed sets,
numbers, times and a task's intent are shown.  A member that may hold words of a user, a model, a tool or an upstream is
left out, or masked where its class always has the member, unless `RuntimeTelemetryOptions` asks for it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from chatturn.agent_runtime.shown.telemetry_options import RuntimeTelemetryOptions
from chatturn.agent_runtime.values.control import (
    AgentRuntimeEvent,
    ControlActionOutcome,
    ControlDecision,
    ControlEvalResult,
    ControlRunResult,
    ControlStep,
)
from chatturn.agent_runtime.values.events import (
    AcquisitionEndEvent,
    AcquisitionStartEvent,
    ArtifactEvent,
    BackendEndEvent,
    BackendErrorEvent,
    BackendStartEvent,
    FinalEvent,
    LlmCallEvent,
    ProposalCreatedEvent,
    QuestionsEndEvent,
    QuestionsStartEvent,
    ReadinessEndEvent,
    ReadinessStartEvent,
    ReasoningDeltaEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TaskEndEvent,
    TaskStartEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.fixed_words import is_fixed
from chatturn.agent_runtime.values.knowledge import (
    DataAcquisitionPlan,
    KnowledgeBundle,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    KnowledgeRequirement,
    UserQuestion,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, BackendErrorDetail, RuntimeSession
from chatturn.telemetry.redaction import REDACTED, without_uri_secrets

__all__ = ["RULES", "Member", "Rule"]


class Member(NamedTuple):
    """
    One member of an object, with what its rule needs.

    Attributes:
        name: The member's name in JSON.
        value: The member's value; None if it is absent.
        owner: The object that has the member.
        options: What is asked for.
        show: Returns a value as the rules of its own class show it.
        is_secret: Says whether a question or a requirement is about a secret.
    """

    name: str
    value: Any
    owner: Any
    options: RuntimeTelemetryOptions
    show: Callable[[Any], Any]
    is_secret: Callable[[UserQuestion | KnowledgeRequirement], bool]

    def asked_for(self, *flags: str) -> bool:
        """Say whether one of *flags* is on."""
        return any(getattr(self.options, flag) for flag in flags)

    def other(self, name: str, value: Any) -> "Member":
        """Return the member with another *name* and *value*."""
        return self._replace(name=name, value=value)


Rule: TypeAlias = Callable[[Member], Mapping[str, Any]]
"""Takes a member; returns the JSON members that are shown for it."""


# The rules.


def _shown(member: Member) -> Mapping[str, Any]:
    return {} if member.value is None else {member.name: member.show(member.value)}


def _never(_: Member) -> Mapping[str, Any]:
    return {}


def _asked(*flags: str) -> Rule:
    """Show the member only if one of *flags* asks for it."""
    return lambda member: _shown(member) if member.asked_for(*flags) else {}


def _masked(*flags: str) -> Rule:
    """Mask the member's value unless one of *flags* asks for it."""

    def rule(member: Member) -> Mapping[str, Any]:
        return _shown(member) if member.value is None or member.asked_for(*flags) else {member.name: REDACTED}

    return rule


def _words(member: Member) -> Mapping[str, Any]:
    """Show chatturn's own words; mask other words unless reasons are asked for."""
    fixed = member.value is not None and is_fixed(member.value)
    return _shown(member) if fixed else _masked("include_reasons")(member)


def _counted(name: str, *flags: str) -> Rule:
    """Show the number of items, and the items if one of *flags* asks for them."""
    which = _asked(*flags)
    return lambda member: {} if member.value is None else {name: len(member.value), **which(member)}


def _number_of(name: str) -> Rule:
    """Show the number of items, never the items."""
    return lambda member: {name: len(member.value or ())}


def _presence(name: str) -> Rule:
    """Show whether there is a value, never the value."""
    return lambda member: {name: bool(member.value)}


def _unless_secret(member: Member) -> Mapping[str, Any]:
    """Show the words of a requirement or a question if they are asked for, and are about no secret."""
    return {} if member.is_secret(member.owner) else _asked("include_requirement_descriptions")(member)


def _answers(member: Member) -> Mapping[str, Any]:
    """Show which questions were answered; show an answer if it is asked for, and its question is about no secret."""
    if member.value is None:
        return {}
    questions, answers = member.owner.questions, member.value.items()
    asked = {question.id for question in questions if member.asked_for("include_user_answers")}
    shown = asked - {question.id for question in questions if member.is_secret(question)}
    return {member.name: {member.show(key): member.show(said) if key in shown else REDACTED for key, said in answers}}


def _address(member: Member) -> Mapping[str, Any]:
    uri = None if member.value is None else without_uri_secrets(member.value)
    return _asked("include_evidence_ids")(member.other(member.name, uri))


def _bundle(member: Member) -> Mapping[str, Any]:
    bundle: KnowledgeBundle = member.value
    evidence = _counted("evidenceCount", "include_evidence_ids")(member.other("evidenceIds", bundle.evidence_ids))
    return {**evidence, "missingRequirementIds": [member.show(requirement.id) for requirement in bundle.missing]}


def _kind_of_error(member: Member) -> Mapping[str, Any]:
    """Show the error's kind and status; its words are in the event's message."""
    error: BackendErrorDetail | None = member.value
    if error is None:
        return {}
    return {member.name: {**_shown(member.other("kind", error.kind)), **_shown(member.other("status", error.status))}}


def _decision(member: Member) -> Mapping[str, Any]:
    """Show the decision's members as members of the step."""
    decision: ControlDecision = member.value
    action = decision.action if decision.type == "continue" else None
    return {
        **_shown(member.other("decisionType", decision.type)),
        **_words(member.other("reason", decision.reason)),
        **_asked("include_control_payloads")(member.other("action", action)),
    }


def _outcome(member: Member) -> Mapping[str, Any]:
    """Show the outcome's members as members of the step."""
    outcome: ControlActionOutcome | None = member.value
    if outcome is None:
        return {}
    return {
        "actionOk": outcome.ok,
        **_words(member.other("actionError", None if outcome.ok else outcome.error)),
        **_asked("include_control_payloads")(member.other("result", outcome.result if outcome.ok else None)),
        **_shown(member.other("durationMs", outcome.duration_ms)),
    }


# The rule of each member.


def _show(*names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, _shown)


_PAYLOAD: Final = _asked("include_control_payloads")
_METADATA: Final = _asked("include_metadata")
_TEXT: Final = _masked("include_text")

_ABOUT_AN_EVENT: Final = _show("task", "session", "timestamp")

_EVENT_RULES: Final[Mapping[type, Mapping[str, Rule]]] = {
    TaskStartEvent: {},
    ReadinessStartEvent: {},
    ReadinessEndEvent: _show("knowledge", "decision"),
    QuestionsStartEvent: _show("questions"),
    QuestionsEndEvent: {**_show("questions"), "user_answers": _answers},
    AcquisitionStartEvent: _show("acquisition_plans"),
    AcquisitionEndEvent: {
        **_show("acquisition_plans"),
        "acquired_evidence_ids": _counted("acquiredEvidenceCount", "include_evidence_ids"),
    },
    SessionCreatedEvent: {},
    SessionResumedEvent: {},
    BackendStartEvent: _show("backend"),
    TextDeltaEvent: {"text": _TEXT},
    ReasoningDeltaEvent: {"text": _TEXT},
    ToolCallEvent: {**_show("tool_name", "tool_call_id"), "args": _PAYLOAD},
    ToolResultEvent: {**_show("tool_name", "tool_call_id"), "result": _PAYLOAD},
    LlmCallEvent: _show("model", "tokens_in", "tokens_out", "cost_usd", "latency_ms", "finish_reason"),
    ArtifactEvent: {
        **_show("artifact_id", "mime_type"),
        "name": _PAYLOAD,
        "uri": _address,
        "content": _PAYLOAD,
        "metadata": _METADATA,
    },
    ProposalCreatedEvent: {
        **_show("proposal_id", "status"),
        "title": _masked("include_control_payloads"),
        "content": _PAYLOAD,
    },
    BackendErrorEvent: {**_show("backend", "recoverable"), "message": _words, "error": _kind_of_error},
    BackendEndEvent: _show("backend"),
    TaskEndEvent: {**_show("status"), "reason": _words},
    FinalEvent: {
        **_show("status", "error"),
        "reason": _words,
        "text": _asked("include_text", "include_control_payloads"),
        "metadata": _METADATA,
    },
}

RULES: Final[Mapping[type, Mapping[str, Rule]]] = {
    **{cls: {**_ABOUT_AN_EVENT, **rules} for cls, rules in _EVENT_RULES.items()},
    AgentTaskSpec: {
        **_show("id", "intent", "domain", "required_knowledge"),
        "inputs": _masked("include_inputs"),
        "budget": _never,
        "metadata": _masked("include_metadata"),
    },
    RuntimeSession: {
        **_show("id", "backend", "status", "created_at", "updated_at"),
        "resume_token": _presence("hasResumeToken"),
        "metadata": _masked("include_metadata"),
    },
    BackendErrorDetail: {**_show("kind", "status"), "message": _words, "body": _PAYLOAD},
    KnowledgeRequirement: {
        **_show("id", "required_for", "category", "acquisition_mode", "importance", "freshness", "sensitivity"),
        **_show("confidence_needed", "current_confidence", "fallback_policy"),
        "description": _unless_secret,
        "evidence_ids": _counted("evidenceCount", "include_evidence_ids"),
        **dict.fromkeys(("valid_until", "last_verified_at", "metadata"), _never),
    },
    KnowledgeReadinessReport: {
        **_show("task_id", "readiness_score", "recommended_action", "severity"),
        **_show("blocking_missing_requirements", "non_blocking_gaps"),
        "reason": _words,
        "bundle": _bundle,
    },
    KnowledgeReadinessDecision: {
        **_show("passed", "status", "readiness_score", "recommended_action", "severity"),
        **_show("blocking_gap_ids", "non_blocking_gap_ids"),
        "reason": _words,
    },
    UserQuestion: {
        **_show("id", "requirement_id", "importance", "answer_type"),
        **dict.fromkeys(("question", "reason", "impact_if_unknown"), _unless_secret),
        "options": _number_of("optionCount"),
        **dict.fromkeys(("default_if_skipped", "metadata"), _never),
    },
    DataAcquisitionPlan: {
        **_show("id", "requirement_ids", "mode", "priority"),
        "expected_evidence_ids": _number_of("expectedEvidenceCount"),
        "questions": _number_of("questionCount"),
        **dict.fromkeys(("description", "metadata"), _never),
    },
    AgentRuntimeEvent: {
        **_show("type", "task", "knowledge", "questions", "acquisition_plans", "step", "control", "status"),
        "user_answers": _answers,
        "acquired_evidence_ids": _counted("acquiredEvidenceCount", "include_evidence_ids"),
        "reason": _words,
    },
    ControlStep: {
        **_show("index", "evals_before", "evals_after", "started_at", "ended_at"),
        "decision": _decision,
        "action_outcome": _outcome,
        **dict.fromkeys(("before_state", "after_state"), _never),
    },
    ControlRunResult: {
        **_show("passed", "completed", "score", "wall_ms", "spent_cost_usd", "failure_class", "stopped_by", "run_id"),
        **_show("final_evals"),
        "reason": _words,
        "steps": _number_of("stepCount"),
        "runtime_errors": _number_of("runtimeErrorCount"),
        **dict.fromkeys(("intent", "final_state"), _never),
    },
    ControlEvalResult: {
        **_show("id", "passed", "score", "severity", "objective"),
        **dict.fromkeys(("detail", "evidence"), _asked("include_eval_details")),
        "metadata": _never,
    },
}
"""The rules of each class; of an object of any other class only the class's name is shown."""
