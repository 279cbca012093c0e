"""What a page of another origin meets in the real workerd: preflights, errors that it can read, and an EventSource."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.client import Client, answer_of
from tests.support.http import http
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A Worker that knows the page."""
    with running_worker(variables={"CORS_ORIGINS": f"{PAGE},http://localhost:3000"}) as started:
        yield started


def event_source(worker: Worker, address: str, **headers: str) -> httpx.Response:
    """Ask as an EventSource of the page does: it sends no token."""
    sent = {"accept": "text/event-stream", "origin": PAGE, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return http.get(worker.url + address, headers=sent)


def ticket(client: Client, session: str) -> dict[str, Any]:
    response = http.post(f"{client.address(session)}/ticket", headers={**client.headers, "origin": PAGE})
    assert response.status_code == 200, response.text
    members: dict[str, Any] = response.json()
    return members


def test_a_page_may_post_and_read(worker: Worker) -> None:
    """Preflight, turn, and the headers that the page's script may see."""
    client = Client(worker.url)
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = http.options(client.address("page"), headers=asked)
    response = http.post(client.address("page"), json={"message": "hi"}, headers={**client.headers, "origin": PAGE})

    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-workflow-run-id" in response.headers["access-control-expose-headers"]
    assert "session.run.completed" in response.text


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/v1/runs", 401), ("/v1/runs?limit=x", 401)])
def test_a_page_may_read_why_it_was_refused(worker: Worker, path: str, status: int) -> None:
    """Errors have the same headers."""
    response = http.get(worker.url + path, headers={"origin": PAGE})

    assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, PAGE)


def test_a_page_that_is_not_on_the_list_reads_nothing(worker: Worker) -> None:
    """Neither the answer to its preflight nor a response."""
    headers = {"origin": "https://evil.example.com", "access-control-request-method": "POST"}
    for response in (http.options(f"{worker.url}/v1/runs", headers=headers), http.get(worker.url, headers=headers)):
        assert not [name for name in response.headers if name.startswith("access-control-")]
        assert response.headers["vary"] == "Origin"


def test_an_event_source_reads_a_turn_by_its_ticket(worker: Worker) -> None:
    """It needs no header; the ids of its events bring it back behind what it has seen."""
    client = Client(worker.url, scope="turns")
    said = answer_of(client.post("events"))
    stream = ticket(client, "events")["stream"]
    whole = event_source(worker, stream)
    ids = re.findall(r"^id: (\S+)$", whole.text, re.MULTILINE)
    middle = event_source(worker, stream, last_event_id=ids[2])

    assert (whole.status_code, whole.headers["content-type"]) == (200, "text/event-stream")
    assert whole.headers["access-control-allow-origin"] == PAGE
    assert said.split()[0] in whole.text
    assert re.findall(r"^id: (\S+)$", middle.text, re.MULTILINE) == ids[3:]
    assert event_source(worker, stream, last_event_id=ids[-1]).status_code == 204


def test_a_ticket_does_nothing_else(worker: Worker) -> None:
    """Another turn 403; writing, other routes and a changed ticket 401; nobody's message is answered."""
    client = Client(worker.url)
    client.post("mine")
    client.post("other")
    text = ticket(client, "mine")["ticket"]

    def status(method: str, path: str) -> int:
        return http.request(method, f"{worker.url}/v1/sessions/{path}", json={"message": "hi"}).status_code

    assert status("GET", f"other/turns/0/stream?ticket={text}") == 403
    assert status("GET", f"mine/turns/0/stream?ticket={text[:-2]}") == 401
    assert status("GET", f"mine/turns/0/stream?ticket={client.headers['authorization'][7:]}") == 401
    assert status("POST", f"mine/turns/1?ticket={text}") == 401
    assert status("POST", f"mine/turns/0/cancel?ticket={text}") == 401
    assert status("POST", f"mine/turns/0/ticket?ticket={text}") == 401
    assert status("GET", f"mine/messages?ticket={text}") == 401
    assert [row["run_id"] for row in worker.sql("SELECT run_id FROM durable_runs WHERE run_id LIKE '%:1'")] == []


def test_a_ticket_ends_with_its_token(worker: Worker) -> None:
    """The page of a user who was logged out does not read on."""
    client = Client(worker.url, exp=int(time.time()) - 1)  # within the leeway of clocks that differ
    client.post("ending")

    assert event_source(worker, ticket(client, "ending")["stream"]).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1", 200),
        ("[::1]:{port}", 200),
        ("app.localhost:3000", 200),
        ("evil.example.com", 421),
        ("evil.example.com:{port}", 421),
        ("localhost.evil.example.com", 421),
        ("127.0.0.1.evil.example.com", 421),
        ("192.168.0.7", 421),
    ],
)
def test_a_foreign_name_does_not_reach_this_machine(worker: Worker, host: str, status: int) -> None:
    """A site may let its name lead here, and its pages are then of the same origin: the name alone tells."""
    named = host.format(port=worker.server.port)

    assert http.get(f"{worker.url}/healthz", headers={"host": named}).status_code == status


def test_nobody_else_on_this_machine_reads_the_state(worker: Worker) -> None:
    """Conversations, secrets and the log are below folders of the user's own."""
    for folder in (worker.server.state, worker.server.folder):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_page_may_read_that_a_setting_is_wrong() -> None:
    """The browser shows the sentence, and not only that something failed; another page's is shown nothing."""
    with running_worker(variables={"CORS_ORIGINS": PAGE, "LEASE_MS": "soon"}) as wrong:
        told = http.get(f"{wrong.url}/readyz", headers={"origin": PAGE})
        other = http.get(f"{wrong.url}/readyz", headers={"origin": "https://evil.example.com"})

    assert (503, PAGE) == (told.status_code, told.headers["access-control-allow-origin"])
    assert "LEASE_MS" in told.text
    assert "access-control-allow-origin" not in other.headers
