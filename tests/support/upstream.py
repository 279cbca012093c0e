"""
A scripted model on 127.0.0.1, which misbehaves on purpose and keeps a record of who asked what.

It stands for the model that somebody pays for: tests count its calls, and see when a client let go of one.
What it answers is a `Script`, chosen by a word in the user's message (`on`), which holds however often the
client is restarted, or else the next one in the queue (`script`), or else a short polite answer.
"""

import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from tests.support.upstream_script import Script, head, http_chunks

__all__ = ["Call", "Upstream"]

_POLITE: Final = Script()
_LAST_CHUNK: Final = b"0\r\n\r\n"
_LOOK_S: Final = 0.02
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s: close() sends an RST


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """
    One request for a completion, and what became of it.

    Attributes:
        path: The request's path.
        headers: Its headers, names in lower case.
        body: Its JSON.
        script: What it was answered with.
        began_at: When it came, by `time.monotonic`, as are the other times.
        chunks_sent: How many network chunks of the answer have been written.
        answered_at: When the last of the answer was written; None if it never was.
        closed_at: When the connection ended, by whomever; None while it is open.
    """

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    script: Script
    began_at: float
    chunks_sent: int = 0
    answered_at: float | None = None
    closed_at: float | None = None
    _closed: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> str:
        """The idempotency key, "" without one."""
        return self.headers.get("idempotency-key", "")

    @property
    def message(self) -> str:
        """What is asked."""
        return _last_text(self.body)

    def wait_closed(self, timeout: float) -> bool:
        """Wait until the connection ends; return whether it did within *timeout* seconds."""
        return self._closed.wait(timeout)

    def close(self) -> None:
        """Note that the connection has ended."""
        if self.closed_at is None:
            self.closed_at = time.monotonic()
            self._closed.set()


class Upstream:
    """
    The server.  Use it as a context.

    Attributes:
        port: Where it listens.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._calls: list[Call] = []
        self._queue: list[Script] = []
        self._by_word: dict[str, list[Script]] = {}
        self._released: set[str] = set()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._acceptor.join()
        self._listener.close()
        with self._changed:
            connections = dict(self._connections)
        for connection in connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
        for thread in connections:
            thread.join()

    # Writing the script

    def script(self, *scripts: Script) -> None:
        """Answer the next calls that no word decides with *scripts*, in order."""
        with self._changed:
            self._queue.extend(scripts)

    def on(self, word: str, *scripts: Script) -> None:
        """Answer calls whose message holds *word* with *scripts*, in order; the last one from then on."""
        with self._changed:
            self._by_word[word] = list(scripts)

    def release(self, word: str) -> None:
        """Let the calls whose message holds *word* go on, which their script holds up."""
        with self._changed:
            self._released.add(word)

    # Reading the record

    def calls(self, word: str = "") -> list[Call]:
        """Return the calls so far whose message holds *word*, in the order in which they came."""
        with self._changed:
            return [call for call in self._calls if word in call.message]

    def calls_by_key(self) -> dict[str, int]:
        """Return how many calls came with each idempotency key."""
        counts: dict[str, int] = {}
        for call in self.calls():
            counts[call.key] = counts.get(call.key, 0) + 1
        return counts

    def wait_calls(self, count: int, timeout: float, word: str = "") -> list[Call]:
        """Wait until *count* calls whose message holds *word* have come; return those that came in time."""
        self._wait(lambda: len(self.calls(word)) >= count, timeout)
        return self.calls(word)

    def wait_sent(self, call: Call, chunks: int, timeout: float) -> bool:
        """Wait until so many chunks of *call*'s answer were written; return whether they were in time."""
        return self._wait(lambda: call.chunks_sent >= chunks, timeout)

    def _wait(self, happened: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(happened, timeout)

    # Serving

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                with self._changed:
                    self._connections[thread] = connection
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        served: list[Call] = []
        with suppress(OSError):
            requests = _Requests(connection)
            while (request := requests.next()) is not None:
                call = self._record(*request)
                served.append(call)
                if not self._play(call, connection):
                    break
        connection.close()
        for call in served:
            call.close()
        with self._changed:
            del self._connections[threading.current_thread()]

    def _record(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Call:
        with self._changed:
            script = self._choose(_last_text(body))
            if (said := _said(body)) and script.text.startswith(said):
                script = replace(script, text=script.text.removeprefix(said))
            call = Call(path=path, headers=headers, body=body, script=script, began_at=time.monotonic())
            self._calls.append(call)
            self._changed.notify_all()
        return call

    def _choose(self, message: str) -> Script:
        for word, scripts in self._by_word.items():
            if word in message:
                before = sum(word in call.message for call in self._calls)
                return scripts[min(before, len(scripts) - 1)]
        return self._queue.pop(0) if self._queue else _POLITE

    def _play(self, call: Call, connection: socket.socket) -> bool:
        """Answer *call*; return whether the connection may be used again."""
        script = call.script
        if script.before_headers_s != 0 and _closes_within(connection, script.before_headers_s):
            return False
        connection.sendall(head(script))
        for chunk in http_chunks(script):
            if script.hold_after == call.chunks_sent and not self._hold(call, connection):
                return False
            if script.pause_s and call.chunks_sent and _closes_within(connection, script.pause_s):
                return False
            connection.sendall(chunk)
            call.chunks_sent += 1
            if script.pause_s:
                self._notify()
        return self._end(call, connection)

    def _hold(self, call: Call, connection: socket.socket) -> bool:
        """Wait until *call* is released; return whether the client is still there."""
        while not any(word in call.message for word in self._released):
            if _closes_within(connection, _LOOK_S):
                return False
        return True

    def _end(self, call: Call, connection: socket.socket) -> bool:
        self._notify()
        if call.script.ending == "hang":
            _closes_within(connection, None)
        elif call.script.ending == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif call.script.ending == "end":
            if call.script.body is None:
                connection.sendall(_LAST_CHUNK)
            call.answered_at = time.monotonic()
            self._notify()
            return True
        return False

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Requests:
    """The requests that come over one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def next(self) -> tuple[str, dict[str, str], dict[str, Any]] | None:
        """Return the next one's path, headers and JSON; None if the client has closed the connection."""
        head_bytes = self._take_until(b"\r\n\r\n")
        if head_bytes is None:
            return None
        request_line, *lines = head_bytes.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = self._chunked() if "transfer-encoding" in headers else self._take(int(headers["content-length"]))
        return request_line.split(" ")[1], headers, json.loads(body)

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self._take_until(b"\r\n") or b"0", 16):
            body += self._take(size)
            self._take(2)
        self._take(2)
        return body

    def _take_until(self, end: bytes) -> bytes | None:
        while end not in self._buffer:
            if not self._receive():
                return None
        taken, _, self._buffer = self._buffer.partition(end)
        return taken

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._receive():
                raise ConnectionError("the client closed the connection inside a request")
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _receive(self) -> bool:
        received = self._connection.recv(65_536)
        self._buffer += received
        return bool(received)


def _closes_within(connection: socket.socket, seconds: float | None) -> bool:
    """Wait so long, for ever if None; return at once and True if the client closes the connection."""
    readable, _, _ = select.select([connection], [], [], seconds)
    if not readable:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True


def _last_text(body: Mapping[str, Any]) -> str:
    """Return what is to be answered, which is not the beginning of the answer that is to be continued."""
    messages = body.get("messages") or [{}]
    content = messages[-2 if _said(body) else -1].get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _said(body: Mapping[str, Any]) -> str:
    """Return the beginning of the answer, where the model is asked to go on with it."""
    last = (body.get("messages") or [{}])[-1]
    return str(last["content"]) if body.get("continue_final_message") and last.get("role") == "assistant" else ""
