"""
A client that costs next to nothing: sockets, one thread, no look at the lines while they arrive.

Every connection is kept and sends the next request when the last answer has ended.
"""

import json
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["FORMATS", "Answer", "Client", "Request"]

_END: Final = b"\r\n0\r\n\r\n"
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TIMEOUT_S: Final = 120.0
_IDLE_S: Final = 2.0  # wrangler closes connections after 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to ask for, by a route of `FORMATS`."""

    session: str
    message: str
    model: str
    turn_index: int = 0
    format: str = "native"


def _native(asked: Request) -> tuple[str, dict[str, Any]]:
    body = {"message": asked.message, "model": asked.model}
    return f"/v1/sessions/{asked.session}/turns/{asked.turn_index}", body


def _ai_sdk(asked: Request) -> tuple[str, dict[str, Any]]:
    messages = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": asked.message}]}]
    return "/v1/ai-sdk/chat", {"id": asked.session, "model": asked.model, "messages": messages}


def _openai(asked: Request) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": asked.message}]
    body = {"model": asked.model, "messages": messages, "metadata": {"session_id": asked.session}, "stream": True}
    return "/v1/chat/completions", body


FORMATS: Final[Mapping[str, Callable[[Request], tuple[str, dict[str, Any]]]]] = {
    "native": _native,
    "AI SDK": _ai_sdk,
    "OpenAI": _openai,
}
"""The path and the body of a turn that is the first of its session."""


@dataclass(kw_only=True)
class Answer:
    """
    What came back, and when: seconds of the monotonic clock.

    Attributes:
        reads: Each piece of the response and when it came, the head included.
        length: How many bytes it has, if that is known beforehand.
    """

    sent_at: float
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    length: int | None = None

    @property
    def first_byte_ms(self) -> float:
        """From the request to the first byte of the body."""
        size = 0
        head = self.raw.index(b"\r\n\r\n") + 4
        for at, piece in self.reads:
            size += len(piece)
            if size > head:
                return (at - self.sent_at) * 1000
        raise ValueError("the response has no body")

    @property
    def total_ms(self) -> float:
        """From the request to the last byte."""
        return (self.reads[-1][0] - self.sent_at) * 1000

    @property
    def raw(self) -> bytes:
        """The whole response as it came."""
        return b"".join(piece for _, piece in self.reads)

    def lines(self) -> list[bytes]:
        """Return the body's lines, without the framing of HTTP chunks."""
        return [line for line in self.raw.split(b"\n") if line.startswith((b"{", b"data:"))]


class Client:
    """Talks to one Worker."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._connections: list[socket.socket] = []
        self._used_at = 0.0

    def ask(self, request: Request) -> Answer:
        """Ask for one turn."""
        [answer] = self.ask_all([request])
        return answer

    def ask_all(self, requests: Sequence[Request], *, concurrency: int = 1) -> list[Answer]:
        """Ask for all of *requests*, *concurrency* at a time; answers in the order in which they ended."""
        if time.monotonic() - self._used_at > _IDLE_S:
            self.close()
        waiting = iter(requests)
        answers: list[Answer] = []
        with selectors.DefaultSelector() as selector:
            while len(self._connections) < concurrency:
                self._connections.append(socket.create_connection(("127.0.0.1", self._port)))
            for connection in self._connections[:concurrency]:
                self._next(connection, waiting, selector)
            while selector.get_map():
                ready = selector.select(_TIMEOUT_S)
                if not ready:
                    raise TimeoutError(f"no byte within {_TIMEOUT_S} s")
                for key, _ in ready:
                    answer = key.data
                    piece = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]  # always a socket
                    answer.reads.append((time.monotonic(), piece))
                    if _has_ended(answer):
                        selector.unregister(key.fileobj)
                        answers.append(_checked(answer))
                        self._next(key.fileobj, waiting, selector)  # type: ignore[arg-type]
        self._used_at = time.monotonic()
        return answers

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _next(self, connection: socket.socket, waiting: Iterable[Request], selector: selectors.BaseSelector) -> None:
        for request in waiting:
            message = self._encoded(request)
            answer = Answer(sent_at=time.monotonic())
            connection.sendall(message)
            selector.register(connection, selectors.EVENT_READ, answer)
            return

    def _encoded(self, request: Request) -> bytes:
        path, members = FORMATS[request.format](request)
        body = json.dumps(members).encode()
        head = (
            f"POST {path} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _has_ended(answer: Answer) -> bool:
    last = answer.reads[-1][1]
    if not last:
        raise ConnectionError(f"the connection was closed: {answer.raw[-500:]!r}")
    if len(answer.reads) == 1:
        answer.length = _announced_length(last)
    if answer.length is not None:
        return sum(len(piece) for _, piece in answer.reads) >= answer.length
    if len(last) >= len(_END):
        return last.endswith(_END)
    return b"".join(piece for _, piece in answer.reads[-4:]).endswith(_END)


def _announced_length(start: bytes) -> int | None:
    """Return the length of the whole response, if it begins with a head that tells; else it is in HTTP chunks."""
    head, end, _ = start.partition(b"\r\n\r\n")
    length = _LENGTH.search(head) if end else None
    return None if length is None else len(head) + len(end) + int(length[1])


def _checked(answer: Answer) -> Answer:
    raw = answer.raw
    if not raw.startswith(b"HTTP/1.1 200") or b"session.run.failed" in raw[-500:]:
        raise RuntimeError(f"not an answer: {raw[:300]!r} … {raw[-500:]!r}")
    return answer
