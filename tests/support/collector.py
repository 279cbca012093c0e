"""An OTLP receiver on 127.0.0.1 that reads strictly what it is sent, keeps it, and misbehaves where it is told to."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.support.telemetry import plain, read_strictly

__all__ = ["Collector"]


class Collector(ThreadingHTTPServer):
    """
    The receiver.  Use it as a context.

    Attributes:
        received: Every request so far.
        status: What it answers.
        headers: Sent with the answer.
        reply: The answer's body.
        answering: Cleared to keep senders waiting.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.received: list[dict[str, Any]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.reply = b"{}"
        self.answering = threading.Event()
        self.answering.set()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def about(self, text: str) -> dict[str, Any]:
        """Wait for a request with spans that has *text* in it, and return the first."""
        request: dict[str, Any]
        [request, *_] = self.wait_for(lambda: [r for r in self._of("traces") if text in json.dumps(r["body"])], text)
        return request

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """Return a trace's spans that have come, attributes as a mapping."""
        scopes = [request["body"]["resourceSpans"][0]["scopeSpans"][0] for request in self._of("traces")]
        spans = [span for scope in scopes for span in scope["spans"] if span["traceId"] == trace_id]
        return [span | {"attributes": plain(span["attributes"])} for span in spans]

    def bodies(self, signal: str) -> list[Any]:
        """Return what has come of a signal."""
        return [request["body"] for request in self._of(signal)]

    def wait_for(self, look: Callable[[], list[Any]], what: str) -> list[Any]:
        """Wait until *look* finds something, and return it."""
        deadline = time.monotonic() + 20
        while not (found := look()):
            assert time.monotonic() < deadline, f"nothing has come of {what}"
            time.sleep(0.02)
        return found

    def _of(self, signal: str) -> list[dict[str, Any]]:
        return [request for request in self.received if request["path"] == f"/v1/{signal}"]


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["content-length"])).decode()
        read_strictly(self.path.rpartition("/")[2], text)
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer, reply = self.server.status, self.server.headers, self.server.reply  # as it was when this came
        self.server.received.append({"path": self.path, "headers": headers, "body": json.loads(text)})
        self.server.answering.wait()
        with suppress(OSError):  # The sender has given up.
            self.send_response(status)
            for name, value in answer.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
