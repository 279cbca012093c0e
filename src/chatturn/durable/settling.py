"""
How a turn's run is ended by its worker: once, truthfully, and whatever the database does meanwhile.

An answer was paid for, so storing it is tried hard: again while there is no answer from the database, and
late, after the client was told.  A failure only has to get out of the next attempt's way, so where its
details are refused it is recorded without them.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.database.api import Statement
from chatturn.durable.records import Lease, RunOutcome, RunRecord, RunStatus, StepError, Wait
from chatturn.durable.store import DurableRunStore, Settlement
from chatturn.errors import ChatTurnError, LeaseLost, StoreUnavailable, TurnAborted
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["Settling", "TurnEnd", "code_of"]

_FIRST_LATE_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnd:
    """
    How a turn ends, for whoever adds to its last write.

    Attributes:
        text: The answer as it is stored; None if there is none.
        cancelled: Why the turn was cancelled, if it was: then the answer is what it had said by then.
        error: Why there is none.
        wait: What for, if the turn is suspended: it has no answer yet, and no error.
    """

    text: str | None = None
    cancelled: str | None = None
    error: BaseException | None = None
    wait: Wait | None = None


class Settling:
    """
    The end of one attempt.

    Args:
        store: Where the run is.
        step_index: The step whose result is the answer.
        intent: The step's.
        end_with: Makes the further statements of the last write, as in `Settlement.with_statements`.
        log: Takes failures that must not mask another error.

    Attributes:
        stored: How the turn has ended, once it is known to be stored; None before.
        record: The run as it was left; None before.
    """

    def __init__(
        self,
        store: DurableRunStore,
        *,
        step_index: int,
        intent: str,
        end_with: Callable[[TurnEnd], Sequence[Statement]],
        log: OperatorLog,
    ) -> None:
        self.stored: TurnEnd | None = None
        self.record: RunRecord | None = None
        self._store = store
        self._step_index = step_index
        self._intent = intent
        self._end_with = end_with
        self._log = log
        self._unsettled: tuple[Lease, Settlement, TurnEnd] | None = None

    async def complete(self, lease: Lease, text: str, *, cancelled: str | None = None) -> None:
        """
        Store the answer, whole or as far as it came until it was *cancelled*, and end the run.

        Raises:
            StoreUnavailable: It is not known to be stored; `settle_late` goes on trying.
            LeaseLost: Another worker has the run; nothing was written.
            StoreError, TypeError: It cannot be stored.
        """
        end = TurnEnd(text=text, cancelled=cancelled)
        metadata = {"chars": _utf16_length(text)}
        settlement = Settlement(
            step_index=self._step_index,
            result={"finalText": text} if cancelled is None else {"finalText": text, "cancelled": cancelled},
            outcome=RunOutcome(notes=self._intent, metadata=metadata)
            if cancelled is None
            else RunOutcome(passed=False, notes="cancelled", metadata=metadata),
            with_statements=self._end_with(end),
        )
        try:
            self.record = await self._store.settle(lease, settlement)
        except StoreUnavailable:
            self._unsettled = (lease, settlement, end)
            raise
        self.stored = end

    async def suspend(self, lease: Lease, wait: Wait) -> None:
        """
        Release the run until what it waits for has come.

        Raises:
            StoreUnavailable, StoreError: It is not known to be released.
            LeaseLost: Another worker has the run; nothing was written.
        """
        end = TurnEnd(wait=wait)
        self.record = await self._store.suspend(lease, wait, self._end_with(end))
        self.stored = end

    async def give_up(self, lease: Lease, error: BaseException) -> None:
        """
        End the run as failed, so that the next request may claim at once; nothing but cancellation is raised.

        Does nothing while an answer is waiting to be stored late.
        """
        if self._unsettled is not None:
            return
        outcome = RunOutcome(passed=False, notes=code_of(error))
        end = TurnEnd(error=error)
        try:
            failure = StepError(message=_storable(error), code=code_of(error))
            settlement = Settlement(
                step_index=self._step_index, error=failure, outcome=outcome, with_statements=self._end_with(end)
            )
            self.record = await self._store.settle(lease, settlement)
            self.stored = end
        except LeaseLost:
            return  # Ended or taken over by now, which is as good.
        except StoreUnavailable as unavailable:
            self._log("turn.unsettled", {"run_id": lease.run_id, "cause": error, "error": unavailable})
        except Exception as refusal:  # noqa: BLE001 - the same details would be refused at every attempt
            self._log("turn.unsettled", {"run_id": lease.run_id, "cause": error, "error": refusal})
            await self._release(lease, outcome)

    async def settle_late(self) -> bool:
        """
        Go on trying to store an answer that `complete` could not, until it is stored or the lease has lapsed.

        For after the client was told: once the answer is stored, a retry replays it.  Never raises but
        cancellation; an answer that is lost is logged.

        Returns:
            Whether the answer is stored now; False also if there was nothing to do.
        """
        if self._unsettled is None:
            return False
        lease, settlement, end = self._unsettled
        try:
            async with asyncio.timeout(lease.lease_ms / 1000):
                self.record = await self._insist(lease, settlement)
        except Exception as error:  # noqa: BLE001 - the lease's end, a refusal: lost in any case, and nobody waits
            self._log("turn.answer_lost", {"run_id": lease.run_id, "error": error})
            return False
        self.stored = end
        return True

    async def _insist(self, lease: Lease, settlement: Settlement) -> RunRecord:
        pause_s = _FIRST_LATE_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self._store.settle(lease, settlement)
            except StoreUnavailable:
                pause_s *= 2

    async def _release(self, lease: Lease, outcome: RunOutcome) -> None:
        try:
            self.record = await self._store.end_run(lease, RunStatus.FAILED, outcome)
        except Exception as error:  # noqa: BLE001 - the first error is what leaves; the lease lapses by itself
            self._log("turn.unsettled", {"run_id": lease.run_id, "error": error})


def code_of(error: BaseException) -> str:
    """Return the stable code of whatever ended an attempt."""
    if isinstance(error, ChatTurnError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return TurnAborted.code
    return ChatTurnError.code


def _storable(error: BaseException) -> str:
    """Say what went wrong; what a foreign exception says may be anything, the answer included: its type must do."""
    return str(error) if isinstance(error, ChatTurnError) else type(error).__name__


def _utf16_length(text: Any) -> int:
    """Count as agent-runtime does: JavaScript's code units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
