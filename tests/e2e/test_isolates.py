"""What an isolate does once, at its first request: it imports nothing any more, and a setting that lacks stays told."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from chatturn.http.application import PublicRoute, Route
from chatturn.http.routes import ROUTES
from products import PRODUCTS
from tests.support.client import token
from tests.support.collector import Collector
from tests.support.http import http
from tests.support.together import running_isolates
from tests.support.upstream import Upstream
from tests.support.worker import DEFAULTS, Worker

pytestmark = pytest.mark.slow

WATCHED: Final = Path(__file__).resolve().parent.parent / "worker" / "watched" / "watched.py"
PRIVATE: Final = "sk-live-0123456789-meant-for-another-setting"
PROBES: Final = 5_000
SECONDS: Final = 400.0
BODIES: Final = {
    "/v1/sessions/{session}/turns/{turn_index}": {"message": "hello"},
    "/v1/ai-sdk/chat": {
        "id": "by-the-ai-sdk",
        "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}],
    },
    "/v1/chat/completions": {"model": "default", "messages": [{"role": "user", "content": "hello"}]},
}
"""What these routes take; the others are asked for what is not there, or in vain."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


class _Notes(BaseHTTPRequestHandler):
    """Takes notes."""

    taken: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.taken.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture(scope="module")
def notes() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Notes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def isolates(collector: Collector, upstream: Upstream, notes: str) -> Iterator[Worker]:
    """One for each product, and some that are not configured."""
    model = {"BACKEND": "openai", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-of-the-tests", "MODEL": "m"}
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    variables = {product: {**DEFAULTS, **model, **traced, "PRODUCT": product} for product in PRODUCTS}
    # Echo calls the tools that the message names, and this one sends what it is given, synchronously.
    variables["agent"] |= {"BACKEND": "echo", "NOTES_URL": notes}
    variables |= {
        "without_a_secret": {"BACKEND": "echo"},
        "with_a_wrong_address": {**DEFAULTS, **model, "OPENAI_BASE_URL": PRIVATE},
        "with_no_such_product": {**DEFAULTS, "PRODUCT": PRIVATE},
    }
    with running_isolates(variables, entry="watched", mounts={"watched.py": WATCHED}) as worker:
        yield worker


def ask(worker: Worker, isolate: str, path: str, **arguments: Any) -> Any:
    headers = {"x-isolate": isolate, "Authorization": f"Bearer {token(scope='turns operate')}"}
    method = "POST" if "json" in arguments else "GET"
    return http.request(method, f"{worker.url}/{path}", headers=headers, timeout=SECONDS, **arguments)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_first_requests_import_nothing(isolates: Worker, collector: Collector, product: str) -> None:
    """
    Not the first turn, its hooks, tools and traces; so all that they need is in the platform's snapshot.

    What is seen here is what these requests run, by whatever it is imported; so is, at the end of every Worker of
    these tests, what all others run (`late_imports`).  What no test runs is read: see `test_nothing_is_imported_late`.
    """
    address = f"v1/sessions/{product}/turns/0"
    turn = ask(isolates, product, address, json={"message": 'use add_note {"text": "milk"}'})
    traced = collector.about(f"chat:acme:{product}:0")
    others = (
        "readyz",
        "openapi.json",
        address,
        f"{address}/stream",
        f"v1/sessions/{product}/messages",
        "v1/usage",
        "v1/runs",
    )
    statuses = {path: ask(isolates, product, path).status_code for path in others}

    assert "session.run.completed" == json.loads(turn.text.splitlines()[-1])["type"]
    assert traced
    assert dict.fromkeys(others, 200) == statuses
    assert [] == ask(isolates, product, "imported").json()
    assert product != "agent" or _Notes.taken == ["/add_note"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
def test_no_route_imports_anything(isolates: Worker, route: Route | PublicRoute) -> None:
    """Whatever a client asks first."""
    path = re.sub(r"\{\w+\}", "0", route.template).removeprefix("/")
    answers = [ask(isolates, "gtm", path)]
    if route.method == "POST":
        answers = [ask(isolates, "gtm", path, json=body) for body in ({}, BODIES.get(route.template, {"data": 1}))]

    assert [] == [
        answer.text for answer in answers if answer.status_code >= 500 and "files_not_kept" not in answer.text
    ]
    assert route.template not in BODIES or answers[-1].status_code == 200
    assert [] == ask(isolates, "gtm", "imported").json()


@pytest.mark.parametrize("path", ["healthz", "readyz"])
@pytest.mark.parametrize("isolate", ["without_a_secret", "with_a_wrong_address"])
def test_a_worker_that_lacks_a_setting_lives_on(isolates: Worker, isolate: str, path: str) -> None:
    """However often it is probed, and it answers alike; what it was set to stays private."""
    answers = ask(isolates, isolate, f"often/{PROBES}/{path}").json()
    made = ask(isolates, isolate, "made").json()

    assert [200 if path == "healthz" else 503] == [answer["status"] for answer in answers]
    assert PRIVATE not in str(answers)
    assert {"isolates": 1, "loops_wrapped": False} == made  # Either one alone would keep it alive for so long.


@pytest.mark.parametrize(
    ("isolate", "told"),
    [
        ("without_a_secret", "AUTH_JWT_SECRET: is not set"),
        ("with_a_wrong_address", "OPENAI_BASE_URL: must be an address of a server"),
        ("with_no_such_product", "PRODUCT: must be one of agent, assistant, gtm, legal"),
    ],
)
def test_what_is_wrong_is_named_where_the_operator_looks(isolates: Worker, isolate: str, told: str) -> None:
    """And is not shown."""
    ready = ask(isolates, isolate, "readyz")

    assert ready.json()["checks"][0]["detail"].startswith(told)
    assert PRIVATE not in ready.text


def test_a_cancelled_timer_that_fires_after_all_calls_nobody_too_early(isolates: Worker) -> None:
    """Its function may be another timer's by then, whose time has not come."""
    seen = ask(isolates, "gtm", "late_timer").json()

    assert seen["shared"]
    assert ["second"] == list(seen["called"])
    assert 0.19 < seen["called"]["second"] < 0.39


def test_timers_of_requests_that_are_over_are_forgotten(isolates: Worker) -> None:
    """The platform drops them, and nobody is told: functions whose time is long over are used again."""
    seen = ask(isolates, "gtm", "dropped_timers/5000").json()

    assert 0 == seen["called"]
    assert seen["functions"] < 400
