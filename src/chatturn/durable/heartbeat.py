"""
Keeping a lease while its holder works, and stopping the holder once it is lost.

The renewal is driven by a timer, not by the work's events: a tool call may be silent for minutes.  A timer
and not a task, because in the Worker a task costs two turns of the JavaScript event loop even if it never
has anything to do, and most turns end before the first renewal.  Where the holder writes in the meantime, its
write renews the lease as well, and the timer starts again.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from chatturn.database.api import Row, Statement
from chatturn.durable.records import Lease
from chatturn.durable.store import NO_NEWS, DurableRunStore, News
from chatturn.errors import DurableRunError, LeaseLost
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["RENEWALS_PER_TERM", "Heartbeat"]

RENEWALS_PER_TERM: Final = 3.0
_TRIES_PER_TERM: Final = 12
"""A try may take 1/12 of the term, and the next try waits as long: with 60 s, 5 s each."""

_CLEAN_UP_S: Final = 10.0
"""How long cancelled work may take for its clean-up before it is cancelled again."""

_FRESH: Final = 6
"""A write also renews a lease whose last renewal is more than 1/6 of the term ago: with 60 s, 10 s."""


class Heartbeat:
    """
    Renews *lease* `renewals_per_term` times in its term, from ``start`` to ``stop``.

    Work that must not outlive the lease runs inside ``with heartbeat:``.  When the lease is lost (a renewal
    was refused, or none got through for a whole term), that work is cancelled and the ``with`` block raises
    `LeaseLost`.  Any other failure of a renewal is logged, and the renewal is tried again sooner.  `interrupt` ends
    the work in the same way with another error.
    """

    def __init__(
        self,
        store: DurableRunStore,
        lease: Lease,
        log: OperatorLog,
        *,
        renewals_per_term: float = RENEWALS_PER_TERM,
    ) -> None:
        self.lease = lease
        self._store = store
        self._log = log
        self._news = NO_NEWS
        self._lost: LeaseLost | None = None
        self._interruption: DurableRunError | None = None
        self._worker: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancels = 0
        self._again: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._stopped = False
        self._interruptible = True
        self._term_s = lease.lease_ms / 1000
        self._renewal_s = self._term_s / renewals_per_term
        self._renewed_at = 0.0

    def start(self, claimed_at: float, news: News = NO_NEWS) -> None:
        """
        Begin renewing.

        Args:
            claimed_at: When the claim was sent, by the event loop's clock; the term counts from then.
            news: What to read with every renewal.
        """
        self._news = news
        self._renewed_at = claimed_at
        self._beat_after(claimed_at + self._renewal_s - asyncio.get_running_loop().time())

    def stop(self) -> None:
        """Stop renewing; a second time does nothing."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.cancel()

    def interrupt(self, error: DurableRunError) -> None:
        """End the work in the ``with`` block, or the next one, with *error*; the lease is kept."""
        if self._interruptible:
            self._interruption = error
            self._cancel_worker()

    def allow_no_interruption(self) -> None:
        """Let `interrupt` do nothing from now on, and forget an earlier one: the work is done up to its last write."""
        self._interruptible, self._interruption = False, None

    @property
    def ended(self) -> DurableRunError | None:
        """Why the work is over before it is done: the lease is lost, or it was interrupted; None while it goes on."""
        return self._lost or self._interruption

    def require_held(self) -> None:
        """Raise `LeaseLost` if the lease is known to be lost; nothing is read or written."""
        if self._lost is not None:
            raise self._lost

    async def write(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        """
        Write under the lease, and renew it with the same write unless it is fresh; see `DurableRunStore.write`.

        Raises:
            LeaseLost: The lease is another worker's; the work in the ``with`` block is ended as well.
            StoreUnavailable: No reply came; the same statements may be written again.
        """
        asked_at = asyncio.get_running_loop().time()
        renew = asked_at - self._renewed_at > self._term_s / _FRESH
        try:
            lease, rows = await self._store.write(self.lease, statements, renew=renew)
        except LeaseLost as error:
            self._lose(error)
            raise
        if renew and not self._stopped:
            self._renew_from(lease, asked_at)
            self._beat_after(self._renewal_s)
        return rows[: len(statements)]

    def __enter__(self) -> Self:
        self.require_held()
        self._raise_interruption()
        self._worker = asyncio.current_task()
        self._cancelling = 0 if self._worker is None else self._worker.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        worker, self._worker = self._worker, None
        if worker is None or self._again is None:
            return
        self._again.cancel()
        self._again = None
        # As asyncio.timeout does: take back our own cancellations; a cancellation by others stays.
        while self._cancels:
            self._cancels -= 1
            worker.uncancel()
        if worker.cancelling() <= self._cancelling and kind is asyncio.CancelledError:
            if self._lost is not None:
                raise self._lost from error
            self._raise_interruption()

    def _raise_interruption(self) -> None:
        if self._interruption is not None:
            raise self._interruption

    def _beat_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._beat)

    def _beat(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            async with asyncio.timeout(self._term_s / _TRIES_PER_TERM):
                lease, rows = await self._store.write(self.lease, (), renew=True, returning=self._news.columns)
        except LeaseLost as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, giving up renewing would be worse
            self._log("lease.renewal_failed", {"run_id": self.lease.run_id, "error": error})
            left_s = self._renewed_at + self._term_s - loop.time()
            if left_s <= 0:
                self._lose(LeaseLost("no renewal got through for a whole term", run_id=self.lease.run_id))
            else:
                self._beat_after(min(self._term_s / _TRIES_PER_TERM, left_s))
        else:
            self._renew_from(lease, asked_at)
            self._news.told(rows[-1][0], asked_at)
            self._beat_after(self._renewal_s)

    def _renew_from(self, lease: Lease, asked_at: float) -> None:
        """Note the renewed lease; its term counts from *asked_at*, when the renewal was sent."""
        self.lease = lease
        self._renewed_at = max(self._renewed_at, asked_at)

    def _lose(self, error: LeaseLost) -> None:
        self._lost = error
        self._cancel_worker()

    def _cancel_worker(self) -> None:
        if self._worker is not None and not self._cancels:
            self._cancel(self._worker)

    def _cancel(self, worker: asyncio.Task[object]) -> None:
        """Cancel the work, and again every 10 s until it is over: a hanging clean-up must not hold the run for ever."""
        self._cancels += 1
        worker.cancel()
        self._again = asyncio.get_running_loop().call_later(_CLEAN_UP_S, self._cancel, worker)
