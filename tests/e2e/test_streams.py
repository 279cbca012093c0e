"""The log over HTTP, in the real workerd: followed, resumed, continued after a kill, stopped, left; from two isolates."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.client import Client, lines_of
from tests.support.together import running_pair
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, answer_text
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

WORDS = " ".join(f"word{number}" for number in range(30))
LEASE_MS = 2_000


def variables(upstream: Upstream, **more: str) -> dict[str, str]:
    """Return the settings of a Worker whose model is the scripted one."""
    base = {"BACKEND": "openai", "MODEL": "scripted-1", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-tests"}
    return {**base, "LEASE_MS": str(LEASE_MS), **more}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The scripted model."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def worker(upstream: Upstream) -> Iterator[Worker]:
    """A Worker whose model can go on where it broke off, and whose turns end with their readers."""
    with running_worker(variables=variables(upstream, CONTINUE_MODELS="scripted-1", ON_DISCONNECT="cancel")) as worker:
        yield worker


@pytest.fixture(scope="module")
def pair(upstream: Upstream) -> Iterator[Worker]:
    """Two isolates on one database."""
    with running_pair(variables=variables(upstream)) as pair:
        yield pair


class Reading:
    """
    A stream that is read in the background.

    Attributes:
        arrived: When each line came, by `time.monotonic`, and the line.
    """

    def __init__(self, client: Client, path: str, **options: Any) -> None:
        self.arrived: list[tuple[float, dict[str, Any]]] = []
        self._thread = threading.Thread(target=self._read, args=(client, path, options), daemon=True)
        self._thread.start()

    def _read(self, client: Client, path: str, options: dict[str, Any]) -> None:
        headers = {**client.headers, **options.pop("headers", {})}
        method = "POST" if "json" in options else "GET"
        with suppress(httpx.HTTPError), httpx.stream(method, path, headers=headers, timeout=60, **options) as response:
            for line in lines_of(response):
                self.arrived.append((time.monotonic(), json.loads(line)))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines so far, pings left out."""
        return [line for _, line in self.arrived if line["type"] != "ping"]

    def wait(self, count: int, seconds: float = 15.0) -> None:
        """Wait until so many lines have come."""
        deadline = time.monotonic() + seconds
        while len(self.lines) < count:
            assert time.monotonic() < deadline, self.lines[-3:]
            time.sleep(0.005)

    def whole(self) -> list[dict[str, Any]]:
        """Read to the end."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.lines


def post(client: Client, session: str, message: str, **headers: str) -> Reading:
    """Post a turn, and read its stream in the background."""
    return Reading(client, client.address(session), json={"message": message}, headers=headers)


def follow(client: Client, session: str, query: str = "", **headers: str) -> Reading:
    """Follow a turn in the background."""
    return Reading(client, f"{client.address(session)}/stream{query}", headers=headers)


def text_of(lines: list[dict[str, Any]]) -> str:
    """Put the answer together as a client does."""
    text = ""
    for line in lines:
        if line["type"] == "session.run.restarted":
            text = ""
        elif line["type"] == "message.part.updated":
            text = line["data"]["part"].get("text", text + line["data"].get("delta", ""))
    return text


def test_a_reader_resumes_at_its_cursor_and_others_follow(worker: Worker, upstream: Upstream) -> None:
    """One breaks off in the middle and comes back; two watch; all have the same log, for one call of the model."""
    upstream.on("resume", Script(text=WORDS, pause_s=0.05))
    client = Client(worker.url)
    posted, watching = post(client, "resume", "resume"), None
    posted.wait(3)
    watching = [follow(client, "resume") for _ in range(2)]
    with httpx.stream("GET", f"{client.address('resume')}/stream", headers=client.headers, timeout=60) as response:
        coming = (line for line in map(json.loads, lines_of(response)) if line["type"] != "ping")
        first = [next(coming) for _ in range(10)]
    rest = follow(client, "resume", f"?after={first[-1]['seq']}").whole()
    said = posted.whole()

    assert [said, said, said] == [first + rest, *(each.whole() for each in watching)]
    assert said == follow(client, "resume").whole()
    assert 1 == len(upstream.calls("resume"))


def test_an_event_source_resumes_by_its_last_event_id(worker: Worker, upstream: Upstream) -> None:
    """As a browser's does, until it is told 204."""
    upstream.on("events", Script(text=WORDS, pause_s=0.02))
    client = Client(worker.url)
    sse = {**client.headers, "accept": "text/event-stream"}
    events: list[str] = []
    with client.stream("events", "events") as response:
        for number, _ in enumerate(lines_of(response)):
            if number == 5:
                break  # the turn is cancelled, as nobody reads it any more
        address = f"{client.address('events')}/stream"
    last: dict[str, str] = {}
    for _ in range(100):
        with httpx.stream("GET", address, headers={**sse, **last}, timeout=60) as response:
            if response.status_code == 204:
                break
            assert "text/event-stream" == response.headers["content-type"]
            text = response.read().decode()
        events += [event for event in text.split("\n\n") if event.startswith("id: ")]
        last = {"last-event-id": events[-1].split("\n")[0].removeprefix("id: ")}
    lines = [json.loads(event.split("\ndata: ")[1]) for event in events]

    assert 204 == response.status_code
    assert list(range(len(lines))) == [line["seq"] for line in lines]
    assert lines == follow(client, "events").whole()


def test_a_killed_answer_is_continued(worker: Worker, upstream: Upstream) -> None:
    """A follower takes the turn over; the model is sent what was stored, and asked only for the rest."""
    upstream.on("continue", Script(text=f"continue {WORDS}", pause_s=0.05), Script(text="… and so on."))
    client = Client(worker.url)
    posted = post(client, "continue", "continue")
    posted.wait(12)
    worker.kill()
    worker.restart()
    lines = follow(client, "continue").whole()
    calls = upstream.calls("continue")
    prefix = calls[1].body["messages"][-1]

    assert "session.run.completed" == lines[-1]["type"]
    assert ("assistant", True, False) == (
        prefix["role"], calls[1].body["continue_final_message"], calls[1].body["add_generation_prompt"]
    )  # fmt: skip
    assert f"continue {WORDS}".startswith(prefix["content"])
    assert len(prefix["content"]) > 20
    assert f"{prefix['content']}… and so on." == text_of(lines)
    assert 2 == len(calls)
    assert [{"content": text_of(lines)}] == worker.sql(
        "SELECT content FROM chat_messages WHERE session_id = 'continue' AND role = 'assistant'"
    )


def test_stop_closes_the_model(worker: Worker, upstream: Upstream) -> None:
    """The upstream sees its socket closed; the partial answer is replayed."""
    upstream.on("stop", Script(text=WORDS, pause_s=0.2))
    client = Client(worker.url)
    posted = post(client, "stop", "stop")
    posted.wait(4)
    asked_at = time.monotonic()
    response = httpx.post(f"{client.address('stop')}/cancel", headers=client.headers)
    [call] = upstream.calls("stop")

    assert 202 == response.status_code
    assert call.wait_closed(3)
    assert call.closed_at is not None
    assert call.closed_at - asked_at < 1.0
    lines = posted.whole()
    assert ("session.run.cancelled", "requested") == (lines[-1]["type"], lines[-1]["data"]["reason"])
    assert text_of(lines) == client.post("stop", "stop")[1]["data"]["finalText"]


def gone(worker: Worker, client: Client, session: str, message: str, read: int, how: str) -> None:
    """Post a turn over a bare socket, read so much of the answer, and go away."""
    url = urlsplit(client.address(session))
    body = json.dumps({"message": message}).encode()
    head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: {client.headers['authorization']}\r\n"
    with socket.create_connection(("127.0.0.1", worker.server.port)) as connection:
        connection.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        while read > 0:
            arrived = len(connection.recv(read))
            assert arrived, "the answer ended"
            read -= arrived
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("when", ["mid-stream", "while the model is silent"])
def test_a_reader_that_goes_away_ends_its_turn_if_the_product_says_so(
    worker: Worker, upstream: Upstream, how: str, when: str
) -> None:
    """The upstream confirms: its socket was closed long before its script ends."""
    name = f"left {how} {when}"
    silent = Script(text="one two", pause_s=0.05, stop_after=3, ending="hang")
    upstream.on(name, Script(text=WORDS * 5, pause_s=0.1) if when == "mid-stream" else silent)
    client = Client(worker.url)
    session = name.replace(" ", "-")
    gone(worker, client, session, name, 600, how)
    [call] = upstream.wait_calls(1, 5, name)

    assert call.wait_closed(2 if when == "mid-stream" else 20)
    assert call.answered_at is None
    lines = follow(client, session).whole()
    assert ("session.run.cancelled", "disconnected") == (lines[-1]["type"], lines[-1]["data"]["reason"])


def test_a_reader_that_goes_away_after_the_last_line_ends_nothing(worker: Worker, upstream: Upstream) -> None:
    """The answer is stored and replays."""
    upstream.on("read to the end", Script(text="all of it"))
    client = Client(worker.url)
    with client.stream("last", "read to the end") as response:
        for line in lines_of(response):
            if "session.run.completed" in line:
                break

    assert "all of it" == client.post("last", "read to the end")[1]["data"]["finalText"]


def test_followers_from_another_isolate_get_the_same_log(pair: Worker, upstream: Upstream) -> None:
    """Through the database alone they get the same log; how far behind, `make bench` measures."""
    upstream.on("far away", Script(text=WORDS, pause_s=0.1))
    client = Client(pair.url)
    posted = post(client, "far", "far away", **{"x-isolate": "A"})
    posted.wait(1)
    here, there = (follow(client, "far", **{"x-isolate": isolate}) for isolate in ("A", "B"))
    said = posted.whole()

    assert said == here.whole() == there.whole()
    assert 1 == len(upstream.calls("far away"))


def test_stop_reaches_another_isolate(pair: Worker, upstream: Upstream) -> None:
    """By way of the database: the model's connection is closed within an interval of the log."""
    upstream.on("stop from afar", Script(text=WORDS, pause_s=0.3))
    client = Client(pair.url)
    posted = post(client, "afar", "stop from afar", **{"x-isolate": "A"})
    posted.wait(3)
    asked_at = time.monotonic()
    httpx.post(f"{client.address('afar')}/cancel", headers={**client.headers, "x-isolate": "B"})
    [call] = upstream.calls("stop from afar")

    assert call.wait_closed(3)
    assert call.closed_at is not None
    assert call.closed_at - asked_at < 1.5
    assert "session.run.cancelled" == posted.whole()[-1]["type"]


def test_the_cron_finishes_what_nobody_asks_for(worker: Worker, upstream: Upstream) -> None:
    """A turn whose worker was killed is completed by the sweep, and seen in the list meanwhile."""
    upstream.on("orphan", Script(text=f"orphan {WORDS}", pause_s=0.05), Script(text="end"))
    client = Client(worker.url)
    post(client, "orphan", "orphan").wait(5)
    worker.kill()
    worker.restart()
    time.sleep(LEASE_MS / 1000)
    runs = f"{worker.url}/v1/runs?status="
    orphans = httpx.get(f"{runs}orphaned", headers=client.headers).json()["runs"]
    httpx.get(f"{worker.url}/cdn-cgi/local/scheduled?cron=*+*+*+*+*", timeout=60)
    [turn] = [run for run in httpx.get(f"{runs}completed", headers=client.headers).json()["runs"]
              if run["sessionId"] == "orphan"]  # fmt: skip

    assert ["orphan"] == [run["sessionId"] for run in orphans]
    assert 2 == turn["attempts"]
    assert 2 == len(upstream.calls("orphan"))
    assert answer_text(Script(text="end")) in client.post("orphan", "orphan")[1]["data"]["finalText"]
