"""A task as a loop: what it does, what it tells, and that a durable one survives its worker."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime.shown.collectors import create_runtime_event_collector
from chatturn.agent_runtime.shown.telemetry_options import RuntimeTelemetryOptions
from chatturn.agent_runtime.tasks.readiness import KnowledgeHooks, assess_knowledge
from chatturn.agent_runtime.tasks.task_loop import (
    RunAgentTaskOptions,
    TaskView,
    run_agent_task,
    summarize_agent_task_run,
)
from chatturn.agent_runtime.tasks.task_steps import DurableTask
from chatturn.agent_runtime.values.control import ControlActionOutcome, ControlDecision, ControlEvalResult
from chatturn.agent_runtime.values.knowledge import DataAcquisitionPlan, KnowledgeReadinessReport, UserQuestion
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.database.api import Database
from chatturn.durable.records import RunStatus
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import DurableRunInputMismatchError, StoreError, StoreUnavailable, ValidationError
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.agent_tasks import TASK, Counting, requirement
from tests.support.faults import FaultyDatabase
from tests.support.turns import open_sqlite

ROUND = ["decide", "act", "observe", "validate"]
WHOLE = ["observe", "validate", *ROUND * 3, "decide"]
NEEDS_A_NAME = replace(
    TASK, required_knowledge=(requirement("name"), requirement("law", mode="search_web", importance="low"))
)


def durable(database: Database, run_id: str = "run-1") -> DurableTask:
    """Return what makes a task durable in *database*."""
    return DurableTask(store=SqlRunStore(database), run_id=run_id, project_id="test-project")


def kinds(counting: Counting) -> list[str]:
    """Return the types of what was told."""
    return [event.type for event in counting.events]


# agent-runtime's own tests


async def test_the_control_loop_completes() -> None:
    counting = Counting()
    result = await run_agent_task(counting.options())

    assert (AgentTaskStatus.COMPLETED, "counted", 3) == (result.status, result.reason, counting.count)
    assert WHOLE == counting.calls
    assert result.control is not None
    assert (True, True, "policy", 3) == (result.control.passed, result.control.completed, result.control.stopped_by, len(result.control.steps))  # fmt: skip
    assert (3_000, 0.75, {"count": 3}) == (
        result.control.wall_ms,
        result.control.spent_cost_usd,
        result.control.final_state,
    )
    assert [
        "task_start", "readiness_start", "readiness_end", "control_start", *["control_step"] * 3, "control_end", "task_end",
    ] == kinds(counting)  # fmt: skip


async def test_a_blocked_task_does_nothing() -> None:
    counting = Counting()
    result = await run_agent_task(counting.options(task=NEEDS_A_NAME))

    assert (AgentTaskStatus.BLOCKED, [], None) == (result.status, counting.calls, result.control)
    assert ["task_start", "readiness_start", "readiness_end", "task_end"] == kinds(counting)


async def test_who_blocks_is_told() -> None:
    told: list[str] = []

    async def on_blocked(_: KnowledgeReadinessReport, decision: Any) -> None:
        told.extend(decision.blocking_gap_ids)

    await run_agent_task(Counting().options(task=NEEDS_A_NAME, hooks=KnowledgeHooks(on_blocked=on_blocked)))

    assert ["name"] == told


def preflight(calls: list[str]) -> KnowledgeHooks:
    """Return hooks that close every gap."""

    async def ask(questions: Sequence[UserQuestion]) -> Mapping[str, str]:
        calls.append("ask")
        return {question.id: "Ann" for question in questions}

    async def acquire(plans: Sequence[DataAcquisitionPlan]) -> Sequence[str]:
        calls.append("acquire")
        return [f"evidence of {plan.id}" for plan in plans]

    async def refresh(
        report: KnowledgeReadinessReport, answers: Mapping[str, str], ids: Sequence[str]
    ) -> KnowledgeReadinessReport:
        calls.append(f"refresh with {dict(answers)} {list(ids)}")
        return replace(assess_knowledge(TASK), reason="refreshed", task_id=report.task_id)

    return KnowledgeHooks(ask_user=ask, acquire=acquire, refresh=refresh)


async def test_preflight_hooks_refresh_readiness() -> None:
    counting, calls = Counting(), list[str]()
    result = await run_agent_task(counting.options(task=NEEDS_A_NAME, hooks=preflight(calls)))

    assert AgentTaskStatus.COMPLETED == result.status
    assert ["ask", "acquire", "refresh with {'ask:name': 'Ann'} ['evidence of acquire:law']"] == calls
    assert [
        "task_start", "readiness_start", "questions_start", "questions_end", "acquisition_start", "acquisition_end",
        "readiness_start", "readiness_end", "control_start",
    ] == kinds(counting)[:9]  # fmt: skip
    assert ({"ask:name": "Ann"}, ("evidence of acquire:law",), "refreshed") == (
        result.user_answers, result.acquired_evidence_ids, result.knowledge.reason,
    )  # fmt: skip


async def test_summaries_leak_nothing() -> None:
    counting = Counting()
    secret = "the plaintiff is Ms. Miller"

    async def decide(_: TaskView) -> ControlDecision:
        return ControlDecision(type="stop", reason=secret, passed=False)

    result = await run_agent_task(counting.options(decide=decide, task=replace(TASK, inputs={"who": secret})))
    summary = summarize_agent_task_run(result)

    assert secret in repr(result)
    assert secret not in repr(summary)
    assert ("task-1", AgentTaskStatus.FAILED, 0, "policy", "ready") == (
        summary.task_id, summary.status, summary.step_count, summary.stopped_by, summary.readiness_status,
    )  # fmt: skip

    async def fails(_: TaskView) -> ControlDecision:
        raise ValueError(secret)

    failed = summarize_agent_task_run(await run_agent_task(counting.options(decide=fails)))
    assert ("decide",) == failed.failed_phases
    assert secret not in repr(failed)


@pytest.mark.parametrize("shown", [False, True])
async def test_telemetry_of_payloads_is_opt_in(shown: bool) -> None:
    collector = create_runtime_event_collector(RuntimeTelemetryOptions(include_control_payloads=shown))
    await run_agent_task(Counting().options(on_event=collector.on_event))

    assert shown == ("'add': 1" in repr(collector.events))


# Who may stop it


@pytest.mark.parametrize(
    ("budget", "reason", "rounds"),
    [
        ({"maxSteps": 2}, "maxSteps is spent: 2 of 2", 2), ({"maxWallMs": 1_500}, "maxWallMs is spent: 2000 of 1500", 2),
        ({"maxCostUsd": 0.2}, "maxCostUsd is spent: 0.25 of 0.2", 1), ({"maxSteps": 0}, "maxSteps is spent: 0 of 0", 0),
    ],
)  # fmt: skip
async def test_a_budget_that_is_spent_begins_no_action(budget: dict[str, float], reason: str, rounds: int) -> None:
    counting = Counting()
    result = await run_agent_task(counting.options(task=replace(TASK, budget=budget)))

    assert (AgentTaskStatus.FAILED, reason, rounds) == (result.status, result.reason, counting.calls.count("act"))
    assert result.control is not None
    assert ("budget", False, False) == (result.control.stopped_by, result.control.completed, result.control.passed)


async def test_a_budget_that_is_just_enough_is_enough() -> None:
    """The policy still says that it is done."""
    result = await run_agent_task(Counting().options(task=replace(TASK, budget={"maxSteps": 3})))

    assert AgentTaskStatus.COMPLETED == result.status


async def test_a_task_without_a_budget_ends_all_the_same() -> None:
    counting = Counting(target=1_000)
    result = await run_agent_task(counting.options())

    assert ("maxSteps is spent: 20 of 20", 20) == (result.reason, counting.count)


@pytest.mark.parametrize(
    "budget", [{"maxStep": 1}, {"maxSteps": -1}, {"maxWallMs": float("nan")}, {"maxCostUsd": True}, {"maxSteps": "3"}]
)
def test_a_budget_that_is_none_is_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="budget"):
        Counting().options(task=replace(TASK, budget=budget))


async def test_a_stop_policy_ends_the_loop() -> None:
    counting = Counting()
    result = await run_agent_task(counting.options(should_stop=lambda view: "enough" if view.steps else None))

    assert ("enough", 1, AgentTaskStatus.FAILED) == (result.reason, counting.count, result.status)
    assert result.control is not None
    assert "stop-policy" == result.control.stopped_by


@pytest.mark.parametrize("stored", [False, True])
async def test_an_abort_cancels_the_hook_that_runs(stored: bool) -> None:
    """At once, and not when it is over."""
    abort, counting = asyncio.Event(), Counting()
    with open_sqlite() as database:
        options = counting.options(abort=abort, durable=durable(database) if stored else None)
        running = asyncio.ensure_future(run_agent_task(options))
        await asyncio.sleep(1.5)
        abort.set()
        result = await running

        assert 1.5 == asyncio.get_running_loop().time()
        assert (AgentTaskStatus.ABORTED, "act") == (result.status, counting.calls[-1])
        assert result.control is not None
        assert ("abort", 1) == (result.control.stopped_by, len(result.control.steps))
        assert "task_end" == kinds(counting)[-1]


async def test_a_task_that_is_aborted_before_it_begins_does_nothing() -> None:
    abort, counting = asyncio.Event(), Counting()
    abort.set()
    result = await run_agent_task(counting.options(abort=abort))

    assert (AgentTaskStatus.ABORTED, []) == (result.status, counting.calls)


async def test_a_caller_that_is_cancelled_cancels_the_hook() -> None:
    counting = Counting()
    running = asyncio.ensure_future(run_agent_task(counting.options(abort=asyncio.Event())))
    await asyncio.sleep(0.5)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert [asyncio.current_task()] == [*asyncio.all_tasks()]


# Hooks that fail


@pytest.mark.parametrize("phase", ["observe", "validate", "decide"])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_hook_that_raises_fails_the_task(phase: str, stored: bool) -> None:
    counting = Counting()
    counting.on_call = lambda name: _fail_when(name == phase and counting.count == 1)
    with open_sqlite() as database:
        result = await run_agent_task(counting.options(durable=durable(database) if stored else None))

    assert (AgentTaskStatus.FAILED, f"{phase}: ValueError: no") == (result.status, result.reason)
    assert result.control is not None
    assert ("runtime-error", [(phase, 1)]) == (
        result.control.stopped_by, [(error.phase, error.step_index) for error in result.control.runtime_errors],
    )  # fmt: skip
    assert 1 == len(result.control.steps)


async def test_an_action_that_raises_has_failed_and_the_loop_goes_on() -> None:
    counting = Counting()
    counting.on_call = lambda name: _fail_when(name == "act" and counting.calls.count("act") == 1)
    result = await run_agent_task(counting.options())

    assert result.control is not None
    outcomes = [step.action_outcome for step in result.control.steps]
    assert [False, True, True, True] == [outcome is not None and outcome.ok for outcome in outcomes]
    assert AgentTaskStatus.COMPLETED == result.status


async def test_a_plain_result_is_an_outcome() -> None:
    counting = Counting(target=1)

    async def act(_action: Any, _view: TaskView) -> str:
        counting.count += 1
        await asyncio.sleep(2)
        return "added"

    result = await run_agent_task(counting.options(act=act))

    assert result.control is not None
    assert ControlActionOutcome(ok=True, duration_ms=2_000, result="added") == result.control.steps[0].action_outcome


async def test_a_hook_of_the_gate_that_raises_fails_the_task() -> None:
    async def ask(_: Sequence[UserQuestion]) -> Mapping[str, str]:
        raise ValueError("no")

    result = await run_agent_task(Counting().options(task=NEEDS_A_NAME, hooks=KnowledgeHooks(ask_user=ask)))

    assert (AgentTaskStatus.FAILED, "ValueError: no", None) == (result.status, result.reason, result.control)


async def test_whoever_only_watches_changes_nothing() -> None:
    def on_event(_: Any) -> None:
        raise ValueError("no")

    async def on_step(_: Any) -> None:
        raise ValueError("no")

    result = await run_agent_task(Counting().options(on_event=on_event, on_step=on_step))

    assert AgentTaskStatus.COMPLETED == result.status
    assert result.control is not None
    assert {"on-step", "trace"} == {error.phase for error in result.control.runtime_errors}


@pytest.mark.parametrize("hook", ["validate", "decide"])
async def test_a_hook_that_returns_something_else_is_told(hook: str) -> None:
    async def wrong(_: TaskView) -> Any:
        return [{"id": "done"}]

    result = await run_agent_task(Counting().options(**{hook: wrong}))

    assert result.reason.startswith(f"{hook}: ValidationError")


async def test_checks_that_only_warn_need_not_pass() -> None:
    async def validate(_: TaskView) -> Sequence[ControlEvalResult]:
        return [
            ControlEvalResult(id="style", passed=False, severity="warning"),
            ControlEvalResult(id="sum", passed=True),
        ]

    async def decide(_: TaskView) -> ControlDecision:
        return ControlDecision(type="stop")

    result = await run_agent_task(Counting().options(validate=validate, decide=decide))

    assert AgentTaskStatus.COMPLETED == result.status


# Durable


async def test_each_observation_check_decision_and_action_is_a_step() -> None:
    with open_sqlite() as database:
        await run_agent_task(Counting(target=1).options(durable=durable(database)))
        rows = database._connection.execute(
            "SELECT intent, kind, status FROM durable_steps ORDER BY step_index"
        ).fetchall()

    assert [
        ("deterministic:now", "deterministic"), ("observe:0", "logic"), ("validate:0", "logic"), ("decide:0", "logic"), ("act:0", "tool"),
        ("observe:1", "logic"), ("validate:1", "logic"), ("decide:1", "logic"),
    ] == [(row["intent"], row["kind"]) for row in rows]  # fmt: skip
    assert {"completed"} == {row["status"] for row in rows}


async def test_a_task_that_has_completed_is_replayed_without_its_hooks() -> None:
    with open_sqlite() as database:
        first, second = Counting(), Counting()
        before = await run_agent_task(first.options(durable=durable(database)))
        await asyncio.sleep(60)
        again = await run_agent_task(second.options(durable=durable(database)))

    assert before == again
    assert first.events == second.events
    assert [] == second.calls


async def test_a_task_that_failed_is_gone_on_with() -> None:
    """A passing failure does not cost what was done before it."""
    with open_sqlite() as database:
        counting = Counting()
        counting.on_call = lambda name: _fail_when(name == "decide" and counting.count == 2)
        failed = await run_agent_task(counting.options(durable=durable(database)))
        counting.on_call, counting.calls = lambda _: None, []
        result = await run_agent_task(counting.options(durable=durable(database)))

        assert (AgentTaskStatus.FAILED, AgentTaskStatus.COMPLETED) == (failed.status, result.status)
        assert ["decide", "act", "observe", "validate", "decide"] == counting.calls
        record = await SqlRunStore(database).load_run("run-1")
        assert record is not None
        assert RunStatus.COMPLETED == record.status


async def test_a_blocked_task_is_gone_on_with_once_more_is_known() -> None:
    with open_sqlite() as database:
        counting = Counting()
        blocked = await run_agent_task(counting.options(task=NEEDS_A_NAME, durable=durable(database)))
        result = await run_agent_task(
            counting.options(task=NEEDS_A_NAME, knowledge=assess_knowledge(TASK), durable=durable(database))
        )

    assert (AgentTaskStatus.BLOCKED, AgentTaskStatus.COMPLETED) == (blocked.status, result.status)


async def test_another_task_under_the_same_run_is_refused() -> None:
    with open_sqlite() as database:
        await run_agent_task(Counting().options(durable=durable(database)))
        with pytest.raises(DurableRunInputMismatchError):
            await run_agent_task(
                Counting().options(task=replace(TASK, inputs={"target": 4}), durable=durable(database))
            )


async def test_a_state_that_is_no_json_is_refused_where_it_would_be_recorded() -> None:
    async def observe(_: TaskView) -> Any:
        return {1, 2}

    with open_sqlite() as database, pytest.raises(TypeError, match="observe:0"):
        await run_agent_task(Counting().options(observe=observe, durable=durable(database)))


async def test_a_store_that_fails_is_not_taken_for_a_hook_that_does() -> None:
    """The caller learns that nothing is known, and calls again."""
    with open_sqlite() as database:
        faulty = FaultyDatabase(database)
        counting = Counting()

        def break_down(name: str) -> None:
            faulty.down = name == "act"

        counting.on_call = break_down
        with pytest.raises((StoreUnavailable, StoreError)):
            await run_agent_task(counting.options(durable=durable(faulty)))


async def test_an_answer_that_is_a_credential_is_never_recorded() -> None:
    """It is asked for again on each attempt."""
    key = "sk-live-abcdefgh12345678"
    task = replace(TASK, required_knowledge=(requirement("name"), requirement("key", category="credential_or_secret")))
    asked: list[list[str]] = []

    async def ask(questions: Sequence[UserQuestion]) -> Mapping[str, str]:
        asked.append([question.requirement_id for question in questions])
        return {question.id: key if question.requirement_id == "key" else "Ann" for question in questions}

    async def refresh(*_: Any) -> KnowledgeReadinessReport:
        return assess_knowledge(TASK)

    with open_sqlite() as database:
        for _ in range(2):
            options = Counting().options(
                task=task, hooks=KnowledgeHooks(ask_user=ask, refresh=refresh), durable=durable(database)
            )
            result = await run_agent_task(options)
        stored = repr([tuple(row) for row in database._connection.execute("SELECT * FROM durable_steps")])

    assert {"ask:name": "Ann", "ask:key": key} == result.user_answers
    assert [["name"], ["key"], ["key"]] == asked
    assert "Ann" in stored
    assert key not in stored


@pytest.mark.parametrize("fails", [False, True])
async def test_a_credential_is_not_recorded_where_another_hook_has_it(fails: bool) -> None:
    """A report that has it is recorded without it, and has it again on each attempt; so are an error's words."""
    key = "hunter2 is 'it'"
    task = replace(TASK, required_knowledge=(requirement("key", category="credential_or_secret"),))
    errors = [ValueError(f"no {key} there")] if fails else []

    async def ask(questions: Sequence[UserQuestion]) -> Mapping[str, str]:
        return {question.id: key for question in questions}

    async def refresh(_: Any, answers: Mapping[str, str], __: Any) -> KnowledgeReadinessReport:
        if errors:
            raise errors.pop()
        report = assess_knowledge(TASK)
        return replace(report, bundle=replace(report.bundle, user_answers=dict(answers)), reason=f"with {key}")

    with open_sqlite() as database:
        hooks = KnowledgeHooks(ask_user=ask, refresh=refresh)
        results = [
            await run_agent_task(Counting().options(task=task, hooks=hooks, durable=durable(database)))
            for _ in range(2 + fails)
        ]
        tables = ("durable_steps", "durable_runs")
        stored = repr([tuple(row) for name in tables for row in database._connection.execute(f"SELECT * FROM {name}")])  # noqa: S608

    assert "hunter2" not in stored
    assert "refresh" in stored
    for result in results[fails:]:
        assert AgentTaskStatus.COMPLETED == result.status
        assert ({"ask:key": key}, f"with {key}") == (result.knowledge.bundle.user_answers, result.knowledge.reason)


def _fail_when(condition: bool) -> None:
    if condition:
        raise ValueError("no")


def _mortal(counting: Counting, fuse: Fuse, calls: list[str], database: Database) -> RunAgentTaskOptions:
    counting.on_call = lambda name: fuse.pass_by(f"inside {name}")
    return counting.options(task=NEEDS_A_NAME, hooks=preflight(calls), durable=durable(MortalDatabase(database, fuse)))


def _places() -> list[str]:
    async def live() -> list[str]:
        with open_sqlite() as database:
            fuse = Fuse()
            await run_agent_task(_mortal(Counting(), fuse, [], database))
            return fuse.places

    return asyncio.run(live())


PLACES = _places()


@pytest.mark.parametrize("point", range(len(PLACES)))
async def test_a_worker_may_die_anywhere_in_a_task(point: int) -> None:
    """The next one goes on: nothing on record is done again, and what was begun is done again under the same key."""
    with open_sqlite() as database:
        first = Counting()
        calls: list[str] = []
        with pytest.raises(Crash):
            await run_agent_task(_mortal(first, Fuse(point), calls, database))
        recorded = database._connection.execute(
            "SELECT count(*) FROM durable_steps WHERE status = 'completed'"
        ).fetchone()[0]
        await asyncio.sleep(30)
        second = Counting(count=first.count)
        result = await run_agent_task(_mortal(second, Fuse(), calls, database))

        assert AgentTaskStatus.COMPLETED == result.status
        assert len(calls) <= 4
        keys = first.keys + second.keys
        assert len(set(keys)) == len({key for key in keys if keys.count(key) <= 2})
        assert sum(keys.count(key) == 2 for key in set(keys)) <= 1
        # Of the steps behind the gate's four, those on record were not done again.
        assert set(first.keys[: max(0, recorded - 4)]).isdisjoint(second.keys)


def test_the_crash_test_visits_every_statement() -> None:
    """Each of a task's writes has a place before it and one after it."""
    assert PLACES.count("before a batch") == PLACES.count("after a batch") >= 16
    assert {"inside observe", "inside validate", "inside decide", "inside act"} < set(PLACES)
