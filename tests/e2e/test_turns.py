"""Turns over HTTP, in the real workerd on real D1, against a model that misbehaves on purpose."""

import concurrent.futures
import csv
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.client import Client, answer_of, lines_of, token
from tests.support.http import ANSWER_SECONDS, http
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, ToolCall, answer_text
from tests.support.worker import Worker, running_worker

IDLE_MS = 3_000
"""How long the model may be silent: a busy machine must not make it look so."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The scripted model."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def worker(upstream: Upstream) -> Iterator[Worker]:
    """A Worker whose model it is, with short deadlines."""
    with running_worker(
        variables={
            "BACKEND": "openai",
            "MODEL": "scripted-1",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "sk-of-the-tests",
            "REQUEST_TIMEOUT_MS": str(IDLE_MS),
            "IDLE_TIMEOUT_MS": str(IDLE_MS),
            "MAX_ATTEMPTS": "2",
        }
    ) as worker:
        yield worker


@pytest.fixture
def client(worker: Worker) -> Client:
    """A client of tenant ``acme``."""
    return Client(worker.url)


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return the types of lines."""
    return [line["type"] for line in lines]


def stored(worker: Worker, session: str) -> list[str]:
    """Return the session's stored answers."""
    query = "SELECT content FROM chat_messages WHERE session_id = ? AND role = 'assistant'"
    return [row["content"] for row in worker.sql(query, (session,))]


def test_a_turn_streams_is_stored_and_replays(client: Client, worker: Worker, upstream: Upstream) -> None:
    """Words as they come, one stored answer, and the second request costs no model call."""
    fresh = client.post("plain", "plain question")
    replay = client.post("plain", "plain question")

    assert "session.run.started" == kinds(fresh)[0]
    assert "session.run.completed" == kinds(fresh)[-1]
    assert list(range(len(fresh) - 1)) == [line["seq"] for line in fresh if line["type"] != "ping"]
    assert ["session.run.started", "result", "session.run.completed"] == kinds(replay)
    assert replay[-1]["data"]["replayed"] is True
    assert answer_text(Script()) == answer_of(fresh) == answer_of(replay)
    assert [answer_text(Script())] == stored(worker, "plain")
    assert 1 == len(upstream.calls("plain question"))


def test_words_leave_as_they_come(client: Client, upstream: Upstream) -> None:
    """Each word is there before the next one is said."""
    upstream.on("slowly", Script(text="one two three", hold_after=2))
    with client.stream("slow", "slowly please") as response:
        lines = lines_of(response)
        seen = [json.loads(next(lines)) for _ in range(3)]
        [call] = upstream.calls("slowly")
        said = call.chunks_sent
        upstream.release("slowly")
        rest = [json.loads(line) for line in lines]

    assert (2, "one") == (said, answer_of(seen))
    assert "one two three" == answer_of(seen + rest)


def test_usage_is_told_and_on_record(client: Client, worker: Worker) -> None:
    """Tokens as the model reported them."""
    lines = client.post("usage")
    [row] = worker.sql("SELECT model, tokens_in, tokens_out FROM chat_usage WHERE run_id LIKE '%:usage:%'")

    assert [(11, 5)] == [
        (line["data"]["tokensIn"], line["data"]["tokensOut"]) for line in lines if line["type"] == "usage"
    ]
    assert ("scripted-1", 11, 5) == (row["model"], row["tokens_in"], row["tokens_out"])


def test_what_was_used_adds_up(worker: Worker, upstream: Upstream) -> None:
    """A call that broke off and the one after it, as JSON and as a table, for who may see it."""
    upstream.on("used", Script(stop_after=2, ending="cut"), Script())
    client = Client(worker.url, tenant="meter")
    assert "session.run.failed" == client.post("used", "used?")[-1]["type"]
    assert "session.run.completed" == client.post("used", "used?")[-1]["type"]
    allowed = Client(worker.url, tenant="meter", scope="operate").headers
    url = f"{worker.url}/v1/usage?by=model&tenant=meter"
    refused, found = http.get(url, headers=client.headers), http.get(url, headers=allowed).json()
    table = http.get(url, headers={**allowed, "Accept": "text/csv"})
    [group] = found["usage"]

    assert (403, "forbidden") == (refused.status_code, refused.json()["code"])
    assert {"scripted-1"} == {group["model"]}
    assert (1, 2) == (group["turns"], group["attempts"])
    assert (1, 11, 5) == tuple(group["delivered"][name] for name in ("calls", "tokensIn", "tokensOut"))
    assert (1, None, 1) == tuple(group["wasted"][name] for name in ("calls", "tokensIn", "unknownCalls"))
    assert {name: value for name, value in group.items() if name != "model"} == found["total"]
    [row] = csv.DictReader(table.text.splitlines())
    assert ("scripted-1", "11", "") == tuple(row[name] for name in ("model", "delivered.tokensIn", "wasted.tokensIn"))


def test_tool_calls_come_whole(client: Client, upstream: Upstream) -> None:
    """Fragments of arguments are one event when they are complete."""
    upstream.on("weather", Script(tool_calls=(ToolCall(id="c1", name="weather", arguments='{"city":"Zürich"}'),)))
    lines = client.post("tools", "weather?")

    assert [{"toolCallId": "c1", "toolName": "weather", "args": {"city": "Zürich"}}] == [
        line["data"] for line in lines if line["type"] == "tool.call"
    ]


@pytest.mark.parametrize(
    "script",
    [
        Script(text="Grüße 🙂 an\u2028alle", chunk_bytes=1),
        Script(text="Grüße 🙂", newline="\r\n", chunk_bytes=3),
        Script(text="hello world", newline="\r", heartbeats=True),
        Script(text="hello world", heartbeats=True, per_chunk=3),
        Script(text="hello world", usage=None, done=False),
        Script(text="hello world", usage=None, finish_reason=None),
    ],
    ids=["byte by byte", "CRLF cut anywhere", "CR", "heartbeats", "finish reason only", "DONE only"],
)
def test_any_well_formed_stream_is_understood(
    client: Client, worker: Worker, upstream: Upstream, script: Script, request: pytest.FixtureRequest
) -> None:
    """O3, O4: whatever the chunks, line ends and comments, the text is the text."""
    name = request.node.callspec.id.replace(" ", "-")
    upstream.on(f"form {name}", script)
    lines = client.post(name, f"form {name}")

    assert answer_text(script) == answer_of(lines)
    assert [answer_text(script)] == stored(worker, name)


@pytest.mark.parametrize(
    ("script", "code", "calls"),
    [
        (Script(before_headers_s=None), "backend_timeout", 2),
        (Script(stop_after=2, ending="hang"), "backend_timeout", 1),
        (Script(stop_after=2, ending="cut"), "backend_protocol", 1),
        (Script(stop_after=2, ending="reset"), "backend_protocol", 1),
        (Script(stop_after=2), "backend_protocol", 1),
        (Script(error="SECRET of the upstream"), "backend_reported", 1),
        (Script(status=401, body='{"error":"SECRET key sk-123"}'), "backend_rejected", 1),
        (Script(status=503, body="SECRET host db-7 down"), "backend_unavailable", 2),
        (Script(text=""), "empty_answer", 1),
    ],
    ids=["hangs before headers", "hangs mid-body", "cut", "reset", "no DONE", "in-band error", "401", "503", "empty"],
)
def test_a_misbehaving_model_is_a_failed_turn_that_a_retry_mends(
    client: Client,
    worker: Worker,
    upstream: Upstream,
    script: Script,
    code: str,
    calls: int,
    request: pytest.FixtureRequest,
) -> None:
    """O1, O5, O7, O8: one terminal line, our words only, nothing stored; the next attempt answers."""
    name = request.node.callspec.id.replace(" ", "-")
    upstream.on(f"bad {name}", *[script] * calls, Script(text="mended"))
    failed = client.post(name, f"bad {name}")
    time.sleep(failed[-1]["data"].get("retryAfterMs", 0) / 1000)  # one that comes earlier gets the failure again
    mended = client.post(name, f"bad {name}")

    assert ["error", "session.run.failed"] == kinds(failed)[-2:]
    assert code == failed[-1]["data"]["code"]
    assert "SECRET" not in json.dumps(failed)
    assert "mended" == answer_of(mended)
    assert 2 == mended[0]["attempt"]
    assert ["mended"] == stored(worker, name)
    *tries, last = [call.key for call in upstream.calls(f"bad {name}")]
    assert (calls, 1) == (len(tries), len(set(tries)))
    assert last not in tries
    assert all(call.wait_closed(15) for call in upstream.calls(f"bad {name}")[:calls] if call.answered_at is None)


@pytest.mark.parametrize("header", [("retry-after", "1"), ("retry-after-ms", "300")])
def test_the_model_says_how_long_to_wait(client: Client, upstream: Upstream, header: tuple[str, str]) -> None:
    """A 429 is tried again when it says, under the same idempotency key, and the client sees nothing of it."""
    busy = Script(status=429, headers=(header,), body="busy")
    upstream.on(f"told by {header[0]}.", busy, Script(text="now"))
    lines = client.post(f"busy-{header[0]}", f"told by {header[0]}.")
    first, second = upstream.calls(f"told by {header[0]}.")

    assert "now" == answer_of(lines)
    assert first.key == second.key
    assert {"retry-after": 1.0, "retry-after-ms": 0.3}[header[0]] <= second.began_at - first.began_at < 10


def test_a_second_request_while_it_runs_is_told_to_wait(client: Client, upstream: Upstream) -> None:
    """409 with Retry-After before the first byte, one model call, and the answer after it."""
    upstream.on("busy turn", Script(text="a b c d", hold_after=2))
    with client.stream("twice", "busy turn") as response:
        lines = lines_of(response)
        next(lines)
        status, problem = client.problem("twice", "busy turn")
        upstream.release("busy turn")
        assert "session.run.completed" == json.loads(list(lines)[-1])["type"]
    replay = client.post("twice", "busy turn")

    assert (409, "turn_in_flight", True) == (status, problem["code"], problem["retryable"])
    assert "result" in kinds(replay)
    assert 1 == len(upstream.calls("busy turn"))


def test_another_message_in_the_same_place_is_refused(client: Client, worker: Worker) -> None:
    """422 ``input_mismatch``, and the answer that was there stays; superseding replaces it on purpose."""
    client.post("edited", "first version")
    status, problem = client.problem("edited", "second version")

    assert (422, "input_mismatch") == (status, problem["code"])
    lines = client.post("edited", "second version", on_mismatch="supersede")
    assert (2, "session.run.completed") == (lines[0]["attempt"], kinds(lines)[-1])
    assert 1 == len(stored(worker, "edited"))


def test_the_model_sees_the_session(client: Client, upstream: Upstream) -> None:
    """The second turn is asked with the first one before it."""
    client.post("thread", "my name is Ann", 0)
    client.post("thread", "what is my thread name", 1)
    [call] = upstream.calls("what is my thread name")

    assert ["user", "assistant", "user"] == [message["role"] for message in call.body["messages"]]
    assert "my name is Ann" == call.body["messages"][0]["content"]


def test_tenants_never_meet(worker: Worker, upstream: Upstream) -> None:
    """C4: the same session and message of another tenant is another turn, and cannot be looked at."""
    ours, theirs = Client(worker.url, tenant="ours"), Client(worker.url, tenant="theirs")
    ours.post("shared", "tenant question")
    assert 404 == theirs.show("shared").status_code
    theirs.post("shared", "tenant question")

    assert 2 == len(upstream.calls("tenant question"))


def test_a_turn_can_be_looked_at(client: Client) -> None:
    """Status, attempts and times of a turn, without its answer."""
    client.post("looked-at")
    view = client.show("looked-at").json()

    assert ("completed", 1, "chat:acme:looked-at:0") == (view["status"], view["attempts"], view["runId"])
    assert 404 == client.show("never-asked").status_code


def test_a_disconnect_does_not_end_the_turn(client: Client, worker: Worker, upstream: Upstream) -> None:
    """C1: the client leaves after the first word; the answer is completed, stored and replayed."""
    upstream.on("leaving", Script(text="a b c d e f g h i j", hold_after=2))
    with client.stream("left", "leaving now") as response:
        lines = lines_of(response)
        next(lines)
        next(lines)
    upstream.release("leaving")
    client.wait_for("left", "completed")
    lines_after = client.post("left", "leaving now")

    assert "result" in kinds(lines_after)
    assert "a b c d e f g h i j" == answer_of(lines_after)
    assert 1 == len(upstream.calls("leaving"))
    assert ["a b c d e f g h i j"] == stored(worker, "left")


def test_many_turns_at_once_do_not_mix(worker: Worker, upstream: Upstream) -> None:
    """Thirty-two users, each with an answer of their own."""
    names = [f"user{number:02}" for number in range(32)]
    for name in names:
        upstream.on(f"I am {name}", Script(text=" ".join([name] * 20), pause_s=0.01))
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda name: answer_of(Client(worker.url, sub=name).post(name, f"I am {name}")), names))

    assert [" ".join([name] * 20) for name in names] == answers


def test_a_slow_reader_gets_everything(client: Client, upstream: Upstream) -> None:
    """A reader far behind the model loses nothing."""
    script = Script(events=3_000, event_bytes=200, per_chunk=50)
    upstream.on("flood", script)
    received = bytearray()
    with client.stream("slow-reader", "flood me") as response:
        time.sleep(1.5)
        for piece in response.iter_raw(16_384):
            received += piece
            time.sleep(0.01)
    lines = [json.loads(line) for line in received.decode()[:-1].split("\n")]
    logged = [line for line in lines if line["type"] != "ping"]

    assert list(range(len(logged))) == [line["seq"] for line in logged]
    assert answer_text(script) == answer_of(lines)


def test_tokens_are_checked(worker: Worker, client: Client) -> None:
    """No token, a forged one, an expired one: 401; one without the scope: 403."""
    address = client.address("locked")
    parts = client.headers["authorization"].split(".")
    statuses = [
        http.post(address, json={"message": "x"}, headers=headers).status_code
        for headers in (
            {},
            {"authorization": ".".join([*parts[:2], parts[2][::-1]])},
            {"authorization": f"Bearer {token(exp=int(time.time()) - 60)}"},
            {"authorization": f"Bearer {token(scope='other')}"},
        )
    ]

    assert [401, 401, 401, 403] == statuses
    assert [] == worker.sql("SELECT * FROM chat_turns WHERE session_id = 'locked'")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/sessions/bad/turns/0", b"{", 400),
        ("/v1/sessions/bad/turns/0", b"\xff\xfe", 400),
        ("/v1/sessions/bad/turns/0", b'{"message": 1}', 422),
        ("/v1/sessions/bad/turns/0", b'{"message": ""}', 422),
        ("/v1/sessions/bad/turns/0", b'{"message": "a\\u0000"}', 422),
        ("/v1/sessions/bad/turns/0", b'{"message": "x", "extra": 1}', 422),
        ("/v1/sessions/bad/turns/0", b"[" * 100_000, 400),
        ("/v1/sessions/bad/turns/0", b'{"message": "' + b"x" * 1_070_000 + b'"}', 413),
        ("/v1/sessions/bad/turns/-1", b'{"message": "x"}', 422),
        ("/v1/sessions/bad/turns/99999999999999999999", b'{"message": "x"}', 422),
        ("/v1/sessions/bad/turns/one", b'{"message": "x"}', 422),
        ("/v1/sessions/a%0Ab/turns/0", b'{"message": "x"}', 422),
        ("/v1/sessions/a%00b/turns/0", b'{"message": "x"}', 422),
        ("/v1/sessions/" + "x" * 10_000 + "/turns/0", b'{"message": "x"}', 422),
        ("/v1/sessions/%F0%9F%99/turns/0", b'{"message": "x"}', 422),
        ("/v1/sessions/chat:a:b:0/turns/0", b'{"message": "x"}', 422),
        ("/v1/nothing", b'{"message": "x"}', 404),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | bytes) else None,
)
def test_bad_input_gets_a_clear_4xx_and_writes_nothing(
    worker: Worker, client: Client, path: str, body: bytes, status: int
) -> None:
    """Each names what is wrong, in a problem with a stable code."""
    before = worker.sql("SELECT count(*) AS n FROM durable_runs")
    # A long one in pieces, and not much too long: what a server leaves unread may cost the client the answer.
    pieces = (body[at : at + 16_384] for at in range(0, len(body), 16_384))
    response = http.post(
        worker.url + path,
        content=pieces if len(body) > 200_000 else body,
        headers={**client.headers, "content-type": "application/json"},
    )
    problem = response.json()

    assert status == response.status_code == problem["status"]
    assert "application/problem+json" == response.headers["content-type"]
    assert problem["code"]
    assert before == worker.sql("SELECT count(*) AS n FROM durable_runs")


def test_the_other_refusals_of_http(worker: Worker, client: Client) -> None:
    """405 with Allow, 415, and a body that announces too much, before it is sent."""
    address = client.address("refused")
    wrong_method = http.delete(address, headers=client.headers)
    wrong_type = http.post(address, content=b"message=x", headers={**client.headers, "content-type": "text/plain"})
    with closing(HTTPConnection(worker.url.removeprefix("http://"), timeout=ANSWER_SECONDS)) as connection:
        announced = {"content-type": "application/json", "content-length": "1048577"}
        connection.request("POST", address.removeprefix(worker.url), headers={**client.headers, **announced})
        too_much = connection.getresponse().status

    assert (405, True) == (wrong_method.status_code, "POST" in wrong_method.headers["allow"])
    assert 415 == wrong_type.status_code
    assert 413 == too_much
    assert 200 == http.get(worker.url + "/healthz").status_code


@pytest.mark.parametrize("name", ["auth0|5f7c8ec7", "-1001234:91088", "+49 170/1234", "!room:matrix.org", "a%2Fb ✓"])
def test_sessions_have_the_names_that_their_channels_give_them(worker: Worker, client: Client, name: str) -> None:
    """Through the real server: in the address, in what is told of the turn, and in the list; then it is deleted."""
    path = f"{worker.url}/v1/sessions/{quote(name, safe='')}"
    posted = http.post(f"{path}/turns/0", json={"message": "x"}, headers=client.headers)
    turn = http.get(f"{path}/turns/0", headers=client.headers).json()
    again = http.get(worker.url + turn["stream"], headers=client.headers)
    listed = http.get(f"{worker.url}/v1/sessions", headers=client.headers).json()["sessions"]

    assert (200, name) == (posted.status_code, turn["sessionId"])
    assert "session.run.completed" in posted.text
    assert posted.text.splitlines()[0] == again.text.splitlines()[0]
    assert (name, "x") == (listed[0]["sessionId"], listed[0]["title"])
    assert [200, 404] == [http.delete(path, headers=client.headers).status_code for _ in range(2)]
    assert 404 == http.get(f"{path}/turns/0", headers=client.headers).status_code


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/v1/chat/completions", 405),
        ("QUERY", "/v1/ai-sdk/chat", 405),
        ("POST", "/v1/nowhere", 404),
        ("POST", "/v1/sessions/kept/turns/0/cancel", 404),
    ],
)
def test_an_answer_that_needs_no_body_keeps_the_connection(worker: Worker, method: str, path: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/json"}
    with closing(HTTPConnection("127.0.0.1", worker.server.port, timeout=ANSWER_SECONDS)) as connection:
        connection.connect()
        kept = connection.sock
        for _ in range(50):  # a third of them broke
            connection.request(method, path, '{"message": "hello"}', headers)
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, answer.will_close) == (status, False)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            assert connection.sock is kept


def test_half_a_body_that_nobody_needs_holds_no_answer(worker: Worker) -> None:
    with socket.create_connection(("127.0.0.1", worker.server.port), ANSWER_SECONDS) as connection:
        head = "POST /v1/nowhere HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 100"
        connection.sendall("\r\n".join([*head, "", "half"]).encode())
        assert connection.recv(16) == b"HTTP/1.1 404 Not"


def test_a_client_that_leaves_in_its_body_is_no_crash(worker: Worker) -> None:
    """The operator's log does not tell of it: nobody can do anything about it."""
    before = len(worker.log)
    head = f"Authorization: Bearer {token()}", "Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 99"
    for length in (head[-1], "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", worker.server.port), ANSWER_SECONDS) as connection:
            lines = ["POST /v1/sessions/left/turns/0 HTTP/1.1", *head[:-1], length, "", "5", '{"mes', ""]
            connection.sendall("\r\n".join(lines).encode())
            time.sleep(0.2)  # it has arrived
    assert http.get(f"{worker.url}/healthz").status_code == 200
    assert "crashed" not in worker.log[before:]
