"""
Sanitizers: agent-runtime's events as telemetry may keep them.

`sanitize_rules` has a rule for each member, and `RuntimeTelemetryOptions` asks for more than the default.  The default
shows types, ids, statuses, times and counts, and no text of a user, a model or a tool.  Credentials are not shown,
whatever is asked for.  The result is a copy: a change to it does not change the event.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from chatturn.agent_runtime.shown.sanitize_rules import RULES, Member
from chatturn.agent_runtime.shown.telemetry_options import RuntimeTelemetryOptions
from chatturn.agent_runtime.values.codec import json_names, read_value
from chatturn.agent_runtime.values.control import AgentRuntimeEvent
from chatturn.agent_runtime.values.events import ReadinessEndEvent, RuntimeStreamEvent
from chatturn.agent_runtime.values.knowledge import (
    ControlSeverity,
    KnowledgeAction,
    KnowledgeImportance,
    KnowledgeReadinessReport,
    KnowledgeRequirement,
    UserQuestion,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, RuntimeSession
from chatturn.telemetry.redaction import without_secret_members

__all__ = [
    "NOTHING_ASKED",
    "RuntimeTelemetryOptions",
    "SanitizedKnowledgeReadinessReport",
    "SanitizedKnowledgeRequirement",
    "Sanitizer",
    "sanitize_agent_runtime_event",
    "sanitize_knowledge_readiness_report",
    "sanitize_runtime_stream_event",
]

NOTHING_ASKED: Final = RuntimeTelemetryOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizedKnowledgeRequirement:
    """What telemetry may keep of a requirement."""

    id: str
    required_for: tuple[str, ...]
    category: str
    acquisition_mode: str
    importance: KnowledgeImportance
    freshness: str
    sensitivity: Literal["public", "private", "secret"]
    confidence_needed: float
    current_confidence: float
    evidence_count: int
    fallback_policy: str
    description: str | None = None
    evidence_ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizedKnowledgeReadinessReport:
    """What telemetry may keep of a report; `codec.to_json` makes it JSON."""

    task_id: str
    readiness_score: float
    recommended_action: KnowledgeAction
    severity: ControlSeverity
    reason: str
    blocking_missing_requirements: tuple[SanitizedKnowledgeRequirement, ...]
    non_blocking_gaps: tuple[SanitizedKnowledgeRequirement, ...]
    evidence_count: int
    missing_requirement_ids: tuple[str, ...]
    evidence_ids: tuple[str, ...] | None = None


def sanitize_runtime_stream_event(
    event: RuntimeStreamEvent, options: RuntimeTelemetryOptions = NOTHING_ASKED
) -> dict[str, Any]:
    """Return the JSON of *event* that telemetry may keep."""
    return Sanitizer(options).stream_event(event)


def sanitize_agent_runtime_event(
    event: AgentRuntimeEvent, options: RuntimeTelemetryOptions = NOTHING_ASKED
) -> dict[str, Any]:
    """Return the JSON of *event* that telemetry may keep."""
    return Sanitizer(options).agent_event(event)


def sanitize_knowledge_readiness_report(
    report: KnowledgeReadinessReport, options: RuntimeTelemetryOptions = NOTHING_ASKED
) -> SanitizedKnowledgeReadinessReport:
    """Return what telemetry may keep of *report*."""
    return Sanitizer(options).report(report)


class Sanitizer:
    """
    Sanitizes many events under the same options.

    Events that follow one another with the same task and session share the JSON of both, which is most of the work.
    """

    def __init__(self, options: RuntimeTelemetryOptions) -> None:
        self._options = options
        self._secret_ids: set[str] = set()
        self._before: dict[type, tuple[Any, dict[str, Any]]] = {}

    def stream_event(self, event: RuntimeStreamEvent) -> dict[str, Any]:
        """Return the JSON of *event* that telemetry may keep."""
        self._look_for_secrets(event.task, event.knowledge if isinstance(event, ReadinessEndEvent) else None)
        return {"type": event.type, **self._members_of(event)}

    def agent_event(self, event: AgentRuntimeEvent) -> dict[str, Any]:
        """Return the JSON of *event* that telemetry may keep."""
        self._look_for_secrets(event.task, event.knowledge)
        return self._members_of(event)

    def report(self, report: KnowledgeReadinessReport) -> SanitizedKnowledgeReadinessReport:
        """Return what telemetry may keep of *report*."""
        self._look_for_secrets(None, report)
        return read_value(SanitizedKnowledgeReadinessReport, self._members_of(report))

    def _look_for_secrets(self, task: AgentTaskSpec | None, report: KnowledgeReadinessReport | None) -> None:
        requirements = [*((task and task.required_knowledge) or ()), *(_requirements(report) if report else ())]
        self._secret_ids = {requirement.id for requirement in requirements if self._is_secret(requirement)}

    def _members_of(self, value: Any) -> dict[str, Any]:
        """Return what may be shown of *value*, member by member."""
        cls: Any = type(value)
        members: dict[str, Any] = {}
        rules, names = RULES[cls], json_names(cls)
        for name, rule in rules.items():
            if name in names:
                held = getattr(value, name)
                members |= rule(Member(names[name], held, value, self._options, self._show, self._is_secret))
        return members

    def _show(self, value: Any) -> Any:
        if isinstance(value, AgentTaskSpec | RuntimeSession):
            return self._shared(value)
        if type(value) in RULES:
            return self._members_of(value)
        return [self._show(item) for item in value] if isinstance(value, tuple) else without_secret_members(value)

    def _shared(self, value: AgentTaskSpec | RuntimeSession) -> dict[str, Any]:
        before, members = self._before.get(type(value), (None, {}))
        if before is not value:
            members = self._members_of(value)
            self._before[type(value)] = value, members
        return members

    def _is_secret(self, item: UserQuestion | KnowledgeRequirement) -> bool:
        if isinstance(item, KnowledgeRequirement):
            return item.sensitivity == "secret" or item.category == "credential_or_secret"
        return item.answer_type == "credential" or item.requirement_id in self._secret_ids


def _requirements(report: KnowledgeReadinessReport) -> tuple[KnowledgeRequirement, ...]:
    bundle = report.bundle
    return (
        *report.blocking_missing_requirements,
        *report.non_blocking_gaps,
        *bundle.requirements,
        *bundle.missing,
    )
