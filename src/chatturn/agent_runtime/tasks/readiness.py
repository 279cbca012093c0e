"""
The readiness gate: whether enough is known to begin a task, and what is done if not.

::

    readiness_start ─▶ (ask the user) ─▶ (look for evidence) ─▶ (assess again) ─▶ readiness_end
                                                                                    │
                                          ready: begin · caveat: begin · blocked: stop

Source:
    docs/reference/agent-runtime.md, Stream events.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from chatturn.agent_runtime.tasks.task_steps import TaskSteps
from chatturn.agent_runtime.values.codec import read_value
from chatturn.agent_runtime.values.given import require_kind
from chatturn.agent_runtime.values.knowledge import (
    DataAcquisitionPlan,
    KnowledgeBundle,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    KnowledgeRequirement,
    UserQuestion,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.durable.records import StepKind
from chatturn.errors import ValidationError

__all__ = [
    "DEFAULT_MINIMUM_SCORE",
    "KnowledgeHooks",
    "ReadinessGate",
    "acquisition_plans_for",
    "assess_knowledge",
    "decide_knowledge_readiness",
    "questions_for",
    "require_minimum_score",
]

DEFAULT_MINIMUM_SCORE: Final = 0.7


def require_minimum_score(score: float) -> None:
    """Refuse a *score* that is no finite number from 0 to 1.  Raises `ValidationError`."""
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValidationError(f"minimum_score must be a number from 0 to 1, not {score!r:.40}")


def decide_knowledge_readiness(
    report: KnowledgeReadinessReport, *, minimum_score: float = DEFAULT_MINIMUM_SCORE
) -> KnowledgeReadinessDecision:
    """
    Return what follows from *report*: ``blocked`` if a gap blocks, else ``caveat`` below the minimum, else ``ready``.

    Only ``blocked`` does not pass.  A score that is no number is below every minimum.

    Args:
        report: How ready the task is.
        minimum_score: From 0 to 1.

    Raises:
        ValidationError: *minimum_score* is not a finite number from 0 to 1, or *report* is no report.
    """
    require_minimum_score(minimum_score)
    require_kind(report, KnowledgeReadinessReport, "a report")
    blocking = tuple(gap.id for gap in report.blocking_missing_requirements)
    score: object = report.readiness_score
    enough = isinstance(score, int | float) and not isinstance(score, bool) and score >= minimum_score
    return KnowledgeReadinessDecision(
        passed=not blocking,
        status="blocked" if blocking else "ready" if enough else "caveat",
        reason=report.reason,
        readiness_score=report.readiness_score,
        recommended_action=report.recommended_action,
        severity=report.severity,
        blocking_gap_ids=blocking,
        non_blocking_gap_ids=tuple(gap.id for gap in report.non_blocking_gaps),
    )


def assess_knowledge(task: AgentTaskSpec) -> KnowledgeReadinessReport:
    """
    Return the report on the requirements that *task* itself has.

    A requirement is missing while its confidence is below what is needed; one of importance ``blocking`` blocks.
    The score is the mean of ``min(1, current / needed)``, and 1 for a task that requires nothing.
    """
    required = task.required_knowledge or ()
    missing = tuple(each for each in required if each.current_confidence < each.confidence_needed)
    blocking = tuple(each for each in missing if each.importance == "blocking")
    score = sum(map(_share, required)) / len(required) if required else 1.0
    return KnowledgeReadinessReport(
        task_id=task.id,
        readiness_score=score,
        blocking_missing_requirements=blocking,
        non_blocking_gaps=tuple(each for each in missing if each not in blocking),
        recommended_action="ask_user" if blocking else "continue_with_caveat" if missing else "run_agent",
        bundle=KnowledgeBundle(
            task_id=task.id,
            requirements=tuple(required),
            evidence_ids=tuple(evidence for each in required for evidence in each.evidence_ids),
            claim_ids=(),
            wiki_page_ids=(),
            user_answers={},
            missing=missing,
            readiness_score=score,
        ),
        severity="critical" if blocking else "warning" if missing else "info",
        reason=f"{len(blocking)} blocking gaps, {len(missing) - len(blocking)} others, of {len(required)} requirements",
    )


def _share(requirement: KnowledgeRequirement) -> float:
    needed = requirement.confidence_needed
    return min(1.0, requirement.current_confidence / needed) if needed > 0 else 1.0


def _gaps(report: KnowledgeReadinessReport) -> tuple[KnowledgeRequirement, ...]:
    return (*report.blocking_missing_requirements, *report.non_blocking_gaps)


def questions_for(report: KnowledgeReadinessReport) -> tuple[UserQuestion, ...]:
    """Return a question for each gap that only the user can close."""
    return tuple(
        UserQuestion(
            id=f"ask:{gap.id}",
            question=gap.description,
            reason="The task needs it.",
            requirement_id=gap.id,
            importance=gap.importance,
            answer_type="credential" if gap.category == "credential_or_secret" else "free_text",
            impact_if_unknown="The task cannot begin." if gap.importance == "blocking" else "The answer may be worse.",
        )
        for gap in _gaps(report)
        if gap.acquisition_mode == "ask_user"
    )


def acquisition_plans_for(report: KnowledgeReadinessReport) -> tuple[DataAcquisitionPlan, ...]:
    """Return a plan for each gap that can be closed without asking."""
    return tuple(plan for gap in _gaps(report) if (plan := _plan(gap)) is not None)


def _plan(gap: KnowledgeRequirement) -> DataAcquisitionPlan | None:
    match gap.acquisition_mode:
        case ("search_web" | "query_connector" | "inspect_repo" | "run_command") as mode:
            return DataAcquisitionPlan(
                id=f"acquire:{gap.id}",
                requirement_ids=(gap.id,),
                mode=mode,
                description=gap.description,
                priority=gap.importance,
            )
        case _:
            return None


Refresh: TypeAlias = Callable[
    [KnowledgeReadinessReport, Mapping[str, str], Sequence[str]], Awaitable[KnowledgeReadinessReport]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeHooks:
    """
    What a product does about gaps of knowledge; each hook is awaited, and is a step of its own in a durable run.

    Attributes:
        ask_user: Takes questions; returns the answers, which are texts, by the question's id.  Answers to other
            questions are ignored.  Answers to questions for a credential are not recorded: these questions are asked
            again on each attempt.  Where a later hook, the backend or an error quotes such an answer, a mark is
            recorded instead, and replaced by the answer when the record is read.  Quotes of an answer of 1 or 2
            characters stay, since such a text is in many others by chance.
        acquire: Takes plans; returns the ids of the evidence that was found.
        refresh: Takes the report, the answers and the ids; returns a new report.  None to keep the first report.
        on_blocked: Called if the task is blocked, before the event that says so.
        questions: The questions; None for one about each gap that only the user can close.
        plans: The plans; None for one for each gap that can be closed without asking.
    """

    ask_user: Callable[[Sequence[UserQuestion]], Awaitable[Mapping[str, str]]] | None = None
    acquire: Callable[[Sequence[DataAcquisitionPlan]], Awaitable[Sequence[str]]] | None = None
    refresh: Refresh | None = None
    on_blocked: Callable[[KnowledgeReadinessReport, KnowledgeReadinessDecision], Awaitable[None]] | None = None
    questions: Sequence[UserQuestion] | None = None
    plans: Sequence[DataAcquisitionPlan] | None = None


@dataclass(slots=True, kw_only=True)
class ReadinessGate:
    """
    The gate of one task.

    Attributes:
        report: The readiness report; the refreshed one once there is one.
        decision: What follows from the report; None until `events` has ended.
        user_answers: The answers by the question's id.
        evidence_ids: The ids of the evidence that was found.
    """

    report: KnowledgeReadinessReport
    minimum_score: float
    hooks: KnowledgeHooks
    steps: TaskSteps
    decision: KnowledgeReadinessDecision | None = None
    user_answers: Mapping[str, str] = field(default_factory=dict)
    evidence_ids: tuple[str, ...] = ()

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Run the gate; yield the type and the members of each of its events."""
        yield "readiness_start", {}
        asked, acquired = False, False
        async for event in self._ask():
            asked = True
            yield event
        async for event in self._acquire():
            acquired = True
            yield event
        if self.hooks.refresh is not None and (asked or acquired):
            yield "readiness_start", {}
            self.report = await self._refreshed(self.hooks.refresh)
        self.decision = decide_knowledge_readiness(self.report, minimum_score=self.minimum_score)
        if self.decision.status == "blocked" and self.hooks.on_blocked is not None:
            tell, report, decision = self.hooks.on_blocked, self.report, self.decision
            await self.steps.do("blocked", lambda: tell(report, decision), kind=StepKind.READINESS)
        yield "readiness_end", {"knowledge": self.report, "decision": self.decision}

    async def _ask(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        ask, given = self.hooks.ask_user, self.hooks.questions
        questions = questions_for(self.report) if given is None else tuple(given)
        if ask is None or not questions:
            return
        yield "questions_start", {"questions": questions}
        secret = tuple(each for each in questions if self._is_secret(each))
        others = tuple(each for each in questions if each not in secret)
        answers = await self.steps.do("ask", lambda: _answers(ask, others), kind=StepKind.READINESS) if others else {}
        hidden = await self.steps.unrecorded(lambda: _answers(ask, secret)) if secret else {}
        for name, value in hidden.items():
            self.steps.hide(value, f"[what was answered to {name}]")
        self.user_answers = {**answers, **hidden}
        yield "questions_end", {"questions": questions, "user_answers": self.user_answers}

    def _is_secret(self, question: UserQuestion) -> bool:
        """Say whether the answer is a credential: by the question's type, or by its requirement."""
        secret = {gap.id for gap in _gaps(self.report) if gap.category == "credential_or_secret"}
        secret |= {gap.id for gap in _gaps(self.report) if gap.sensitivity == "secret"}
        return question.answer_type == "credential" or question.requirement_id in secret

    async def _acquire(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        acquire, given = self.hooks.acquire, self.hooks.plans
        plans = acquisition_plans_for(self.report) if given is None else tuple(given)
        if acquire is None or not plans:
            return
        yield "acquisition_start", {"acquisition_plans": plans}
        self.evidence_ids = tuple(await self.steps.do("acquire", lambda: acquire(plans), kind=StepKind.READINESS))
        yield "acquisition_end", {"acquisition_plans": plans, "acquired_evidence_ids": self.evidence_ids}

    async def _refreshed(self, refresh: Refresh) -> KnowledgeReadinessReport:
        return await self.steps.do(
            "refresh",
            lambda: refresh(self.report, self.user_answers, self.evidence_ids),
            kind=StepKind.READINESS,
            read=lambda value: read_value(KnowledgeReadinessReport, value),
        )


async def _answers(
    ask: Callable[[Sequence[UserQuestion]], Awaitable[Mapping[str, str]]], questions: Sequence[UserQuestion]
) -> dict[str, str]:
    """Ask *questions*; return the answers to these, and to no others: another answer may be a credential."""
    answers = await ask(questions)
    if not isinstance(answers, Mapping):
        raise ValidationError(f"ask_user must return answers by the question's id, not {type(answers).__name__}")
    found = {each.id: answers[each.id] for each in questions if each.id in answers}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ValidationError(f"the answer to {name!r:.100} must be a text, not {type(value).__name__}")
    return found
