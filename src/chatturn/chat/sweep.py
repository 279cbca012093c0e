"""
The sweep: whatever nobody came back for, done by the cron, a bounded part of it at a time.

It makes the hook calls that are due, goes on with turns whose event or moment has come, takes over turns whose
worker was lost, begins those whose turn it is and with whom nobody waits, and deletes what is too old.  A turn that is
being answered it never touches.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from chatturn.chat.hooks.outbox import Outbox
from chatturn.chat.lists.sql import read_lost_turns
from chatturn.chat.log.compaction import compact_logs
from chatturn.chat.log.query_budget import RESUMED_AT_ONCE
from chatturn.chat.service import DurableChatService
from chatturn.chat.sessions.deletion import go_on_deleting
from chatturn.chat.sessions.service import DELETED_AT_ONCE
from chatturn.chat.thread.queue_sql import read_due_pending
from chatturn.chat.usage.sql import delete_usage
from chatturn.database.migration import mend

__all__ = ["Sweep"]

_LOOKED_AT: Final = 20
"""More than are resumed, so that a few that cannot be resumed do not hold up the others."""

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """
    The sweep of one deployment.

    Attributes:
        service: Its chat.
    """

    service: DurableChatService

    async def run(self) -> int:
        """Do what is due, a bounded part; return how many hook calls and turns came to an end."""
        deployment, settings = self.service.deployment, self.service.deployment.settings
        if await mend(deployment.database):
            deployment.log("schema.mended", {"level": "warning"})
        outbox = Outbox(database=deployment.database, hooks=deployment.hooks, log=deployment.log)
        # Turns first, and no hook holds them up: somebody may be waiting for an answer.
        waiting = [*await self._due(), *await self._orphans(), *await self._next()]
        ended = await asyncio.gather(self._resume(waiting), outbox.sweep(), return_exceptions=True)
        for each in ended:  # once both are over: what goes on behind a failure would be cut off
            if isinstance(each, BaseException):
                raise each
        if settings.compact_logs == "on":
            await compact_logs(deployment.database)
        await go_on_deleting(deployment.database, DELETED_AT_ONCE[settings.workers_plan])
        if settings.retention_days:
            age_ms = settings.retention_days * _DAY_MS
            await deployment.store.delete_finished_runs(older_than_ms=age_ms)
            await deployment.files.delete_old(settings.retention_days, deployment.sources.now())
        if settings.usage_retention_days:
            await deployment.database.batch([delete_usage(settings.usage_retention_days)])
        return sum(each for each in ended if isinstance(each, int))

    async def _due(self) -> list[str]:
        """Return suspended turns whose event or moment has come."""
        return list(await self.service.deployment.store.due_runs(_LOOKED_AT))

    async def _orphans(self) -> list[str]:
        """Return turns whose worker was lost, the longest first."""
        deployment = self.service.deployment
        [lost] = await deployment.database.batch([read_lost_turns(deployment.settings.project_id, _LOOKED_AT)])
        return [str(row["run_id"]) for row in lost.rows]

    async def _next(self) -> list[str]:
        """Return turns that may begin and that nobody waits with, the longest waiting first."""
        deployment = self.service.deployment
        [found] = await deployment.database.batch([read_due_pending(deployment.settings.project_id, _LOOKED_AT)])
        return [str(row["run_id"]) for row in found.rows]

    async def _resume(self, run_ids: list[str]) -> int:
        """Go on with turns, some at the same time, until as many have run as fit one sweep."""
        waiting, resumed = iter(run_ids), 0
        at_once = RESUMED_AT_ONCE[self.service.deployment.settings.workers_plan]
        service = replace(self.service, deployment=self.service.deployment.running(at_once))

        async def work() -> None:
            nonlocal resumed
            for run_id in waiting:
                if await service.resume(run_id):
                    resumed += 1
                    return  # Its time is this worker's; the next sweep has others.

        await asyncio.gather(*(work() for _ in range(at_once)))
        return resumed
