"""
Server-sent events, the writing side: one frame for one event.

A frame is its ``id``, ``event`` and ``retry``, where given, then its data, and a blank line.  Line ends inside values
are safe: data are cut into one ``data`` line for each, and in an id or a type a line end becomes a space.

Source:
    HTML Living Standard, section 9.2; docs/reference/agent-runtime.md, Server-sent events, for the order of the
    fields and the known answer.
"""

import json
import math
import re
from typing import Final, TypedDict, Unpack

__all__ = ["ServerSentEventOptions", "encode_server_sent_event", "write_frame"]

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_HALF_CHARACTER: Final = re.compile(r"[\ud800-\udfff]")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_in_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ServerSentEventOptions(TypedDict, total=False):
    """
    The fields of a frame besides its data; an empty field is left out.

    Attributes:
        event: The event's type, for the reader's listeners.
        id: The place from which a reader goes on when it reconnects.
        retry: Milliseconds before a reader reconnects, rounded down; a negative or infinite value is left out.
    """

    event: str | None
    id: str | None
    retry: float | None


def encode_server_sent_event(data: object, **options: Unpack[ServerSentEventOptions]) -> str:
    """
    Return the frame of one event.

    Args:
        data: A text goes out as it is, anything else as JSON.  A lone surrogate, which UTF-8 cannot encode, is
            escaped in JSON, and replaced elsewhere.
        options: The other fields.

    Raises:
        TypeError, ValueError: The data are neither text nor JSON.
    """
    # A reader ignores an id that contains U+0000, and would reconnect at another place.
    id_ = _one_line(options.get("id")).replace("\0", "")
    retry = options.get("retry")
    frame = write_frame(
        data if isinstance(data, str) else _json(data),
        id_,
        _one_line(options.get("event")),
        "" if retry is None or not 0 <= retry < math.inf else str(math.floor(retry)),
    )
    return frame if frame.isascii() else _HALF_CHARACTER.sub("\ufffd", frame)


def write_frame(text: str, id_: str = "", event: str = "", retry: str = "") -> str:
    """
    Return the frame of an event whose data are *text*.

    Args:
        text: With any line ends.
        id_: One line, as are *event* and *retry*; "" to leave it out.
        event: The event's type.
        retry: Milliseconds, in digits.
    """
    frame = f"id: {id_}\n" if id_ else ""
    if event:
        frame += f"event: {event}\n"
    if retry:
        frame += f"retry: {retry}\n"
    if "\n" in text or "\r" in text:
        text = "\ndata: ".join(_LINE_END.split(text))
    return f"{frame}data: {text}\n\n"


def _json(data: object) -> str:
    text = _encode(data)
    return text if text.isascii() or not _HALF_CHARACTER.search(text) else _encode_in_ascii(data)


def _one_line(value: str | None) -> str:
    return re.sub(r"[\r\n]", " ", value or "")
