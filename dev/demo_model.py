"""
A model for the demonstration: an OpenAI-compatible API on 127.0.0.1 that counts what it is asked for.

It says a fixed text, a word at a time, and can go on with an answer that broke off.
"""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

__all__ = ["ANSWER", "DemoModel"]

ANSWER: Final = (
    "A durable turn is written down while it is said. Every line of it has a number, and is stored a quarter of a "
    "second later, beside the stream, under a lease. So whoever comes back says which number it has seen, and gets "
    "the rest; whoever comes late gets all of it; and when the worker dies in the middle of a sentence, another one "
    "reads what is there, waits until the lease of the dead has lapsed, and goes on with the very next word. "
    "Nobody pays for the same words twice, and nobody in front of the window has to know."
)
_LEASH_S: Final = 600.0
"""How long the API lives as a process of its own, whoever forgets it."""

_PACE_S: Final = 0.09


class DemoModel(ThreadingHTTPServer):
    """
    The API.  Use it as a context.

    Attributes:
        calls: How often it was asked.
        words: How many words it has said.
        left: How often whoever asked hung up before the end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls = self.words = self.left = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DemoModel

    def do_POST(self) -> None:
        """Answer a request for a completion."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.calls += 1
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for frame in _frames(body):
                self.wfile.write(f"data: {frame}\n\n".encode())
                self.wfile.flush()
                self.server.words += "content" in frame
                time.sleep(_PACE_S)
        except OSError:
            self.server.left += 1

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def _frames(body: dict[str, Any]) -> Iterator[str]:
    last = body["messages"][-1]
    said = last["content"] if body.get("continue_final_message") and last["role"] == "assistant" else ""
    words = ANSWER.removeprefix(said).split(" ")
    for position, word in enumerate(words):
        text = word if position == 0 else f" {word}"
        if text:
            yield json.dumps({"model": "demo", "choices": [{"index": 0, "delta": {"content": text}}]})
    usage = {"prompt_tokens": 20, "completion_tokens": len(words)}
    yield json.dumps({"model": "demo", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield json.dumps({"model": "demo", "choices": [], "usage": usage})
    yield "[DONE]"


if __name__ == "__main__":
    with DemoModel() as served:
        print(served.url, flush=True)
        time.sleep(_LEASH_S)
