"""One turn with a retry, a tool call, a worker that is killed and a takeover, as whoever collects the telemetry sees it."""

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

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
QUESTION = "remember the milk"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model that is busy first, then keeps a note, then answers so slowly that its worker can be killed."""
    with Upstream() as upstream:
        add = ToolCall(id="call_0", name="add_note", arguments=json.dumps({"text": "milk"}))
        asks = Script(text="I do it.", tool_calls=(add,), finish_reason="tool_calls")
        slow = Script(text="It is kept.", hold_after=2)
        upstream.on(QUESTION, Script(status=503, body="busy"), asks)
        upstream.on('{"kept":"milk"}', slow, replace(slow, hold_after=None))
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
            if "It" in text.rpartition("tool.result")[2]:
                break
        time.sleep(0.6)  # so that the checkpoints and the log are stored
        worker.kill()
    worker.restart()
    return answer_of(client.settle("notes", QUESTION)[-8:])


def test_a_turn_is_one_connected_trace(worker: Worker, collector: Collector) -> None:
    """Every span but the turn's has its parent there; the takeover shows what was replayed and what was done anew."""
    answer = interrupted_turn(worker)
    collector.about('"attempt 2"')
    spans = collector.spans(TRACE)
    ids = {span["spanId"]: span for span in spans}
    names = [span["name"] for span in spans]
    steps = {
        span["name"]: span["attributes"]["chatturn.step.replayed"] for span in spans if span["name"].startswith("step")
    }

    assert answer.endswith("It is kept.")
    assert len(ids) == len(spans)
    assert [("invoke_agent agent", CALLER)] == [
        (span["name"], span["parentSpanId"]) for span in spans if span["parentSpanId"] not in ids
    ]
    assert {"attempt 1", "attempt 2", "chat scripted-1", "batch D1"} <= set(names)
    assert {"step model:1": True, "step model:2": False} == {k: v for k, v in steps.items() if "model" in k}
    assert [True] == [replayed for name, replayed in steps.items() if "tool:add_note" in name]


@pytest.mark.usefixtures("worker")
def test_metrics_come_too(collector: Collector) -> None:
    """The takeover is counted, tokens are distributed, and OpenTelemetry could read all of it."""
    metrics = json.dumps(collector.wait_for(lambda: collector.bodies("metrics"), "metrics"))

    for name in ("chatturn.turns", "chatturn.takeovers", "gen_ai.client.token.usage"):
        assert name in metrics
