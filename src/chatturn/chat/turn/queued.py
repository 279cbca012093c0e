"""
`QueuedTurn`: a turn that waits for others of its session, until it may begin.

::

    session.run.queued ──▶ wait ──▶ look: is it its turn? ──▶ claim ──▶ the turn itself
            ▲               ▲               │ no                 │ not yet
            └── position ───┴───────────────┴────────────────────┘
                            │ what is in front is suspended: session.run.suspended, and the end
                            └ the queries are used up: the end, without a terminal line

It is pending in the database, with what it asks.  Who waits holds a short lease, renewed with each look; once that has
lapsed, anybody may begin the turn.  What is in front and has lost its worker is gone on with here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Protocol

from chatturn.chat.hooks.outbox import overrides
from chatturn.chat.log.query_budget import WAIT_PACES
from chatturn.chat.requests import TurnInput
from chatturn.chat.thread.queue_sql import Front, cancel_queued, its_turn
from chatturn.chat.turn.disconnects import DISCONNECTED
from chatturn.chat.turn.finish import (
    failure_words,
    kind_of,
    queued_words,
    started_words,
    unlogged,
    waiting_words,
)
from chatturn.chat.turn.reader import Reader, observer_of, ping_every_ms
from chatturn.chat.turn.sinks import Sink
from chatturn.durable.store import Queue, Queued
from chatturn.errors import ChatTurnError, DurableRunLeaseHeldError, StoreError
from chatturn.events import ChatStreamEvent

__all__ = ["QueuedTurn", "queue_of"]

_SLACK_MS: Final = 5_000
"""Added to the lease of a wait, which otherwise lasts twice as long as the time to the next look."""


class _Runnable(Protocol):
    """What a claim makes of a turn."""

    @property
    def replayed(self) -> bool:
        """Whether it was over before."""

    async def run(self, sink: Sink, *, joined: bool = False) -> None:
        """Say what the turn says."""


def queue_of(turn: TurnInput, next_look_s: float = 0.0) -> Queue:
    """Return the place of a turn in its session's queue; the lease lasts twice the time to the next look, and 5 s."""
    lease_ms = round(2_000 * next_look_s) + _SLACK_MS
    return Queue(turn=its_turn(turn.identity), lease_ms=lease_ms, holder=turn.waits_as)


class QueuedTurn:
    """
    A turn that is pending, with who waits for it.

    Args:
        turn: What is asked.
        queued: How it came to wait.
        rung: How often the bells of this isolate had rung before that.
        claim: Claims it again, as `chatturn.chat.turn.turn.open_turn` does.

    Attributes:
        run_id: Its run.
        attempt: The one that it will be, from 1.
        created_at: When it was asked.
        redacting: Whether the product redacts the answer.
        front: What it waits for, as it was last seen.
    """

    replayed = False
    retry_after_ms = 0

    def __init__(
        self, turn: TurnInput, queued: Queued, rung: int, claim: Callable[[TurnInput], Awaitable[_Runnable]]
    ) -> None:
        self.run_id = turn.run_id
        self.attempt = queued.run.epoch + 1
        self.created_at = queued.run.created_at
        self.redacting = overrides(turn.deployment.hooks, "transform_final_text")
        self._turn = turn
        self._claim = claim
        self._lease = queued.lease
        self.front = Front.of(queued.told)
        self._rung = rung
        self._said = 0
        self._helping: asyncio.Task[bool] | None = None

    async def run(self, sink: Sink, *, joined: bool = False) -> None:
        """
        Wait, and run the turn to its end: every line goes to *sink*, which is closed.  Raises nothing but cancellation.

        Args:
            sink: The reader.
            joined: Whether the reader has read the log so far, and needs not be told that the run has started.
        """
        turn, opened = self._turn, None
        every_ms = ping_every_ms(turn.deployment.settings.on_disconnect)
        reader = Reader(sink, observer_of(turn), turn.deployment.log, every_ms=every_ms)
        reader.start_pings()
        try:
            opened = await self._wait(reader, sink)
        except DurableRunLeaseHeldError:
            pass  # Somebody else has begun it: the reader sees the stream end in the middle, comes back, and follows.
        except ChatTurnError as error:
            turn.deployment.log("turn.failed", {"run_id": self.run_id, "attempt": self.attempt, "error": error})
            began = [] if joined or self._said else started_words(turn.identity)
            self._say(reader, [*began, *failure_words(turn.identity, kind_of(error))])
        finally:
            reader.stop_pings()
            if opened is None:
                await sink.close()
        if opened is not None:
            await opened.run(sink, joined=joined or (opened.replayed and self._said > 0))
        if self._helping is not None:
            await self._helping

    async def _wait(self, reader: Reader, sink: Sink) -> _Runnable | None:
        """Wait until the turn is claimed; None where nothing is held open for it any more."""
        loop, deployment = asyncio.get_running_loop(), self._turn.deployment
        pace, bells, began = WAIT_PACES[deployment.settings.workers_plan], deployment.live.bells, loop.time()
        for _ in range(pace.queries):
            if self.front is not None and self.front.waits_for_somebody:
                self._say(reader, waiting_words(self._turn.identity, self.front))
                break
            self._say_place(reader)
            self._help()
            interval_s = pace.interval_ms((loop.time() - began) * 1000) / 1000
            rung = await self._pause(interval_s)
            self._rung = bells.rung
            opened = await self._look(interval_s, reader_left=sink.closed, at_once=rung)
            if opened is not self:
                return opened
        await self._leave()
        return None

    async def _pause(self, within_s: float) -> bool:
        """Wait until a turn of the session is over in this isolate, or the time is; return whether one is."""
        deployment = self._turn.deployment
        bells, alarm = deployment.live.bells, deployment.alarm()
        if bells.rung == self._rung:
            with bells.watching(self._turn.session, alarm.ring):
                await alarm.wait(within_s)
        return bells.rung != self._rung

    async def _look(self, interval_s: float, *, reader_left: bool, at_once: bool) -> _Runnable:
        """Claim the turn if it may begin; return this one if it may not."""
        deployment, queue = self._turn.deployment, queue_of(self._turn, interval_s)
        try:
            if reader_left and deployment.settings.on_disconnect == "cancel":
                await deployment.database.batch(cancel_queued(self.run_id, DISCONNECTED))
            elif not at_once:
                told = await deployment.store.renew_wait(self._lease, queue)
                if told is not None and not told["holds"]:
                    self.front = Front.of(told)
                    return self
            opened = await self._claim(replace(self._turn, waits_as=self._lease.holder))
        except StoreError as error:
            deployment.log("queue.not_read", {"run_id": self.run_id, "error": error})
            return self
        if isinstance(opened, QueuedTurn):
            self._lease, self.front = opened._lease, opened.front  # noqa: SLF001 - the same turn, seen again
            return self
        return opened

    async def _leave(self) -> None:
        try:
            await self._turn.deployment.store.leave_queue(self.run_id, self._lease.holder)
        except StoreError as error:  # the lease lapses by itself
            self._turn.deployment.log("queue.not_read", {"run_id": self.run_id, "error": error})

    def _help(self) -> None:
        """Go on with what is in front, if nobody else does."""
        front, resume = self.front, self._turn.resume
        if front is None or not front.left or resume is None:
            return
        if self._helping is None or self._helping.done():
            self._helping = asyncio.get_running_loop().create_task(resume(front.run_id))

    def _say_place(self, reader: Reader) -> None:
        position = 0 if self.front is None else self.front.position
        if position and position != self._said:
            self._said = position
            self._say(reader, queued_words(self._turn.identity, position))

    def _say(self, reader: Reader, events: list[ChatStreamEvent]) -> None:
        reader.send(unlogged(events, self.attempt), events)
