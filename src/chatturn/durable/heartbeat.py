"""
Keeping a lease while its holder works, and stopping the holder once it is lost.

The renewal is driven by a timer, not by the work's events: a tool call may be silent for minutes.  A timer
and not a task, because in the Worker a task costs two turns of the JavaScript event loop even if it never
has anything to do, and most turns end before the first renewal.
"""

import asyncio
from types import TracebackType
from typing import Self

from chatturn.durable.store import DurableRunStore
from chatturn.errors import LeaseLost, StoreError
from chatturn.records import Lease
from chatturn.telemetry.logs import Log

__all__ = ["Heartbeat"]

_RENEWALS_PER_TERM = 3
_RETRIES_PER_TERM = 12


class Heartbeat:
    """
    Renews *lease* every third of its term, from ``start`` to ``stop``.

    Work that must not outlive the lease runs inside ``with heartbeat:``.  When the lease is lost, by being
    refused or because no renewal got through for a whole term, that work is cancelled and the ``with`` block
    raises `LeaseLost`; a transient failure of the database only means trying again sooner.
    """

    def __init__(self, store: DurableRunStore, lease: Lease, log: Log) -> None:
        self.lease = lease
        self._store = store
        self._log = log
        self._lost: LeaseLost | None = None
        self._worker: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._term_s = lease.lease_ms / 1000
        self._valid_until = 0.0

    def start(self) -> None:
        """Begin renewing; the lease counts as fresh now."""
        loop = asyncio.get_running_loop()
        self._valid_until = loop.time() + self._term_s
        self._timer = loop.call_later(self._term_s / _RENEWALS_PER_TERM, self._beat)

    def stop(self) -> None:
        """Stop renewing; a second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.cancel()

    def __enter__(self) -> Self:
        if self._lost is not None:
            raise self._lost
        self._worker = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        worker, self._worker = self._worker, None
        # As asyncio.timeout does: only our own cancellation becomes our error; somebody else's stays one.
        if kind is asyncio.CancelledError and self._lost is not None and worker is not None and not worker.uncancel():
            raise self._lost from error

    def _beat(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        pause = self._term_s / _RENEWALS_PER_TERM
        try:
            # A reply that stalls must not outlast the lease that it was to extend.
            async with asyncio.timeout_at(self._valid_until):
                self.lease = await self._store.renew_lease(self.lease)
        except LeaseLost as error:
            self._lose(error)
            return
        except (StoreError, TimeoutError) as error:
            self._log("lease.renewal_failed", {"run_id": self.lease.run_id, "error": error})
            if loop.time() >= self._valid_until:
                self._lose(LeaseLost("no renewal got through for a whole term", run_id=self.lease.run_id))
                return
            pause = min(self._term_s / _RETRIES_PER_TERM, self._valid_until - loop.time())
        else:
            self._valid_until = asked_at + self._term_s
        self._timer = loop.call_later(pause, self._beat)

    def _lose(self, error: LeaseLost) -> None:
        self._lost = error
        if self._worker is not None:
            self._worker.cancel()
