"""One trace a turn, over all who run it, and what is counted of it: real turns over SQLite, in virtual time."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import BackendRejected
from chatturn.events import text_delta, usage_event
from chatturn.telemetry.content import content_text
from chatturn.telemetry.redaction import REDACTED
from chatturn.telemetry.spans import SpanRecorder
from chatturn.telemetry.w3c import parse_traceparent, sampled_at
from tests.support.faults import FaultyDatabase
from tests.support.isolates import Isolate
from tests.support.telemetry import Collected, Logged, fixed_telemetry
from tests.support.turns import Desk, Product, open_sqlite
from tests.turns.test_agent import Agent, Model

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SHORT = {"LEASE_MS": "1000"}


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


@pytest.fixture
def collector() -> Collected:
    """Whoever gets the telemetry."""
    return Collected()


def isolate(database: Any, hooks: Any, collector: Any, settings: Any = None, **others: Any) -> Isolate:
    """An isolate that sends its telemetry to *collector*."""
    telemetry = fixed_telemetry(collector, **(settings or {}))
    return Isolate(database, hooks, telemetry=telemetry, settings=SHORT, **others)


def tree(spans: list[dict[str, Any]]) -> dict[str, str | None]:
    """Return each span's name with its parent's; a parent that is not there has no name."""
    names = {span["spanId"]: span["name"] for span in spans}
    assert len(names) == len(spans), "a span was sent twice"
    return {span["name"]: names.get(span.get("parentSpanId", "")) for span in spans}


async def taken_over(database: Any, collector: Any, hooks: Any, **headers: Any) -> list[dict[str, Any]]:
    """Let a worker die in the middle of a turn, another take it over, and a third request replay it."""
    doomed = isolate(database, Product(text_delta("a"), 1_000.0), collector)
    await doomed.ask("POST", body={"message": "hi"}, **headers)
    await asyncio.sleep(0.5)
    await doomed.kill()
    await asyncio.sleep(2)
    survivor = isolate(database, hooks, collector)
    await (await survivor.post()).lines()
    return await (await survivor.post()).lines()


async def test_a_takeover_and_a_replay_go_on_with_the_turns_trace(database: Any, collector: Collected) -> None:
    """Two isolates and three requests make one tree; what links them says why."""
    lines = await taken_over(database, collector, Product(text_delta("b")))
    spans = [span for span in collector.spans if span["name"] != "batch D1"]
    by_name = {span["name"]: span for span in spans}

    assert lines[-1]["data"]["replayed"]
    assert {
        "invoke_agent chatturn": None,
        "attempt 1": "invoke_agent chatturn",
        "attempt 2": "invoke_agent chatturn",
        "replay": "invoke_agent chatturn",
    } == tree(spans)
    assert 1 == len({span["traceId"] for span in collector.spans})
    [takeover], [replay] = by_name["attempt 2"]["links"], by_name["replay"]["links"]
    assert [by_name["attempt 1"]["spanId"], by_name["attempt 2"]["spanId"]] == [takeover["spanId"], replay["spanId"]]
    assert ["takeover", "replay"] == [link["attributes"][0]["value"]["stringValue"] for link in (takeover, replay)]
    assert ("lease_lapsed", "lost") == (
        by_name["attempt 1"]["attributes"]["error.type"],
        by_name["attempt 1"]["attributes"]["chatturn.turn.outcome"],
    )
    assert "status" not in by_name["attempt 2"]
    assert by_name["attempt 1"]["startTimeUnixNano"] < by_name["attempt 2"]["startTimeUnixNano"]


async def test_the_turn_belongs_below_whoever_began_it(database: Any, collector: Collected) -> None:
    """Even where another worker sends its span; who asked later is linked."""
    await taken_over(database, collector, Product(text_delta("b")), traceparent=CALLER)
    await (await isolate(database, Product(), collector).ask("POST", body={"message": "hi"}, traceparent=OTHER)).lines()
    turn, replay = collector.named("invoke_agent chatturn"), collector.spans[-1]

    assert {CALLER[3:35]} == {span["traceId"] for span in collector.spans}
    assert "00f067aa0ba902b7" == turn["parentSpanId"]
    assert (OTHER[3:35], OTHER[36:52]) == (replay["links"][-1]["traceId"], replay["links"][-1]["spanId"])


async def test_every_span_of_an_agents_turn_has_its_place(database: Any, collector: Collected) -> None:
    """Model steps with their calls, tool steps with their tries, and the database beside them."""
    model = Model([("note", {"text": "SECRET words"})], "Done.")
    await (await isolate(database, Agent(), collector, backend=model.backend()).post("SECRET question")).lines()
    spans = collector.spans
    names = {span["spanId"]: span["name"] for span in spans}
    parents = [(span["name"], names.get(span.get("parentSpanId", ""))) for span in spans]
    steps = [name for name, parent in parents if parent == "attempt 1" and name.startswith("step")]

    assert [("step model:1"), next(s for s in steps if "tool" in s), "step model:2"] == steps
    assert {"execute_tool note": steps[1]} == {n: p for n, p in parents if n.startswith("execute_tool")}
    assert ("batch D1", "attempt 1") in parents
    assert ("batch D1", "step model:1") in parents
    assert [name for name, parent in parents if parent is None] == ["invoke_agent chatturn"]
    assert "SECRET" not in str([request.body for request in collector.requests])


async def test_a_retry_after_a_failure_goes_on_with_its_trace(database: Any, collector: Collected) -> None:
    """The failed attempt sends the turn's span; the one after it does not send it again."""
    broken = Product(BackendRejected("no", backend="openai", upstream_status=400))
    await (await isolate(database, broken, collector).post()).lines()
    await (await isolate(database, Product(), collector).post()).lines()
    spans = [span for span in collector.spans if span["name"] != "batch D1"]

    assert ["attempt 1", "invoke_agent chatturn", "attempt 2"] == [span["name"] for span in spans]
    assert 1 == len({span["traceId"] for span in spans})
    assert 2 == spans[1]["status"]["code"]
    assert spans[0]["spanId"] == spans[2]["links"][0]["spanId"]


async def test_a_turn_that_is_superseded_begins_another_trace(database: Any, collector: Collected) -> None:
    """Another question is another story."""
    await (await isolate(database, Product(), collector).post()).lines()
    await (await isolate(database, Product(), collector).post("something else", on_mismatch="supersede")).lines()
    roots = [span for span in collector.spans if span["name"] == "invoke_agent chatturn"]

    assert 2 == len({root["traceId"] for root in roots})
    assert all("links" not in root for root in roots)


async def test_what_is_not_sampled_is_sent_if_it_fails(database: Any, collector: Collected) -> None:
    """With a share of nothing, a turn that goes well leaves only its metrics; one that fails is whole."""
    none = {"OTEL_TRACES_SAMPLER_ARG": "0"}
    await (await isolate(database, Product(), collector, none).post()).lines()
    quiet = [request.url for request in collector.requests]
    broken = Product(BackendRejected("no", backend="openai", upstream_status=400))
    await (
        await isolate(database, broken, collector, none).ask("POST", "/v1/sessions/s/turns/0", {"message": "hi"})
    ).lines()

    assert ["https://otel.example/base/v1/metrics"] == quiet
    assert {"attempt 1", "invoke_agent chatturn", "batch D1"} == {span["name"] for span in collector.spans}


async def test_a_takeover_is_kept_whatever_is_sampled(database: Any, collector: Collected) -> None:
    """A lost worker is a failure, and its turn is shown whole, from its beginning."""
    await taken_over(database, collector, Product(text_delta("b")), traceparent=CALLER[:-1] + "0")

    assert {"attempt 1", "attempt 2", "invoke_agent chatturn", "batch D1"} == {s["name"] for s in collector.spans}


@pytest.mark.parametrize(("flags", "kept"), [("00", False), ("01", True)])
async def test_the_callers_decision_comes_first(database: Any, collector: Collected, flags: str, kept: bool) -> None:
    """Whatever the share: a trace is kept or left as a whole."""
    settings = {"OTEL_TRACES_SAMPLER_ARG": "0" if kept else "1"}
    one = isolate(database, Product(), collector, settings)
    await (await one.ask("POST", body={"message": "hi"}, traceparent=CALLER[:-2] + flags)).lines()

    assert kept == bool(collector.spans)


def test_the_share_is_of_trace_ids() -> None:
    """The same id is kept or left wherever it is seen, and about as many are kept as were asked for."""
    ids = [f"{n * 0x9E3779B97F4A7C15 % 2**128:032x}" for n in range(1, 1_001)]

    assert 200 < sum(sampled_at(0.25, each) for each in ids) < 300
    assert {each for each in ids if sampled_at(0.1, each)} <= {each for each in ids if sampled_at(0.25, each)}
    assert (0, 1_000) == (sum(sampled_at(0, each) for each in ids), sum(sampled_at(1, each) for each in ids))


async def test_nothing_is_made_or_stored_where_nobody_listens(database: Any) -> None:
    """No statement, no column, no header: a turn is as it was."""
    counted = FaultyDatabase(database)
    product = Product()
    desk = Desk(counted, product)
    await desk.run()
    batches = counted.batches
    [row] = await desk.rows("SELECT trace_id, traceparent, caller_span_id, traced_by FROM chat_turns")

    assert (None, None, None, None) == row
    assert 2 == batches
    assert product.calls[0].traceparent is None


async def test_a_traced_turn_takes_no_further_round_trip(database: Any, collector: Collected) -> None:
    """What is stored of the trace goes with what is stored anyway."""
    counted = FaultyDatabase(database)
    await (await isolate(counted, Product(), collector).post()).lines()
    fresh, counted.batches = counted.batches, 0
    await (await isolate(counted, Product(), collector).post()).lines()

    assert (2, 1) == (fresh, counted.batches)


async def test_hooks_and_models_are_told_whose_trace_it_is(database: Any, collector: Collected) -> None:
    """The product's model call is below the attempt; a tool's is below its own span."""
    product = Product()
    await (await isolate(database, product, collector).post()).lines()
    told = parse_traceparent(product.calls[0].traceparent)

    assert told is not None
    assert collector.named("attempt 1")["spanId"] == told.span_id


async def test_content_is_shown_where_it_is_asked_for(database: Any, collector: Collected) -> None:
    """What users, models and tools say, without what looks like a key."""
    asked = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    model = Model([("note", {"text": "milk sk-abcdefghijklmn"})], "Done.")
    one = isolate(database, Agent(), collector, asked, backend=model.backend())
    await (await one.post("remember the milk")).lines()
    turn, tool = collector.named("invoke_agent chatturn"), collector.named("execute_tool note")

    assert (
        '[{"role": "user", "parts": [{"type": "text", "content": "remember the milk"}]}]'
        == (turn["attributes"]["gen_ai.input.messages"])
    )
    assert "Done." in turn["attributes"]["gen_ai.output.messages"]
    assert '{"text": "milk [redacted]"}' == tool["attributes"]["gen_ai.tool.call.arguments"]
    assert "sk-abcdefghijklmn" not in str([request.body for request in collector.requests])


@pytest.mark.parametrize("text", ["milk", '"milk"', "[" * 100_000, '{"a": [1, null]}'])
def test_what_is_called_secret_is_not_shown_inside_a_text(text: str) -> None:
    """Models and tools say JSON as text; what is none is shown as it is, and nothing that is said is an error."""
    function = {"name": "login", "arguments": json.dumps({"password": "hunter2"})}
    said = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": json.dumps({"result": {"access_token": "hunter3"}})},
    ]
    shown = json.loads(content_text(said))

    assert {"type": "tool_call", "id": "c", "name": "login", "arguments": {"password": REDACTED}} == (
        shown[0]["parts"][0]
    )
    assert {"type": "tool_call_response", "id": "c", "response": {"result": {"access_token": REDACTED}}} == (
        shown[1]["parts"][0]
    )
    assert content_text([{"role": "tool", "tool_call_id": "c", "content": text}])


@pytest.mark.parametrize(
    "said",
    [
        [{"role": "assistant", "tool_calls": "abc"}],
        [{"role": "assistant", "tool_calls": [{"function": None}]}],
        [{"role": object(), "content": object()}],
        {"a": 10**5_000},
        float("nan"),
    ],
    ids=["no calls", "no function", "no text", "no number of JSON's", "no number"],
)
def test_nothing_that_a_product_says_to_its_model_fails_in_a_span(said: Any) -> None:
    """It may be of any form that the model takes."""
    assert SpanRecorder(now_ns=lambda: 0, new_id=lambda size: "0" * 2 * size, shows_content=True).content(said)


async def test_what_a_turn_logs_names_its_span(database: Any, collector: Collected) -> None:
    """The same line goes to the console and, with the attempt it belongs to, to the collector."""
    console = Logged()
    telemetry = fixed_telemetry(collector, console)
    broken = Product(ValueError("boom Bearer abcdefghijkl"))
    await (await Isolate(database, broken, telemetry=telemetry).post()).lines()
    [record] = collector.records
    attempt = collector.named("attempt 1")

    assert ["turn.failed"] == [event for event, _ in console]
    assert ("turn.failed", "error", 17) == (record["eventName"], record["severityText"], record["severityNumber"])
    assert (attempt["traceId"], attempt["spanId"]) == (record["traceId"], record["spanId"])
    assert "boom" in str(record)
    assert "abcdefghijkl" not in str(record)


async def test_outcomes_replays_takeovers_and_waste_are_counted(database: Any, collector: Collected) -> None:
    """Whatever is sampled."""
    none = {"OTEL_TRACES_SAMPLER_ARG": "0"}
    await taken_over(database, collector, Product(text_delta("b")))
    model = Model("Well.")
    one = isolate(database, Agent(), collector, none, backend=model.backend())
    await (await one.ask("POST", "/v1/sessions/s/turns/0", {"message": "hi"})).lines()
    points = collector.points
    outcomes = [point["attributes"]["chatturn.turn.outcome"] for point in points["chatturn.turns"]]
    tokens = {point["attributes"]["gen_ai.token.type"]: point for point in points["gen_ai.client.token.usage"]}

    assert ["completed", "completed"] == outcomes
    assert ["1"] == [point["asInt"] for point in points["chatturn.replays"]]
    assert ["1"] == [point["asInt"] for point in points["chatturn.takeovers"]]
    assert {"output"} == set(tokens)  # what the model says
    assert "chat" == tokens["output"]["attributes"]["gen_ai.operation.name"]
    assert {"gen_ai.client.operation.duration", "gen_ai.client.operation.time_to_first_chunk"} <= set(points)
    for name, found in points.items():
        assert re.fullmatch(r"(gen_ai|chatturn)\.[a-z_.]+", name)
        for point in found:
            assert "bucketCounts" not in point or int(point["count"]) == sum(map(int, point["bucketCounts"]))
            assert point["startTimeUnixNano"] <= point["timeUnixNano"]


async def test_a_worker_that_lost_its_turn_leaves_its_span_to_the_other(database: Any, collector: Collected) -> None:
    """It comes back, finds itself replaced, and sends only what it did: no span is sent twice, none has no parent."""
    wire = FaultyDatabase(database)
    slow = await isolate(wire, Product(text_delta("a"), 8.0, text_delta("c")), collector).post()
    await asyncio.sleep(0.5)
    wire.down = True
    await asyncio.sleep(3)
    await (await isolate(database, Product(), collector).post()).lines()
    wire.down = False
    await slow.lines()
    spans = collector.spans
    ids = {span["spanId"] for span in spans}

    assert len(ids) == len(spans)
    assert [None] == [span.get("parentSpanId") for span in spans if span.get("parentSpanId") not in ids]
    assert {"attempt 1", "attempt 2", "invoke_agent chatturn", "batch D1"} == {span["name"] for span in spans}
    assert {"completed", "lost"} == {
        p["attributes"]["chatturn.turn.outcome"] for p in collector.points["chatturn.turns"]
    }


async def test_turns_that_end_at_about_the_same_time_leave_together(database: Any, collector: Collected) -> None:
    """One of them sends for all: a busy isolate makes two requests each half second, however many turns it has."""
    alone = isolate(database, Product(text_delta("a")), collector)
    turns = []
    for number in range(40):
        turns.append(await alone.ask("POST", f"/v1/sessions/s{number}/turns/0", {"message": "hi"}))
        await asyncio.sleep(0.03)
    for turn in turns:
        await turn.lines()

    assert 40 == len([span for span in collector.spans if span["name"] == "attempt 1"])
    assert 2 <= len(collector.requests) <= 2 * 3


async def test_what_a_products_own_producer_consumes_is_measured(database: Any, collector: Collected) -> None:
    """The metrics count the calls that the ledger has, whoever made them."""
    usage = usage_event(model="their-own", tokensIn=30, tokensOut=4)
    await (await isolate(database, Product(text_delta("a"), usage), collector).post()).lines()
    points = collector.points["gen_ai.client.token.usage"]

    assert {("input", "their-own", 30.0), ("output", "their-own", 4.0)} == {
        (point["attributes"]["gen_ai.token.type"], point["attributes"]["gen_ai.response.model"], point["sum"])
        for point in points
    }
