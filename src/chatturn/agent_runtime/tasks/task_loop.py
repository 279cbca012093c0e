"""
`run_agent_task`: a task as a control loop that observes, validates, decides and acts until it stops.

::

    readiness gate ─▶ observe ─▶ validate ─▶ decide ─▶ act ─┐      passed, or not
         │ blocked       ▲                      │           │
         ▼               └──────────────────────┼───────────┘
      nothing is done                           └─▶ stop: the policy, a budget, an abort, or a hook that raises

Given a `DurableTask`, every hook's result is recorded before the next hook is called.  If the worker dies, the next
attempt does not call a hook again whose result is on record; it calls the hook that was interrupted, with the same
`TaskView.step_key`.

Source:
    docs/reference/agent-runtime.md, Functions beside the turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

from chatturn.agent_runtime.tasks.readiness import (
    DEFAULT_MINIMUM_SCORE,
    KnowledgeHooks,
    ReadinessGate,
    assess_knowledge,
)
from chatturn.agent_runtime.tasks.task_checks import check_run, check_task
from chatturn.agent_runtime.tasks.task_steps import DurableTask, HookFailed, TaskAborted, TaskSteps
from chatturn.agent_runtime.values.codec import read_value, to_json
from chatturn.agent_runtime.values.control import (
    MEMBERS,
    AgentRuntimeEvent,
    AgentRuntimeEventType,
    ControlActionOutcome,
    ControlDecision,
    ControlEvalResult,
    ControlRunResult,
    ControlRuntimeError,
    ControlStep,
)
from chatturn.agent_runtime.values.given import require_callable
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessDecision, KnowledgeReadinessReport
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, AgentTaskStatus
from chatturn.durable.context import ContextSources, DurableContext
from chatturn.durable.records import DurableRunManifest, StepKind, TaskSpec
from chatturn.durable.runner import RunDurableInput, default_sources, run_durable
from chatturn.durable.steps import words_of
from chatturn.errors import ValidationError
from chatturn.timestamps import epoch_ms

__all__ = [
    "DEFAULT_MAX_STEPS",
    "AgentTaskRunResult",
    "AgentTaskRunSummary",
    "RunAgentTaskOptions",
    "TaskView",
    "manifest_of",
    "run_agent_task",
    "summarize_agent_task_run",
]

T = TypeVar("T")

DEFAULT_MAX_STEPS: Final = 20
"""The most rounds of a task whose budget has no ``maxSteps``."""

_MUST_PASS: Final = frozenset({None, "error", "critical"})

_StoppedBy: TypeAlias = Literal["policy", "stop-policy", "budget", "abort", "runtime-error"]
_Phase: TypeAlias = Literal["observe", "validate", "decide", "act", "stop-policy", "on-step", "trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """
    What a hook of the loop is shown.

    Attributes:
        task: The task.
        knowledge: The readiness report.
        state: The latest state from `observe`; None before the first one.
        evals: The checks' results for the state.
        steps: The rounds so far.
        spent_cost_usd: The sum of the costs that the actions reported, in US dollars.
        step_key: The key of the hook's step: the same on every attempt, so that a service can deduplicate by it; "" if
            the task is not durable.
    """

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport
    state: Any = None
    evals: tuple[ControlEvalResult, ...] = ()
    steps: tuple[ControlStep, ...] = ()
    spent_cost_usd: float = 0.0
    step_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAgentTaskOptions:
    """
    How a task is run.  States, actions and results are JSON where the task is durable, and may be anything else.

    Attributes:
        task: The task.  Of its budget, ``maxSteps``, ``maxWallMs`` and ``maxCostUsd`` count: once one is
            spent, no action is begun.
        observe: Returns the state.
        validate: Returns the checks' results for `TaskView.state`.
        decide: Returns whether to stop, or what to do next.
        act: Takes the action; returns its result, or a `ControlActionOutcome` to say what it cost.  If it raises, the
            action has failed and the loop goes on; `decide` finds the error in `TaskView.steps`.
        should_stop: Returns why the loop must end, or None; called before each decision that no earlier attempt has
            begun.  If the end completes the task, the reason is recorded, and a replay does not call it again.
        knowledge: The readiness report; None for that of the task's requirements (`assess_knowledge`).
        minimum_score: See `decide_knowledge_readiness`.
        hooks: What is done about gaps of knowledge.
        on_event: Takes each event; an error of it is noted in the result, and changes nothing else.
        on_step: Is awaited after each round; an error of it is noted in the same way.
        abort: Set it to stop the task: the hook that runs is cancelled.
        durable: Where the task is recorded; None to record nothing.
        sources: The source of the time.
    """

    task: AgentTaskSpec
    observe: Callable[[TaskView], Awaitable[Any]]
    validate: Callable[[TaskView], Awaitable[Sequence[ControlEvalResult]]]
    decide: Callable[[TaskView], Awaitable[ControlDecision]]
    act: Callable[[Any, TaskView], Awaitable[Any]]
    should_stop: Callable[[TaskView], str | None] | None = None
    knowledge: KnowledgeReadinessReport | None = None
    minimum_score: float = DEFAULT_MINIMUM_SCORE
    hooks: KnowledgeHooks = field(default_factory=KnowledgeHooks)
    on_event: Callable[[AgentRuntimeEvent], None] | None = None
    on_step: Callable[[ControlStep], Awaitable[None]] | None = None
    abort: asyncio.Event | None = None
    durable: DurableTask | None = None
    sources: ContextSources = field(default_factory=default_sources)

    def __post_init__(self) -> None:
        check_task(self.task, stored=self.durable is not None)
        for name in ("observe", "validate", "decide", "act"):
            require_callable(getattr(self, name), name)
        for name in ("should_stop", "on_event", "on_step"):
            if getattr(self, name) is not None:
                require_callable(getattr(self, name), name)
        check_run(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTaskRunResult:
    """
    The outcome of a task.

    Attributes:
        reason: Why it ended, in words that may be a hook's own.
        knowledge: The readiness report at the end.
        decision: What the gate decided; None if the task ended before.
        control: The outcome of the loop; None if it did not begin.
        user_answers: The answers by the question's id.
    """

    task: AgentTaskSpec
    status: AgentTaskStatus
    reason: str
    knowledge: KnowledgeReadinessReport
    decision: KnowledgeReadinessDecision | None = None
    control: ControlRunResult | None = None
    user_answers: Mapping[str, str] = field(default_factory=dict)
    acquired_evidence_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTaskRunSummary:
    """What anybody may see of a task's outcome: ids, counts and values of closed sets, and no text of anybody."""

    task_id: str
    domain: str | None
    status: AgentTaskStatus
    readiness_score: float
    readiness_status: Literal["ready", "blocked", "caveat"] | None
    blocking_gap_ids: tuple[str, ...]
    question_count: int
    evidence_count: int
    step_count: int
    passed: bool
    score: float | None
    stopped_by: _StoppedBy | None
    wall_ms: float
    spent_cost_usd: float
    failed_phases: tuple[_Phase, ...]


def summarize_agent_task_run(result: AgentTaskRunResult) -> AgentTaskRunSummary:
    """Return what anybody may see of *result*."""
    control, decision = result.control, result.decision
    return AgentTaskRunSummary(
        task_id=result.task.id,
        domain=result.task.domain,
        status=result.status,
        readiness_score=result.knowledge.readiness_score,
        readiness_status=None if decision is None else decision.status,
        blocking_gap_ids=() if decision is None else decision.blocking_gap_ids,
        question_count=len(result.user_answers),
        evidence_count=len(result.acquired_evidence_ids),
        step_count=0 if control is None else len(control.steps),
        passed=control is not None and control.passed,
        score=None if control is None else control.score,
        stopped_by=None if control is None else control.stopped_by,
        wall_ms=0 if control is None else control.wall_ms,
        spent_cost_usd=0.0 if control is None else control.spent_cost_usd,
        failed_phases=() if control is None else tuple(error.phase for error in control.runtime_errors),
    )


async def run_agent_task(options: RunAgentTaskOptions) -> AgentTaskRunResult:
    """
    Run a task to its end; the error of a hook is in the result, and is not raised.

    A durable task that has completed is replayed from its records: its events are told again, and of the hooks only
    `on_event` and `on_step` are called.  For what an earlier attempt has begun, neither `should_stop` nor the budget is
    checked again.
    The next call continues a task that failed or was aborted, after the last recorded step.  It continues a blocked
    task too, if it has better knowledge.

    Raises:
        DurableRunLeaseHeldError, DurableRunInputMismatchError, DurableRunDivergenceError, LeaseLost, StoreError: As
            `run_durable` does, of a durable task.
        TypeError, StepTooLarge: What a hook of a durable task returned cannot be recorded; the run goes on after the
            step before.
    """
    if options.durable is None:
        return await _AgentTask(options, TaskSteps(abort=options.abort, now=options.sources.now)).run()
    try:
        return await _run_durably(options, options.durable)
    except _NotCompletedError as ended:
        return ended.result


async def _run_durably(options: RunAgentTaskOptions, durable: DurableTask) -> AgentTaskRunResult:
    async def task_fn(context: DurableContext) -> AgentTaskRunResult:
        steps = TaskSteps(context=context, abort=options.abort, now=options.sources.now)
        result = await _AgentTask(options, steps).run()
        if result.status is not AgentTaskStatus.COMPLETED:
            raise _NotCompletedError(result)
        return result

    run = await run_durable(
        RunDurableInput(
            run_id=durable.run_id,
            manifest=manifest_of(options.task, durable),
            store=durable.store,
            task_fn=task_fn,
            lease_ms=durable.lease_ms,
            sources=options.sources,
        )
    )
    if run.result is None:
        raise AssertionError("no step of a task waits for long")
    return run.result


class _NotCompletedError(Exception):
    """Carries a task's result out of the run, which is recorded as failed, so that the next call can continue it."""

    def __init__(self, result: AgentTaskRunResult) -> None:
        super().__init__(result.status)
        self.result = result


def manifest_of(task: AgentTaskSpec, durable: DurableTask, **said: Any) -> DurableRunManifest:
    """Return the manifest that identifies a task's run: the task's id, intent, domain and inputs, and *said*."""
    inputs = to_json(task.inputs)
    return DurableRunManifest(
        project_id=durable.project_id,
        scenario_id=durable.scenario_id,
        task=TaskSpec(id=task.id, intent=task.intent, domain=task.domain, metadata=dict(task.metadata or {})),
        input={"inputs": inputs, **said} if said else inputs,
    )


class _Stopped(Exception):
    """The loop is over."""

    def __init__(self, stopped_by: _StoppedBy, reason: str) -> None:
        super().__init__(reason)
        self.stopped_by = stopped_by
        self.reason = reason


class _AgentTask:
    """One attempt at a task."""

    def __init__(self, options: RunAgentTaskOptions, steps: TaskSteps) -> None:
        self._options = options
        self._steps = steps
        self._view = TaskView(task=options.task, knowledge=options.knowledge or assess_knowledge(options.task))
        self._errors: list[ControlRuntimeError] = []
        self._decision: ControlDecision | None = None
        self._began = ""

    async def run(self) -> AgentTaskRunResult:
        gate = ReadinessGate(
            report=self._view.knowledge,
            minimum_score=self._options.minimum_score,
            hooks=self._options.hooks,
            steps=self._steps,
        )
        status, reason, control = await self._through(gate)
        self._tell("task_end", {"status": status, "reason": reason})
        return AgentTaskRunResult(
            task=self._options.task,
            status=status,
            reason=reason,
            knowledge=gate.report,
            decision=gate.decision,
            control=control,
            user_answers=gate.user_answers,
            acquired_evidence_ids=gate.evidence_ids,
        )

    async def _through(self, gate: ReadinessGate) -> tuple[AgentTaskStatus, str, ControlRunResult | None]:
        self._tell("task_start", {})
        try:
            await self._steps.begin()
            async for kind, members in gate.events():
                self._tell(kind, members)
        except TaskAborted:
            return AgentTaskStatus.ABORTED, "aborted", None
        except HookFailed as failed:
            return AgentTaskStatus.FAILED, str(failed), None
        if gate.decision is None or not gate.decision.passed:
            return AgentTaskStatus.BLOCKED, gate.report.reason, None
        self._view = replace(self._view, knowledge=gate.report)
        control = await self._control()
        if control.stopped_by == "abort":
            return AgentTaskStatus.ABORTED, control.reason, control
        return AgentTaskStatus.COMPLETED if control.passed else AgentTaskStatus.FAILED, control.reason, control

    # The loop.

    async def _control(self) -> ControlRunResult:
        self._tell("control_start", {"knowledge": self._view.knowledge})
        self._began = self._steps.at
        try:
            await self._look()
            while True:
                await self._round()
        except _Stopped as stopped:
            result = self._result(stopped)
        except TaskAborted:
            result = self._result(_Stopped("abort", "aborted"))
        self._tell("control_end", {"control": result})
        return result

    async def _look(self) -> None:
        """Observe, then validate what was observed."""
        number = len(self._view.steps)
        state = await self._hook("observe", f"observe:{number}", self._options.observe)
        self._view = replace(self._view, state=state)
        self._view = replace(
            self._view, evals=await self._hook("validate", f"validate:{number}", self._found, read=_evals)
        )

    async def _round(self) -> None:
        await self._require_permission(len(self._view.steps))
        before, began, number = self._view, self._steps.at, len(self._view.steps)
        decision = self._decision = await self._hook("decide", f"decide:{number}", self._decided, read=_decision)
        if decision.type == "stop":
            raise _Stopped("policy", decision.reason or "the policy stopped")
        if await self._steps.next_intent() is None:
            self._require_budget()
        act = partial(self._acted, decision.action)
        outcome = await self._hook("act", f"act:{number}", act, kind=StepKind.TOOL, read=_outcome)
        step = ControlStep(
            index=number,
            decision=decision,
            evals_before=before.evals,
            evals_after=(),
            started_at=began,
            ended_at=self._steps.at,
            before_state=before.state,
            action_outcome=outcome,
        )
        self._view = replace(
            before, steps=(*before.steps, step), spent_cost_usd=before.spent_cost_usd + _cost(outcome), evals=()
        )
        try:
            await self._look()
        except (_Stopped, TaskAborted):
            await self._keep(step)
            raise
        after = self._view
        await self._keep(replace(step, evals_after=after.evals, after_state=after.state, ended_at=self._steps.at))

    async def _keep(self, step: ControlStep) -> None:
        self._view = replace(self._view, steps=(*self._view.steps[:-1], step))
        self._tell("control_step", {"step": step})
        if self._options.on_step is not None:
            try:
                await self._options.on_step(step)
            except Exception as error:  # noqa: BLE001 - a hook of the product's, which only watches
                self._note("on-step", error)

    # The hooks, with a check of what they return: a durable task must be able to read it from its record.

    async def _found(self, view: TaskView) -> tuple[ControlEvalResult, ...]:
        found = tuple(await self._options.validate(view))
        if not all(isinstance(each, ControlEvalResult) for each in found):
            raise ValidationError("validate must return ControlEvalResults")
        return found

    async def _decided(self, view: TaskView) -> ControlDecision:
        decision = await self._options.decide(view)
        if not isinstance(decision, ControlDecision):
            raise ValidationError("decide must return a ControlDecision")
        return decision

    async def _acted(self, action: Any, view: TaskView) -> ControlActionOutcome:
        began = self._options.sources.now()
        try:
            result = await self._options.act(action, view)
        except Exception as error:  # noqa: BLE001 - a hook of the product's
            return ControlActionOutcome(ok=False, duration_ms=self._since(began), error=words_of(error))
        if isinstance(result, ControlActionOutcome):
            return result
        return ControlActionOutcome(ok=True, duration_ms=self._since(began), result=result)

    async def _hook(
        self,
        phase: _Phase,
        intent: str,
        hook: Callable[[TaskView], Awaitable[T]],
        *,
        kind: str = StepKind.LOGIC,
        read: Callable[[Any], T] | None = None,
    ) -> T:
        view = replace(self._view, step_key=self._steps.step_key(intent))
        try:
            return await self._steps.do(intent, lambda: hook(view), kind=kind, read=read)
        except HookFailed as failed:
            self._note(phase, failed.error)
            raise _Stopped("runtime-error", f"{phase}: {failed}") from failed

    def _require_budget(self) -> None:
        budget, view = self._options.task.budget or {}, self._view
        for name, spent, limit in (
            ("maxSteps", len(view.steps), budget.get("maxSteps", DEFAULT_MAX_STEPS)),
            ("maxWallMs", self._since(self._began, self._steps.at), budget.get("maxWallMs")),
            ("maxCostUsd", view.spent_cost_usd, budget.get("maxCostUsd")),
        ):
            if limit is not None and spent >= limit:
                raise _Stopped("budget", f"{name} is spent: {spent:g} of {limit:g}")

    async def _require_permission(self, number: int) -> None:
        """Ask `should_stop`, unless an earlier attempt has gone on; record an end that completes the task."""
        intent, came_to = f"stop:{number}", await self._steps.next_intent()
        reason = self._asked_to_stop() if came_to is None else None
        if came_to == intent or (reason is not None and self._evals_pass()):
            reason = await self._steps.do(intent, partial(_returned, reason))
        if reason is not None:
            raise _Stopped("stop-policy", reason)

    def _asked_to_stop(self) -> str | None:
        if self._options.should_stop is None:
            return None
        try:
            return _reason(self._options.should_stop(self._view))
        except Exception as error:
            self._note("stop-policy", error)
            raise _Stopped("runtime-error", f"stop-policy: {words_of(error)}") from error

    def _evals_pass(self) -> bool:
        return all(found.passed for found in self._view.evals if found.severity in _MUST_PASS)

    def _result(self, stopped: _Stopped) -> ControlRunResult:
        view, decision = self._view, self._decision
        own_verdict = stopped.stopped_by == "policy" and decision is not None
        passed = self._evals_pass()
        if own_verdict and decision is not None and decision.passed is not None:
            passed = decision.passed
        scores = [found.score for found in view.evals if found.score is not None]
        score = decision.score if own_verdict and decision is not None and decision.score is not None else None
        return ControlRunResult(
            intent=self._options.task.intent,
            passed=passed and stopped.stopped_by in {"policy", "stop-policy"},
            completed=own_verdict,
            reason=stopped.reason,
            steps=view.steps,
            final_evals=view.evals,
            wall_ms=self._since(self._began, self._steps.at),
            spent_cost_usd=view.spent_cost_usd,
            runtime_errors=tuple(self._errors),
            stopped_by=stopped.stopped_by,
            score=score if score is not None or not scores else sum(scores) / len(scores),
            final_state=view.state,
            run_id=None if self._options.durable is None else self._options.durable.run_id,
        )

    # Telling.

    def _tell(self, kind: AgentRuntimeEventType | str, members: Mapping[str, Any]) -> None:
        if self._options.on_event is None:
            return
        known = {name: value for name, value in members.items() if name in MEMBERS[kind]}
        event = AgentRuntimeEvent(type=kind, task=self._options.task, **known)  # type: ignore[arg-type]  # the gate's are
        try:
            self._options.on_event(event)
        except Exception as error:  # noqa: BLE001 - a hook of the product's, which only watches
            self._note("trace", error)

    def _note(self, phase: _Phase, error: Exception) -> None:
        self._errors.append(ControlRuntimeError(phase=phase, step_index=len(self._view.steps), message=words_of(error)))

    def _since(self, began: str, ended: str | None = None) -> int:
        """Return the milliseconds since a timestamp; 0 if a clock was put back."""
        return max(0, (epoch_ms(ended or self._options.sources.now()) or 0) - (epoch_ms(began) or 0))


def _reason(found: object) -> str | None:
    if found is not None and not isinstance(found, str):
        raise ValidationError(f"should_stop must return a text or None, not {type(found).__name__}")
    return found


async def _returned(value: T) -> T:
    return value


def _evals(found: Any) -> tuple[ControlEvalResult, ...]:
    return tuple(read_value(ControlEvalResult, each) for each in found)


def _decision(found: Any) -> ControlDecision:
    return read_value(ControlDecision, found)


def _outcome(found: Any) -> ControlActionOutcome:
    return read_value(ControlActionOutcome, found)


def _cost(outcome: ControlActionOutcome) -> float:
    """Return the cost that an action reported; 0 if it is no finite number from 0."""
    cost = outcome.cost_usd
    return cost if cost is not None and 0 <= cost < float("inf") else 0.0
