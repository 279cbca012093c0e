"""Pages of other origins: only those on the list may read anything, and those may read errors, too."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatturn.errors import ConfigurationError
from chatturn.http import routes
from chatturn.http.application import Application
from chatturn.http.auth import NoAuth
from chatturn.http.cors import Cors, read_origins
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.routes import handle

PAGE = "https://app.example.com"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
RUNS = "/v1/runs"
HTTP = Path(routes.__file__).parent
FOR_BROWSERS_AND_PROXIES = {"x-accel-buffering", "x-content-type-options", "x-vercel-ai-ui-message-stream"}
"""What no script needs."""


def ask(method: str, path: str, headers: Mapping[str, str], *, origins: str = PAGE) -> HttpResponse:
    async def read(_most: int) -> bytes:
        return b""

    app = Application(
        authenticator=NoAuth(),
        service=ConfigurationError("X", "is not set"),
        log=lambda _what, _error: None,
        cors=Cors(read_origins(origins)),
    )
    request = HttpRequest(method=method, path=path, query="", headers=headers, read=read)
    return asyncio.run(handle(request, app))


def cors_headers(response: HttpResponse) -> set[str]:
    return {name for name in response.headers if name.startswith("Access-Control-")}


def test_a_page_on_the_list_may_ask_and_read() -> None:
    """The preflight says what may be sent, the response what may be read."""
    preflight = ask("OPTIONS", RUNS, {"origin": PAGE, **PREFLIGHT})
    response = ask("GET", "/healthz", {"origin": PAGE})

    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    assert preflight.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST, PATCH, DELETE"
    for name in ("authorization", "content-type", "last-event-id", "idempotency-key", "x-run-id", "traceparent"):
        assert name in preflight.headers["Access-Control-Allow-Headers"]
    assert preflight.headers["Access-Control-Max-Age"] == "7200"
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, PAGE)
    for name in ("x-workflow-run-id", "x-turn-attempt", "x-turn-replayed", "retry-after", "etag"):
        assert name in response.headers["Access-Control-Expose-Headers"]


def test_a_page_may_read_whatever_header_is_this_service_s_own() -> None:
    """Also what OpenAI's SDK reads before it tries again, and the code of an error that is a sentence."""
    exposed = ask("GET", "/healthz", {"origin": PAGE}).headers["Access-Control-Expose-Headers"].split(", ")
    sent = {name.lower() for each in HTTP.glob("*.py") for name in re.findall('"(X-[A-Za-z-]+)"', each.read_text())}

    assert {"x-should-retry", "x-error-code"} <= sent - FOR_BROWSERS_AND_PROXIES <= set(exposed)


@pytest.mark.parametrize("origins", [PAGE, f"*, {PAGE}, https://app.example.com/path, null"])
def test_where_the_settings_cannot_be_read_the_same_pages_may_read_why(origins: str) -> None:
    """Those that are on the list, and no others: a wrong entry allows nobody."""

    async def read(_most: int) -> bytes:
        return b""

    app = Application.unconfigured(ConfigurationError("X", "is not set"), log=lambda *_: None, origins=origins)
    answers = {}
    for origin in (PAGE, "https://evil.example.com", "null", "*"):
        request = HttpRequest(method="GET", path=RUNS, query="", headers={"origin": origin}, read=read)
        answers[origin] = asyncio.run(handle(request, app))
    preflight = HttpRequest(method="OPTIONS", path=RUNS, query="", headers={"origin": PAGE, **PREFLIGHT}, read=read)

    assert {503} == {response.status for response in answers.values()}
    assert [PAGE] == [origin for origin, response in answers.items() if cors_headers(response)]
    assert PAGE == answers[PAGE].headers["Access-Control-Allow-Origin"]
    assert 204 == asyncio.run(handle(preflight, app)).status


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("PUT", RUNS, 405), ("GET", RUNS, 503)]
)
def test_errors_can_be_read_as_well(method: str, path: str, status: int) -> None:
    """Otherwise the page learns only that something failed."""
    response = ask(method, path, {"origin": PAGE})

    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (status, PAGE)
    assert "retry-after" in response.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example.com", "https://app.example.com.evil.org", "http://app.example.com", PAGE + ":8443", "null"],
)
def test_no_other_page_is_let_in(origin: str) -> None:
    """An origin is compared whole."""
    preflight = ask("OPTIONS", RUNS, {"origin": origin, **PREFLIGHT})
    response = ask("GET", "/healthz", {"origin": origin})

    assert (cors_headers(preflight), cors_headers(response)) == (set(), set())


def test_what_a_cache_keeps_is_kept_for_each_origin() -> None:
    """Also a response to nobody's page, which a cache might else give to one."""
    assert ask("GET", "/healthz", {}).headers["Vary"] == "Origin"
    assert ask("GET", "/healthz", {"origin": PAGE}).headers["Vary"] == "Origin"


def test_cookies_are_never_asked_for() -> None:
    """No response says that a page may send credentials of the browser's."""
    for method, headers in (("OPTIONS", PREFLIGHT), ("GET", {})):
        response = ask(method, RUNS, {"origin": PAGE, **headers})
        assert "Access-Control-Allow-Credentials" not in response.headers


def test_without_a_list_nothing_is_said() -> None:
    """OPTIONS then lists the methods, as ever."""
    preflight = ask("OPTIONS", RUNS, {"origin": PAGE, **PREFLIGHT}, origins="")

    assert preflight.headers == {"Allow": "GET, HEAD, OPTIONS"}
    assert "Vary" not in ask("GET", "/healthz", {"origin": PAGE}, origins="").headers


def test_the_list_is_read() -> None:
    """Blanks and empty places do not matter; schemes of apps are origins."""
    text = " https://a.example , http://localhost:3000,,capacitor://localhost, http://[::1]:3000 "
    assert read_origins(text) == {
        "https://a.example",
        "http://localhost:3000",
        "capacitor://localhost",
        "http://[::1]:3000",
    }


@pytest.mark.parametrize("text", ["*", "https://*.example.com", "https://a.example/", "a.example", "null", "HTTPS://A"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    """`*` too: it would let every page call a Worker without authentication."""
    with pytest.raises(ConfigurationError, match="CORS_ORIGINS"):
        read_origins(f"https://b.example,{text}")
