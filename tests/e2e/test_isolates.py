"""What an isolate does once, at its first request: it imports nothing any more, and a setting that lacks stays told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from products import PRODUCTS
from tests.support.client import token
from tests.support.collector import Collector
from tests.support.http import http
from tests.support.together import running_isolates
from tests.support.upstream import Upstream
from tests.support.worker import DEFAULTS, Worker

WATCHED: Final = Path(__file__).resolve().parent.parent / "worker" / "watched" / "watched.py"
PRIVATE: Final = "sk-live-0123456789-meant-for-another-setting"
PROBES: Final = 5_000
SECONDS: Final = 400.0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def isolates(collector: Collector, upstream: Upstream) -> Iterator[Worker]:
    """One for each product, and some that are not configured."""
    model = {"BACKEND": "openai", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-of-the-tests", "MODEL": "m"}
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    variables = {product: {**DEFAULTS, **model, **traced, "PRODUCT": product} for product in PRODUCTS}
    variables["agent"] |= {"BACKEND": "echo"}  # which calls the tools that the message names
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
    """Not the first turn, its hooks, tools and traces; so all that they need is in the platform's snapshot."""
    address = f"v1/sessions/{product}/turns/0"
    turn = ask(isolates, product, address, json={"message": "add_note, please"})
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


@pytest.mark.parametrize("path", ["healthz", "readyz"])
@pytest.mark.parametrize("isolate", ["without_a_secret", "with_a_wrong_address"])
def test_a_worker_that_lacks_a_setting_lives_on(isolates: Worker, isolate: str, path: str) -> None:
    """However often it is probed, and it answers alike; what it was set to stays private."""
    answers = ask(isolates, isolate, f"often/{PROBES}/{path}").json()

    assert [200 if path == "healthz" else 503] == [answer["status"] for answer in answers]
    assert PRIVATE not in str(answers)


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
