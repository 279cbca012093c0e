"""
A turn for a client of another format: its lines through a projection, to an end that the format knows.

Such clients take the clean end of a body for success, and any refusal of a reconnect for final.  So where the lines end
before the turn does, because the worker or the database was lost, the body stays open and the log is followed until
somebody goes on with the turn; after 600 s without a line the body is broken off.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, Protocol

from chatturn.chat.requests import TurnRequest
from chatturn.chat.service import DurableChatService
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id, with_version_of
from chatturn.chat.turn.sinks import Sink
from chatturn.chat.turn.turn import OpenTurn
from chatturn.errors import DurableRunLeaseHeldError, StoreError
from chatturn.wire.lines import PING_FRAME, PING_START, last_seq

__all__ = [
    "EVENTS",
    "OpenedTurn",
    "ProjectedTurn",
    "Projection",
    "find",
    "go_on_or_follow",
    "gone_on",
    "open_or_follow",
]

EVENTS: Final[Mapping[str, str]] = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
"""The headers of every stream; X-Accel-Buffering keeps proxies from holding it back."""

_PATIENCE_S: Final = 600.0
"""A body to which nothing was written for this long is broken off."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0


_GIVEN_S: Final = (1.0, 3.0)
"""Pauses before each further try to claim a turn whose awaited results have come."""


class Projection(Protocol):
    """Turns the lines of a log into another format, for one client."""

    ended: bool
    """Whether the end in that format was returned."""

    @property
    def broken(self) -> bool:
        """Whether the rest cannot be told to this client."""

    def begin_attempt(self, attempt: int, stored_to: int) -> None:
        """Say, before the first line, which attempt is the latest, and the seq of the last line that is stored."""

    def feed(self, text: str) -> str:
        """Return what whole lines are in the format."""


class _ProjectedSink:
    """
    A reader of another format.

    Args:
        sink: Its connection, which is closed with the end of the turn, and not with that of one stream of lines.
        projection: Into the format.

    Attributes:
        last: The seq of the last line.
        came: How many writes had lines other than pings.
    """

    def __init__(self, sink: Sink, projection: Projection) -> None:
        self.last: int | None = None
        self.came = 0
        self._sink = sink
        self._projection = projection

    def write(self, text: str) -> None:
        """Send what *text*, whole lines, is in the format."""
        self.came += not text.startswith(PING_START)
        if (seq := last_seq(text)) is not None:
            self.last = seq
        if said := self._projection.feed(text):
            self._sink.write(said)
        if self._projection.broken:
            self._sink.abort()

    async def drain(self, room: int | None = None) -> None:
        """Wait until the reader has room again, or is gone."""
        await self._sink.drain(room)

    @property
    def closed(self) -> bool:
        """Whether the reader is gone."""
        return self._sink.closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback*, once, if the reader goes away before the end."""
        self._sink.when_lost(callback)

    async def close(self) -> None:
        """End the body, if that was the end of the turn."""
        if self._projection.ended:
            await self._sink.close()

    def abort(self) -> None:
        """Do nothing: the lines broke off, not the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTurn:
    """
    A turn that was claimed, found or is being answered.

    Attributes:
        run_id: Its run.
        attempt: The latest.
        replayed: Whether the turn had finished before.
        created_at: When the turn was begun, as in the records.
        redacting: Whether the live lines have text that the log will not have.
        stored_to: The seq of the last line that is stored, if its lines begin with the stored ones.
        run: Writes its lines to a sink and closes it; never raises.
    """

    run_id: str
    attempt: int
    replayed: bool
    created_at: str
    redacting: bool
    run: Callable[[Sink], Awaitable[None]]
    stored_to: int | None = None

    @property
    def created(self) -> int:
        """When it was begun, in seconds since the epoch."""
        return int(datetime.fromisoformat(self.created_at).timestamp())


async def open_or_follow(service: DurableChatService, identity: ChatTurnIdentity, request: TurnRequest) -> OpenedTurn:
    """
    Claim a turn; where it is being answered, follow it, and where it is finished, show its log.

    The log has what a replay leaves out: reasoning, tools, usage.

    Args:
        service: The chat.
        identity: The turn.
        request: What is asked.

    Raises:
        ChatTurnError: As `DurableChatService.open`; that it is being answered only if another message is.
    """
    return await _claim_or_follow(service, identity, partial(service.open, identity, request))


async def go_on_or_follow(service: DurableChatService, identity: ChatTurnIdentity) -> OpenedTurn:
    """
    Claim a turn that has been given what it waited for, with what it was asked; else as `open_or_follow`.

    One that is just being suspended has a lease for a moment longer, and may have missed what it was given.

    Raises:
        ChatTurnError: As `DurableChatService.reopen`.
    """
    claim = partial(service.reopen, turn_run_id(identity))
    return await _claim_or_follow(service, identity, claim, pauses_s=_GIVEN_S)


def gone_on(service: DurableChatService, run_id: str) -> Callable[[], Awaitable[None]]:
    """Return what goes on, beside a response, with a run that was given what it waited for; see `resume`."""

    async def resume() -> None:
        await service.resume(run_id)

    return resume


async def _claim_or_follow(
    service: DurableChatService,
    identity: ChatTurnIdentity,
    claim: Callable[[], Awaitable[OpenTurn]],
    *,
    pauses_s: Sequence[float] = (),
) -> OpenedTurn:
    try:
        turn = await claim()
    except DurableRunLeaseHeldError as error:
        if pauses_s:
            await asyncio.sleep(pauses_s[0])
            return await _claim_or_follow(service, identity, claim, pauses_s=pauses_s[1:])
        about = with_version_of(identity, error.run_id)
        if not error.same_input or (found := await find(service, about, may_take_over=True)) is None:
            raise
        return found
    if turn.replayed:
        about = with_version_of(identity, turn.run_id)
        if (found := await find(service, about, may_take_over=True)) is not None:
            return found
    return OpenedTurn(
        run_id=turn.run_id,
        attempt=turn.attempt,
        replayed=turn.replayed,
        created_at=turn.created_at,
        redacting=turn.redacting,
        run=turn.run,
    )


async def find(service: DurableChatService, identity: ChatTurnIdentity, *, may_take_over: bool) -> OpenedTurn | None:
    """Find a turn's log, to be shown from its beginning; None if this tenant has no such turn, or it has no log."""
    log = await service.follow(identity, None, may_take_over=may_take_over)
    if log is None or (log.finished and not log.page.text):
        return None
    page = log.page
    return OpenedTurn(
        run_id=log.run_id,
        attempt=page.attempt,
        replayed=log.finished,
        created_at=page.created_at,
        redacting=False,
        run=log.run,
        stored_to=page.ends,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedTurn:
    """
    One client's way through a turn.

    Attributes:
        service: The chat.
        identity: The turn.
        projection: Into the client's format.
        first: Writes the lines to begin with; None where the database did not answer yet.
        may_take_over: Whether the client may run the turn if its worker is lost.
    """

    service: DurableChatService
    identity: ChatTurnIdentity
    projection: Projection
    first: Callable[[Sink], Awaitable[None]] | None
    may_take_over: bool = True

    async def run(self, sink: Sink) -> None:
        """Show the turn to its end, and close *sink*; or break it off, where nobody goes on.  Never raises."""
        projected = _ProjectedSink(sink, self.projection)
        try:
            if self.first is not None:
                await self.first(projected)
            await self._go_on(projected, sink)
        except Exception:  # noqa: BLE001 - the boundary: the client comes back, and is told before the first byte
            sink.abort()

    async def _go_on(self, projected: _ProjectedSink, sink: Sink) -> None:
        """Follow the log until the turn is over."""
        pause_s, silent_s = _FIRST_PAUSE_S, 0.0
        while not self.projection.ended and not sink.closed and silent_s < _PATIENCE_S:
            await asyncio.sleep(pause_s if silent_s or self.first is not None else 0)
            came = projected.came
            try:
                log = await self.service.follow(self.identity, projected.last, may_take_over=self.may_take_over)
            except StoreError:
                sink.write(PING_FRAME)
            else:
                if log is None:
                    break
                if projected.last is None:
                    self.projection.begin_attempt(log.page.attempt, log.page.ends)
                await log.run(projected)
            if projected.came > came:
                pause_s, silent_s = _FIRST_PAUSE_S, 0.0
            else:
                silent_s += pause_s
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if not self.projection.ended:
            sink.abort()
