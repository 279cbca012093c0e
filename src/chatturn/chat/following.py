"""
`FollowedTurn`: a turn's log from a cursor on, for a reader who did not start it.

::

    stored lines, a page at a time ──▶ over? ──▶ the end
          ▲                             │ no
          │          ┌──────────────────┼──────────────────────┐
          │          ▼                  ▼                      ▼
          │   it runs in this     it runs elsewhere:     its lease lapsed:
          │   isolate: read       ask again, ever        take it over, if the
          └── its log in memory   more rarely            reader may, and run it

Any number of readers may follow a turn.  Each is shown the same log, in its order, without a gap.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final, NamedTuple

from chatturn.chat.deployment import Deployment
from chatturn.chat.log.live import wait_for_ring
from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.pages import LogPage
from chatturn.chat.log.polls import Poll
from chatturn.chat.log.query_budget import FOLLOW_PACES
from chatturn.chat.log.room import PAGE_CHARACTERS, SMALL_CHARACTERS, holder, wait_for_room
from chatturn.chat.log.sql import note_follower
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.thread.queue_sql import Front, its_turn
from chatturn.chat.thread.their_sql import Theirs
from chatturn.chat.turn.disconnects import CANCEL_REQUESTED
from chatturn.chat.turn.finish import (
    ending_words,
    failure_words,
    kind_of,
    queued_words,
    started_words,
    waiting_words,
)
from chatturn.chat.turn.queued import QueuedTurn
from chatturn.chat.turn.reader import Reader
from chatturn.chat.turn.sinks import Sink
from chatturn.chat.turn.their_log import load_log
from chatturn.chat.turn.turn import ChatTurn, OpenTurn
from chatturn.durable.ends import Cancelled, Completed
from chatturn.durable.records import RunStatus
from chatturn.errors import ChatTurnError, DurableRunLeaseHeldError, ReadersBusy, StoreError, error_class
from chatturn.events import ChatStreamEvent, encode_line

__all__ = ["FollowedTurn", "TakeOver", "read_page_in_turn"]

_LOOK_EVERY_S: Final = 1.0
"""A follower looks at a log in memory after this time even if no alarm rang, in case a ring was lost."""

_SEQ: Final = re.compile(r',"seq":[0-9]+(,"attempt":[0-9]+\}\n)$')

_GATHER_S: Final = 0.01
"""Lines that are said within this time leave together: each waking costs the isolate 1 ms."""

_NOTED_EVERY_S: Final = 5.0
"""How often a turn that would be given up without readers is told that it has one."""

_STRETCH: Final = 0.2
"""The most by which a look is later than its pace says, as a part of the interval."""

_SLACK_S: Final = 5.0
"""How late the next note may come before the turn counts as unread."""

TakeOver = Callable[[], Awaitable[OpenTurn]]
"""Claims the turn, as `DurableChatService.open` does."""


async def read_page_in_turn(
    deployment: Deployment,
    identity: ChatTurnIdentity,
    after: int,
    theirs: Theirs | None,
    *,
    waits: bool = True,
    had: "_Had | None" = None,
) -> tuple[LogPage | None, Callable[[], None]]:
    """
    Read a page of a log, which is to be sent, when there is room for it; see `load_log`.

    Args:
        deployment: Where the log is.
        identity: The turn.
        after: The seq after which to read.
        theirs: As for `load_log`.
        waits: Whether the reader waits for room; else it is refused.
        had: The room that the reader had for the page before; None for one that had none.

    Returns:
        The page, and what gives back the room that is kept for it, where it is long.

    Raises:
        ReadersBusy: There is no room, and the reader does not wait.
    """
    who, page = holder(identity.tenant_id, identity.user_id), None
    rooms = (deployment.reading,) if had is not None else (deployment.sending, deployment.reading)
    while (full := next((room for room in rooms if not room.fits(who, PAGE_CHARACTERS)), None)) is not None:
        if full is deployment.sending and not waits:
            raise ReadersBusy("no room for another page of a log")
        await wait_for_room(full, who, PAGE_CHARACTERS, deployment.alarm())
    release = deployment.sending.take(who, PAGE_CHARACTERS + (0 if had is None else had.kept))
    if had is not None:
        had.release()
    try:
        with deployment.reading.holding(who, PAGE_CHARACTERS):
            page = await load_log(deployment.database, identity, after, theirs)
    finally:
        if page is None or len(page.text) <= SMALL_CHARACTERS:
            release()
    return page, release


class _Had(NamedTuple):
    """
    The room of a reader who goes on with the next page.

    Attributes:
        release: Gives the room back.
        kept: How many characters are kept for the reader besides a page.
    """

    release: Callable[[], None]
    kept: int


@dataclass(slots=True, kw_only=True)
class FollowedTurn:
    """
    One reader's way through a turn's log.

    Attributes:
        identity: The turn.
        run_id: Its run.
        theirs: Where agent-runtime may have the turn; None not to look there.
        page: The state of the turn and the first lines to show, read already.
        deployment: Where the log is stored, and what else runs in this isolate.
        take_over: Claims the turn if its worker is lost; None for a reader who may not take it over.
        release: Gives back the room that is kept for the page; to be called if this is never run.
    """

    identity: ChatTurnIdentity
    run_id: str
    theirs: Theirs | None = None
    page: LogPage
    deployment: Deployment
    take_over: TakeOver | None
    release: Callable[[], None]
    _last: int = -1
    _began: float = 0.0
    _looked_at: float = 0.0
    _done: bool = False
    _came_with_all: bool = False
    _position: int = 0

    @property
    def finished(self) -> bool:
        """Whether the log is complete: nothing is ever added to it, unless the turn is superseded."""
        return self.page.status is RunStatus.COMPLETED

    @property
    def nothing_left(self) -> bool:
        """Whether the reader has seen the whole log, and nobody is going to say more."""
        page = self.page
        return page.over and not page.text and (page.closed or page.last >= page.furthest)

    async def run(self, sink: Sink) -> None:
        """
        Show the log to its end: every line goes to *sink*, which is closed.  Raises nothing but cancellation.

        Where the database does not answer, the stream breaks off without a terminal line: the reader comes back.
        """
        reader = Reader(sink, None, self.deployment.log)
        if not self.page.over:
            reader.start_pings()
        self._began = self._looked_at = asyncio.get_running_loop().time()
        self._came_with_all = self.nothing_left
        taken: ChatTurn | QueuedTurn | None = None
        try:
            taken = await self._follow(reader, sink)
        except StoreError as error:
            self.deployment.log("log.not_read", {"run_id": self.run_id, "error": error})
            if self.finished:  # a cache must not take this part for the whole log
                sink.abort()
        except ChatTurnError as error:
            # Nobody can go on with the turn, so there is nothing to wait for.
            self.deployment.log("turn.not_resumed", {"run_id": self.run_id, "error": error})
            self._say(reader, failure_words(self.identity, kind_of(error)))
        finally:
            self.release()
            reader.stop_pings()
            if taken is None:
                await sink.close()
        if taken is not None:
            await taken.run(sink, joined=isinstance(taken, ChatTurn))

    async def _follow(self, reader: Reader, sink: Sink) -> ChatTurn | QueuedTurn | None:
        """
        Show lines until the turn is over or the reader gone; return the turn if this reader takes it over.

        Nothing of a turn that has its name since it was deleted is shown: that may be another user's.
        """
        page: LogPage | None = self.page
        begun = self.page.created_at
        poll = self.deployment.live.polls.of(self.run_id)
        while page is not None and not sink.closed and (page.created_at == begun or self.theirs is not None):
            text, more, self._last = page.text, page.more, page.last
            # What was sent is dropped: a reader that takes nothing for a while must not hold a page here as well.
            self.page = page = replace(page, text="")
            has_room = len(text) > SMALL_CHARACTERS
            await self._send(reader, text)
            text = ""
            if not more:
                self.release()
                if page.over:
                    await self._say_end(reader, page)
                    return None
                if page.status is RunStatus.PENDING and await self._waits_for_somebody(reader):
                    return None
                if page.lease_left_ms == 0 and self._may_take_over(poll):
                    if (taken := await self._take()) is not None:
                        return taken
                elif not await self._follow_live(reader, sink):
                    page = await self._poll(poll)
                    continue
                if self._done:
                    return None
            page = await self._load(self._last, _Had(self.release, reader.held) if more and has_room else None)
        return None

    async def _waits_for_somebody(self, reader: Reader) -> bool:
        """Say how many turns are before one that is pending; return whether nothing is held open for it."""
        told = await self.deployment.store.look(its_turn(self.identity))
        front = Front.of(told)
        if front is None:
            return False
        if front.waits_for_somebody:
            self._say(reader, waiting_words(self.identity, front))
            return True
        if front.position != self._position:
            self._position = front.position
            self._say(reader, queued_words(self.identity, front.position))
        return False

    def _may_take_over(self, poll: Poll) -> bool:
        if self.take_over is None or self.deployment.live.get(self.run_id) is not None:
            return False
        return poll.may_take_over(asyncio.get_running_loop().time())

    async def _follow_live(self, reader: Reader, sink: Sink) -> bool:
        """Show what is said in this isolate, until there is no more of it; return whether there was anything."""
        log = self.deployment.live.get(self.run_id)
        if log is None or (log.created_at != self.page.created_at and self.theirs is None):
            return False
        shown = False
        log.followers += 1
        try:
            while not sink.closed and (behind := log.after(self._last)) is not None:
                over = log.ended or log.left
                text, last = behind
                if not self._fits(text):
                    size, text, behind = len(text), "", None
                    await self._wait_for_room(size)
                    continue
                self._last = last
                if text:
                    shown = True
                    await self._send(reader, text)
                    self.release()
                elif over:
                    self._done = log.ended
                    break
                else:
                    await self._wait_for_more(log)
            return shown
        finally:
            log.followers -= 1

    @property
    def _who(self) -> str:
        return holder(self.identity.tenant_id, self.identity.user_id)

    def _fits(self, text: str) -> bool:
        return len(text) <= SMALL_CHARACTERS or self.deployment.sending.fits(self._who, len(text))

    async def _send(self, reader: Reader, text: str) -> None:
        """
        Send a text; a long text holds room of the isolate until the reader has taken it, or was given up.

        The reader keeps the room for the page that follows.  So few readers are in the middle of a log, and what a
        projection keeps of the log so far is kept for few.
        """
        if len(text) <= SMALL_CHARACTERS:
            if text:
                reader.send(text, ())
            await reader.drain(SMALL_CHARACTERS)
            return
        size = len(text)
        reader.send(text, ())
        del text
        had, self.release = self.release, self.deployment.sending.take(self._who, max(size, reader.held))
        had()
        await reader.drain(0)

    async def _wait_for_room(self, characters: int) -> None:
        await wait_for_room(self.deployment.sending, self._who, characters, self.deployment.alarm())

    async def _load(self, after: int, had: _Had | None = None) -> LogPage | None:
        if had is None:
            self.release()
        page, self.release = await read_page_in_turn(self.deployment, self.identity, after, self.theirs, had=had)
        return page

    async def _wait_for_more(self, log: TurnLog) -> None:
        await wait_for_ring(log, self.deployment.alarm(), _LOOK_EVERY_S)
        await asyncio.sleep(_GATHER_S)

    async def _take(self) -> ChatTurn | QueuedTurn | None:
        """Claim the turn, whose worker is lost; None if somebody else was quicker, or it was only slow."""
        assert self.take_over is not None  # noqa: S101 - asked before
        try:
            taken = await self.take_over()
        except DurableRunLeaseHeldError:
            return None
        return taken if isinstance(taken, ChatTurn | QueuedTurn) else None

    async def _poll(self, poll: Poll) -> LogPage | None:
        """Wait for another isolate to store more, and return what it has, by one's own look or by another's."""
        loop = asyncio.get_running_loop()
        pace = FOLLOW_PACES[self.deployment.settings.workers_plan]
        looks = poll.looks
        interval_s = pace.interval_ms((loop.time() - self._began) * 1000) / 1000
        while True:
            now = loop.time()
            left_s = max(poll.looked_at, self._looked_at) + interval_s * poll.stretch - now
            if left_s <= 0 and poll.may_look(now):
                return await self._look(poll, now, pace.interval_ms((now - self._began) * 1000) / 1000)
            await wait_for_ring(poll, self.deployment.alarm(), left_s if left_s > 0 else interval_s)
            if poll.looks != looks:
                looks, self._looked_at = poll.looks, poll.looked_at
                if (page := poll.page_after(self._last)) is not None:
                    return page

    async def _look(self, poll: Poll, now: float, next_s: float) -> LogPage | None:
        """Ask the database, for all who follow the turn from here; the next look is *next_s* later or a little more."""
        database, after, page = self.deployment.database, self._last, None
        self._looked_at = now
        poll.stretch = 1 + _STRETCH * self.deployment.sources.random()
        poll.begin_look(now)
        try:
            # Noted again while the last note still holds: at every second look, where looks are rare.
            if self.deployment.settings.on_disconnect != "continue" and now + 1.5 * next_s >= poll.noted_until:
                for_s = max(_NOTED_EVERY_S, 3 * next_s)
                poll.noted_until = now + for_s
                await database.batch([note_follower(self.run_id, round((for_s + _SLACK_S) * 1000))])
            page = await load_log(database, self.identity, after, self.theirs)
        finally:
            poll.end_look(after, page)
        return page

    async def _say_end(self, reader: Reader, page: LogPage) -> None:
        """
        Say how the turn ended where its log does not: its worker could end the run, but not write the log.

        The end has the seqs behind all lines that the worker may have said, so that a reader who comes back with its
        cursor has all.  A reader who already had all is told the end again, without a seq, since its stream would
        otherwise end without a terminal line.  Where this answer has no line in the log, as that of a turn that was
        stopped while it waited, the reader is told how it started as well.
        """
        if page.closed:
            if self._came_with_all:
                reader.send(await self._stored_end(page), ())
            return
        words = self._end_of(page)
        if page.last < page.begins:
            words = self._beginning_of(page) + words
        elif page.last >= page.furthest:
            words = words[-1:]
        missed = page.last < page.furthest
        self._say(reader, words, range(page.furthest - len(words) + 1, page.furthest + 1) if missed else repeat(None))

    def _end_of(self, page: LogPage) -> list[ChatStreamEvent]:
        if page.status is RunStatus.FAILED:
            return failure_words(self.identity, error_class(page.outcome))
        end = Cancelled("", CANCEL_REQUESTED) if page.cancelled else Completed()
        return ending_words(self.identity, end, replayed=True)

    def _beginning_of(self, page: LogPage) -> list[ChatStreamEvent]:
        started = [] if self._position else started_words(self.identity)  # it may have been told that the turn waits
        return [*started, ChatStreamEvent("result", {"finalText": ""})] if page.cancelled else started

    async def _stored_end(self, page: LogPage) -> str:
        last = await self._load(page.ends - 1)
        return "" if last is None else _SEQ.sub(r"\1", last.text)

    def _say(self, reader: Reader, events: list[ChatStreamEvent], seqs: Iterable[int | None] = repeat(None)) -> None:
        attempt = self.page.attempt
        reader.send("".join(encode_line(event, seq, attempt) for event, seq in zip(events, seqs, strict=False)), events)
