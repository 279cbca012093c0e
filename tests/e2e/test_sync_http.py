"""
A hook may use `urllib` and `requests` as anywhere else, while the Worker goes on serving others.

The product is `products/courier.py`, next to this file: its hook makes the calls that the user's message lists.
"""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from itertools import count
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any, ClassVar, Final

import pytest

from dev.server import free_port
from tests.support.http import http
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

PRODUCTS: Final = Path(__file__).parent / "products"
BYTES: Final = bytes(range(256))
# `requests` and what it needs: all pure Python, so what is installed here runs in the Worker, too.
REQUESTS: Final = ("requests", "urllib3", "idna", "certifi", "charset_normalizer")
_SESSIONS: Final = count()


def folders_of_requests() -> dict[str, Path]:
    """Return where `requests` and its dependencies are installed, by module; nothing, if one is missing."""
    try:
        return {name: Path(str(metadata.distribution(name).locate_file(name))) for name in REQUESTS}
    except metadata.PackageNotFoundError:
        return {}


LIBRARIES: Final = [
    "urllib",
    pytest.param("requests", marks=pytest.mark.skipif(not folders_of_requests(), reason="requests is not installed")),
]


class Receiver(ThreadingHTTPServer):
    """
    The product's own server.

    Attributes:
        received: ``(method, path, headers, body)`` of every request, in order.
        gate: Set to let those go on who wait at ``/gate``.
        left: Released whenever somebody who waited at ``/hang`` has hung up.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        self.gate = Event()
        self.left = Semaphore(0)

    def handle_error(self, *_: object) -> None:
        """Say nothing about connections that tests break."""

    def of(self, path: str) -> list[tuple[dict[str, str], bytes]]:
        """Return the headers and bodies of the requests for *path*."""
        return [(headers, body) for _, wanted, headers, body in self.received if wanted == path]


class _Receive(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"
    _STATUS: ClassVar = {"/missing": 404, "/broken": 500, "/moved": 302}

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((self.command, self.path, headers, body))
        if self.path == "/hang":
            self.connection.recv(1)  # returns when the other side hangs up
            self.server.left.release()
            self.close_connection = True
            return
        if self.path == "/gate":
            self.server.gate.wait(8)
        answer = f"about {self.path}".encode() if self.path in self._STATUS else body or BYTES
        self.send_response(self._STATUS.get(self.path, 200))
        self.send_header("X-Method", self.command)
        if self.path == "/moved":
            self.send_header("Location", "/elsewhere")
        if self.path == "/gzip":
            self.send_header("Content-Encoding", "gzip")
            answer = gzip.compress(answer)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            answer = b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer), answer)
        else:
            self.send_header("Content-Length", str(len(answer) + (self.path == "/cut")))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer)
        self.close_connection = self.path == "/cut"

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def courier() -> Iterator[Worker]:
    """A Worker whose product is `courier`."""
    mounts = {f"python_modules/{name}": folder for name, folder in folders_of_requests().items()}
    variables, products = {"PRODUCT": "courier", "AUTH": "off"}, {"courier": PRODUCTS / "courier.py"}
    with running_worker(variables=variables, mounts=mounts, products=products) as worker:
        yield worker


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def run_turn(worker: Worker, message: str, session: str | None = None) -> str:
    """Run a turn to its terminal line, its hooks included; return its session."""
    session = session or f"session-{next(_SESSIONS)}"
    url = f"{worker.url}/v1/sessions/{session}/turns/0"
    response = http.post(url, json={"message": message})
    assert response.status_code == 200, response.text
    assert json.loads(response.text.splitlines()[-1])["type"] == "session.run.completed", response.text
    return session


def outbox(worker: Worker, session: str) -> dict[str, Any]:
    [row] = worker.sql("SELECT * FROM chat_outbox WHERE run_id LIKE ?", (f"%:{session}:0",))
    return row


def failure(worker: Worker, session: str) -> dict[str, Any]:
    """Return the error that the log has for the hook of *session*'s turn."""
    error: dict[str, Any] = json.loads(worker.logged('"hook.failed"', f":{session}:0"))["error"]
    return error


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 7  # before the gate opens by itself
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def make_calls(worker: Worker, receiver: Receiver, library: str, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    """Let a hook make *calls*; return what it saw of each."""
    plan = {"library": library, "calls": calls, "report_to": f"{receiver.url}/report"}
    session = run_turn(worker, json.dumps(plan))
    assert outbox(worker, session)["status"] == "done", outbox(worker, session)
    [(_, report)] = receiver.of("/report")
    seen: list[dict[str, Any]] = json.loads(report)
    return seen


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_answer_is_delivered_exactly_once(courier: Worker, receiver: Receiver, library: str) -> None:
    """By one POST with the turn's idempotency key; a replay of the turn delivers nothing again."""
    call = {"url": f"{receiver.url}/answers", "method": "POST", "body": b"the answer".hex()}
    message = json.dumps({"library": library, "calls": [call]})

    session = run_turn(courier, message)
    run_turn(courier, message, session)

    [(headers, body)] = receiver.of("/answers")
    row = outbox(courier, session)
    assert body == b"the answer"
    assert headers["idempotency-key"].startswith(row["run_id"])
    assert headers["idempotency-key"].endswith("persist_assistant_message")
    assert (row["status"], row["failures"]) == ("done", 0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_bytes_arrive_as_they_are(courier: Worker, receiver: Receiver, library: str) -> None:
    """In both directions, whatever the transfer or content encoding, and none where none belongs."""
    paths = ("/plain", "/gzip", "/chunked")
    seen = make_calls(
        courier,
        receiver,
        library,
        *({"url": receiver.url + path, "method": "PUT", "body": BYTES.hex()} for path in paths),
        {"url": f"{receiver.url}/plain", "method": "GET"},
        {"url": f"{receiver.url}/plain", "method": "HEAD"},
        {"url": f"{receiver.url}/plain", "method": "DELETE"},
    )

    assert [answer["status"] for answer in seen] == [200] * 6
    assert [answer["headers"]["x-method"] for answer in seen] == ["PUT"] * 3 + ["GET", "HEAD", "DELETE"]
    assert [bytes.fromhex(answer["body"]) for answer in seen] == [BYTES] * 4 + [b"", BYTES]
    assert "content-encoding" not in seen[1]["headers"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_status_is_no_connection_error(courier: Worker, receiver: Receiver, library: str) -> None:
    """`HTTPError` for urllib, a response for requests; redirects are followed by the library itself."""
    paths = ("/missing", "/broken", "/moved")
    missing, broken, moved = make_calls(courier, receiver, library, *({"url": receiver.url + path} for path in paths))

    assert (missing["status"], bytes.fromhex(missing["body"])) == (404, b"about /missing")
    assert (broken["status"], bytes.fromhex(broken["body"])) == (500, b"about /broken")
    assert (moved["status"], moved["url"]) == (200, f"{receiver.url}/elsewhere")


@pytest.mark.parametrize(
    ("library", "connection", "timeout"),
    [
        ("urllib", "urllib.error.URLError", "urllib.error.URLError"),
        pytest.param(
            "requests",
            "requests.exceptions.ConnectionError",
            "requests.exceptions.Timeout",
            marks=LIBRARIES[1].marks,  # type: ignore[attr-defined]
        ),
    ],
)
def test_errors_are_those_of_the_library(
    courier: Worker, receiver: Receiver, library: str, connection: str, timeout: str
) -> None:
    """A refused connection, one that breaks off, and an answer that does not come in time."""
    refused, cut, late = make_calls(
        courier,
        receiver,
        library,
        {"url": f"http://127.0.0.1:{free_port()}/"},
        {"url": f"{receiver.url}/cut"},
        {"url": f"{receiver.url}/hang", "timeout": 0.5},
    )

    assert connection in refused["raised"]
    assert connection in cut["raised"]
    assert timeout in late["raised"]
    assert "no answer within 0.5 s" in late["text"]
    assert receiver.left.acquire(timeout=30), "the connection is closed when the time is up"


def test_an_error_is_logged_for_the_operator(courier: Worker) -> None:
    """The call stays in the outbox, to be made again; the log says what was wrong."""
    call = {"url": f"http://127.0.0.1:{free_port()}/"}

    session = run_turn(courier, json.dumps({"library": "urllib", "calls": [call]}))

    row = outbox(courier, session)
    assert (row["status"], row["failures"]) == ("pending", 1)
    assert "URLError" in row["last_error"]
    assert "URLError: <urlopen error " in failure(courier, session)["cause"]


def test_others_are_served_while_hooks_wait(courier: Worker, receiver: Receiver) -> None:
    """Twelve hooks wait at a gate, and a turn beside them is served from beginning to end."""
    waits = json.dumps({"library": "urllib", "calls": [{"url": f"{receiver.url}/gate"}]})
    passes = json.dumps({"library": "urllib", "calls": [{"url": f"{receiver.url}/open"}]})
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(run_turn, courier, waits) for _ in range(12)]
        eventually(lambda: len(receiver.of("/gate")) == 12)
        run_turn(courier, passes)
        between = [turn.done() for turn in waiting]
        receiver.gate.set()
        sessions = [turn.result() for turn in waiting]

    assert between == [False] * 12
    assert [outbox(courier, session)["status"] for session in sessions] == ["done"] * 12
    assert len(receiver.of("/gate")) == 12


def test_a_hook_that_waits_too_long_is_ended(courier: Worker, receiver: Receiver) -> None:
    """Its deadline holds in the middle of a synchronous call; a call without a timeout has one all the same."""
    url = f"{receiver.url}/hang"
    calls = [{"url": url, "timeout": 60}, {"url": url}]
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        plans = [json.dumps({"library": "urllib", "calls": [call]}) for call in calls]
        patient, default = pool.map(lambda plan: run_turn(courier, plan), plans)
        took = time.monotonic() - started

    assert "no result within 10000 ms" in outbox(courier, patient)["last_error"]
    assert failure(courier, default)["cause"] == "URLError: <urlopen error no answer within 9 s>"
    assert 10 <= took < 60, "the call would wait for a minute"
    assert [receiver.left.acquire(timeout=30) for _ in calls] == [True, True]


def test_who_does_not_ask_has_python_as_it_is() -> None:
    """Without `sync_http` nothing of the standard library or of the platform is replaced."""
    variables, products = {"PRODUCT": "frugal", "AUTH": "off"}, {"frugal": PRODUCTS / "frugal.py"}
    with running_worker(variables=variables, products=products) as worker:
        run_turn(worker, "what is replaced?", "one")
        [answer] = worker.sql("SELECT content FROM chat_messages WHERE role = 'assistant'")

    assert json.loads(answer["content"]) == []
