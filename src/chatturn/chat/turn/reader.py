"""What a reader is sent: the turn's lines as they are said, and a ping where nothing is said for a while."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from chatturn.chat.turn.sinks import Sink
from chatturn.events import ChatStreamEvent
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["PING_EVERY_MS", "Output"]

PING_EVERY_MS: Final = 15_000
"""Proxies cut connections that are silent for 60 s or more; the platform notices a lost client on a write."""

_PING_LINE: Final = '{"type":"ping"}\n'


class Output:
    """
    Sends lines to the reader, and shows their events to the product's observer.

    Args:
        sink: The reader.
        observe: Sees every event that is said; its failures are logged.
        report: Takes those failures.
    """

    def __init__(self, sink: Sink, observe: Callable[[ChatStreamEvent], None] | None, report: OperatorLog) -> None:
        self._sink = sink
        self._observe = observe
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._silence_s = PING_EVERY_MS / 1000
        self._said_at = 0.0

    def send(self, text: str, events: Sequence[ChatStreamEvent]) -> None:
        """Send *text*, the lines of *events*, in one write."""
        self._said_at = asyncio.get_running_loop().time()
        self._sink.write(text)
        if self._observe is None:
            return
        for event in events:
            try:
                self._observe(event)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - an observer must not break a turn
                self._report("hook.on_event_failed", {"event_type": event.type, "error": error})

    async def drain(self) -> None:
        """Wait for a reader that is behind."""
        await self._sink.drain()

    def ping_every(self, silence_ms: int) -> None:
        """Ping after so much silence, once `start_pings` was called."""
        self._silence_s = silence_ms / 1000

    def start_pings(self) -> None:
        """From now on ping where nothing is said."""
        loop = asyncio.get_running_loop()
        self._said_at = loop.time()
        self._timer = loop.call_later(self._silence_s, self._ping_if_silent)

    def stop_pings(self) -> None:
        """Stop pinging; a second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()

    def _ping_if_silent(self) -> None:
        # One timer that looks back, instead of one that every event resets: a timer is a call into JavaScript.
        loop = asyncio.get_running_loop()
        wait_s = self._said_at + self._silence_s - loop.time()
        if wait_s <= 0:
            self.send(_PING_LINE, ())
            wait_s = self._silence_s
        self._timer = loop.call_later(wait_s, self._ping_if_silent)
