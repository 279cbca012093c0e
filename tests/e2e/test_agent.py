"""
An agent over HTTP, in the real workerd on real D1: two tools, one that needs approval, effects in another server.

The Worker is killed at random moments; each effect is seen once by its key all the same.
"""

import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.client import Client, answer_of, lines_of
from tests.support.http import http
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, ToolCall
from tests.support.worker import Worker, running_worker

LEASE_MS = 2_000
# `KILLS=10 make test ARGS=tests/e2e/test_agent.py` for more of them.
KILLS = int(os.environ.get("KILLS", "5"))
ANSWER = "Kept and sent."
AGENT = {"PRODUCT": "agent", "PROJECT_ID": "agent", "DOMAIN": "agent", "LEASE_MS": str(LEASE_MS)}


class Notes(ThreadingHTTPServer):
    """
    Whoever has the effects.

    Attributes:
        seen: The path, the key and the body of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.seen: list[tuple[str, str, Mapping[str, Any]]] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, thing: str) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Return the requests about *thing*."""
        return [request for request in self.seen if request[2]["text"] == thing]

    def keys(self, path: str, thing: str) -> set[str]:
        """Return the keys of the effects on *thing* at *path*: a receiver ignores one that it has seen."""
        return {key for seen, key, _ in self.of(thing) if seen == path}


class _Receive(BaseHTTPRequestHandler):
    server: Notes

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, self.headers["idempotency-key"], body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def notes() -> Iterator[Notes]:
    """The receiver of the effects."""
    with Notes() as notes:
        thread = threading.Thread(target=notes.serve_forever, args=(0.05,))
        thread.start()
        yield notes
        notes.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model that keeps a note, sends one, and answers; it goes by what it was told last."""
    with Upstream() as upstream:
        asks = Script(text="I do it.", pause_s=0.05, finish_reason="tool_calls")
        for thing in ("milk", "bread", "eggs"):
            add = ToolCall(id="call_0", name="add_note", arguments=json.dumps({"text": thing}))
            send = ToolCall(id="call_0", name="send_note", arguments=json.dumps({"to": "bob", "text": thing}))
            upstream.on(f"remember the {thing}", replace(asks, tool_calls=(add,)))
            upstream.on(f'{{"kept":"{thing}"}}', replace(asks, tool_calls=(send,)))
        upstream.on("sent", Script(text=ANSWER, pause_s=0.05))
        upstream.on("denied", Script(text="Not sent."))
        yield upstream


@pytest.fixture(scope="module")
def worker(upstream: Upstream, notes: Notes) -> Iterator[Worker]:
    """A Worker with the demo's product and that model."""
    model = {"BACKEND": "openai", "MODEL": "scripted-1", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-test"}
    with running_worker(variables={**AGENT, **model, "NOTES_URL": notes.url}) as worker:
        yield worker


def decide(worker: Worker, session: str, index: int, key: str, payload: Any, **claims: Any) -> httpx.Response:
    """Emit an event of a turn's run."""
    run_id = quote(f"chat:acme:{session}:{index}", safe="")
    url = f"{worker.url}/v1/runs/{run_id}/events/{quote(key, safe='')}"
    return http.post(url, json={"payload": payload}, headers=Client(worker.url, **claims).headers)


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return the types of lines, pieces of text and usage left out."""
    return [line["type"] for line in lines if line["type"] not in {"message.part.updated", "usage", "ping"}]


def test_an_agent_waits_for_approval_and_goes_on_alone(worker: Worker, upstream: Upstream, notes: Notes) -> None:
    """The turn is suspended, refused to strangers, approved over HTTP, and finished without a reader."""
    client = Client(worker.url)
    waiting = client.post("trip", "remember the milk")
    [approval] = [line["data"] for line in waiting if line["type"] == "tool.approval"]
    client.wait_for("trip", "suspended")
    stranger = decide(worker, "trip", 0, approval["key"], {"approved": True}, tenant="other")
    unknown = decide(worker, "trip", 9, approval["key"], {"approved": True})
    typo = decide(worker, "trip", 0, approval["key"], {"aproved": True})
    first = decide(worker, "trip", 0, approval["key"], {"approved": True})
    second = decide(worker, "trip", 0, approval["key"], {"approved": False})
    client.wait_for("trip", "completed")
    lines = client.post("trip", "remember the milk")

    assert [
        "session.run.started",
        "tool.call",
        "tool.result",
        "tool.call",
        "tool.approval",
        "session.run.suspended",
    ] == kinds(waiting)
    assert (404, 404, 422) == (stranger.status_code, unknown.status_code, typo.status_code)
    assert (200, True, 200, False) == (
        first.status_code,
        first.json()["accepted"],
        second.status_code,
        second.json()["accepted"],
    )
    assert {"approved": True} == second.json()["payload"]
    assert ["session.run.started", "result", "session.run.completed"] == kinds(lines)
    assert ANSWER == answer_of(lines)
    assert 3 == len([call for call in upstream.calls() if "remember the milk" in json.dumps(call.body)])
    assert [("/add_note", {"text": "milk"}), ("/send_note", {"to": "bob", "text": "milk"})] == [
        (path, body) for path, _, body in notes.of("milk")
    ]
    [usage] = worker.sql("SELECT count(*) AS calls FROM chat_usage WHERE run_id LIKE '%:trip:%'")
    assert 3 == usage["calls"]


def test_a_denied_tool_does_not_run(worker: Worker, notes: Notes) -> None:
    """The model is told, and answers without it."""
    client = Client(worker.url)
    waiting = client.post("denied", "remember the bread")
    [key] = [line["data"]["key"] for line in waiting if line["type"] == "tool.approval"]
    decide(worker, "denied", 0, key, {"approved": False, "reason": "not now"})
    client.wait_for("denied", "completed")

    assert "Not sent." == answer_of(client.post("denied", "remember the bread"))
    assert set() == notes.keys("/send_note", "bread")


def test_the_demo_needs_no_key() -> None:
    """The built-in model uses the tools that the message names."""
    with running_worker(variables={**AGENT, "BACKEND": "echo"}) as worker:
        client = Client(worker.url)
        message = 'use add_note {"text": "milk"}\nuse send_note {"to": "bob", "text": "milk"}'
        waiting = client.post("demo", message)
        [key] = [line["data"]["key"] for line in waiting if line["type"] == "tool.approval"]
        decide(worker, "demo", 0, key, {"approved": True})
        client.wait_for("demo", "completed")
        answer = answer_of(client.post("demo", message))
        worker.logged('"event":"agent.note"')

    assert 'The tools said: “{"kept":"milk"}”, “{"sent":"bob"}”.' in answer


class User(threading.Thread):
    """
    Somebody who asks until the turn is answered, approves what is asked for, and goes on with the next turn.

    Attributes:
        answers: Of the turns so far.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__(daemon=True)
        self.answers: list[str] = []
        self.enough = threading.Event()
        self._worker = worker
        self._client = Client(worker.url)

    def run(self) -> None:
        while not (self.enough.is_set() and self.answers):
            turn = len(self.answers)
            with suppress(httpx.HTTPError, ValueError, AssertionError):
                self._ask(turn)
            time.sleep(0.1)

    def _ask(self, turn: int) -> None:
        with self._client.stream("storm", f"remember the eggs, {turn}", turn) as response:
            if response.status_code != 200:
                return
            lines = [json.loads(line) for line in lines_of(response)]
        if lines[-1]["type"] == "session.run.completed":
            self.answers.append(answer_of(lines[_last_tool(lines) :]))
        if lines[-1]["type"] == "session.run.suspended":
            key = lines[-1]["data"]["key"]
            assert decide(self._worker, "storm", turn, key, {"approved": True}).status_code == 200


def _last_tool(lines: list[dict[str, Any]]) -> int:
    """Return where the answer begins: after what the tools said last."""
    places = [place for place, line in enumerate(lines) if line["type"] in {"tool.result", "tool.error"}]
    return places[-1] + 1 if places else 0


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_kills_at_random_moments_repeat_no_effect(worker: Worker, upstream: Upstream, notes: Notes) -> None:
    """Every turn has one answer, every tool of it one key, every model call its own."""
    chance = random.Random(20261122)
    user = User(worker)
    user.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 2.5))
        worker.kill()
        worker.restart()
    user.enough.set()
    user.join(timeout=90)

    turns = len(user.answers)
    assert not user.is_alive()
    assert [ANSWER] * turns == user.answers
    assert turns == len(notes.keys("/add_note", "eggs")) == len(notes.keys("/send_note", "eggs"))
    assert len({call.key for call in upstream.calls()}) == len(upstream.calls())
    assert {("completed", None)} == {
        (run["status"], run["lease_holder_id"])
        for run in worker.sql("SELECT status, lease_holder_id FROM durable_runs")
    }
    messages = worker.sql("SELECT content FROM chat_messages WHERE role = 'assistant' AND session_id = 'storm'")
    assert [ANSWER] * turns == [row["content"] for row in messages]
    epochs = [run["epoch"] for run in worker.sql("SELECT epoch FROM durable_runs WHERE scenario_id = 'storm'")]
    assert max(epochs) > 2, "no kill hit a turn"
