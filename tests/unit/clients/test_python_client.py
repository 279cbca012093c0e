"""The client for Python: against a server that says and does what a test wants, over real connections."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import chatturn_client
import httpx
import pytest
from chatturn_client import Answer, AsyncChatTurnClient, ChatTurnClient, ChatTurnError

Handler = BaseHTTPRequestHandler
Says = Callable[[Handler], None]

RUN_ID = "chat:acme:s:0"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back at once."""
    monkeypatch.setattr(chatturn_client, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(chatturn_client, "_LONGEST_PAUSE_S", 0.002)


def line(type_: str, data: dict[str, Any], seq: int, attempt: int = 1) -> str:
    return json.dumps({"type": type_, "data": data, "seq": seq, "attempt": attempt}, ensure_ascii=False) + "\n"


def word(text: str, seq: int, attempt: int = 1) -> str:
    return line("message.part.updated", {"delta": text, "part": {"id": "text", "type": "text"}}, seq, attempt)


STARTED = line("session.run.started", {}, 0)


def completed(seq: int, attempt: int = 1) -> str:
    return line("session.run.completed", {"replayed": False}, seq, attempt)


def failed(seq: int, *, retryable: bool) -> str:
    return line("session.run.failed", {"code": "backend_timeout", "message": "too long", "retryable": retryable}, seq)


def says(
    *texts: str | bytes, breaks_off: bool = False, hangs: threading.Event | None = None, run_id: str = RUN_ID
) -> Says:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("X-Workflow-Run-Id", run_id)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for text in texts:
            raw = text if isinstance(text, bytes) else text.encode()
            if raw:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        handler.wfile.flush()
        if hangs is not None:
            hangs.wait(10)
        elif not breaks_off:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def refuses(status: int, **members: Any) -> Says:
    def answer(handler: Handler) -> None:
        body = json.dumps({"code": "x", "detail": "a sentence", "retryable": False, **members}).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def page(handler: Handler) -> None:
    handler.send_response(502)
    handler.send_header("Content-Length", "4")
    handler.end_headers()
    handler.wfile.write(b"<h1>")


@contextmanager
def serving(*answers: Says) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve one answer after the other, the last again and again; yield the address, and what was asked."""
    left, asked = list(answers), []

    class Server(Handler):
        def do_GET(self) -> None:  # noqa: N802 - the base class's name
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(
                {
                    "what": f"{self.command} {self.path}",
                    "body": json.loads(body or "null"),
                    "token": self.headers.get("Authorization"),
                }
            )
            self.close_connection = True
            (left.pop(0) if len(left) > 1 else left[0])(self)

        do_POST = do_GET  # noqa: N815 - likewise

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def ask(url: str, kind: str, message: str | None = "hi", *, options: Any = None, **settings: Any) -> Answer:
    """Ask, or follow, with either client."""
    settings = {"token": "t", **settings}
    if kind == "waits":
        with ChatTurnClient(url, http=httpx.Client(trust_env=False), **settings) as client:
            turn = client.turn("a session", 0)
            answer = turn.follow() if message is None else turn.ask(message, **(options or {}))
            client._http.close()
            return answer

    async def awaited() -> Answer:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            AsyncChatTurnClient(url, http=http, **settings) as client,
        ):
            turn = client.turn("a session", 0)
            return await (turn.follow() if message is None else turn.ask(message, **(options or {})))

    return asyncio.run(awaited())


KINDS = pytest.mark.parametrize("kind", ["waits", "awaits"])


@KINDS
def test_an_answer_comes_as_it_is_said(kind: str) -> None:
    """The text so far, each time that it has changed; pings are nothing."""
    texts: list[str] = []
    with serving(says(STARTED, word("Hel", 1), '{"type":"ping"}\n', word("lo", 2), completed(3))) as (url, asked):
        answer = ask(url, kind, options={"on_text": texts.append, "model": "m"})

    assert ("Hello", "completed", ["Hel", "Hello"]) == (answer.text, answer.status, texts)
    assert [{"message": "hi", "follow": True, "model": "m"}] == [each["body"] for each in asked]
    assert ("POST /v1/sessions/a%20session/turns/0", "Bearer t") == (asked[0]["what"], asked[0]["token"])


@pytest.mark.slow
@KINDS
def test_it_comes_back_behind_what_it_has_seen(kind: str) -> None:
    """Wherever the connection broke, in the middle of a character too: nothing is missing and nothing comes twice."""
    lines = [STARTED, word("grüß ", 1), word("dich", 2), completed(3)]
    whole = "".join(lines).encode()
    for cut in range(0, len(whole), 13):
        seen = whole[:cut].count(b"\n")
        with serving(says(whole[:cut], breaks_off=True), says(*lines[seen:])) as (url, asked):
            assert "grüß dich" == ask(url, kind).text
        address = "/v1/sessions/a%20session/turns/0"
        assert (f"GET {address}/stream?version=1&after={seen - 1}" if seen else f"POST {address}") == asked[1]["what"]


@KINDS
def test_an_end_without_a_terminal_line_is_no_end(kind: str) -> None:
    """A body that ends cleanly in the middle says only: come back."""
    with serving(says(STARTED, word("a", 1)), says(word("b", 2), completed(3))) as (url, _):
        assert "ab" == ask(url, kind).text


@KINDS
def test_another_attempt_begins_anew(kind: str) -> None:
    """What a lost worker said is discarded, and no line comes twice."""
    seqs: list[int] = []
    restarted = line("session.run.restarted", {"attempt": 2, "reason": "lease_lapsed"}, 10_001, 2)
    first = says(STARTED, word("lost", 1), breaks_off=True)
    with serving(first, says(word("lost", 1), restarted, word("kept", 10_002, 2), completed(10_003, 2))) as (url, _):
        answer = ask(url, kind, options={"on_line": lambda each: seqs.append(each["seq"])})

    assert ("kept", [0, 1, 10_001, 10_002, 10_003]) == (answer.text, seqs)


@KINDS
def test_a_silent_connection_is_dead(kind: str) -> None:
    """After three missed pings it comes back."""
    over = threading.Event()
    with serving(says(STARTED, word("a", 1), hangs=over), says(word("b", 2), completed(3))) as (url, _):
        assert "ab" == ask(url, kind, silence_s=0.1).text
        over.set()


@KINDS
def test_failures(kind: str) -> None:
    """One that may pass is asked again; one for good is raised, and so is any for a reader who only follows."""
    with serving(
        says(STARTED, failed(1, retryable=True)),
        refuses(503, retryable=True),
        page,
        says(word("b", 10_002, 2), completed(10_003, 2)),
    ) as (url, asked):
        assert "b" == ask(url, kind).text
    assert ["POST"] * 4 == [each["what"].split()[0] for each in asked]

    for message, retryable in (("hi", False), (None, True)):
        with (
            serving(says(STARTED, failed(1, retryable=retryable))) as (url, _),
            pytest.raises(ChatTurnError, match="too long") as raised,
        ):
            ask(url, kind, message)
        assert ("backend_timeout", retryable, 0) == (raised.value.code, raised.value.retryable, raised.value.status)


@KINDS
def test_refusals(kind: str) -> None:
    """Final at once, and naming the member; a service that never answers is given up."""
    with serving(refuses(422, field="model")) as (url, asked), pytest.raises(ChatTurnError) as raised:
        ask(url, kind)
    assert ("x", 422, "model", "a sentence", 1) == (
        raised.value.code,
        raised.value.status,
        raised.value.field,
        str(raised.value),
        len(asked),
    )

    with serving(refuses(503, retryable=True)) as (url, _), pytest.raises(ChatTurnError) as raised:
        ask(url, kind, patience_s=0.1)
    assert "no_answer" == raised.value.code


@KINDS
def test_what_can_never_be_sent_is_not_tried_again(kind: str) -> None:
    """An address without a scheme, and a token with the line end of the file that it was read from."""
    with serving() as (url, asked):
        with pytest.raises(httpx.UnsupportedProtocol):
            ask(url.removeprefix("http://"), kind)
        with pytest.raises(httpx.LocalProtocolError):
            ask(url, kind, token="secret\n")
    assert [] == asked


@KINDS
def test_a_token_may_run_out_in_the_middle(kind: str) -> None:
    """It is asked for at every request, and a refusal of one that had run out is no end."""
    tokens = iter(["old", "old", "new"])
    first = says(STARTED, word("a", 1), breaks_off=True)
    with serving(first, refuses(401, code="unauthenticated"), says(word("b", 2), completed(3))) as (url, asked):
        assert "ab" == ask(url, kind, token=lambda: next(tokens)).text
    assert ["Bearer old", "Bearer old", "Bearer new"] == [each["token"] for each in asked]

    with serving(refuses(401, code="unauthenticated")) as (url, asked), pytest.raises(ChatTurnError):
        ask(url, kind, token=lambda: "old")
    assert 2 == len(asked)


@KINDS
def test_a_suspended_turn_says_what_it_waits_for(kind: str) -> None:
    """The key is what `approve` is given."""
    waits = line("session.run.suspended", {"key": "approve:1.1.0", "wakeAt": None}, 1)
    with serving(says(STARTED, waits)) as (url, _):
        answer = ask(url, kind)

    assert "suspended" == answer.status
    assert answer.waits_for is not None
    assert "approve:1.1.0" == answer.waits_for["key"]


def test_approvals_cancels_and_messages_are_one_request_each() -> None:
    """With their paths encoded."""

    def empty(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "15")
        handler.end_headers()
        handler.wfile.write(b'{"versions":[]}')

    with (
        serving(empty) as (url, asked),
        httpx.Client(trust_env=False) as http,
        ChatTurnClient(url, token="t", http=http) as client,
    ):
        turn = client.turn("s", 3)
        turn.cancel()
        turn.show()
        assert [] == turn.versions()
        turn.activate(2)
        client.messages("s", before=3, limit=10)
        client.approve("chat:a:b%2F:0", "approve:1.1.0", approved=False, reason="no")

    assert [each["what"] for each in asked] == [
        "POST /v1/sessions/s/turns/3/cancel",
        "GET /v1/sessions/s/turns/3",
        "GET /v1/sessions/s/turns/3/versions",
        "POST /v1/sessions/s/turns/3/versions/2/activate",
        "GET /v1/sessions/s/messages?before=3&limit=10",
        "POST /v1/runs/chat%3Aa%3Ab%252F%3A0/events/approve%3A1.1.0",
    ]
    assert {"payload": {"approved": False, "reason": "no"}} == asked[5]["body"]


@KINDS
def test_a_turn_that_waits_is_followed_where_it_was_asked(kind: str) -> None:
    """It says for how many it waits; the run's id has another index, and a version, and both are kept to."""
    queued = json.dumps({"type": "session.run.queued", "data": {"turnIndex": 3, "position": 2}}) + "\n"
    ended = line("session.run.completed", {"replayed": False, "version": 2}, 3)

    def watched(each: dict[str, Any]) -> None:
        watch.take(each)
        seen.append((watch.status, watch.position))

    seen: list[tuple[str, int | None]] = []
    watch = Answer()
    run_id = "chat:acme:s:3~2"
    parts = (
        says(queued, breaks_off=True, run_id=run_id),
        says(STARTED, word("a", 1), breaks_off=True, run_id=run_id),
        says(word("b", 2), ended, run_id=run_id),
    )
    with serving(*parts) as (url, asked):
        answer = ask(url, kind, options={"when_busy": "queue", "on_line": watched})

    address = "/v1/sessions/a%20session/turns"
    assert [("queued", 2), ("running", None)] == seen[:2]
    assert ("ab", 2) == (answer.text, answer.version)
    assert "queue" == asked[0]["body"]["when_busy"]
    assert [f"POST {address}/0"] * 2 + [f"GET {address}/3/stream?version=2&after=1"] == [each["what"] for each in asked]
