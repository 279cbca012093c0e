"""A turn whose worker is killed, then a retry and a tool call, as whoever collects the telemetry sees it."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest

from tests.support.client import Client, answer_of
from tests.support.collector import Collector
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, ToolCall
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
QUESTION = "remember the milk"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model that is slow enough for its worker to be killed, then busy, then keeps a note and answers."""
    with Upstream() as upstream:
        add = ToolCall(id="call_0", name="add_note", arguments=json.dumps({"text": "milk"}))
        asks = Script(text="I do it.", tool_calls=(add,), finish_reason="tool_calls")
        upstream.on(QUESTION, replace(asks, hold_after=2), Script(status=503, body="busy"), asks)
        upstream.on('{"kept":"milk"}', Script(text="It is kept."))
        yield upstream


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Whoever gets the telemetry."""
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def worker(upstream: Upstream, collector: Collector) -> Iterator[Worker]:
    """The agent, which sends its telemetry there."""
    variables = {
        "PRODUCT": "agent",
        "PROJECT_ID": "agent",
        "BACKEND": "openai",
        "MODEL": "scripted-1",
        "OPENAI_BASE_URL": upstream.url,
        "OPENAI_API_KEY": "sk-of-the-tests",
        "LEASE_MS": "2000",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
    }
    with running_worker(variables=variables) as worker:
        yield worker


def interrupted_turn(worker: Worker) -> str:
    """Ask, kill the worker in the middle of the answer, and ask again; return the answer."""
    client = Client(worker.url)
    client.headers["traceparent"] = f"00-{TRACE}-{CALLER}-01"
    with suppress(httpx.HTTPError), client.stream("notes", QUESTION) as response:
        for text in response.iter_text():
            if "delta" in text:
                break
        time.sleep(0.6)  # so that what was said is stored
        worker.kill()
    worker.restart()
    return answer_of(client.settle("notes", QUESTION))


def test_a_turn_is_one_connected_trace(worker: Worker, collector: Collector) -> None:
    """Every span but the turn's has its parent there; the retry, the tool call and the lost attempt are where they belong."""
    answer = interrupted_turn(worker)
    collector.about('"attempt 2"')
    spans = collector.spans(TRACE)
    ids = {span["spanId"]: span for span in spans}
    above = [(span["name"], ids[span["parentSpanId"]]["name"]) for span in spans if span["parentSpanId"] in ids]
    tries = [span.get("status") for span in spans if span["name"] == "chat scripted-1"]
    tool = next(name for name, _ in above if name.startswith("step tool:add_note"))

    assert answer.endswith("It is kept.")
    assert len(ids) == len(spans)
    assert [("invoke_agent agent", CALLER)] == [
        (span["name"], span["parentSpanId"]) for span in spans if span["parentSpanId"] not in ids
    ]
    assert [{"code": 2}, None, None] == tries
    assert {
        ("attempt 1", "invoke_agent agent"),
        ("attempt 2", "invoke_agent agent"),
        ("batch D1", "attempt 2"),
        ("step model:1", "attempt 2"),
        ("chat scripted-1", "step model:1"),
        (tool, "attempt 2"),
        ("execute_tool add_note", tool),
        ("chat scripted-1", "step model:2"),
    } <= set(above)


@pytest.mark.usefixtures("worker")
def test_metrics_come_too(collector: Collector) -> None:
    """The takeover is counted, tokens are distributed, and OpenTelemetry could read all of it."""
    metrics = json.dumps(collector.wait_for(lambda: collector.bodies("metrics"), "metrics"))

    for name in ("chatturn.turns", "chatturn.takeovers", "gen_ai.client.token.usage"):
        assert name in metrics
