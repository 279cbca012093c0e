"""
The log as server-sent events: each line is one event, its ``seq`` the event's id.

An EventSource that has lost its connection reconnects with ``Last-Event-ID``, and gets the lines after the last one
that it has seen.  A line that is in no log has no id.  A ping is an event of type ``ping`` and not a comment: scripts
do not see comments, and could not tell a live connection from a dead one.

Source:
    HTML Living Standard, section 9.2: event streams, their reconnection, and status 204 that ends it.
"""

import re
from collections.abc import Callable
from typing import Final

from chatturn.chat.turn.sinks import Sink
from chatturn.sse_frames import write_frame
from chatturn.wire.lines import PING_START

__all__ = ["CONTENT_TYPE", "SseSink", "to_sse"]

CONTENT_TYPE: Final = "text/event-stream"

_PLACE: Final = re.compile(r',"seq":([0-9]+),"attempt":[0-9]+\}$')


def to_sse(text: str, id_suffix: str = "") -> str:
    """Return whole lines as events, whose ids end with *id_suffix*."""
    return "".join(_event(line, id_suffix) for line in text.split("\n")[:-1])


def _event(line: str, id_suffix: str) -> str:
    if line.startswith(PING_START):
        return write_frame(line, "", "ping")
    place = _PLACE.search(line)
    return write_frame(line, "" if place is None else place[1] + id_suffix)


class SseSink:
    """
    A sink that sends lines as server-sent events.

    Args:
        sink: The reader's connection.
        id_suffix: The end of the ids of its events.
    """

    def __init__(self, sink: Sink, id_suffix: str = "") -> None:
        self._sink = sink
        self._id_suffix = id_suffix

    def write(self, text: str) -> None:
        """Send *text*, whole lines, as events."""
        self._sink.write(to_sse(text, self._id_suffix))

    async def drain(self, room: int | None = None) -> None:
        """Wait until the reader has room again, or is gone."""
        await self._sink.drain(room)

    @property
    def held(self) -> int:
        """How many characters the reader has not taken."""
        return self._sink.held

    @property
    def closed(self) -> bool:
        """Whether the reader is gone."""
        return self._sink.closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback*, once, if the reader goes away before the end."""
        self._sink.when_lost(callback)

    async def close(self) -> None:
        """Deliver what is left and end the stream."""
        await self._sink.close()

    def abort(self) -> None:
        """Break the stream off."""
        self._sink.abort()
