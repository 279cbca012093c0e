"""
`python -m dev.otlp_relay`: stands between a Worker, which sends OTLP as JSON, and a receiver that reads only protobuf.

Arize Phoenix is one.  Start it, start this, and give the Worker ``OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318``.
Its answer, good or bad, is passed back as it is; what cannot be read is answered with 400, as a receiver would.
"""

import argparse
import base64
import importlib
import re
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from google.protobuf import json_format  # type: ignore[import-untyped]  # it has no types

__all__ = ["message_of"]

_TIMEOUT_S: Final = 10
_SERVICES: Final = {"traces": ("trace", "Trace"), "metrics": ("metrics", "Metrics"), "logs": ("logs", "Logs")}
_IDS: Final = re.compile(r'("(?:traceId|spanId|parentSpanId)":)"([0-9a-f]+)"')


def message_of(signal: str, text: str) -> Any:
    """
    Read an export request strictly: unknown members and wrong types are errors.

    Raises:
        ValueError: It is no request of that signal.
    """
    package, service = _SERVICES[signal]
    module = importlib.import_module(f"opentelemetry.proto.collector.{package}.v1.{package}_service_pb2")
    # The one place where OTLP leaves protobuf's JSON: its ids are hex, not base64.
    in_base64 = _IDS.sub(lambda id_: f'{id_[1]}"{base64.b64encode(bytes.fromhex(id_[2])).decode()}"', text)
    try:
        return json_format.Parse(in_base64, getattr(module, f"Export{service}ServiceRequest")())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


class _Relay(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, receiver: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.receiver = receiver.rstrip("/")


class _Handler(BaseHTTPRequestHandler):
    server: _Relay

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length", 0))).decode(errors="replace")
        try:
            content = message_of(self.path.rpartition("/")[2], text).SerializeToString()
        except (KeyError, ValueError) as error:
            self._answer(400, str(error).encode())
            return
        request = urllib.request.Request(
            self.server.receiver + self.path, data=content, headers={"content-type": "application/x-protobuf"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                self._answer(response.status, b"{}")
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.read())
        except OSError as error:
            self._answer(502, str(error).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say what came and what became of it."""
        print(format % args, file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Relay until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m dev.otlp_relay", description=__doc__)
    parser.add_argument("--port", type=int, default=4318)
    parser.add_argument("--to", default="http://127.0.0.1:6006", help="the receiver's base address")
    options = parser.parse_args(arguments)
    with _Relay(options.port, options.to) as relay:
        print(f"http://127.0.0.1:{options.port} -> {options.to}", file=sys.stderr)
        try:
            relay.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
