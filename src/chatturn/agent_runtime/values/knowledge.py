"""
What agent-runtime checks before a task begins: whether enough is known for it.

This module has values only.  Their names and closed sets are those of agent-runtime's evaluation package; its reports,
questions and plans are members of the events `readiness_end`, `questions_*` and `acquisition_*`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "ControlSeverity",
    "DataAcquisitionPlan",
    "KnowledgeAction",
    "KnowledgeBundle",
    "KnowledgeImportance",
    "KnowledgeReadinessDecision",
    "KnowledgeReadinessReport",
    "KnowledgeRequirement",
    "UserQuestion",
]

ControlSeverity: TypeAlias = Literal["info", "warning", "error", "critical"]
KnowledgeImportance: TypeAlias = Literal["blocking", "high", "medium", "low"]
KnowledgeAction: TypeAlias = Literal[
    "run_agent",
    "ask_user",
    "collect_web_data",
    "query_connectors",
    "inspect_repo",
    "build_domain_wiki",
    "continue_with_caveat",
    "abort_or_rescope",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeRequirement:
    """
    Something that the task must know.

    Attributes:
        description: In words, which may quote the secret if the requirement is secret.
        required_for: Names of what needs it.
        confidence_needed: From 0 to 1, as is `current_confidence`.
        valid_until: A timestamp: when the knowledge is out of date.
        last_verified_at: A timestamp: when the knowledge was last checked.
    """

    id: str
    description: str
    required_for: tuple[str, ...]
    category: Literal[
        "user_specific",
        "company_specific",
        "domain_specific",
        "codebase_specific",
        "market_specific",
        "regulatory",
        "tool_api",
        "credential_or_secret",
        "runtime_environment",
        "preference",
        "historical_context",
    ]
    acquisition_mode: Literal[
        "ask_user",
        "search_web",
        "query_connector",
        "inspect_repo",
        "run_command",
        "infer_low_confidence",
        "not_available",
    ]
    importance: KnowledgeImportance
    freshness: Literal["static", "monthly", "weekly", "daily", "realtime"]
    sensitivity: Literal["public", "private", "secret"]
    confidence_needed: float
    current_confidence: float
    evidence_ids: tuple[str, ...]
    fallback_policy: Literal["block", "ask", "continue_with_caveat", "use_default"]
    valid_until: str | None = None
    last_verified_at: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeBundle:
    """All that is known for a task, and what is missing."""

    task_id: str
    requirements: tuple[KnowledgeRequirement, ...]
    evidence_ids: tuple[str, ...]
    claim_ids: tuple[str, ...]
    wiki_page_ids: tuple[str, ...]
    user_answers: Mapping[str, str]
    missing: tuple[KnowledgeRequirement, ...]
    readiness_score: float
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeReadinessReport:
    """
    How ready a task is.

    Attributes:
        readiness_score: From 0 to 1.
        reason: In words.
    """

    task_id: str
    readiness_score: float
    blocking_missing_requirements: tuple[KnowledgeRequirement, ...]
    non_blocking_gaps: tuple[KnowledgeRequirement, ...]
    recommended_action: KnowledgeAction
    bundle: KnowledgeBundle
    severity: ControlSeverity
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeReadinessDecision:
    """
    What follows from a report: only ``blocked`` stops a task.

    Attributes:
        blocking_gap_ids: Ids of requirements, as are `non_blocking_gap_ids`.
    """

    passed: bool
    status: Literal["ready", "blocked", "caveat"]
    reason: str
    readiness_score: float
    recommended_action: KnowledgeAction
    severity: ControlSeverity
    blocking_gap_ids: tuple[str, ...]
    non_blocking_gap_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserQuestion:
    """A question that would close a gap; the answer to one of type ``credential`` is a secret."""

    id: str
    question: str
    reason: str
    requirement_id: str
    importance: KnowledgeImportance
    answer_type: Literal["free_text", "select_one", "multi_select", "file_upload", "credential", "url"]
    impact_if_unknown: str
    default_if_skipped: str | None = None
    options: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataAcquisitionPlan:
    """A plan for closing gaps of knowledge."""

    id: str
    requirement_ids: tuple[str, ...]
    mode: Literal["ask_user", "search_web", "query_connector", "inspect_repo", "run_command", "build_domain_wiki"]
    description: str
    priority: KnowledgeImportance
    expected_evidence_ids: tuple[str, ...] | None = None
    questions: tuple[UserQuestion, ...] | None = None
    metadata: Mapping[str, Any] | None = None
