"""What a reader is sent: the turn's lines as they are said, and a ping where nothing is said for a while."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from chatturn.chat.hooks.outbox import overrides
from chatturn.chat.requests import TurnInput
from chatturn.chat.turn.sinks import Sink
from chatturn.events import ChatStreamEvent
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["ATTENTIVE_PING_EVERY_MS", "PING_EVERY_MS", "Reader", "observer_of", "ping_every_ms"]

PING_EVERY_MS: Final = 15_000
"""Proxies cut connections that are silent for 60 s or more; the platform notices a lost client on a write."""

ATTENTIVE_PING_EVERY_MS: Final = 5_000
"""Where a lost reader ends the turn: a closed connection is noticed only at the second write after it closed."""


def ping_every_ms(on_disconnect: str) -> int:
    """Return after how many ms of silence the reader of a turn's POST is sent a ping."""
    return PING_EVERY_MS if on_disconnect == "continue" else ATTENTIVE_PING_EVERY_MS


def observer_of(turn: TurnInput) -> Callable[[ChatStreamEvent], None] | None:
    """Return the product's `on_event` for a turn; None where it has none."""
    hooks = turn.deployment.hooks
    return partial(hooks.on_event, turn.identity) if overrides(hooks, "on_event") else None


class Reader:
    """
    Sends lines to the reader, and shows their events to the product's observer.

    A reader tells a dead connection by its silence, for which it must know how long a silence may be: so the first
    ping comes right behind the first line, and each says after how many milliseconds the next one comes at the latest.

    Args:
        sink: The reader.
        observe: Sees every event that is said; its failures are logged.
        report: Takes those failures.
        every_ms: After this much silence, once `start_pings` was called, the reader is sent a ping.
    """

    def __init__(
        self,
        sink: Sink,
        observe: Callable[[ChatStreamEvent], None] | None,
        report: OperatorLog,
        *,
        every_ms: int = PING_EVERY_MS,
    ) -> None:
        self._sink = sink
        self._observe = observe
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._every_ms = every_ms
        self._unannounced = False
        self._said_at = 0.0

    def send(self, text: str, events: Sequence[ChatStreamEvent]) -> None:
        """Send *text*, the lines of *events*, in one write."""
        self._said_at = asyncio.get_running_loop().time()
        if self._unannounced and text:
            self._unannounced = False
            first = text.index("\n") + 1
            text = f"{text[:first]}{self._ping_line()}{text[first:]}"
        self._sink.write(text)
        if self._observe is None:
            return
        for event in events:
            try:
                self._observe(event)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - an observer must not break a turn
                self._report("hook.on_event_failed", {"event_type": event.type, "error": error})

    @property
    def held(self) -> int:
        """How many characters are kept for the reader; see `Sink.held`."""
        return self._sink.held

    async def drain(self, room: int | None = None) -> None:
        """Wait for a reader that is behind; see `Sink.drain`."""
        await self._sink.drain(room)

    def start_pings(self) -> None:
        """From now on ping where nothing is said, and once right behind the next line."""
        loop = asyncio.get_running_loop()
        self._said_at, self._unannounced = loop.time(), True
        self._timer = loop.call_later(self._every_ms / 1000, self._ping_if_silent)

    def stop_pings(self) -> None:
        """Stop pinging; a second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()

    def _ping_if_silent(self) -> None:
        # One timer that looks back, instead of one that every event resets: a timer is a call into JavaScript.
        loop = asyncio.get_running_loop()
        wait_s = self._said_at + self._every_ms / 1000 - loop.time()
        if wait_s <= 0:
            self._unannounced = False
            self.send(self._ping_line(), ())
            wait_s = self._every_ms / 1000
        self._timer = loop.call_later(wait_s, self._ping_if_silent)

    def _ping_line(self) -> str:
        return f'{{"type":"ping","data":{{"everyMs":{self._every_ms}}}}}\n'
