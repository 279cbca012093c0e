"""
Storing a turn's log while the turn runs, off everybody's way.

A timer looks every 250 ms for new lines, and stores them in one write, which also renews the lease; without new lines
it only asks for news.  In a busy isolate it stores more rarely, so that storing does not make it busier.  The stream
waits only when `MAX_AHEAD` lines, or `MAX_UNSTORED_CHARACTERS`, are said and not stored.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from chatturn.chat.log.log import FLUSH_CHARACTERS, TurnLog
from chatturn.chat.log.query_budget import Pace
from chatturn.chat.log.sql import watch
from chatturn.database.api import Row, Statement
from chatturn.durable.attempt import Attempt
from chatturn.errors import LeaseLost, StoreError, StoreUnavailable
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["Companion", "Listener", "LogWriter"]

_LOOK_EVERY_S: Final = 0.25
"""The timer's period; looking at the log in memory costs nothing."""

_MUCH_CHARACTERS: Final = 400_000
"""When this many characters are not stored yet, they do not wait for the timer; one row holds about as many."""

_LOAD_FACTOR: Final = 20
"""An interval is at least 20 times the last write's duration, or the timer's delay: storing takes 1/20 of the time."""

_SLOWEST_S: Final = 2.0
"""A busy isolate makes an interval no longer than 2 s, nor than 1/6 of the lease's term."""

_EARLY_MS: Final = 10.0
"""A timer may come a little before the interval is over; waiting for the next one would double it."""


class Listener(Protocol):
    """Takes what a worker learns about its turn while it runs."""

    def look(self) -> bool:
        """Look at the log itself, where others in this isolate leave notes; return whether to ask the database now."""

    def told(self, news: Row, asked_at: float) -> None:
        """Take the database's answer: whether the turn is to be stopped, and whether it is read elsewhere."""


class Companion(Protocol):
    """What is stored beside the log, in the same writes."""

    def unrecorded(self) -> Sequence[Statement]:
        """Return the statements for what is new; fenced, and harmless when they are run again."""

    def recorded(self) -> None:
        """Take note that they were run."""


class LogWriter:
    """
    Stores one attempt's log.

    Args:
        attempt: The attempt whose lease covers the writes.
        log: The log to store.
        companions: What is stored with the log, in the same writes.
        listener: Takes the news that each write returns.
        pace: How often the log may be stored.
        report: Takes failures.
    """

    def __init__(
        self,
        attempt: Attempt,
        log: TurnLog,
        companions: Sequence[Companion],
        listener: Listener,
        *,
        pace: Pace,
        report: OperatorLog,
    ) -> None:
        self._attempt = attempt
        self._log = log
        self._companions = companions
        self._listener = listener
        self._pace = pace
        self._report = report
        self._began = 0.0
        self._wrote = 0.0
        self._writes = 0
        self._looks_at = 0.0
        self._took_s = 0.0
        self._late_s = 0.0
        self._slowest_s = min(_SLOWEST_S, attempt.lease.lease_ms / 6_000)
        self._refusal: StoreError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look what there is to store while the block runs, or until `stop`."""
        self._began = self._wrote = asyncio.get_running_loop().time()
        self._look_again()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Look no more; a write that is on its way goes on, and is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def over(self) -> None:
        """Wait for a write that is on its way, so that it is not left behind when the request ends."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def look(self) -> None:
        """Look now, not only when it is time: a reader has gone."""
        if self._timer is not None and self._listener.look():
            self._store()

    def said(self) -> None:
        """Take note that something was said: much of it does not wait for the timer, as long as queries are left."""
        most = FLUSH_CHARACTERS if self._writes < self._pace.queries // 2 else _MUCH_CHARACTERS
        if self._log.unstored_characters >= most and self._timer is not None:
            self._store()

    async def room(self, lines: int) -> None:
        """
        Wait until *lines* further lines may be said; at once, unless the database has stalled for long.

        Raises:
            StoreError: It refuses what was said so far.
        """
        while not self._log.has_room(lines) and self._timer is not None:
            self._store()
            if self._writing is not None:
                await asyncio.wait([self._writing])
            if not self._log.has_room(lines):
                if self._refusal is not None:
                    raise self._refusal
                await asyncio.sleep(_LOOK_EVERY_S)

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._looks_at = loop.time() + _LOOK_EVERY_S
        self._timer = loop.call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._late_s = max(0.0, now - self._looks_at)
        self._look_again()
        urgent = self._listener.look()
        due = (now - self._wrote) * 1000 + _EARLY_MS >= self._interval_ms(now)
        if (urgent or due) and self._timer is not None:
            self._store()

    def _interval_ms(self, now: float) -> float:
        """Return how long to wait between two writes: as the query budget wants it, and longer in a busy isolate."""
        paced = self._pace.interval_ms((now - self._began) * 1000)
        by_load_s = min(_LOAD_FACTOR * max(self._took_s, self._late_s), self._slowest_s)
        return max(paced, by_load_s * 1000)

    def _store(self) -> None:
        if self._writing is None:
            self._wrote = asyncio.get_running_loop().time()
            self._writes += 1
            self._writing = asyncio.get_running_loop().create_task(self._store_next())

    async def _store_next(self) -> None:
        try:
            stored = await self._try_to_store()
        finally:
            self._writing = None
            self._took_s = asyncio.get_running_loop().time() - self._wrote
        if stored:
            self.said()

    async def _try_to_store(self) -> bool:
        asked_at = self._wrote
        statement, to_seq = self._log.unstored()
        beside = [each for companion in self._companions for each in companion.unrecorded()]
        try:
            [[row], *_] = await self._attempt.write([statement or watch(), *beside])
        except LeaseLost:
            self.stop()  # The turn was told by its heartbeat, or has just ended.
            return False
        except StoreError as error:
            self._refusal = None if isinstance(error, StoreUnavailable) else error
            self._report("log.not_stored", {"run_id": self._attempt.run_id, "error": error})
            return False
        self._refusal = None
        if statement is not None:
            self._log.stored(to_seq)
        for companion in self._companions:
            companion.recorded()
        self._listener.told(row, asked_at)
        return True
