"""The logs of the turns that run in this isolate, for the followers in this isolate."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.polls import Poll, Polls, RevisionPoll

__all__ = ["Alarm", "Bells", "EventAlarm", "LiveLogs", "wait_for_ring"]


class Alarm(Protocol):
    """Wakes the request that made it, whichever request rings."""

    def ring(self) -> None:
        """Let `wait` return; a second time does nothing."""

    async def wait(self, within_s: float) -> None:
        """Wait until it rings, or the time is over."""


class _Watched(Protocol):
    def watch(self, ring: Callable[[], object]) -> None: ...
    def unwatch(self, ring: Callable[[], object]) -> None: ...


async def wait_for_ring(watched: _Watched, alarm: Alarm, within_s: float) -> None:
    """Wait until *watched* rings, or the time is over; *alarm* is this request's own."""
    watched.watch(alarm.ring)
    try:
        await alarm.wait(within_s)
    finally:
        watched.unwatch(alarm.ring)


class EventAlarm:
    """An alarm where all requests share one event loop: on CPython."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Let `wait` return."""
        self._event.set()

    async def wait(self, within_s: float) -> None:
        """Wait until it rings, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._event.wait()


class Bells:
    """
    Wakes the turns of this isolate that wait for others of their session.

    Attributes:
        rung: How often the bell has rung: a waiter that reads it before a look at the database learns by a higher count
            that the look is out of date.
    """

    def __init__(self) -> None:
        self.rung = 0
        self._watchers: dict[str, list[Callable[[], object]]] = {}

    def ring(self, session: str) -> None:
        """Wake all who wait in a session: one of its turns is over, or waits for something itself."""
        self.rung += 1
        for wake in self._watchers.get(session, ()):
            wake()

    @contextmanager
    def watching(self, session: str, wake: Callable[[], object]) -> Iterator[None]:
        """Call *wake* at each ring while the block runs."""
        watchers = self._watchers.setdefault(session, [])
        watchers.append(wake)
        try:
            yield
        finally:
            watchers.remove(wake)
            if not watchers:
                self._watchers.pop(session, None)


class LiveLogs:
    """
    Logs by their run.

    It is shared by requests that must not touch each other's tasks and connections, so there is only plain data in
    it, and what wakes a follower is for the follower to provide: an `Alarm` that may be rung from another request.

    Attributes:
        polls: The last looks at turns that run elsewhere, by run id.
        revisions: The last looks at sessions, by the text with which the ids of their runs begin.
        bells: Wake the turns that wait here for others of their session.
    """

    def __init__(self) -> None:
        self.polls = Polls(Poll)
        self.revisions = Polls(RevisionPoll)
        self.bells = Bells()
        self._logs: dict[str, TurnLog] = {}

    @contextmanager
    def showing(self, run_id: str, log: TurnLog) -> Iterator[None]:
        """
        Show *log* while the block runs, in place of an earlier attempt's, if there is one.

        A follower that reads it afterwards learns from the log itself that it has ended, or was left.
        """
        self._logs[run_id] = log
        self._session_changes(run_id)
        try:
            yield
        finally:
            log.leave()
            if self._logs.get(run_id) is log:
                del self._logs[run_id]
            self._session_changes(run_id)

    def get(self, run_id: str) -> TurnLog | None:
        """Return the log of a turn that runs here."""
        return self._logs.get(run_id)

    def _session_changes(self, run_id: str) -> None:
        poll = self.revisions.get(f"{run_id.rpartition(':')[0]}:")
        if poll is not None:
            poll.changes()
