"""
A model without a delay: `python -m bench.upstream` prints its port, then answers chat completions.

What it answers is in the request's ``model``, a `Script`.  An answer is made once, as the bytes of an HTTP
chunked body, and sent with one call: every HTTP chunk arrives in the Worker as one read of its own.
"""

import json
import re
import socket
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Final, Self

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache\r\n\r\n"
)
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED: Final = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
_TEXT: Final = "lorem 1 "


@dataclass(frozen=True)
class Script:
    """
    One answer.

    Attributes:
        events: How many pieces of text it has, of eight bytes each.
        per_chunk: How many of them arrive in one network chunk.
        pause_ms: Between two chunks; with a pause, each event's text is the time at which it was sent, in
            nanoseconds of the machine's monotonic clock.
    """

    events: int
    per_chunk: int = 1
    pause_ms: int = 0

    def __str__(self) -> str:
        return f"events={self.events},per_chunk={self.per_chunk},pause_ms={self.pause_ms}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote."""
        return cls(*(int(part.partition("=")[2]) for part in text.split(",")))


def main() -> None:
    """Serve until the process is ended."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection:
        try:
            while (body := _read_request(connection)) is not None:
                _answer(connection, Script.parse(json.loads(body)["model"]))
        except ConnectionError:
            return


def _read_request(connection: socket.socket) -> bytes | None:
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return None
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    if length := _LENGTH.search(head):
        while len(body) < int(length[1]):
            body += connection.recv(65536)
        return body
    if not _CHUNKED.search(head):
        raise ValueError(f"a body of unknown length: {head!r}")
    while not body.endswith(b"0\r\n\r\n"):
        body += connection.recv(65536)
    return b"".join(body.split(b"\r\n")[1:-3:2])


def _answer(connection: socket.socket, script: Script) -> None:
    if not script.pause_ms:
        connection.sendall(_whole(script))
        return
    connection.sendall(_HEAD)
    for _ in range(script.events):
        time.sleep(script.pause_ms / 1000)
        connection.sendall(_chunk(_frame(delta={"content": f"{time.monotonic_ns()} "})))
    connection.sendall(_end(script))


@cache
def _whole(script: Script) -> bytes:
    frame = _frame(delta={"content": _TEXT})
    chunks, rest = divmod(script.events, script.per_chunk)
    body = _chunk(frame * script.per_chunk) * chunks + (_chunk(frame * rest) if rest else b"")
    return _HEAD + body + _end(script)


def _end(script: Script) -> bytes:
    usage = {"prompt_tokens": 10, "completion_tokens": script.events, "total_tokens": script.events + 10}
    frames = [_frame(delta={}, finish_reason="stop"), _frame(usage=usage), b"data: [DONE]\n\n"]
    return b"".join(map(_chunk, frames)) + b"0\r\n\r\n"


def _frame(
    delta: dict[str, str] | None = None,
    finish_reason: str | None = None,
    usage: dict[str, int] | None = None,
) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    message = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
        "model": "bench",
        "choices": choices,
        "usage": usage,
    }
    return f"data: {json.dumps(message, separators=(',', ':'))}\n\n".encode()


def _chunk(payload: bytes) -> bytes:
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"


if __name__ == "__main__":
    main()
