"""
Cloudflare's API on 127.0.0.1, as much of it as wrangler asks: what it answers of one account.

Source:
    developers.cloudflare.com/api: the envelope of answers, ``workers/scripts/…/secrets``, ``d1/database/…/query``.
    The error codes are those that wrangler itself looks for: 10007 of a Worker that does not exist, 7404 of a database,
    9109 and 10000 of a token.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["Cloudflare", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """An error of the API."""

    status: int
    code: int
    message: str


@dataclass
class Cloudflare:
    """
    One account.

    Attributes:
        secrets: Those of every Worker; None if none was ever uploaded.
        applied: The migrations that every database has.
        answer: In place of all answers: an error, or a text that is no JSON.
        hangs: Whether nothing is answered.
        asked: Method and path of each request.
    """

    secrets: Sequence[str] | None = ()
    applied: Sequence[str] = ()
    answer: Refusal | str | None = None
    hangs: bool = False
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        account = self
        self._over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("content-length") or 0))
                account.asked.append(f"{self.command} {self.path.partition('?')[0]}")
                if account.hangs:
                    account._over.wait()
                    return
                status, content = account._reply(self.path, sent.decode())
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815 - the standard library's name

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """What wrangler takes as ``CLOUDFLARE_API_BASE_URL``."""
        return f"http://127.0.0.1:{self._server.server_port}/client/v4"

    def _reply(self, path: str, sent: str) -> tuple[int, bytes]:
        if isinstance(self.answer, str):
            return 200, self.answer.encode()
        found = self.answer or self._found(path, sent)
        if isinstance(found, Refusal):
            errors = [{"code": found.code, "message": found.message}]
            return found.status, json.dumps(
                {"success": False, "errors": errors, "messages": [], "result": None}
            ).encode()
        return 200, json.dumps({"success": True, "errors": [], "messages": [], "result": found}).encode()

    def _found(self, path: str, sent: str) -> Any:
        if path.endswith("/secrets"):
            if self.secrets is None:
                return Refusal(404, 10_007, "This Worker does not exist on your account.")
            return [{"name": name, "type": "secret_text"} for name in self.secrets]
        if path.endswith("/query"):
            rows = [{"id": number, "name": name} for number, name in enumerate(self.applied, 1)]
            return [{"success": True, "meta": {}, "results": rows if "SELECT" in sent else []}]
        return []
