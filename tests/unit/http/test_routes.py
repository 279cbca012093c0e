"""The Worker's HTTP: what each route answers, and that nothing a stranger sends makes it answer otherwise."""

import asyncio
import inspect
import json
import re
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.chat.lists.lists import MessagePage, MessageQuery, TurnPage, TurnQuery
from chatturn.chat.requests import TurnRequest, TurnView
from chatturn.chat.service import DurableChatService
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.turn.sinks import BufferSink, Sink
from chatturn.chat.usage.totals import UsagePage, UsageQuery
from chatturn.durable.records import EventRecord
from chatturn.errors import (
    ChatTurnError,
    ConfigurationError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    InvalidRuntimeEvent,
    PayloadTooLarge,
    RequestError,
    RunNotFound,
    SchemaOutdated,
    SessionMismatchError,
    StoreError,
    StoreUnavailable,
    error_classes,
)
from chatturn.http.application import Application, PublicRoute, Route
from chatturn.http.auth import BearerAuth, NoAuth, UnconfiguredAuth
from chatturn.http.bodies import Bodies
from chatturn.http.limits import MAX_BODY_BYTES, MAX_TURN_INDEX
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.problems import problem
from chatturn.http.routes import ROUTES, handle
from chatturn.http.token_keys import Secrets
from chatturn.http.user_messages import MAX_MESSAGE_CHARACTERS

T = TypeVar("T")

EVENT = "/v1/runs/chat%3Aacme%3Aa%252Fb%3A0/events/approve:1.1.0"

SECRET = "a secret that is at least 32 bytes long"
NOW_S = 1_800_000_000
TURN = "/v1/sessions/thread-1/turns/0"
JSON = {"content-type": "application/json"}
HELLO = b'{"message": "hello"}'
WORDS_OF_THE_DATABASE = "D1_ERROR: no such column: hunter2"


class FakeTurn:
    """Says one line."""

    def __init__(self, *, attempt: int, replayed: bool) -> None:
        self.run_id = "chat:acme:thread-1:0"
        self.attempt = attempt
        self.replayed = replayed
        self.created_at = "2026-11-28T10:00:00.000Z"
        self.redacting = False
        self.retry_after_ms = 0

    async def run(self, sink: Sink) -> None:
        sink.write("one line\n")
        await sink.close()


class FakeService:
    """Opens every turn, or raises what it is told to; remembers what it was asked."""

    ping_every_ms = 15_000

    def __init__(self, *, error: BaseException | None = None, views: Mapping[str, TurnView] | None = None) -> None:
        self.error = error
        self.views = views or {}
        self.turn = FakeTurn(attempt=1, replayed=False)
        self.opened: list[tuple[ChatTurnIdentity, TurnRequest]] = []
        self.events: list[tuple[str, str, Any]] = []
        self.resumed: list[str] = []
        self.usage_queries: list[UsageQuery] = []

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> FakeTurn:
        if self.error:
            raise self.error
        self.opened.append((identity, request))
        return self.turn

    async def show(self, identity: ChatTurnIdentity) -> TurnView | None:
        if self.error:
            raise self.error
        return self.views.get(identity.tenant_id)

    async def follow(self, identity: ChatTurnIdentity, after: int | None, *, may_take_over: bool) -> None:
        del identity, after, may_take_over
        if self.error:
            raise self.error

    async def may_see(self, tenant_id: str, session_id: str, user_id: str) -> bool:
        del tenant_id, session_id, user_id
        if self.error:
            raise self.error
        return True

    async def shown_version(self, identity: ChatTurnIdentity, _after: int | None = None) -> ChatTurnIdentity:
        if self.error:
            raise self.error
        return identity

    async def versions(self, identity: ChatTurnIdentity) -> None:
        del identity
        if self.error:
            raise self.error

    async def activate(self, identity: ChatTurnIdentity) -> None:
        del identity
        if self.error:
            raise self.error

    async def latest_turn(self, tenant_id: str, session_id: str, user_id: str) -> int | None:
        del tenant_id, session_id, user_id
        if self.error:
            raise self.error
        return None

    async def recent_turn(self, tenant_id: str, session_prefix: str, within_s: int) -> str | None:
        del tenant_id, session_prefix, within_s
        if self.error:
            raise self.error
        return None

    def model_names(self) -> list[str]:
        if self.error:
            raise self.error
        return []

    async def cancel(self, identity: ChatTurnIdentity) -> None:
        del identity
        if self.error:
            raise self.error

    async def messages(self, tenant_id: str, session_id: str, user_id: str, query: MessageQuery) -> MessagePage:
        del tenant_id, session_id, user_id, query
        if self.error:
            raise self.error
        return MessagePage(messages=(), open_turns=(), next=None)

    async def turns(self, query: TurnQuery) -> TurnPage:
        del query
        if self.error:
            raise self.error
        return TurnPage(turns=(), next=None)

    async def usage(self, query: UsageQuery) -> UsagePage:
        if self.error:
            raise self.error
        self.usage_queries.append(query)
        return UsagePage(groups=(), total={}, first_day="2026-11-01", last_day="2026-11-30", next=None)

    async def emit(self, tenant_id: str, user_id: str, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        del user_id
        if self.error:
            raise self.error
        if tenant_id != "acme":
            raise RunNotFound("another tenant's", run_id=run_id)
        self.events.append((run_id, key, payload))
        return True, EventRecord(run_id=run_id, key=key, payload=payload, emitted_at=VIEW.created_at)

    async def resume(self, run_id: str) -> bool:
        self.resumed.append(run_id)
        return True

    async def check(self) -> None:
        if self.error:
            raise self.error


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, BaseException]] = []

    def __call__(self, what: str, error: BaseException) -> None:
        self.entries.append((what, error))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own, since bodies are read by the clock."""
    return asyncio.run(coroutine)


def as_chat(service: FakeService) -> DurableChatService:
    """Take it for the chat: it has whatever the routes ask for."""
    return cast("DurableChatService", service)


def application(service: FakeService, *, log: Log | None = None) -> Application:
    return Application(
        authenticator=BearerAuth([Secrets({"AUTH_JWT_SECRET": SECRET})], now=lambda: NOW_S),
        service=as_chat(service),
        log=log or Log(),
    )


def bearer(**claims: Any) -> dict[str, str]:
    members = {"tenant": "acme", "sub": "ann", "scope": "turns", "exp": NOW_S + 600, **claims}
    return {"authorization": "Bearer " + jwt.encode(members, SECRET, algorithm="HS256")}


ANN = bearer()


def told(response: HttpResponse) -> tuple[str, str]:
    """Return an error's code and sentence, in whichever form its clients have it."""
    if response.headers["Content-Type"].startswith("text/plain"):
        return response.headers["X-Error-Code"], response.body.decode()
    body = members(response)
    return (body["error"]["code"], body["error"]["message"]) if "error" in body else (body["code"], body["detail"])


def http_request(
    method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> HttpRequest:
    """Make a request; one without *body* must be answered unread."""

    async def read(limit: int) -> bytes:
        assert body is not None, "the body was read"
        if len(body) > limit:
            raise PayloadTooLarge(f"body may have at most {limit} bytes", field="body")
        return body

    return HttpRequest(method=method, path=path, query="", headers=headers or {}, read=read)


def ask(
    app: Application,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> HttpResponse:
    return run(handle(http_request(method, path, headers=headers, body=body), app))


def post(service: FakeService, body: bytes = HELLO, *, path: str = TURN, log: Log | None = None) -> HttpResponse:
    return ask(application(service, log=log), "POST", path, headers={**JSON, **ANN}, body=body)


def members(response: HttpResponse) -> dict[str, Any]:
    parsed = json.loads(response.body)
    assert isinstance(parsed, dict)
    return parsed


def raised(cls: type[ChatTurnError], message: str) -> ChatTurnError:
    """Make an error of any class of the tree."""
    if issubclass(cls, ConfigurationError | InvalidRuntimeEvent | SessionMismatchError):
        return cls("SETTING", message)
    particulars: dict[str, Any] = {
        "allow": ("GET",),
        "backend": "openai",
        "detail": message,
        "hook": "produce",
        "retry_after_ms": 1,
        "retry_after_s": 1,
        "run_id": "r",
        "scope": "turn",
    }
    wanted = inspect.signature(cls.__init__).parameters
    return cls(message, **{name: value for name, value in particulars.items() if name in wanted})


# A turn


def test_a_turn_is_claimed_and_streamed() -> None:
    """The status and every header are there before the first line; the lines come from the turn."""
    service = FakeService()
    body = b'{"message": "hello", "model": "tiny", "metadata": {"a": [1]}, "on_mismatch": "supersede"}'
    response, sink = post(service, body), BufferSink()
    assert response.stream is not None
    run(response.stream(sink))  # type: ignore[arg-type]  # it is a coroutine function

    assert response.status == 200
    assert response.headers == {
        "Content-Type": "application/x-ndjson",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Accel-Buffering": "no",
        "X-Workflow-Run-Id": "chat:acme:thread-1:0",
        "X-Turn-Attempt": "1",
        "X-Turn-Replayed": "false",
        "X-Ping-Ms": "15000",
    }
    assert sink.text() == "one line\n"
    identity = ChatTurnIdentity(tenant_id="acme", session_id="thread-1", user_id="ann", turn_index=0)
    assert service.opened == [
        (identity, TurnRequest(message="hello", model="tiny", metadata={"a": [1]}, supersede=True))
    ]


def test_the_headers_tell_a_replay_and_a_later_attempt() -> None:
    """A client knows before the first line whether the model is being called."""
    service = FakeService()
    service.turn = FakeTurn(attempt=3, replayed=True)
    response = post(service)

    assert (response.headers["X-Turn-Attempt"], response.headers["X-Turn-Replayed"]) == ("3", "true")


@pytest.mark.parametrize(
    ("retry_after_ms", "expected"),
    [(-500, "1"), (0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_999, "5")],
)
def test_a_turn_in_flight_is_a_409_with_when_and_where(retry_after_ms: int, expected: str) -> None:
    """Whole seconds, one to five, since most turns end long before their lease; and the address of its log."""
    error = DurableRunLeaseHeldError("held by w-1", run_id="r", retry_after_ms=retry_after_ms)
    response = post(FakeService(error=error), path="/v1/sessions/ann%40home/turns/7")

    assert (response.status, members(response)["code"]) == (409, "turn_in_flight")
    assert response.headers["Retry-After"] == expected
    assert response.headers["Location"] == members(response)["stream"] == "/v1/sessions/ann@home/turns/7/stream"


def test_another_message_at_the_same_place_is_a_422() -> None:
    """The turn index is the idempotency key, and says so."""
    response = post(FakeService(error=DurableRunInputMismatchError("hash differs", run_id="r")))

    assert (response.status, members(response)["code"]) == (422, "input_mismatch")
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "field"),
    [
        (TURN, {"content-type": "text/plain"}, None, 415, "Content-Type"),
        (TURN, {}, None, 415, "Content-Type"),
        (TURN, {**JSON, "content-encoding": "gzip"}, None, 415, "Content-Encoding"),
        (TURN, {**JSON, "content-length": "1048577"}, None, 413, "body"),
        (TURN, JSON, b" " * (MAX_BODY_BYTES + 1), 413, "body"),
        (TURN, JSON, b'{"message": "' + b"x" * (MAX_MESSAGE_CHARACTERS + 1) + b'"}', 413, "message"),
        (TURN, JSON, b"{", 400, "body"),
        (TURN, JSON, b"\xff", 400, "body"),
        (TURN, JSON, b"[" * 1_000_000, 400, "body"),
        (TURN, JSON, b"{}", 422, "message"),
        (TURN, JSON, b'{"message": 5}', 422, "message"),
        (TURN, JSON, b'{"message": "\\ud800"}', 422, "message"),
        (TURN, JSON, b'{"message": "x", "user": "y"}', 422, "user"),
        (TURN, JSON, b'{"message": "x", "follow": 1}', 422, "follow"),
        ("/v1/sessions//turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/../turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/%2e%2e/turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/a%00b/turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/%F0%9F%98/turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/chat:a:b:0/turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/" + "a" * 10_240 + "/turns/0", JSON, None, 422, "session"),
        ("/v1/sessions/s/turns/", JSON, None, 422, "turn_index"),
        ("/v1/sessions/s/turns/-1", JSON, None, 422, "turn_index"),
        ("/v1/sessions/s/turns/99999999999999999999", JSON, None, 422, "turn_index"),
    ],
)
def test_bad_input_is_a_4xx_that_names_the_field(
    path: str, headers: dict[str, str], body: bytes | None, status: int, field: str
) -> None:
    """Nothing is opened, nothing is logged, and the body is read only where it matters."""
    service, log = FakeService(), Log()
    response = ask(application(service, log=log), "POST", path, headers={**headers, **ANN}, body=body)

    assert (response.status, members(response)["field"]) == (status, field)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert len(response.body) < 1000
    assert (service.opened, log.entries) == ([], [])


def test_a_refused_media_type_is_told_what_would_do() -> None:
    """RFC 9110 section 15.5.16."""
    response = ask(application(FakeService()), "POST", TURN, headers=ANN)

    assert (response.headers["Accept"], response.headers["Accept-Encoding"]) == (
        "application/json",
        "identity",
    )


# A run, looked at


VIEW = TurnView(
    run_id="chat:acme:thread-1:0",
    status="completed",
    attempts=2,
    created_at="2026-01-01T00:00:00.000Z",
    updated_at="2026-01-01T00:00:02.000Z",
    completed_at="2026-01-01T00:00:02.000Z",
    model="tiny",
    outcome=None,
)


def test_a_turn_can_be_looked_at() -> None:
    """Status, attempts and timings; the answer is not part of it."""
    response = ask(application(FakeService(views={"acme": VIEW})), "GET", TURN, headers=ANN)

    assert response.status == 200
    assert members(response) == {
        "runId": "chat:acme:thread-1:0",
        "sessionId": "thread-1",
        "turnIndex": 0,
        "version": 1,
        "status": "completed",
        "attempts": 2,
        "model": "tiny",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:02.000Z",
        "completedAt": "2026-01-01T00:00:02.000Z",
        "finishReason": None,
        "outcome": None,
        "stream": TURN + "/stream",
        "usage": None,
    }


def test_another_tenant_s_turn_looks_like_none_at_all() -> None:
    """Byte for byte the same answer, whether somebody else has that turn or nobody."""
    app = application(FakeService(views={"acme": VIEW}))
    foreign = ask(app, "GET", TURN, headers=bearer(tenant="rival"))
    missing = ask(application(FakeService()), "GET", TURN, headers=ANN)

    assert foreign == missing
    assert (missing.status, members(missing)["code"]) == (404, "not_found")


# An event for a run


def test_an_event_is_recorded_and_the_run_goes_on_afterwards() -> None:
    """The answer says whose event is on record; going on is left to the background."""
    service = FakeService()
    response = post(service, b'{"payload": {"approved": true}}', path=EVENT)

    assert (response.status, members(response)) == (
        200,
        {"accepted": True, "payload": {"approved": True}, "emittedAt": VIEW.created_at},
    )
    assert service.events == [("chat:acme:a%2Fb:0", "approve:1.1.0", {"approved": True})]
    assert service.resumed == []
    assert response.background is not None
    run(response.background())  # type: ignore[arg-type]  # it is a coroutine function
    assert service.resumed == ["chat:acme:a%2Fb:0"]


def test_an_event_for_another_tenant_s_run_is_not_found() -> None:
    """As for a run that does not exist; nothing happens afterwards either."""
    app = application(FakeService())
    headers = {**JSON, **bearer(tenant="rival")}
    response = ask(app, "POST", EVENT, headers=headers, body=b'{"payload": {"approved": true}}')

    assert (response.status, members(response)["code"], response.background) == (404, "not_found", None)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        (EVENT, b"{}", 422, "payload"),
        (EVENT, b'{"payload": 1, "other": 2}', 422, "other"),
        (EVENT, b'{"payload": {"approved": "yes"}}', 422, "payload"),
        (EVENT.replace("approve:", "APPROVE:"), b'{"payload": {"approved": true}}', 422, "key"),
        (EVENT.replace("approve:", "Tool:"), b'{"payload": {"result": 1}}', 422, "key"),
        (EVENT.replace("approve:", "%20approve:"), b'{"payload": {"approved": true}}', 422, "key"),
        (EVENT, b'{"payload": {"approved": true, "why": ""}}', 422, "payload"),
        (EVENT, b'{"payload": {"approved": true, "reason": 1}}', 422, "payload"),
        (EVENT, b'{"payload": {"approved": true, "reason": "' + b"x" * 2_001 + b'"}}', 422, "payload"),
        (EVENT + "x" * 200, b'{"payload": 1}', 422, "key"),
        ("/v1/runs/r/events/", b'{"payload": 1}', 422, "key"),
        ("/v1/runs/r/events/a%00b", b'{"payload": 1}', 422, "key"),
        ("/v1/runs/r%0a/events/k", b'{"payload": 1}', 422, "run_id"),
        ("/v1/runs/r%ff/events/k", b'{"payload": 1}', 422, "run_id"),
        ("/v1/runs/r/events/k", b'{"payload": "\\ud800"}', 422, "payload"),
        ("/v1/runs/r/events/k", b'{"payload": "' + b"x" * 65_536 + b'"}', 413, "payload"),
        ("/v1/runs/r/events/k", b" " * (MAX_BODY_BYTES + 1), 413, "body"),
        ("/v1/runs/r/events/k", b"[]", 400, "body"),
    ],
)
def test_a_bad_event_is_a_4xx_that_names_the_field(path: str, body: bytes, status: int, field: str) -> None:
    """Nothing is recorded: since the first event wins, a mistake would be for ever."""
    service = FakeService()
    response = post(service, body, path=path)

    assert (response.status, members(response)["field"]) == (status, field)
    assert (service.events, service.resumed) == ([], [])


# Who may


PROTECTED = [route for route in ROUTES if isinstance(route, Route)]


@pytest.mark.parametrize("route", PROTECTED, ids=lambda route: f"{route.method} {route.template}")
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer nonsense"}, bearer(exp=NOW_S - 3600)])
def test_no_route_answers_strangers(route: Route, headers: dict[str, str]) -> None:
    """Neither without a token nor with a bad one; the body stays unread and the service unasked."""
    path = route.template.replace("{session}", "thread-1").replace("{turn_index}", "0")
    service = FakeService(error=AssertionError("asked"))
    response = ask(application(service), route.method, path, headers={**JSON, **headers})

    assert (response.status, told(response)[0]) == (401, "unauthenticated")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("route", PROTECTED, ids=lambda route: f"{route.method} {route.template}")
def test_no_route_answers_without_its_scope(route: Route) -> None:
    """A genuine token for something else is a 403 that names the scope."""
    path = route.template.replace("{session}", "thread-1").replace("{turn_index}", "0")
    service = FakeService(error=AssertionError("asked"))
    response = ask(application(service), route.method, path, headers={**JSON, **bearer(scope="other")})

    assert (response.status, told(response)[0]) == (403, "forbidden")
    assert all(scope in told(response)[1] for scope in route.scopes)


def test_only_health_is_public() -> None:
    """A route that answers everybody is put on this list on purpose."""
    assert {route.template for route in ROUTES if isinstance(route, PublicRoute)} == {
        "/healthz",
        "/openapi.json",
        "/readyz",
    }


def test_without_authentication_everyone_is_the_local_user() -> None:
    """`AUTH=off`: no header is needed."""
    service = FakeService()
    app = Application(authenticator=NoAuth(), service=as_chat(service), log=Log())
    response = ask(app, "POST", TURN, headers=JSON, body=HELLO)

    assert response.status == 200
    assert [(each.tenant_id, each.user_id) for each, _ in service.opened] == [("local", "dev")]


def test_a_deployment_without_either_starts_no_turn() -> None:
    """Neither a secret nor `AUTH=off`: 503, and the operator's log names the setting."""
    error, service, log = ConfigurationError("AUTH_JWT_SECRET", "is not set"), FakeService(), Log()
    app = Application(authenticator=UnconfiguredAuth(error), service=as_chat(service), log=log)
    response = ask(app, "POST", TURN, headers={**JSON, **ANN}, body=HELLO)

    assert (response.status, members(response)["code"]) == (503, "misconfigured")
    assert (service.opened, [str(each) for _, each in log.entries]) == ([], ["AUTH_JWT_SECRET: is not set"])


# Addresses and methods


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/healthz/",
        "/HEALTHZ",
        "//healthz",
        "/healthz\n",
        TURN + "/",
        "/v1/sessions/thread-1/turns",
        "/v2/sessions/thread-1/turns/0",
        "/v1/sessions/a/b/turns/0",
        TURN + "/stream/0",
        "/\ud800",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "BREW"])
def test_any_other_address_is_a_404(method: str, path: str) -> None:
    """A trailing slash makes another address, and no method makes one exist."""
    response = ask(application(FakeService()), method, path, headers=ANN)

    assert (response.status, members(response)["code"]) == (404, "not_found")


@pytest.mark.parametrize(("path", "allow"), [("/healthz", "GET, HEAD, OPTIONS"), (TURN, "GET, HEAD, POST, OPTIONS")])
def test_another_method_is_a_405_that_lists_those_there_are(path: str, allow: str) -> None:
    """And OPTIONS asks for the list."""
    refused = ask(application(FakeService()), "DELETE", path)
    options = ask(application(FakeService()), "OPTIONS", path)

    assert (refused.status, refused.headers["Allow"]) == (405, allow)
    assert (options.status, options.headers["Allow"], options.body) == (204, allow, b"")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", TURN, "/v1/sessions/:/turns/0", "/nowhere"])
def test_head_is_get_without_the_body(path: str) -> None:
    """The same status and headers, whatever the answer."""
    app = application(FakeService(views={"acme": VIEW}))
    got, head = ask(app, "GET", path, headers=ANN), ask(app, "HEAD", path, headers=ANN)

    assert (head.status, head.headers, head.body) == (got.status, got.headers, b"")
    assert got.body != b""


def test_every_row_of_the_table_is_one_of_a_kind() -> None:
    """No route hides another."""
    rows = [(route.method, re.sub(r"\{\w+\}", "{}", route.template)) for route in ROUTES]

    assert len(rows) == len(set(rows))


# Errors


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_is_a_problem_that_tells_no_more_than_it_may(cls: type[ChatTurnError]) -> None:
    """The class's status, code and sentence; in one's own words only what one said oneself."""
    response = post(FakeService(error=raised(cls, WORDS_OF_THE_DATABASE)))
    shown = members(response)

    own_words = issubclass(cls, RequestError)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert (response.status, shown["status"], shown["code"], shown["retryable"]) == (
        cls.status,
        cls.status,
        cls.code,
        cls.retryable,
    )
    assert shown["detail"] == (WORDS_OF_THE_DATABASE if own_words else cls.public)
    assert ("hunter2" in response.body.decode() + str(response.headers)) is own_words
    assert ("Retry-After" in response.headers) is (cls.retryable or cls.status == 503)


def test_our_own_failures_are_logged_and_the_caller_s_are_not() -> None:
    """The log is for whoever can do something about it."""
    for cls in error_classes():
        log, error = Log(), raised(cls, WORDS_OF_THE_DATABASE)
        post(FakeService(error=error), log=log)

        assert [each for _, each in log.entries] == ([error] if cls.status >= 500 else [])


def test_a_bug_is_a_500_with_a_fixed_sentence_and_its_real_exception_in_the_log() -> None:
    """Never raises; never tells."""
    log, bug = Log(), ZeroDivisionError(WORDS_OF_THE_DATABASE)
    response = post(FakeService(error=bug), log=log)

    assert (response.status, members(response)["code"]) == (500, "internal")
    assert members(response)["detail"] == ChatTurnError.public
    assert log.entries == [(f"POST {TURN!r} crashed", bug)]


@given(st.text(), st.none() | st.text())
def test_a_detail_is_always_short_printable_json(message: str, field: str | None) -> None:
    """Whatever is quoted back, no control character and no half character reaches a terminal."""
    told = members(problem(RequestError(message, field=field)))

    assert told["detail"].isprintable()
    assert len(told["detail"]) <= 400
    assert ("field" in told) is (field is not None)


# Health


def test_liveness_asks_nobody() -> None:
    """No token, no database."""
    response = ask(application(FakeService(error=AssertionError("asked"))), "GET", "/healthz")

    assert (response.status, members(response)) == (200, {"status": "ok"})


def test_ready_means_every_check_passed() -> None:
    """Settings, database and schema."""
    response = ask(application(FakeService()), "GET", "/readyz")

    assert response.status == 200
    assert members(response) == {
        "ready": True,
        "checks": [{"name": name, "ok": True} for name in ("settings", "database", "schema")],
    }


@pytest.mark.parametrize(
    ("error", "states", "mend"),
    [
        (SchemaOutdated(WORDS_OF_THE_DATABASE), [True, True, False], "wrangler d1 migrations apply DB"),
        (StoreUnavailable(WORDS_OF_THE_DATABASE), [True, False, None], "log"),
        (StoreError(WORDS_OF_THE_DATABASE), [True, False, None], "log"),
        (ConfigurationError("DB", "is not bound"), [False, None, None], r"\[\[d1_databases\]\]"),
        (
            ConfigurationError("OPENAI_API_KEY", "is not set"),
            [False, None, None],
            "secret put OPENAI_API_KEY",
        ),
        (
            ConfigurationError("PROVIDERS[0].key", "names a secret that is not set", lacks="GROQ_API_KEY"),
            [False, None, None],
            "secret put GROQ_API_KEY",
        ),
        (
            ConfigurationError("PROVIDERS[0].headers", "member 1 names one", lacks="hunter2"),
            [False, None, None],
            "secret put, and the name that stands there",
        ),
        (ConfigurationError("PROVIDERS[0].kind", "must be one"), [False, None, None], "set PROVIDERS under"),
        (ConfigurationError("AI", "is not bound"), [False, None, None], r"declare \[ai\]"),
        (ConfigurationError("BACKEND", "is 'gpt'"), [False, None, None], r"set BACKEND under \[vars\]"),
    ],
)
def test_not_ready_names_the_check_and_what_mends_it(
    error: ChatTurnError, states: list[bool | None], mend: str
) -> None:
    """503, each check on its own, and none of the database's words."""
    response = ask(application(FakeService(error=error)), "GET", "/readyz")
    checks = members(response)["checks"]

    assert (response.status, members(response)["ready"]) == (503, False)
    assert [each["ok"] for each in checks] == states
    [failed] = [each for each in checks if each["ok"] is False]
    assert re.search(mend, failed["mend"])
    assert "hunter2" not in response.body.decode()


def test_settings_that_cannot_be_read_leave_a_worker_that_says_so() -> None:
    """Alive, not ready, no turn; and the setting is named where the operator looks."""
    error, log = ConfigurationError("LEASE_MS", "must be a whole number"), Log()
    app = Application.unconfigured(error, log=log)
    ready = ask(app, "GET", "/readyz")

    assert ask(app, "GET", "/healthz").status == 200
    assert ready.status == 503
    assert members(ready)["checks"][0]["detail"] == str(error)
    for method in ("GET", "POST"):
        refused = ask(app, method, TURN, headers={**JSON, **ANN}, body=HELLO)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "60")
    assert [each for _, each in log.entries] == [error, error]


def test_a_missing_secret_is_told_before_what_the_database_needs() -> None:
    """The first thing to mend comes first, and hides nothing else."""
    authenticator = UnconfiguredAuth(ConfigurationError("AUTH_JWT_SECRET", "is not set"))
    app = Application(authenticator=authenticator, service=as_chat(FakeService(error=SchemaOutdated("old"))), log=Log())
    checks = members(ask(app, "GET", "/readyz"))["checks"]

    assert [each["ok"] for each in checks] == [False, True, False]
    assert "wrangler secret put AUTH_JWT_SECRET" in checks[0]["mend"]


# Anything at all


paths = st.one_of(
    st.text(),
    st.text().map(lambda text: f"/v1/sessions/{text}/turns/0"),
    st.text("0123456789-+%").map(lambda text: f"/v1/sessions/thread-1/turns/{text}"),
    st.just(TURN),
)
header_sets = st.dictionaries(
    st.sampled_from(["authorization", "content-type", "content-length", "content-encoding", "accept"]),
    st.text(),
)
bodies = st.one_of(
    st.binary(),
    st.text().map(lambda text: json.dumps({"message": text}).encode()),
    st.dictionaries(
        st.sampled_from(["message", "model", "metadata", "on_mismatch", "x"]),
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5),
    ).map(lambda each: json.dumps(each).encode()),
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", ""]) | st.text(),
    path=paths,
    headers=header_sets,
    trusted=st.booleans(),
    body=bodies,
)
def test_nothing_that_is_sent_makes_it_fail(
    *, method: str, path: str, headers: dict[str, str], trusted: bool, body: bytes
) -> None:
    """Any method, path, headers and body: no 5xx, no log, and the service sees only what is valid."""
    service, log = FakeService(), Log()
    sent = {**headers, **JSON, **ANN} if trusted else headers
    response = ask(application(service, log=log), method, path, headers=sent, body=body)

    assert response.status < 500
    assert log.entries == []
    assert bool(service.opened) is (response.status == 200 and response.stream is not None)
    for identity, request in service.opened:
        assert trusted
        assert (identity.tenant_id, identity.user_id) == ("acme", "ann")
        assert re.fullmatch(r"[\w.~@-]{1,200}", identity.session_id, re.ASCII)
        assert 0 <= identity.turn_index <= MAX_TURN_INDEX
        assert 0 < len(request.message.strip()) <= MAX_MESSAGE_CHARACTERS
        json.dumps([request.message, request.model, request.metadata], allow_nan=False).encode()
        request.message.encode()


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """408, nothing is opened, and a retry may help; without a limit it is waited for as before."""
    service = FakeService()
    app = replace(application(service), bodies=Bodies(within_s=0.01))

    async def never(_most: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    request = replace(http_request("POST", TURN, headers={**JSON, **ANN}), read=never)
    response = asyncio.run(handle(request, app))

    assert (response.status, members(response)["code"]) == (408, "body_timeout")
    assert "Retry-After" in response.headers
    assert service.opened == []
