"""One user alone against an isolate of the real workerd: others are served, and nothing is held for ever."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from dev import paths
from tests.e2e.conftest import StartWorker
from tests.support.client import Client
from tests.support.http import http
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

BODY_MS = 1_500
HALF = b'{"message": "hel'


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A Worker that waits a second and a half for bodies."""
    with running_worker(variables={"BODY_TIMEOUT_MS": str(BODY_MS)}) as started:
        yield started


def half_sent(worker: Worker, client: Client, number: int, *, chunked: bool) -> socket.socket:
    """Begin a request whose body stops in the middle, and stays open."""
    connection = socket.create_connection(("127.0.0.1", worker.server.port), timeout=30)
    framing = "transfer-encoding: chunked" if chunked else "content-length: 500"
    head = (
        f"POST /v1/sessions/half-{number}/turns/0 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"authorization: {client.headers['authorization']}\r\n{framing}\r\n\r\n"
    )
    body = f"{len(HALF):x}\r\n".encode() + HALF + b"\r\n" if chunked else HALF
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_half_sent_bodies_are_given_up(worker: Worker, chunked: bool) -> None:
    """
    Three hundred at once: each is told so, nothing is written, and meanwhile others are answered.

    How long the others wait, `make attack` measures.
    """
    client = Client(worker.url)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(half_sent(worker, client, number, chunked=chunked))) for number in range(300)
        ]
        assert http.get(f"{worker.url}/healthz").status_code == 200
        client.post(f"beside-{chunked}")
        answers = [_answer(connection) for connection in connections]

    assert {status for status, _ in answers} == {408}
    assert {json.loads(body)["code"] for _, body in answers} == {"body_timeout"}
    assert worker.sql("SELECT run_id FROM durable_runs WHERE run_id LIKE '%half%'") == []


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one answer that is not chunked, or has one chunk."""
    received = b""
    while b"}" not in received:
        data = connection.recv(65_536)
        assert data, received
        received += data
    body = received[received.index(b"{") : received.rindex(b"}") + 1]
    return int(received.split(b" ", 2)[1]), body


def test_who_asks_too_often_is_told_when_to_ask_again(start_worker: StartWorker) -> None:
    """429 for that user; his finished turn is repeated, others are served, and nothing more is stored for him."""
    worker = start_worker(variables={"RATE_SUBJECT_PER_MINUTE": "8"})  # two at once, one more in 7.5 s
    ann, bob = Client(worker.url), Client(worker.url, sub="bob")
    whole = ann.post("mine")
    statuses = [http.get(ann.address("mine"), headers=ann.headers).status_code for _ in range(6)]
    refused = http.post(ann.address("new"), json={"message": "hi"}, headers=ann.headers)

    assert statuses[0] == 200
    assert 429 in statuses
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert ann.post("mine")[-1]["type"] == whole[-1]["type"] == "session.run.completed"
    assert bob.post("his")[-1]["type"] == "session.run.completed"
    assert worker.sql("SELECT run_id FROM durable_runs WHERE run_id LIKE '%:new:%'") == []


def test_the_platforms_rate_limiter_counts_where_it_is_bound(start_worker: StartWorker, tmp_path: Path) -> None:
    """The binding's limit, whatever the settings say."""
    deployment = tmp_path / "wrangler.toml"
    binding = '\n[[ratelimits]]\nname = "RATE_SUBJECT"\nnamespace_id = "1001"\nsimple = { limit = 3, period = 60 }\n'
    deployment.write_text(paths.DEPLOYMENT_CONFIG.read_text("utf-8") + binding, "utf-8")
    worker = start_worker(deployment=deployment)
    ann, bob = Client(worker.url), Client(worker.url, sub="bob")
    statuses = [http.get(ann.address("none"), headers=ann.headers).status_code for _ in range(8)]

    assert statuses[0] == 404
    assert statuses[-1] == 429
    assert http.get(bob.address("none"), headers=bob.headers).status_code == 404
