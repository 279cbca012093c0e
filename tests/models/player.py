"""A server on 127.0.0.1 that answers as the cases were recorded: byte for byte, chunk for chunk, pause for pause."""

import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

from tests.models.cases import Case, Recorded

__all__ = ["Player"]

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s: close() sends an RST


class Player:
    """
    The server.  Use it as a context.

    Args:
        cases: What it may be asked for; a request's model names the case.
    """

    def __init__(self, cases: Mapping[str, Case]) -> None:
        self._cases = cases
        self._asked: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def requests(self, case: str) -> int:
        """Return how often *case* was asked for."""
        with self._lock:
            return self._asked.get(case, 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, headers: Mapping[str, str], body: str) -> Recorded:
        name = json.loads(body)["model"]
        with self._lock:
            number = self._asked.get(name, 0)
            self._asked[name] = number + 1
        return self._cases[name].answer(number).for_request(headers, body)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        player = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                with suppress(ConnectionError):
                    _play(self.connection, player._answer(headers, body))
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def _play(connection: socket.socket, answer: Recorded) -> None:
    time.sleep(answer.before_headers_ms / 1000)
    headers = {"Connection": "close", **answer.headers}
    if answer.chunked:
        headers["Transfer-Encoding"] = "chunked"
    lines = [f"HTTP/1.1 {answer.status} As-Recorded", *(f"{name}: {value}" for name, value in headers.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    for pause_s, chunk in answer.chunks:
        time.sleep(pause_s)
        connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk) if answer.chunked else chunk)
    _end(connection, answer)


def _end(connection: socket.socket, answer: Recorded) -> None:
    if answer.end == "hang":
        time.sleep(answer.hang_ms / 1000)
    elif answer.end == "rst":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.close()
    elif answer.end == "close" and answer.chunked:
        connection.sendall(b"0\r\n\r\n")
