"""
The sweep: the cron does the work for which no reader came back, as much as one invocation may do.

It makes the hook calls that are due, goes on with turns whose event or moment has come, takes over turns whose worker
was lost, begins turns that may begin and that no worker waits with, and deletes what is too old.  It never touches a
turn that is being answered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from chatturn.chat.hooks.outbox import Outbox
from chatturn.chat.lists.sql import read_lost_turns
from chatturn.chat.log.compaction import compact_logs
from chatturn.chat.service import DurableChatService
from chatturn.chat.sessions.deletion import go_on_deleting
from chatturn.chat.sessions.sql import adopt_latest
from chatturn.chat.sweep_budget import SWEEP_SHARES, CountedDatabase, SweepBudget
from chatturn.chat.thread.queue_sql import read_due_pending
from chatturn.chat.turn.limits_sql import delete_allowances
from chatturn.chat.turn.log_retention import LOGS_AT_ONCE, give_up_old_logs
from chatturn.chat.usage.sql import delete_usage
from chatturn.database.migration import mend
from chatturn.errors import FilesUnavailable, StoreError

__all__ = ["HandOut", "Sweep"]

HandOut: TypeAlias = Callable[[Sequence[str]], Awaitable[int]]
"""Calls `Sweep.run_turns` in another invocation and returns its result; 0 where that does not answer."""

_LOOKED_AT: Final = 40
"""Turns looked at: more than are resumed at once, so that turns that cannot be resumed do not hold up the others."""

_PART_S: Final = 900.0
"""The longest wait for another invocation, in seconds: the platform ends an invocation of a cron after 15 minutes."""

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """
    The sweep of one deployment.

    Attributes:
        service: Its chat.
        hand_out: Starts other invocations; None where this invocation does all.
    """

    service: DurableChatService
    hand_out: HandOut | None = None

    async def run(self) -> int:
        """Do what is due until the budget is used up; return how many hook calls and turns came to an end."""
        return await self._round().run()

    async def run_turns(self, run_ids: Sequence[str]) -> int:
        """Go on with turns that a sweep has handed out, until the budget is used up; return how many have run."""
        return await self._round().resume(run_ids)

    def _round(self) -> "_Round":
        deployment = self.service.deployment
        database = CountedDatabase(deployment.database)
        service = replace(self.service, deployment=replace(deployment, database=database))
        budget = SweepBudget(database, SWEEP_SHARES[deployment.settings.workers_plan])
        return _Round(service=service, budget=budget, hand_out=self.hand_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """
    One sweep.

    Attributes:
        service: Its chat, whose database is counted.
        budget: What it may use.
        hand_out: Starts other invocations, or None.
    """

    service: DurableChatService
    budget: SweepBudget
    hand_out: HandOut | None

    async def run(self) -> int:
        deployment = self.service.deployment
        if await mend(deployment.database):
            deployment.log("schema.mended", {"level": "warning"})
        outbox = Outbox(database=deployment.database, hooks=deployment.hooks, log=deployment.log)
        calls = outbox.sweep(self.budget.begin_hook_call, at_once=self.budget.shares.hooks_at_once)
        ended: list[int | BaseException | None] = []
        ended += await asyncio.gather(self._run_turns(), calls, return_exceptions=True)
        # Whatever failed: a database that is full takes no turn and no mark of a call, and is made room in by this.
        ended.append(await self._tidied())
        for each in ended:  # once all are over: what goes on behind a failure would be cut off
            if isinstance(each, BaseException):
                raise each
        return sum(each for each in ended if isinstance(each, int))

    async def _tidied(self) -> StoreError | None:
        """Do all that is to be tidied; return the first failure of the database."""
        self.budget.tidy()
        first: StoreError | None = None
        for work in (
            self._adopt,
            self._delete_unwanted,
            self._delete_counts,
            self._delete_old_runs,
            self._give_up_logs,
        ):
            try:
                await work()
            except StoreError as error:
                first = first or error
        return first

    async def _adopt(self) -> None:
        """Record sessions that an earlier version has begun."""
        if self.budget.room(1):
            await self.service.deployment.database.batch([adopt_latest()])

    async def _delete_unwanted(self) -> None:
        """Delete what people asked to be deleted."""
        deployment, sessions = self.service.deployment, self.budget.shares.sessions
        if self.budget.room(3 + sessions):
            await self._logged(go_on_deleting(deployment.database, deployment.files, sessions))

    async def _delete_counts(self) -> None:
        """Delete old rows of the ledger, and counts of days that are over."""
        settings = self.service.deployment.settings
        if self.budget.room(2):
            usage = [delete_usage(settings.usage_retention_days)] if settings.usage_retention_days else []
            await self.service.deployment.database.batch([*usage, delete_allowances()])

    async def _delete_old_runs(self) -> None:
        """Delete turns and files that are too old."""
        deployment, days = self.service.deployment, self.service.deployment.settings.retention_days
        if days:
            await self._logged(deployment.files.delete_old(days, deployment.sources.now()))
            age_ms = days * _DAY_MS
            while self.budget.room(1) and await deployment.store.delete_finished_runs(older_than_ms=age_ms) > 0:
                pass

    async def _give_up_logs(self) -> None:
        """Give up logs that are too old, and make others short."""
        database, settings = self.service.deployment.database, self.service.deployment.settings
        days = settings.log_retention_days
        while days and self.budget.room(2) and await give_up_old_logs(database, days) == LOGS_AT_ONCE:
            pass
        if settings.compact_logs == "on":
            await compact_logs(database, self.budget.room)

    async def _logged(self, work: Awaitable[None]) -> None:
        """Do what needs the store of files; where that does not answer, the next sweep does it."""
        try:
            await work
        except FilesUnavailable as error:
            self.service.deployment.log("files.not_deleted", {"error": error})

    async def _run_turns(self) -> int:
        """Go on with turns while there are any and there is room; somebody may be waiting for an answer."""
        ran, seen = 0, set[str]()
        while True:
            found = [*await self._due(), *await self._orphans(), *await self._next()]
            waiting = [run_id for run_id in dict.fromkeys(found) if run_id not in seen]
            seen.update(waiting)
            resumed = await self._share(waiting)
            ran += resumed
            if not resumed or not self.budget.room(self.budget.shares.of_a_turn):
                return ran

    async def _share(self, run_ids: Sequence[str]) -> int:
        """Go on with turns: here, and those of them that are too many in other invocations."""
        parts = 1
        if self.hand_out is not None:
            while len(run_ids) > parts * _LOOKED_AT and self.budget.begin_part():
                parts += 1
        here, *others = (run_ids[at::parts] for at in range(parts))
        handed_out = [] if self.hand_out is None else [self._handed_out(self.hand_out(part)) for part in others]
        return sum(await asyncio.gather(self.resume(here), *handed_out))

    async def _handed_out(self, part: Awaitable[int]) -> int:
        try:
            async with asyncio.timeout(_PART_S):
                return await part
        except TimeoutError as error:
            self.service.deployment.log("sweep.part_failed", {"error": error})
            return 0

    @property
    def _looked_at(self) -> int:
        shares = self.budget.shares
        return _LOOKED_AT if self.hand_out is None else shares.turns * (1 + shares.parts) + _LOOKED_AT

    async def _due(self) -> list[str]:
        """Return suspended turns whose event or moment has come."""
        return list(await self.service.deployment.store.due_runs(self._looked_at))

    async def _orphans(self) -> list[str]:
        """Return turns whose worker was lost, the longest first."""
        deployment = self.service.deployment
        [lost] = await deployment.database.batch([read_lost_turns(deployment.settings.project_id, self._looked_at)])
        return [str(row["run_id"]) for row in lost.rows]

    async def _next(self) -> list[str]:
        """Return turns that may begin and that nobody waits with, the longest waiting first."""
        deployment = self.service.deployment
        [found] = await deployment.database.batch([read_due_pending(deployment.settings.project_id, self._looked_at)])
        return [str(row["run_id"]) for row in found.rows]

    async def resume(self, run_ids: Sequence[str]) -> int:
        """Go on with turns, some at the same time, as long as there is room; return how many have run."""
        waiting, resumed = iter(run_ids), 0
        at_once = self.budget.shares.turns_at_once
        service = replace(self.service, deployment=self.service.deployment.running(at_once))

        async def work() -> None:
            nonlocal resumed
            for run_id in waiting:
                if not self.budget.begin_turn():
                    return
                ran = False
                try:
                    ran = await service.resume(run_id)
                finally:
                    self.budget.turn_ended(ran=ran)
                resumed += ran

        await asyncio.gather(*(work() for _ in range(at_once)))
        return resumed
