"""What operators meet: disconnect policies, traces, a database that goes away, settings that are missing."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import StartWorker
from tests.support.client import Client, answer_of, lines_of
from tests.support.collector import Collector
from tests.support.http import http
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import SECRET, Worker, running_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Whoever gets the traces."""
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The scripted model."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def worker(upstream: Upstream, collector: Collector) -> Iterator[Worker]:
    """A Worker with that model, which sends its traces there, and ends a turn when its client goes away."""
    with running_worker(
        variables={
            "BACKEND": "openai",
            "MODEL": "scripted-1",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "sk-of-the-tests",
            "ON_DISCONNECT": "cancel",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=chat",
            "OTEL_SERVICE_NAME": "chat-tests",
        }
    ) as worker:
        yield worker


def test_on_disconnect_cancel_closes_the_model_at_once(worker: Worker, upstream: Upstream) -> None:
    """The client leaves; the upstream sees its socket closed long before its script ends; what was said is kept."""
    upstream.on("leaving early", Script(text=" ".join(["word"] * 600), pause_s=0.1))
    client = Client(worker.url)
    with client.stream("cancelled", "leaving early") as response:
        lines = lines_of(response)
        for _ in range(3):
            next(lines)
    [call] = upstream.calls("leaving early")

    assert call.wait_closed(15), "the script takes a minute"
    assert call.answered_at is None
    replay = client.settle("cancelled", "leaving early")
    assert ("session.run.cancelled", "disconnected") == (replay[-1]["type"], replay[-1]["data"]["reason"])
    assert 2 <= answer_of(replay).count("word") < 300


def test_a_turns_trace_goes_out_after_its_response(worker: Worker, upstream: Upstream, collector: Collector) -> None:
    """One POST of one trace: the turn, its attempt, and below it every try of the model, which is told of it."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    upstream.on("traced", Script(status=500, body="SECRET"), Script(text="hello"))
    client = Client(worker.url)
    client.headers["traceparent"] = f"00-{trace}-b7ad6b7169203331-01"
    client.post("traced", "traced")
    sent = collector.about(trace)
    spans = sent["body"]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        by_name.setdefault(span["name"].split()[0], []).append(span)
    [turn], [attempt], tries = by_name["invoke_agent"], by_name["attempt"], by_name["chat"]

    assert ("/v1/traces", "chat") == (sent["path"], sent["headers"]["x-team"])
    assert "chat-tests" in json.dumps(sent["body"]["resourceSpans"][0]["resource"])
    assert {trace} == {span["traceId"] for span in spans}
    assert "b7ad6b7169203331" == turn["parentSpanId"]
    assert turn["spanId"] == attempt["parentSpanId"]
    assert [attempt["spanId"]] * 2 == [span["parentSpanId"] for span in tries]
    assert 2 == next(span for span in tries if span["status"].get("code"))["status"]["code"]
    assert "gen_ai.usage.output_tokens" in json.dumps(tries)
    assert [f"00-{trace}-{span['spanId']}-01" for span in tries] == [
        call.headers["traceparent"] for call in upstream.calls("traced")
    ]
    assert "SECRET" not in json.dumps(sent["body"])


@pytest.mark.parametrize(
    ("status", "headers", "reply"),
    [
        (429, {"retry-after": "3600"}, b"slow down"),
        (413, {}, b"too large"),
        (500, {}, b"<html>"),
        (200, {}, b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'),
        (200, {"content-encoding": "gzip"}, b"\x00garbage"),
    ],
    ids=["429", "413", "500", "partial", "garbage"],
)
def test_a_failing_collector_changes_nothing_for_the_client(
    worker: Worker, collector: Collector, status: int, headers: dict[str, str], reply: bytes
) -> None:
    """What becomes of the trace is not the client's business, and the log says it once."""
    collector.status, collector.headers, collector.reply = status, headers, reply
    session = f"untouched-{status}-{len(reply)}"
    lines = Client(worker.url).post(session)
    collector.about(f":{session}:")
    if "content-encoding" not in headers:
        reason = "rejected" if status == 200 else f"status_{status}"
        worker.logged('"event":"telemetry.dropped"', f'"reason":"{reason}"', seconds=20)
    collector.status, collector.headers, collector.reply = 200, {}, b"{}"

    assert "session.run.completed" == lines[-1]["type"]


def test_a_hanging_collector_changes_nothing_for_the_client(worker: Worker, collector: Collector) -> None:
    """The response ends while the collector still keeps the trace's sender waiting."""
    collector.answering.clear()
    lines = Client(worker.url).post("unhindered")
    collector.about(":unhindered:")
    collector.answering.set()

    assert "session.run.completed" == lines[-1]["type"]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Keep every other writer out of a SQLite file."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_a_database_that_goes_away_mid_turn_costs_no_answer(worker: Worker, upstream: Upstream) -> None:
    """The client gets its terminal line with ``store_unavailable``; the retry gets the answer without a second call."""
    upstream.on("outage", Script(text="a b c d e f", hold_after=3))
    client = Client(worker.url)
    with client.stream("outage", "outage") as response:
        lines = lines_of(response)
        next(lines)
        with locked(worker.d1_path()):
            upstream.release("outage")
            told = [json.loads(line) for line in lines]
    answer = client.settle("outage", "outage", seconds=90)

    assert ("session.run.failed", "store_unavailable") == (told[-1]["type"], told[-1]["data"]["code"])
    assert "a b c d e f" == answer_of(answer)
    assert 1 == len(upstream.calls("outage"))


def test_a_database_that_is_away_refuses_a_turn_before_its_first_byte(worker: Worker) -> None:
    """503 with Retry-After, and the same request works when it is back."""
    client = Client(worker.url)
    with locked(worker.d1_path()):
        status, problem = client.problem("away")

    assert (503, "store_unavailable", True) == (status, problem["code"], problem["retryable"])
    assert "session.run.completed" == client.post("away")[-1]["type"]


def readyz(worker: Worker) -> tuple[int, str]:
    """Ask whether the Worker is ready."""
    response = http.get(worker.url + "/readyz")
    return response.status_code, response.text


def test_readyz_names_what_is_missing(start_worker: StartWorker) -> None:
    """A schema that was never applied, and the command that mends it; no turn is started meanwhile."""
    worker = start_worker(schema=None)
    status, text = readyz(worker)

    assert 503 == status
    assert "migrations apply" in text
    assert (503, "schema_outdated") == (Client(worker.url).problem("x")[0], Client(worker.url).problem("x")[1]["code"])


@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        ({"AUTH_JWT_SECRET": ""}, "AUTH_JWT_SECRET"),
        ({"BACKEND": "openai"}, "OPENAI_API_KEY"),
        ({"PRODUCT": "nothing"}, "PRODUCT"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_setting_is_named_and_no_turn_starts(
    start_worker: StartWorker, variables: dict[str, str], setting: str
) -> None:
    """`/readyz` says which one; a request for a turn is refused without it."""
    worker = start_worker(variables=variables)
    status, text = readyz(worker)
    refused = Client(worker.url).problem("x")

    assert (503, True) == (status, setting in text)
    assert (503, "misconfigured") == (refused[0], refused[1]["code"])
    assert SECRET not in text
    assert [] == worker.sql("SELECT * FROM durable_runs")
