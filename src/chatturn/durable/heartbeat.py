"""
Keeping a lease while its holder works, and stopping the holder once it is lost.

The renewal is driven by a timer, not by the work's events: a tool call may be silent for minutes.  A timer
and not a task, because in the Worker a task costs two turns of the JavaScript event loop even if it never
has anything to do, and most turns end before the first renewal.
"""

import asyncio
from types import TracebackType
from typing import Final, Self

from chatturn.durable.store import DurableRunStore
from chatturn.errors import LeaseLost
from chatturn.records import Lease
from chatturn.telemetry.logs import Log

__all__ = ["Heartbeat"]

_RENEWALS_PER_TERM: Final = 3
_TRIES_PER_TERM: Final = 12
"""Each try may take this part of the term, and the next one waits as long: one stalled reply costs no lease."""


class Heartbeat:
    """
    Renews *lease* every third of its term, from ``start`` to ``stop``.

    Work that must not outlive the lease runs inside ``with heartbeat:``.  When the lease is lost, by being
    refused or because no renewal got through for a whole term, that work is cancelled and the ``with`` block
    raises `LeaseLost`.  Any other failure of a renewal is logged and tried again sooner.
    """

    def __init__(self, store: DurableRunStore, lease: Lease, log: Log) -> None:
        self.lease = lease
        self._store = store
        self._log = log
        self._lost: LeaseLost | None = None
        self._worker: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._term_s = lease.lease_ms / 1000
        self._valid_until = 0.0

    def start(self, claimed_at: float) -> None:
        """
        Begin renewing.

        Args:
            claimed_at: When the claim was asked for, by the event loop's clock: the lease is no fresher.
        """
        loop = asyncio.get_running_loop()
        self._valid_until = claimed_at + self._term_s
        first_at = claimed_at + self._term_s / _RENEWALS_PER_TERM
        self._timer = loop.call_later(max(0.0, first_at - loop.time()), self._beat)

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
        self._cancelling = 0 if self._worker is None else self._worker.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        worker, self._worker = self._worker, None
        if not self._cancelled or worker is None or self._lost is None:
            return
        # As asyncio.timeout does: our cancellation is taken back, and somebody else's beside it stays one.
        self._cancelled = False
        if worker.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._lost from error

    def _beat(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            async with asyncio.timeout(self._term_s / _TRIES_PER_TERM):
                self.lease = await self._store.renew_lease(self.lease)
        except LeaseLost as error:
            self._lose(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, giving up renewing would be worse
            self._log("lease.renewal_failed", {"run_id": self.lease.run_id, "error": error})
            if loop.time() >= self._valid_until:
                self._lose(LeaseLost("no renewal got through for a whole term", run_id=self.lease.run_id))
                return
            pause_s = min(self._term_s / _TRIES_PER_TERM, self._valid_until - loop.time())
        else:
            self._valid_until = asked_at + self._term_s
            pause_s = self._term_s / _RENEWALS_PER_TERM
        self._timer = loop.call_later(pause_s, self._beat)

    def _lose(self, error: LeaseLost) -> None:
        self._lost = error
        if self._worker is not None:
            self._cancelled = True
            self._worker.cancel()
