"""
Storing a turn's log while the turn runs, off everybody's way.

A timer looks every few hundred milliseconds what was said, and stores it in one write, which renews the lease as
well; where nothing was said it only asks for news.  The stream never waits for it, unless it is so far ahead that
what it says next could not be made up for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from chatturn.chat.log import FLUSH_CHARACTERS, TurnLog
from chatturn.chat.log_statements import watch
from chatturn.chat.pace import Pace
from chatturn.databases import Row, Statement
from chatturn.errors import LeaseLost, StoreError, StoreUnavailable
from chatturn.telemetry.logs import Log

__all__ = ["LogWriter", "News"]

_LOOK_EVERY_S: Final = 0.25
"""At notes in the log itself, which cost nothing to look at."""

_EARLY_MS: Final = 10.0
"""A timer may come a little before the interval is over; waiting for the next one would double it."""


class News(Protocol):
    """Takes what a worker learns about its turn while it runs."""

    def looked(self) -> None:
        """It is time to look at the log itself, where others in this isolate leave notes."""

    def told(self, news: Row) -> None:
        """Take what the database says: when it was asked to stop the turn, and when a follower elsewhere last read."""


class LogWriter:
    """
    Stores one attempt's log, from `start` to `stop`.

    Args:
        run_id: The turn's run.
        log: What is said.
        write: Writes under the lease, as `DurableTurnHandle.write`.
        pace: How often that may be done.
        news: Takes what comes back.
        report: Takes failures.
    """

    def __init__(
        self,
        run_id: str,
        log: TurnLog,
        *,
        write: Callable[[Sequence[Statement]], Awaitable[list[Sequence[Row]]]],
        pace: Pace,
        news: News,
        report: Log,
    ) -> None:
        self._run_id = run_id
        self._log = log
        self._write = write
        self._pace = pace
        self._news = news
        self._report = report
        self._began = 0.0
        self._wrote = 0.0
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._began = self._wrote = asyncio.get_running_loop().time()
        self._look_again()

    def stop(self) -> None:
        """Look no more; a write that is on its way goes on, and is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def over(self) -> None:
        """Wait for a write that is on its way, so that it is not left behind when the request ends."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def said(self) -> None:
        """Take note that something was said: much of it does not wait for the timer."""
        if self._log.unstored_characters >= FLUSH_CHARACTERS and self._timer is not None:
            self._store()

    async def room(self, lines: int) -> None:
        """Wait until so many further lines may be said; immediate, unless the database has stalled for long."""
        while not self._log.has_room(lines) and self._timer is not None:
            self._store()
            if self._writing is None:
                return  # It was refused, and would be again; the turn's last write will say so.
            await asyncio.wait([self._writing])
            if not self._log.has_room(lines):
                await asyncio.sleep(_LOOK_EVERY_S)

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._look_again()
        self._news.looked()
        now = asyncio.get_running_loop().time()
        if (now - self._wrote) * 1000 + _EARLY_MS >= self._pace.interval_ms((now - self._began) * 1000):
            self._store()

    def _store(self) -> None:
        if self._writing is None and not self._refused:
            self._wrote = asyncio.get_running_loop().time()
            self._writing = asyncio.get_running_loop().create_task(self._store_next())

    async def _store_next(self) -> None:
        statement, to_seq = self._log.unstored()
        try:
            [[row]] = await self._write([statement or watch()])
        except LeaseLost:
            self.stop()  # The turn was told by its heartbeat, or has just ended.
        except StoreUnavailable as error:
            self._report("log.not_stored", {"run_id": self._run_id, "error": error})
        except StoreError as error:
            self._refused = True
            self._report("log.not_stored", {"run_id": self._run_id, "error": error})
        else:
            if statement is not None:
                self._log.stored(to_seq)
            self._news.told(row)
        finally:
            self._writing = None
            self.said()
