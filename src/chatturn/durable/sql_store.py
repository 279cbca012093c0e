"""
`SqlRunStore`: durable runs in a SQL database, over any `Database`.

One class and several drivers, instead of several stores: so the semantics are the same everywhere by
construction (docs/reference/agent-runtime.md, The stores, lists what separate ones cost).
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

from chatturn.database.api import NOW, Database, Result, Row, Statement, Value
from chatturn.database.migration import read_version
from chatturn.durable.checks import (
    claimed,
    ended,
    may_be_refused,
    require_begun,
    require_intent,
    require_status,
    waits_elsewhere,
)
from chatturn.durable.failures import error_text, started_before
from chatturn.durable.identifiers import manifest_hash
from chatturn.durable.records import (
    Claim,
    DurableRunManifest,
    EventRecord,
    Lease,
    RunOutcome,
    RunPage,
    RunQuery,
    RunRecord,
    RunStatus,
    StepError,
    StepRecord,
    StepStatus,
    Wait,
)
from chatturn.durable.rows import event_from_row, run_from_row, step_from_row
from chatturn.durable.run_lists import delete_finished_runs, list_runs
from chatturn.durable.sql import adoption as legacy
from chatturn.durable.sql import runs as sql
from chatturn.durable.store import (
    DEFAULT_LEASE_MS,
    DELETED_AT_ONCE,
    NO_NEWS,
    Begin,
    Condition,
    EndStatus,
    Guard,
    News,
    Queue,
    Queued,
    Settlement,
)
from chatturn.errors import (
    DurableRunDivergenceError,
    LeaseLost,
    RunNotFound,
    StoreUnavailable,
)
from chatturn.jsontext.stored import json_text

__all__ = ["SqlRunStore"]

# Pauses before further tries of a batch whose reply was lost.  A claim may have a client waiting for
# its status code; a finish holds an answer that somebody paid for.
_CLAIM_DELAYS_S: Final = (0.05, 0.25)
_SETTLE_DELAYS_S: Final = (0.1, 0.5, 2.0, 5.0)

_CLAIM_TRIES: Final = 3
"""Tries of a claim that a guard refused, while no guard still refuses when its reason is read."""

_PARAMETER: Final = re.compile(r"\{(\d+)\}")

_LONGEST_LEASE_MS: Final = 10**12
"""Some thirty years.  An end beyond the last date would be none, and a lease without an end is a free one."""


class SqlRunStore:
    """
    `DurableRunStore` over a database.

    Args:
        database: Holds the tables of the schema; also an attribute, for other tables in the same database.
        token: Returns a string that no other claim has.
        run_bound_keys: Give each new run its own part in every key, so that a later run of the same name, after the
            deletion of this one, has other keys.  Use it only if no earlier version of this code serves the database:
            an earlier version makes the same run's keys without that part.
    """

    def __init__(
        self,
        database: Database,
        *,
        token: Callable[[], str] = lambda: os.urandom(8).hex(),
        run_bound_keys: bool = False,
    ) -> None:
        self.database = database
        self._run_bound_keys = run_bound_keys
        self._token = token

    # Claiming and keeping a run.

    async def start_or_resume(
        self,
        *,
        run_id: str,
        manifest: DurableRunManifest,
        worker_id: str,
        lease_ms: int = DEFAULT_LEASE_MS,
        begin: Begin | None = None,
        with_statements: Sequence[Statement] = (),
        reads: Sequence[Statement] = (),
        supersede: bool = False,
        legacy_run_id: str | None = None,
        guards: Sequence[Guard] = (),
        ends_with: Sequence[Statement] = (),
        queue: Queue | None = None,
    ) -> Claim:
        """Claim the run; see `DurableRunStore.start_or_resume`."""
        digest = manifest_hash(manifest)
        holder = f"{worker_id}#{self._token()}"
        step_count = 0 if begin is None else begin.step_index + 1
        key_part = self._token() if self._run_bound_keys else None
        waits_as, wait_term = (None, None) if queue is None else (queue.holder, _term(queue.lease_ms))
        what = (digest, manifest.project_id, manifest.scenario_id, NOW)
        claim = (run_id, holder, *what, _term(lease_ms), step_count, key_part, waits_as, wait_term)
        fence = (run_id, holder, None)
        unless_legacy = legacy.CLAIM_UNLESS_SAME_LEGACY if supersede else legacy.CLAIM_UNLESS_LEGACY
        load_or_legacy = legacy.LOAD_RUN_OR_SAME_LEGACY if supersede else legacy.LOAD_RUN_OR_LEGACY
        claim_run = _or_legacy(sql.CLAIM_RUN, unless_legacy, claim, legacy_run_id)
        load_run = (
            Statement(sql.LOAD_RUN, (run_id, NOW))
            if legacy_run_id is None
            else Statement(load_or_legacy, (run_id, NOW, legacy_run_id, digest, manifest.project_id))
        )
        before = [
            *(_supersede(run_id, digest) if supersede else []),
            *([] if legacy_run_id is None else legacy.adoption(run_id, digest, legacy_run_id)),
        ]
        writes = [
            *(_guarded(each, guards) for each in before),
            _guarded(claim_run, guards, queue),
            *([] if begin is None else [_begin(fence, begin)]),
            *(Statement(extra.sql, (*fence, *extra.params)) for extra in with_statements),
        ]
        own_reads = [
            load_run,
            _or_legacy(sql.LOAD_STEPS, legacy.LOAD_STEPS_OR_LEGACY, (run_id, 0), legacy_run_id),
        ]
        at_once = [guard for guard in guards if not guard.only_for_start]
        looks = [_look(each) for each in (*at_once, *([] if queue is None else [queue.turn]))]
        batch = [*writes, *looks, *own_reads, *reads]
        for _ in range(_CLAIM_TRIES):
            outcomes = (await self._batch(batch, _CLAIM_DELAYS_S))[len(writes) :]
            _require(at_once, outcomes)
            run, begun, *rest = [outcome.rows for outcome in outcomes[len(looks) :]]
            if not may_be_refused(run, digest, holder, supersede=supersede):
                break
            await self._require_start(guards)
            if waits_elsewhere(run, waits_as):
                break
        if not run:
            message = f"{_CLAIM_TRIES} claims were refused for reasons that were gone when they were asked for"
            raise StoreUnavailable(message)
        lease = claimed(run[0], digest, holder, lease_ms, supersede=supersede)
        if lease is not None and queue is not None and run[0]["status"] == RunStatus.PENDING:
            raise Queued(run_from_row(run[0]), lease, outcomes[len(at_once)].rows[0])
        steps = [step_from_row(step) for step in begun]
        if begin is not None and lease is not None:
            [step] = [step for step in steps if step.step_index == begin.step_index]
            await self._require_begun_or_release(lease, step, begin, ends_with)
        return Claim(run=run_from_row(run[0]), steps=steps, lease=lease, rows=rest)

    async def _require_start(self, guards: Sequence[Guard]) -> None:
        """Raise the error of the guard that refused a claim; return if no guard refuses any more."""
        of_start = [guard for guard in guards if guard.only_for_start]
        if of_start:
            _require(of_start, await self._batch([*map(_look, of_start)], _CLAIM_DELAYS_S))

    async def look(self, condition: Condition) -> Row:
        """Read a row with ``holds``, whether the condition holds, and the columns of `Condition.told`."""
        [outcome] = await self._batch([_look(condition)])
        return outcome.rows[0]

    async def renew_wait(self, lease: Lease, queue: Queue) -> Row | None:
        """
        Extend the lease of a wait for a run's start.

        Returns:
            A row with ``holds``, whether the run may start now, and the columns of `Condition.told`.  None if the wait
            has ended or is somebody else's: then claim again to learn the run's state.
        """
        turn = queue.turn
        text = _with_columns(sql.RENEW_WAIT, _columns(turn.sql, turn.told, 4, len(turn.params)))
        renewal = Statement(text, (lease.run_id, lease.holder, NOW, _term(queue.lease_ms), *turn.params))
        [outcome] = await self.database.batch([renewal])
        return outcome.rows[0] if outcome.rows else None

    async def leave_queue(self, run_id: str, holder: str) -> None:
        """End the wait for a run's start; the run stays pending, and the next caller may start it."""
        await self.database.batch([Statement(sql.LEAVE_QUEUE, (run_id, holder))])

    async def _require_begun_or_release(
        self, lease: Lease, step: StepRecord, begin: Begin, ends_with: Sequence[Statement]
    ) -> None:
        try:
            require_begun(step, begin)
        except DurableRunDivergenceError:
            await self.end_run(lease, RunStatus.FAILED, None, ends_with)
            raise

    async def renew_lease(self, lease: Lease) -> Lease:
        """Extend the lease; see `DurableRunStore.renew_lease`."""
        renewed, _ = await self.write(lease, (), renew=True)
        return renewed

    async def write(
        self, lease: Lease, statements: Sequence[Statement], *, renew: bool, returning: str = ""
    ) -> tuple[Lease, list[Sequence[Row]]]:
        """Run statements under the lease; see `DurableRunStore.write`."""
        fence = _fence(lease)
        batch = [Statement(extra.sql, (*fence, *extra.params)) for extra in statements]
        if renew:
            batch.append(Statement(_with_columns(sql.RENEW_LEASE, returning), (*fence, NOW, _term(lease.lease_ms))))
        rows = [outcome.rows for outcome in await self.database.batch(batch)]
        if not rows[0] or (renew and not rows[-1]):
            raise LeaseLost("the lease lapsed or was taken over", run_id=lease.run_id)
        if renew:
            lease = replace(lease, expires_at=str(rows[-1][0]["lease_expires_at"]))
        return lease, rows

    # Steps.

    async def load_step(self, run_id: str, step_index: int) -> StepRecord | None:
        """Read one step."""
        return _first_step(await self._batch([Statement(sql.LOAD_STEP, (run_id, step_index))]))

    async def begin_step(self, lease: Lease, begin: Begin, with_statements: Sequence[Statement] = ()) -> StepRecord:
        """Begin a step; see `DurableRunStore.begin_step`."""
        batch = [
            _begin(_fence(lease), begin),
            Statement(sql.BUMP_STEP_COUNT, (*_fence(lease), begin.step_index, NOW, 1)),
            *(Statement(extra.sql, (*_fence(lease), *extra.params)) for extra in with_statements),
        ]
        step = await self._write_step(lease, begin.step_index, batch)
        require_begun(step, begin)
        return require_status(step, StepStatus.RUNNING)

    async def complete_step(self, lease: Lease, step_index: int, result: Any) -> StepRecord:
        """Record a step's result; see `DurableRunStore.complete_step`."""
        params = (*_fence(lease), step_index, json_text(result, "the step's result"), NOW)
        step = await self._write_step(lease, step_index, [Statement(sql.COMPLETE_STEP, params)])
        return require_status(step, StepStatus.COMPLETED)

    async def fail_step(self, lease: Lease, step_index: int, error: StepError) -> StepRecord:
        """Record why a step failed; see `DurableRunStore.fail_step`."""
        params = (*_fence(lease), step_index, error_text(error), NOW)
        step = await self._write_step(lease, step_index, [Statement(sql.FAIL_STEP, params)])
        return require_status(step, StepStatus.FAILED)

    async def _write_step(self, lease: Lease, step_index: int, batch: list[Statement]) -> StepRecord:
        """Run *batch*, which is fenced, and read the step that it wrote."""
        reads = [
            Statement(sql.LOAD_RUN, (lease.run_id, NOW)),
            Statement(sql.LOAD_STEP, (lease.run_id, step_index)),
        ]
        outcomes = await self._batch([*batch, *reads], _SETTLE_DELAYS_S)
        run, step = outcomes[-2].rows, outcomes[-1].rows
        if not run or run[0]["lease_holder_id"] != lease.holder or run[0]["epoch"] != lease.epoch:
            raise LeaseLost("the run has another holder; nothing was written", run_id=lease.run_id)
        if not step:
            raise DurableRunDivergenceError(f"step {step_index} was never begun", run_id=lease.run_id)
        return step_from_row(step[0])

    async def load_steps(self, run_id: str, first_index: int) -> Sequence[StepRecord]:
        """Read the next page of a run's steps; see `DurableRunStore.load_steps`."""
        [outcome] = await self._batch([Statement(sql.LOAD_STEPS, (run_id, first_index))], _CLAIM_DELAYS_S)
        return [step_from_row(row) for row in outcome.rows]

    async def record_step(
        self,
        lease: Lease,
        begin: Begin,
        *,
        attempts: int,
        elapsed_ms: int,
        result_json: str | None = None,
        error: StepError | None = None,
        with_statements: Sequence[Statement] = (),
    ) -> None:
        """Record a step's outcome; see `DurableRunStore.record_step`."""
        fence = _fence(lease)
        status = StepStatus.COMPLETED if error is None else StepStatus.FAILED
        what = (begin.step_index, begin.intent, begin.kind, begin.input_hash, status, attempts)
        error_json = None if error is None else error_text(error)
        record = Statement(sql.RECORD_STEP, (*fence, *what, result_json, error_json, NOW, started_before(elapsed_ms)))
        bump = Statement(sql.BUMP_STEP_COUNT, (*fence, begin.step_index, NOW, int(error is None)))
        beside = [Statement(extra.sql, (*fence, *extra.params)) for extra in with_statements]
        step = await self._write_step(lease, begin.step_index, [record, bump, *beside])
        require_intent(step, begin)

    # Ending a run.

    async def end_run(
        self,
        lease: Lease,
        status: EndStatus,
        outcome: RunOutcome | None = None,
        with_statements: Sequence[Statement] = (),
    ) -> RunRecord:
        """End the run; see `DurableRunStore.end_run`."""
        fence = _fence(lease)
        batch = [Statement(extra.sql, (*fence, *extra.params)) for extra in with_statements]
        return await self._end(lease, status, outcome, batch)

    async def settle(self, lease: Lease, settlement: Settlement) -> RunRecord:
        """End a step and the run in one write; see `DurableRunStore.settle`."""
        fence, error = _fence(lease), settlement.error
        step: tuple[int, str, str]
        status: EndStatus
        if error is None:
            text = json_text(settlement.result, "the turn's result")
            step, write, status = (settlement.step_index, text, NOW), sql.COMPLETE_STEP, RunStatus.COMPLETED
        else:
            step = (settlement.step_index, error_text(error), NOW)
            write, status = sql.FAIL_STEP, RunStatus.FAILED
        batch = [
            Statement(write, (*fence, *step)),
            *(Statement(extra.sql, (*fence, *extra.params)) for extra in settlement.with_statements),
        ]
        return await self._end(lease, status, settlement.outcome, batch, settlement.step_index, news=settlement.news)

    async def _end(
        self,
        lease: Lease,
        status: EndStatus,
        outcome: RunOutcome | None,
        batch: list[Statement],
        step_index: int | None = None,
        *,
        news: News = NO_NEWS,
    ) -> RunRecord:
        """
        Run *batch* and, last because it releases the lease that fences the rest, end the run.

        Args:
            lease: The run's.
            status: The run's new status.
            outcome: The run's outcome.
            batch: Fenced statements, run before the run's end.
            step_index: A step that must have the same status afterwards; None for no step.
            news: What to read with the write.
        """
        asked_at = asyncio.get_running_loop().time()
        text = None if outcome is None else json_text(outcome.to_json(), "the outcome")
        end = Statement(_with_columns(sql.END_RUN, news.columns), (*_fence(lease), status, text, NOW, step_index))
        rows = (await self._batch([*batch, end], _SETTLE_DELAYS_S))[-1].rows
        if rows:
            news.told(rows[0], asked_at)
        else:  # another holder has the run, or an earlier try of this write ended it and its reply was lost
            rows = (await self._batch([Statement(sql.LOAD_RUN, (lease.run_id, NOW))], _SETTLE_DELAYS_S))[-1].rows
        return ended(lease, status, rows)

    async def suspend(self, lease: Lease, wait: Wait, with_statements: Sequence[Statement] = ()) -> RunRecord:
        """Release the lease until then; see `DurableRunStore.suspend`."""
        fence = _fence(lease)
        batch = [
            Statement(sql.RECORD_WAIT, (*fence, wait.step_index, wait.key, wait.wake_at)),
            *(Statement(extra.sql, (*fence, *extra.params)) for extra in with_statements),
            Statement(sql.SUSPEND_RUN, (*fence, NOW)),
            Statement(sql.LOAD_RUN, (lease.run_id, NOW)),
        ]
        return ended(lease, RunStatus.SUSPENDED, (await self._batch(batch, _SETTLE_DELAYS_S))[-1].rows)

    async def give_up(self, run_id: str, outcome: RunOutcome, with_statements: Sequence[Statement] = ()) -> None:
        """
        End a run without a live lease as failed, because it cannot go on; a leased run stays as it is.

        Args:
            run_id: The run.
            outcome: The run's.
            with_statements: Further statements of the same transaction, run even if the run stays as it is.
        """
        text = json_text(outcome.to_json(), "the outcome")
        await self._batch([Statement(sql.GIVE_UP_RUN, (run_id, NOW, text)), *with_statements])

    async def due_runs(self, limit: int) -> Sequence[str]:
        """Return suspended runs that may go on; see `DurableRunStore.due_runs`."""
        [outcome] = await self._batch([Statement(sql.DUE_WAITS, (NOW, limit))])
        return [str(row["run_id"]) for row in outcome.rows]

    # Reading, and events.

    async def load_run(self, run_id: str) -> RunRecord | None:
        """Read a run."""
        [outcome] = await self._batch([Statement(sql.LOAD_RUN, (run_id, NOW))])
        return run_from_row(outcome.rows[0]) if outcome.rows else None

    async def emit_event(self, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """Record an event; see `DurableRunStore.emit_event`."""
        emit = Statement(sql.EMIT_EVENT, (run_id, key, json_text(payload, "the event's payload"), NOW))
        # Tried once: after a lost reply nobody could tell whose emit was the first.
        emitted, loaded = await self._batch([emit, Statement(sql.LOAD_EVENT, (run_id, key))])
        if not loaded.rows:
            raise RunNotFound("it does not exist; the event was not stored", run_id=run_id)
        return emitted.changes > 0, event_from_row(loaded.rows[0])

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        """Read an event."""
        [outcome] = await self._batch([Statement(sql.LOAD_EVENT, (run_id, key))])
        return event_from_row(outcome.rows[0]) if outcome.rows else None

    async def poll_event(self, run_id: str, key: str, since: str) -> tuple[EventRecord | None, int]:
        """Read an event and how long it has been waited for; see `DurableRunStore.poll_event`."""
        [outcome] = await self._batch([Statement(sql.POLL_EVENT, (run_id, key, NOW, since))], _CLAIM_DELAYS_S)
        row = outcome.rows[0]
        event = None if row["emitted_at"] is None else event_from_row({**row, "run_id": run_id, "key": key})
        return event, int(row["waited_ms"] or 0)

    async def list_runs(self, query: RunQuery) -> RunPage:
        """Return one page of a list of runs; see `DurableRunStore.list_runs`."""
        return await list_runs(self.database, query)

    async def delete_finished_runs(self, *, older_than_ms: int, limit: int = DELETED_AT_ONCE) -> int:
        """Delete runs that ended long ago; see `DurableRunStore.delete_finished_runs`."""
        return await delete_finished_runs(self.database, older_than_ms=older_than_ms, limit=limit)

    async def get_schema_version(self) -> int:
        """Return the schema's version in the database; 0 for one that has none."""
        return await read_version(self.database)

    async def close(self) -> None:
        """Do nothing: the database belongs to whoever opened it."""

    async def _batch(self, batch: Sequence[Statement], delays_s: Sequence[float] = ()) -> list[Result]:
        """Run *batch*; while no reply comes, again after each of *delays_s*.  *batch* must be fenced or only read."""
        for delay_s in delays_s:
            try:
                return await self.database.batch(batch)
            except StoreUnavailable:
                await asyncio.sleep(delay_s)
        return await self.database.batch(batch)


def _fence(lease: Lease) -> tuple[str, str, int]:
    return (lease.run_id, lease.holder, lease.epoch)


def _term(lease_ms: int) -> str:
    """Return the lease's term as an SQLite time modifier: 60,000 ms is ``+60.000 seconds``."""
    return f"+{min(lease_ms, _LONGEST_LEASE_MS) / 1000:.3f} seconds"


def _or_legacy(text: str, text_or_legacy: str, params: tuple[Value, ...], legacy_run_id: str | None) -> Statement:
    return Statement(text, params) if legacy_run_id is None else Statement(text_or_legacy, (*params, legacy_run_id))


def _guarded(statement: Statement, guards: Sequence[Condition], queue: Queue | None = None) -> Statement:
    """Return the statement with conditions: it writes only if all guards hold, and a claim waits without its turn."""
    if sql.GUARDED not in statement.sql:
        return statement
    turn = None if queue is None else queue.turn
    guarding = tuple([guard.sql for guard in guards])
    text = _guarded_text(statement.sql, len(statement.params), guarding, None if turn is None else turn.sql)
    params = list(statement.params)
    for condition in (*guards, *(() if turn is None else (turn,))):
        params += condition.params[: _used(condition.sql)]
    return Statement(text, tuple(params))


@cache
def _used(text: str) -> int:
    """Return how many parameters *text* uses; a condition's last ones may serve only its told columns."""
    return max((int(each) + 1 for each in _PARAMETER.findall(text)), default=0)


@cache
def _guarded_text(text: str, params: int, guards: tuple[str, ...], starts: str | None) -> str:
    """Replace the places in *text*, which has *params* parameters, by the guards' conditions and the start's."""
    conditions = []
    for condition in (*guards, *(() if starts is None else (starts,))):
        conditions.append(f"({_numbered(condition, params, _used(condition))})")
        params += _used(condition)
    if guards:
        text = text.replace(sql.GUARDED, " AND ".join(conditions[: len(guards)]))
    return text if starts is None else text.replace(sql.STARTS, conditions[-1])


@cache
def _numbered(text: str, first: int, params: int) -> str:
    return text.format(*(f"?{first + 1 + each}" for each in range(params)))


def _require(guards: Sequence[Guard], looked: Sequence[Result]) -> None:
    """Raise the refusal of the first guard that does not hold."""
    for guard, outcome in zip(guards, looked, strict=False):
        [found] = outcome.rows
        if not found["holds"]:
            raise guard.refusal(found)


def _look(condition: Condition) -> Statement:
    """Return the query for ``holds`` and the told columns of a condition."""
    text, used = _look_text(condition.sql, condition.told, condition.told_from, len(condition.params))
    return Statement(text, condition.params[:used])


@cache
def _look_text(condition: str, told: str, told_from: str, params: int) -> tuple[str, int]:
    """Return the query's text, and how many of the *params* parameters it uses."""
    text = f"SELECT {_columns(condition, told, 0, params)} {_numbered(told_from, 0, params)}"
    return text, _used(f"{condition} {told} {told_from}")


@cache
def _columns(condition: str, told: str, first: int, params: int) -> str:
    return _numbered(f"({condition}) AS holds{', ' if told else ''}{told}", first, params)


@cache
def _with_columns(text: str, columns: str) -> str:
    return f"{text}, {columns}" if columns else text


def _begin(fence: tuple[str, str, int | None], begin: Begin) -> Statement:
    return Statement(sql.BEGIN_STEP, (*fence, begin.step_index, begin.intent, begin.kind, begin.input_hash, NOW))


def _supersede(run_id: str, digest: str) -> list[Statement]:
    """Make a run that has another manifest, and no live lease, look like a failed one with this manifest."""
    return [Statement(sql.REPLACE_MANIFEST, (run_id, digest, NOW)), Statement(sql.FORGET_STEPS, (run_id,))]


def _first_step(outcomes: Sequence[Result]) -> StepRecord | None:
    rows = outcomes[0].rows
    return step_from_row(rows[0]) if rows else None
