"""
A turn for a client of another format: the lines of its log, converted by a projection.

Such clients take the clean end of a body for success, and an error status of a reconnect for final.  So if the lines
end before the turn does, because the worker or the database was lost, the body stays open and the log is followed until
another worker continues the turn; after 600 s without a line the body is broken off.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, Protocol, Self

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
"""The headers of every stream; X-Accel-Buffering keeps proxies from buffering it."""

_PATIENCE_S: Final = 600.0
"""A body that gets no line for this many seconds is broken off."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0


_GIVEN_S: Final = (1.0, 3.0)
"""The pauses before the second and third try to claim a turn that has just got the results that it waits for."""


class Projection(Protocol):
    """Turns the lines of a log into another format, for one client."""

    ended: bool
    """Whether `feed` has returned the format's end."""

    @property
    def broken(self) -> bool:
        """Whether the rest of the turn cannot be sent to this client in the format."""

    def begin_attempt(self, attempt: int, stored_to: int) -> None:
        """Set the latest attempt, and the seq of the last stored line, before the first line."""

    def feed(self, text: str) -> str:
        """Return *text*, whole lines of the log, in the format; "" for nothing to send."""


class _ProjectedSink:
    """
    A sink that converts lines before it sends them.

    Args:
        sink: The client's connection.  It is closed at the end of the turn, not whenever a stream of lines ends.
        projection: Converts the lines.

    Attributes:
        last: The seq of the last line.
        came: How many writes were not a ping.
    """

    def __init__(self, sink: Sink, projection: Projection) -> None:
        self.last: int | None = None
        self.came = 0
        self._sink = sink
        self._projection = projection
        self._fed = 0

    def write(self, text: str) -> None:
        """Convert *text*, whole lines, and send it."""
        self.came += not text.startswith(PING_START)
        if (seq := last_seq(text)) is not None:
            self.last = seq
            self._fed += len(text)
        if said := self._projection.feed(text):
            self._sink.write(said)
        if self._projection.broken:
            self._sink.abort()

    async def drain(self, room: int | None = None) -> None:
        """Wait until the reader has room again, or is gone."""
        await self._sink.drain(room)

    @property
    def held(self) -> int:
        """How many characters the client has not taken, and of how many lines the projection keeps the text."""
        return self._fed + self._sink.held

    @property
    def closed(self) -> bool:
        """Whether the reader is gone."""
        return self._sink.closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback*, once, if the reader goes away before the end."""
        self._sink.when_lost(callback)

    async def close(self) -> None:
        """End the body if the turn is over."""
        if self._projection.ended:
            await self._sink.close()

    def abort(self) -> None:
        """Do nothing: the stream of lines broke off, and the turn may go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTurn:
    """
    A turn that this request has claimed, or follows.

    Attributes:
        run_id: The id of its run.
        attempt: Its latest attempt.
        replayed: Whether the turn had finished before.
        created_at: When the turn was begun, as the timestamp in the records.
        redacting: Whether the live lines have text that the log will not have.
        stored_to: The seq of the last stored line, if *run* writes the stored lines first; else None.
        run: Writes the turn's lines to a sink and closes the sink; never raises.
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
        """When the turn was begun, in seconds since the epoch."""
        return int(datetime.fromisoformat(self.created_at).timestamp())


async def open_or_follow(service: DurableChatService, identity: ChatTurnIdentity, request: TurnRequest) -> OpenedTurn:
    """
    Claim a turn; if another worker answers it, follow it; if it is finished, show its log.

    The log is shown and not the replay, since a replay has no reasoning, tools and usage.

    Args:
        service: The chat.
        identity: The turn.
        request: What is asked.

    Raises:
        ChatTurnError: As for `DurableChatService.open`.
        DurableRunLeaseHeldError: Another worker answers the turn with another input.
    """
    return await _claim_or_follow(service, identity, partial(service.open, identity, request))


async def go_on_or_follow(service: DurableChatService, identity: ChatTurnIdentity) -> OpenedTurn:
    """
    Claim a turn that has got what it waited for, with its own request; otherwise as `open_or_follow`.

    A turn that is just being suspended holds its lease for a moment longer, and may have missed what it got.  So the
    claim is tried again after `_GIVEN_S`.

    Raises:
        ChatTurnError: As for `DurableChatService.reopen`.
    """
    claim = partial(service.reopen, turn_run_id(identity))
    return await _claim_or_follow(service, identity, claim, pauses_s=_GIVEN_S)


def gone_on(service: DurableChatService, run_id: str) -> Callable[[], Awaitable[None]]:
    """Return a background task for a response, which resumes a run that has got what it waited for."""

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
        del turn  # it holds the answer, and the reader may have to wait for room
        if (found := await find(service, about, may_take_over=True)) is not None:
            return found
        turn = await claim()  # its log is gone
    return OpenedTurn(
        run_id=turn.run_id,
        attempt=turn.attempt,
        replayed=turn.replayed,
        created_at=turn.created_at,
        redacting=turn.redacting,
        run=turn.run,
    )


async def find(service: DurableChatService, identity: ChatTurnIdentity, *, may_take_over: bool) -> OpenedTurn | None:
    """Find a turn's log, to be shown from its beginning; None if this tenant has no such turn, or the log is gone."""
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
    A turn as one client is shown it, to its end.

    Attributes:
        service: The chat.
        identity: The turn.
        projection: Converts the lines into the client's format.
        first: Writes the first lines; None if the database has not answered yet.
        may_take_over: Whether the client may run the turn if its worker is lost.
        created_at: When the turn was begun, if that is known: nothing of a turn that has its name since it was deleted
            is shown, since that may be another user's.
    """

    service: DurableChatService
    identity: ChatTurnIdentity
    projection: Projection
    first: Callable[[Sink], Awaitable[None]] | None
    may_take_over: bool = True
    created_at: str | None = None

    @classmethod
    def of(
        cls, opened: OpenedTurn, service: DurableChatService, identity: ChatTurnIdentity, projection: Projection
    ) -> Self:
        """Return a turn that a request has claimed, or follows, as its client is shown it."""
        return cls(
            service=service,
            identity=identity,
            projection=projection,
            first=opened.run,
            created_at=opened.created_at,
        )

    async def run(self, sink: Sink) -> None:
        """Show the turn to its end and close *sink*; abort it if no line comes for `_PATIENCE_S`.  Never raises."""
        projected = _ProjectedSink(sink, self.projection)
        try:
            if self.first is not None:
                await self.first(projected)
            await self._go_on(projected, sink)
        except Exception:  # noqa: BLE001 - the boundary: a client that reconnects gets an error status
            sink.abort()

    async def _go_on(self, projected: _ProjectedSink, sink: Sink) -> None:
        """Follow the log until the turn is over."""
        pause_s, silent_s, begun = _FIRST_PAUSE_S, 0.0, self.created_at
        while not self.projection.ended and not sink.closed and silent_s < _PATIENCE_S:
            await asyncio.sleep(pause_s if silent_s or self.first is not None else 0)
            came = projected.came
            try:
                log = await self.service.follow(self.identity, projected.last, may_take_over=self.may_take_over)
            except StoreError:
                sink.write(PING_FRAME)
            else:
                begun = log.page.created_at if log is not None and begun is None else begun
                if log is None:
                    break
                if log.page.created_at != begun and log.theirs is None:
                    log.release()
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
