"""
Server-sent events, the reading side: bytes in, events out.

The grammar is the HTML standard's, "Parsing an event stream", whole: lines end in CR, LF or CRLF, a blank
line ends an event, `data` lines add up, an `id` stays until the next one, comments are nothing, and what is
left unfinished at the end of the stream is no event.  Where the network cuts the bytes never matters.

Model APIs do not keep to it, so a *lenient* decoder reads on where the grammar gives up:

* a ``data`` line that is whole JSON, or ``[DONE]``, is an event by itself if another ``data`` line follows it;
* so it is at the end of the stream, without a blank line or even a newline;
* ``event: error`` (``exception``, ``response.failed`` …) holds for the next data, behind a blank line, too;
* an ``error`` field is an event of the type ``error``, and a line that is no field is one of the type ``line``.

Speed comes from doing nothing per character or line: CR and LF are single bytes in UTF-8, so the bytes are
cut at the last blank line, decoded at once and split at the blank lines.  A frame that is one ``data:``
line, which is nearly all of them, needs no further parsing.
"""

import re
from dataclasses import dataclass
from typing import Final

from chatturn.backends.openai.model_json import parse_frame

__all__ = ["DONE", "MAX_EVENT_BYTES", "EventTooLong", "SSEDecoder", "ServerSentEvent"]

DONE: Final = "[DONE]"
"""The data that ends a model's answer."""

MAX_EVENT_BYTES: Final = 8_000_000

_BOM: Final = b"\xef\xbb\xbf"
_EMPTY_DATA: Final = frozenset({"", '""', "{}", "null"})
_FAILURE: Final = re.compile(r"(?:.*[._-])?(?:errors?|exception|fail(?:ed|ure)|fatal)")
_MAX_RETRY_DIGITS: Final = 15  # of milliseconds, 30,000 years; int() of a longer number takes too much time


class EventTooLong(ValueError):
    """An event has more bytes than the decoder's limit."""


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

    Args:
        max_event_bytes: The longest event.
        lenient: Whether to read on where the grammar gives up.

    Attributes:
        last_event_id: Where a reader that reconnects would resume; "" before the first ``id``.
        retry_ms: How long the server asks it to wait before that, or None.
        in_event: Whether lines have been read that belong to the event of the next frame.
        broke_off: Whether the stream ended inside an event; a comment is none.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES, lenient: bool = False) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.in_event = False
        self.broke_off = False
        self._limit = max_event_bytes
        self._lenient = lenient
        self._rest = bytearray()  # of an event whose blank line has not come yet, newlines normalised
        self._looked = 0  # how much of that was looked at for more than one event
        self._at_start = True
        self._after_cr = False
        self._event = ""  # of the event whose lines are being read
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes; return the events that they complete.  Raises what `complete` raises."""
        return [*self.events(self.complete(chunk)), *self.ahead()]

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
        self._looked = 0
        if len(frames) > self._limit and max(map(len, frames.split(b"\n\n"))) > self._limit:
            raise EventTooLong(f"an event of more than {self._limit} bytes")
        return frames.decode("utf-8", "replace")

    def events(self, frames: str) -> list[ServerSentEvent]:
        """Return the events of *frames*, which `complete` returned and whose order must be kept."""
        events: list[ServerSentEvent] = []
        for frame in frames[:-2].split("\n\n") if frames else ():
            if frame.startswith("data: ") and "\n" not in frame and not self.in_event:
                events.append(ServerSentEvent(frame[6:], "message", self.last_event_id))
            elif frame:
                self._read_lines([*frame.split("\n"), ""], events)
        return events

    def ahead(self) -> list[ServerSentEvent]:
        """Return what a lenient decoder makes of an event that has no end yet, if its lines are several events."""
        events: list[ServerSentEvent] = []
        if self._rest and self._lenient:
            self._read_ahead(events)
        return events

    def finish(self) -> list[ServerSentEvent]:
        """End the stream; return the events that a lenient decoder makes of what is left."""
        lines = self._rest.decode("utf-8", "replace").split("\n")
        self._rest.clear()
        events: list[ServerSentEvent] = []
        if self._lenient:
            self._read_lines(lines, events)
            self._data = ["\n".join(self._data)] if self._data else []
            if self._event == "error" or self._is_whole():
                self._say(events)
            self.broke_off = bool(self._data)
        else:
            self._read_lines([line for line in lines[:-1] if line.startswith("retry")], events)
            self.broke_off = any(line and not line.startswith(":") for line in lines)
        return events

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

    def _read_ahead(self, events: list[ServerSentEvent]) -> None:
        """Read the lines of an event that has no end yet if they may be several events; keep back the last one."""
        rest = self._rest
        several = rest.find(b"\ndata:", max(0, self._looked - len(b"\ndata:"))) >= 0
        self._looked = len(rest)
        if several and (end := rest.rfind(b"\n", 0, len(rest) - 1) + 1):
            self._read_lines(rest[: end - 1].decode("utf-8", "replace").split("\n"), events)
            del rest[:end]
            self._looked = 0

    def _read_lines(self, lines: list[str], events: list[ServerSentEvent]) -> None:
        for line in lines:
            self._read_line(line, events)
        self.in_event = bool(self._event or self._data)

    def _read_line(self, line: str, events: list[ServerSentEvent]) -> None:
        name, value = _field(line)
        if not line:
            self._end_event(events)
        elif name == "data":
            if self._is_whole():
                self._say(events)
            self._data.append(value)
        elif name == "event":
            if self._is_whole():
                self._say(events)
            self._set_type(value)
        elif name == "id" and "\0" not in value:
            self.last_event_id = value
        elif name == "retry":
            self._set_retry(value)
        elif name and name != "id" and self._lenient:
            is_error = name.lower() == "error" and bool(value)
            events.append(ServerSentEvent(value, "error") if is_error else ServerSentEvent(line, "line"))

    def _set_type(self, value: str) -> None:
        if not self._lenient:
            self._event = value
        elif self._event != "error":
            self._event = "error" if _FAILURE.fullmatch(value.strip().lower()) else value

    def _end_event(self, events: list[ServerSentEvent]) -> None:
        if self._event == "error" and self._lenient and "".join(self._data).strip() in _EMPTY_DATA:
            self._data = []  # what the error is comes in another frame
            return
        if self._data:
            self._say(events)
        self._event = ""

    def _say(self, events: list[ServerSentEvent]) -> None:
        events.append(ServerSentEvent("\n".join(self._data), self._event or "message", self.last_event_id))
        self._data = []

    def _is_whole(self) -> bool:
        """Say whether the one line of data so far is all that an event of a model's API can have."""
        if not self._lenient or len(self._data) != 1:
            return False
        data = self._data[0].strip()
        if data == DONE or not data.endswith(("}", "]")):
            return data == DONE
        try:
            parse_frame(data)
        except ValueError:
            return False
        return True

    def _set_retry(self, value: str) -> None:
        if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry_ms = int(value)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")  # a comment's name is empty
    return name, value.removeprefix(" ")
