"""
Server-sent events, the reading side: bytes in, events out.

The grammar is the HTML standard's, "Parsing an event stream", whole: lines end in CR, LF or CRLF, a blank
line ends an event, `data` lines add up, an `id` stays until the next one, comments are nothing, and what is
left unfinished at the end of the stream is no event.  Where the network cuts the bytes never matters.

Speed comes from doing nothing per character or line: CR and LF are single bytes in UTF-8, so the bytes are
cut at the last blank line, decoded at once and split at the blank lines.  A frame that is one ``data:``
line, which is nearly all of them, needs no further parsing.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_EVENT_BYTES", "EventTooLong", "SSEDecoder", "ServerSentEvent"]

MAX_EVENT_BYTES: Final = 8_000_000

_BOM: Final = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS: Final = 15  # of milliseconds, 30 000 years; int() of an endless number is an attack


class EventTooLong(ValueError):
    """An event has more bytes than the decoder was told to hold."""


@dataclass(slots=True)
class ServerSentEvent:
    """
    One event.  Treat it as a value.

    Attributes:
        data: Its data lines, joined by LF.
        event: Its type.
        last_event_id: The last ``id`` of the stream so far, this event's included.
    """

    data: str
    event: str = "message"
    last_event_id: str = ""


class SSEDecoder:
    """
    Turns a stream's bytes into its events, however the network has cut them.

    Attributes:
        last_event_id: Where a reader that reconnects would resume; "" before the first ``id``.
        retry_ms: How long the server asks it to wait before that, or None.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._limit = max_event_bytes
        self._rest = bytearray()  # of an event whose blank line has not come yet, newlines normalised
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes; return the events that they complete.  Raises what `complete` raises."""
        return self.events(self.complete(chunk))

    def complete(self, chunk: bytes) -> str:
        """
        Take the next bytes; return the frames that they complete, each ended by a blank line, newlines normalised.

        Raises:
            EventTooLong: The event that is arriving, or one of those in *chunk*, is over the limit.
        """
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_lf_only(chunk)
        end = chunk.rfind(b"\n\n") + 2
        if end == 1:  # none; but the blank line may be made of this chunk's start and what came before
            end = int(chunk.startswith(b"\n") and self._rest.endswith(b"\n"))
        if not end:
            self._rest += chunk
            if len(self._rest) > self._limit + 1:  # its last LF may be the first of the blank line
                raise EventTooLong(f"an event of more than {self._limit} bytes")
            return ""
        frames = bytes(self._rest) + chunk[:end] if self._rest else chunk[:end]
        self._rest = bytearray(chunk[end:])
        if len(frames) > self._limit and max(map(len, frames.split(b"\n\n"))) > self._limit:
            raise EventTooLong(f"an event of more than {self._limit} bytes")
        return frames.decode("utf-8", "replace")

    def events(self, frames: str) -> list[ServerSentEvent]:
        """Return the events of *frames*, which `complete` returned and whose order must be kept."""
        events: list[ServerSentEvent] = []
        for frame in frames[:-2].split("\n\n"):
            if frame.startswith("data: ") and "\n" not in frame:
                events.append(ServerSentEvent(frame[6:], "message", self.last_event_id))
            elif frame:
                self._add_frame(frame, events)
        return events

    def finish(self) -> bool:
        """
        End the stream; return whether it broke off inside an event, which the grammar drops.

        A comment is no event; lines that were complete still count for `retry_ms`.
        """
        lines = self._rest.decode("utf-8", "replace").split("\n")
        self._rest.clear()
        for line in lines[:-1]:
            if line.startswith("retry"):
                self._set_retry(_field(line)[1])
        return any(line and not line.startswith(":") for line in lines)

    def _without_bom(self, chunk: bytes) -> bytes:
        start = bytes(self._rest) + chunk
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._rest = bytearray(start)
            return b""
        self._rest.clear()
        self._at_start = False
        return start.removeprefix(_BOM)

    def _with_lf_only(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _add_frame(self, frame: str, events: list[ServerSentEvent]) -> None:
        event, data = "", []
        for line in frame.split("\n"):
            name, value = _field(line)
            if name == "data":
                data.append(value)
            elif name == "event":
                event = value
            elif name == "id" and "\0" not in value:
                self.last_event_id = value
            elif name == "retry":
                self._set_retry(value)
        if data:
            events.append(ServerSentEvent("\n".join(data), event or "message", self.last_event_id))

    def _set_retry(self, value: str) -> None:
        if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry_ms = int(value)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")  # a comment's name is empty
    return name, value.removeprefix(" ")
