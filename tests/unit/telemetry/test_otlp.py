"""Traces on their way out: the payload as OpenTelemetry's schema reads it, collectors that misbehave."""

import asyncio
import json
import math
import re
from functools import partial
from itertools import count, pairwise
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.errors import BackendRejected, BackendTransportError, ConfigurationError
from chatturn.settings import Settings
from chatturn.telemetry.operator_log import log_record
from chatturn.telemetry.otlp import outbound, sending
from chatturn.telemetry.otlp.encoding import Signal, encode_log, encode_span, wrapped
from chatturn.telemetry.otlp.metrics import MAX_SERIES, Metrics
from chatturn.telemetry.otlp.outbound import Outbound
from chatturn.telemetry.otlp.sending import Loss
from chatturn.telemetry.otlp.setup import make_telemetry, parse_headers
from chatturn.telemetry.spans import FinishedSpan, SpanLink
from chatturn.telemetry.tracer import AttributeValue
from chatturn.transport import Transport
from tests.support.telemetry import Collected, Logged, fixed_telemetry, read_strictly
from tests.support.transport import HANG, BodyPart, Reply, ScriptedTransport

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN: Final = "00f067aa0ba902b7"


def span(**members: Any) -> FinishedSpan:
    """A finished span."""
    plain: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "parent_span_id": None,
        "name": "invoke_agent legal",
        "kind": "internal",
        "start_ns": 1_764_000_000_000_000_001,
        "end_ns": 1_764_000_000_000_000_002,
        "attributes": {},
        "error_type": None,
    }
    return FinishedSpan(**plain | members)


def sent(*spans: FinishedSpan) -> list[dict[str, Any]]:
    """The spans as they stand in the payload."""
    [resource] = json.loads(wrapped("traces", list(map(encode_span, spans)), {}))["resourceSpans"]
    [scope] = resource["scopeSpans"]
    found: list[dict[str, Any]] = scope["spans"]
    return found


# Encoding


attribute_values: st.SearchStrategy[AttributeValue] = (
    st.text(st.characters()) | st.booleans() | st.integers() | st.floats() | st.lists(st.text()).map(tuple)
)


@given(
    attributes=st.dictionaries(st.text(), attribute_values),
    name=st.text(st.characters()),
    error_type=st.none() | st.text(),
)
def test_opentelemetry_reads_whatever_was_noted(
    attributes: dict[str, AttributeValue], name: str, error_type: str | None
) -> None:
    """No attribute makes a payload that a collector refuses."""
    links = (SpanLink("2" * 32, "3" * 16, "takeover"),)
    made = span(name=name, attributes=attributes, error_type=error_type, parent_span_id="1" * 16, links=links)
    request = read_strictly("traces", wrapped("traces", [encode_span(made)], {"service.name": "chatturn"}))

    read = request.resource_spans[0].scope_spans[0].spans[0]
    assert (read.trace_id.hex(), read.span_id.hex(), read.parent_span_id.hex()) == (TRACE, SPAN, "1" * 16)
    assert read.end_time_unix_nano - read.start_time_unix_nano == 1
    assert {item.key for item in read.attributes} >= attributes.keys()
    assert request.resource_spans[0].resource.attributes[0].value.string_value == "chatturn"


def test_a_span_is_written_as_the_specification_says() -> None:
    """Members in lowerCamelCase, 64-bit integers as text, enums as numbers, nothing that is absent."""
    assert sent(span(kind="client")) == [
        {
            "traceId": TRACE,
            "spanId": SPAN,
            "name": "invoke_agent legal",
            "kind": 3,
            "startTimeUnixNano": "1764000000000000001",
            "endTimeUnixNano": "1764000000000000002",
            "attributes": [],
        }
    ]


@pytest.mark.parametrize(
    ("value", "wrapped"),
    [
        (True, {"boolValue": True}),
        (7, {"intValue": "7"}),
        (2**63 - 1, {"intValue": "9223372036854775807"}),
        (2**63, {"stringValue": "9223372036854775808"}),
        (0.25, {"doubleValue": 0.25}),
        (math.nan, {"doubleValue": "NaN"}),
        (-math.inf, {"doubleValue": "-Infinity"}),
        ("é😀", {"stringValue": "é😀"}),
        ("\ud800", {"stringValue": "?"}),
        (
            ("stop", "length"),
            {"arrayValue": {"values": [{"stringValue": "stop"}, {"stringValue": "length"}]}},
        ),
    ],
)
def test_each_type_of_attribute_has_its_wrapper(value: AttributeValue, wrapped: dict[str, Any]) -> None:
    """A collector knows an attribute's type by the name of the wrapper's member."""
    [encoded] = sent(span(attributes={"a": value}))

    assert encoded["attributes"] == [{"key": "a", "value": wrapped}]


def test_a_failed_span_has_a_status_and_the_errors_type() -> None:
    """The failure is marked in both of the ways that dashboards look for; there is no message."""
    [encoded] = sent(span(error_type="backend_timeout"))

    assert encoded["status"] == {"code": 2}
    assert encoded["attributes"] == [{"key": "error.type", "value": {"stringValue": "backend_timeout"}}]


# The headers setting

header_names = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True)
header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(str.strip)


@given(st.dictionaries(header_names, header_values))
def test_percent_encoded_headers_come_out_as_they_went_in(headers: dict[str, str]) -> None:
    """Commas, equals signs and percent signs in values included."""
    text = " , ".join(f" {name} = {quote(value, safe='')} " for name, value in headers.items())

    assert parse_headers(text) == headers


@given(st.text())
def test_headers_are_read_or_refused(text: str) -> None:
    """What comes out can be sent; nothing else happens."""
    try:
        headers = parse_headers(text)
    except ConfigurationError:
        return

    for name, value in headers.items():
        assert re.fullmatch(r"[!-~]+", name)
        assert re.fullmatch(r"[\t -~]*", value)


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("", {}),
        (" , ,", {}),
        ("Authorization=Basic dXNlcjpwYXNz==", {"authorization": "Basic dXNlcjpwYXNz=="}),
        ("a=1,A=2", {"a": "2"}),
        ("a=", {"a": ""}),
        ("a=100%", {"a": "100%"}),
        ("a=x;y=z", {"a": "x;y=z"}),
    ],
)
def test_headers_are_read_leniently_where_the_meaning_is_clear(text: str, headers: dict[str, str]) -> None:
    """What people paste from their collector's page works."""
    assert parse_headers(text) == headers


@pytest.mark.parametrize(
    "text",
    ["a=1,sk-secret", "a=1,=sk-secret", "a=1,b c=sk-secret", "a=1,b=sk-secret%0d%0a", "a=1,b=sk-secret€"],
)
def test_a_header_that_cannot_be_sent_names_the_setting_and_not_the_value(text: str) -> None:
    """The operator learns which entry is wrong; the log does not learn the secret."""
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_HEADERS: entry 2") as caught:
        parse_headers(text)

    assert "sk-secret" not in str(caught.value)


# Log records and metrics


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.slow
@given(particulars=st.dictionaries(st.text(min_size=1), json_values))
def test_opentelemetry_reads_whatever_was_logged(particulars: dict[str, Any]) -> None:
    """Whatever a line of the console can say, a record can."""
    record = log_record("turn.failed", particulars)
    request = read_strictly("logs", wrapped("logs", [encode_log(record, 5, TRACE, SPAN)], {}))
    [read] = request.resource_logs[0].scope_logs[0].log_records

    assert ("turn.failed", 5, TRACE, SPAN) == (
        read.event_name,
        read.time_unix_nano,
        read.trace_id.hex(),
        read.span_id.hex(),
    )


def test_metrics_are_deltas_with_the_conventions_buckets() -> None:
    """What was taken is not taken again, and OpenTelemetry reads it."""
    clock = count(100)
    metrics = Metrics(lambda: next(clock))
    for value in (0.005, 3.0, 1e9):
        metrics.record("gen_ai.client.operation.duration", value, {"gen_ai.operation.name": "chat", "error.type": None})
    metrics.record("gen_ai.client.operation.duration", None, {})
    metrics.count("chatturn.turns", 1, {"chatturn.turn.outcome": "completed"})
    metrics.count("chatturn.turns", 2, {"chatturn.turn.outcome": "completed"})
    metrics.count("chatturn.takeovers", 0, {})
    request = read_strictly("metrics", wrapped("metrics", metrics.take(), {}))
    turns, duration = request.resource_metrics[0].scope_metrics[0].metrics
    [point], [distribution] = turns.sum.data_points, duration.histogram.data_points

    assert (1, True, 3) == (turns.sum.aggregation_temporality, turns.sum.is_monotonic, point.as_int)
    assert (3, 0.005, 1e9) == (distribution.count, distribution.min, distribution.max)
    assert (1, 1, 15) == (
        distribution.bucket_counts[0],
        distribution.bucket_counts[-1],
        len(distribution.bucket_counts),
    )
    assert 0.01 == distribution.explicit_bounds[0]
    assert 0 < distribution.start_time_unix_nano < distribution.time_unix_nano
    assert [] == metrics.take()


def test_made_up_names_do_not_fill_the_memory() -> None:
    """Series beyond the limit are left out, and counted."""
    metrics = Metrics(lambda: 1)
    for number in range(MAX_SERIES + 7):
        metrics.count("chatturn.turns", 1, {"model": str(number)})
    metrics.count("chatturn.turns", 1, {"model": "0"})
    [turns] = metrics.take()

    assert MAX_SERIES == len(json.loads(turns)["sum"]["dataPoints"])
    assert 7 == metrics.dropped


# Sending


def reply(status: int, body: bytes = b"{}", **headers: str) -> Reply:
    """A collector's answer, a byte at a time."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=named, body=[bytes([byte]) for byte in body])


def waits(collector: ScriptedTransport) -> list[float]:
    """The seconds between a collector's requests."""
    times = [exchange.sent_at for exchange in collector.exchanges]
    return [later - earlier for earlier, later in pairwise(times)]


def still_open(collector: ScriptedTransport) -> int:
    """How many connections were not closed."""
    return sum(exchange.closed_at is None for exchange in collector.exchanges)


def waiting(collector: Transport, log: Logged, *names: str) -> Outbound:
    """What sends to *collector*, with spans of these names waiting."""
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20t", "OTEL_SERVICE_NAME": "legal"}
    made = fixed_telemetry(collector, log, **headers).outbound
    for name in names:
        made.add("traces", encode_span(span(name=name)))
    return made


def dropped(log: Logged) -> list[tuple[object, object]]:
    """The reasons in the log, with how many items each."""
    assert {"telemetry.dropped"} >= {event for event, _ in log}
    return [(particulars["reason"], particulars["items"]) for _, particulars in log]


async def test_what_waits_leaves_in_one_request() -> None:
    """One POST with the configured headers; a second flush has nothing left to send."""
    collector, log = ScriptedTransport([reply(200)]), Logged()
    sends = waiting(collector, log, "claim", "turn")
    await sends.flush()
    await sends.flush()

    [exchange] = collector.exchanges
    request = exchange.request
    assert (request.method, request.url) == ("POST", "https://otel.example/base/v1/traces")
    assert request.headers == {"authorization": "Bearer t", "content-type": "application/json"}
    [resource] = json.loads(request.body)["resourceSpans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "legal"}}]
    assert [item["name"] for item in resource["scopeSpans"][0]["spans"]] == ["claim", "turn"]
    assert log == []


async def test_each_signal_has_its_address() -> None:
    """Spans, metrics and records, one request each, one after the other."""
    collector = Collected()
    sends = waiting(collector, Logged(), "turn")
    sends.metrics.count("chatturn.turns", 1, {})
    sends.log("turn.failed", {"run_id": "r"})
    await sends.flush()

    assert ["traces", "metrics", "logs"] == [request.url.rpartition("/")[2] for request in collector.requests]


@pytest.mark.parametrize(("capture", "leaves"), [("false", False), ("true", True)])
async def test_what_an_api_said_leaves_only_with_content(capture: str, leaves: bool) -> None:
    """Its words may quote the conversation: the console has them always, a collector only if content may go there."""
    collector, log = Collected(), Logged()
    setting = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": capture}
    sends = fixed_telemetry(collector, log, **setting).outbound
    error = BackendRejected("400", backend="openai", detail="you said: my password is hunter2")
    sends.log("turn.failed", {"error": error, "calls": [{"error": error}], "detail": "the product's own"})
    await sends.flush()
    [request] = [each for each in collector.requests if each.url.endswith("logs")]

    assert ("hunter2" in request.body) == leaves
    assert "backend_rejected" in request.body
    assert "the product's own" in request.body
    assert error is log[0][1]["error"]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_collector_is_asked_again(status: int) -> None:
    """With a growing pause; what then succeeds is not logged."""
    collector, log = ScriptedTransport([reply(status), reply(status), reply(200)]), Logged()
    await waiting(collector, log, "turn").flush()

    assert waits(collector) == [1.0, 2.0]
    assert len({exchange.request.body for exchange in collector.exchanges}) == 1
    assert (still_open(collector), log) == (0, [])


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("5", 5.0),
        ("Thu, 01 Jan 2026 00:00:04 GMT", 4.0),
        ("0", 1.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1.0),
        ("soon", 1.0),
    ],
)
async def test_the_collector_says_how_long_to_wait(retry_after: str, seconds: float) -> None:
    """Seconds or a date; never less than our own pause."""
    collector, log = ScriptedTransport([reply(503, retry_after=retry_after), reply(200)]), Logged()
    await waiting(collector, log, "turn").flush()

    assert waits(collector) == [pytest.approx(seconds, abs=0.1)]
    assert log == []


async def test_a_pause_that_would_outlast_the_deadline_is_not_begun() -> None:
    """Giving up at once frees the worker."""
    collector, log = ScriptedTransport([reply(429, b"slow down", retry_after="10")]), Logged()
    await waiting(collector, log, "turn").flush()

    assert asyncio.get_running_loop().time() - collector.exchanges[0].sent_at < 0.001
    assert [("status_429", 1)] == dropped(log)
    assert ("slow down", 1) == (log[0][1]["reply"], log[0][1]["tries"])


@pytest.mark.parametrize("status", [301, 400, 401, 404, 408, 413, 500])
async def test_a_refusal_is_not_repeated(status: int) -> None:
    """The same request would be refused again."""
    collector, log = ScriptedTransport([reply(status, b"no")]), Logged()
    await waiting(collector, log, "turn").flush()

    assert len(collector.exchanges) == 1
    assert [(f"status_{status}", 1)] == dropped(log)


async def test_what_is_too_large_is_sent_in_halves_once() -> None:
    """What is then still too large is dropped."""
    collector, log = ScriptedTransport([reply(413), reply(200), reply(413)]), Logged()
    await waiting(collector, log, "a", "b", "c", "d", "e").flush()
    sizes = [len(json.loads(e.request.body)["resourceSpans"][0]["scopeSpans"][0]["spans"]) for e in collector.exchanges]

    assert [5, 2, 3] == sizes
    assert [("status_413", 3)] == dropped(log)


async def test_each_reason_is_counted_always_and_logged_once() -> None:
    """A collector that refuses everything does not fill the log; the next flush says how much was lost."""
    collector, log = ScriptedTransport([reply(status) for status in (500, 500, 200, 500, 200, 200)]), Logged()
    sends = waiting(collector, log, "a", "b")
    await sends.flush()
    for _ in range(2):
        sends.add("traces", encode_span(span()))
        await sends.flush()
    await sends.flush()
    bodies = [e.request.body for e in collector.exchanges if e.request.url.endswith("metrics")]
    lost = [json.loads(b)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"] for b in bodies]

    assert [("status_500", 2)] == dropped(log)
    assert ["2", "1", "1"] == [point["asInt"] for points in lost for point in points]


async def test_an_unreachable_collector_is_logged_once() -> None:
    """Nothing is raised, nothing is sent again."""
    error = BackendTransportError("refused", backend="fetch")
    collector, log = ScriptedTransport([error]), Logged()
    await waiting(collector, log, "turn").flush()

    assert [("unreachable", 1)] == dropped(log)
    assert error is log[0][1]["error"]


async def test_a_collector_that_never_answers_is_left_at_the_deadline() -> None:
    """Its connection is closed; what else waits does not take longer."""
    collector, log = ScriptedTransport([HANG, HANG]), Logged()
    sends = waiting(collector, log, "turn")
    sends.log("turn.failed", {})
    log.clear()
    began = asyncio.get_running_loop().time()
    await sends.flush()

    assert [("timeout", 1), ("timeout", 1)] == dropped(log)
    assert asyncio.get_running_loop().time() - began == pytest.approx(10.0, abs=0.01)
    assert still_open(collector) == 0


@pytest.mark.parametrize("end", [HANG, 1_000.0, BackendTransportError("reset", backend="fetch")])
async def test_a_collector_that_does_not_end_its_answer_has_taken_what_it_was_sent(end: BodyPart) -> None:
    """It is not waited for beyond a second, so what waits behind is sent."""
    collector, log = ScriptedTransport([Reply(body=[b"{", end]), reply(200)]), Logged()
    sends = waiting(collector, log, "turn")
    sends.log("turn.failed", {})
    log.clear()
    await sends.flush()

    assert ["traces", "logs"] == [exchange.request.url.rpartition("/")[2] for exchange in collector.exchanges]
    assert (still_open(collector), log) == (0, [])


async def test_whoever_was_to_flush_for_all_may_be_ended() -> None:
    """What waited leaves with the next that comes after that one's time; until then nobody else flushes."""
    collector = Collected()
    waiting = fixed_telemetry(collector).outbound
    waiting.add("traces", encode_span(span()))
    doomed = asyncio.ensure_future(waiting.flush_within(0.5))
    await asyncio.sleep(0.1)
    await waiting.flush_within(0.5)
    doomed.cancel()
    await asyncio.sleep(0.5)
    assert not collector.requests
    await waiting.flush_within(0.5)

    assert 1 == len(collector.requests)


async def test_a_flush_can_be_cancelled() -> None:
    """Whoever stops the worker is not held up."""
    collector, log = ScriptedTransport([HANG]), Logged()
    flushing = asyncio.create_task(waiting(collector, log, "turn").flush())
    await asyncio.sleep(1)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing

    assert (still_open(collector), log) == (0, [])


@pytest.mark.parametrize(
    ("signal", "member"),
    [("traces", "rejectedSpans"), ("metrics", "rejectedDataPoints"), ("logs", "rejectedLogRecords")],
)
async def test_what_the_collector_threw_away_is_counted_and_not_sent_again(signal: Signal, member: str) -> None:
    """A partial success is the end of it."""
    body = json.dumps({"partialSuccess": {member: "2", "errorMessage": "too old"}}).encode()
    collector = ScriptedTransport([reply(200, body)])
    sender = waiting(collector, Logged())._sender
    losses = await sender.send(signal, ["{}", "{}"], asyncio.get_running_loop().time() + 10)

    assert len(collector.exchanges) == 1
    assert [Loss(signal, "rejected", 2, {"reply": "too old"})] == losses


@pytest.mark.parametrize("rejected", ["7", 1e30, 10**26])
async def test_no_collector_throws_away_more_than_it_was_sent(rejected: Any) -> None:
    """What it says beyond that would be no count that the next one could read, and cost all metrics."""
    body = json.dumps({"partialSuccess": {"rejectedSpans": rejected}}).encode()
    collector, log = ScriptedTransport([Reply(body=[body]), reply(200)]), Logged()
    sends = waiting(collector, log, "a", "b")
    await sends.flush()
    await sends.flush()

    assert [("rejected", 2)] == dropped(log)
    read_strictly("metrics", collector.exchanges[1].request.body)


async def test_a_collector_may_say_at_length_what_it_threw_away() -> None:
    """It is counted all the same."""
    told = {"rejectedSpans": "1", "errorMessage": "too old. " * 5_000}
    log = Logged()
    transport = ScriptedTransport([Reply(body=[json.dumps({"partialSuccess": told}).encode()])])
    await waiting(transport, log, "a").flush()

    assert [("rejected", 1)] == dropped(log)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"ok",
        b"[]",
        b"null",
        b'{"partialSuccess":{}}',
        b'{"partialSuccess":null}',
        b'{"partialSuccess":{"rejectedSpans":"many"}}',
        b'{"partialSuccess":{"rejectedSpans":1e999}}',
        b"[" * 4_000,
        b"x" * 10_000,
        b"\xff",
    ],
)
async def test_any_other_answer_to_a_success_is_a_success(body: bytes) -> None:
    """Collectors say nothing in many ways, and some say garbage."""
    log = Logged()
    await waiting(ScriptedTransport([reply(200, body)]), log, "turn").flush()

    assert log == []


# What waits is bounded


async def test_a_large_crowd_leaves_in_batches() -> None:
    """By number and by size."""
    collector, log = Collected(), Logged()
    sends = waiting(collector, log, *("turn" for _ in range(sending.MAX_BATCH_ITEMS + 1)))
    for _ in range(3):
        sends.add("traces", encode_span(span(attributes={"a": "x" * 200_000})))
    await sends.flush()

    assert [sending.MAX_BATCH_ITEMS, 3, 1] == [request.body.count('"traceId"') for request in collector.requests]
    assert log == []


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    """A collector that is away for long does not fill the memory; nor does one huge span."""
    log = Logged()
    sends = waiting(ScriptedTransport([]), log)
    for _ in range(outbound.MAX_WAITING_ITEMS + 5):
        sends.add("traces", "{}")
    sends.add("logs", "x" * 300_000)

    assert [("queue_full", 1), ("too_large", 1)] == dropped(log)
    assert ["5", "1"] == re.findall(r'"asInt":"(\d+)"', sends.metrics.take()[0])


async def test_attempts_that_wait_to_be_encoded_are_bounded_and_none_costs_another_its_own() -> None:
    """The oldest make room; one that cannot be encoded is counted, wherever it stands."""
    log, encoded = Logged(), list[int]()
    sends = waiting(ScriptedTransport([reply(200)]), log)

    def broken() -> None:
        raise KeyError("gone")

    for n in range(200):
        sends.before_flush(partial(encoded.append, n))
        if n in {0, 199}:
            sends.before_flush(broken)
    before = len(encoded)
    await sends.flush()

    assert 200 - before < 100
    assert list(range(200)) == encoded
    assert [("error", 1)] == dropped(log)
    assert '"asInt":"2"' in sends._sender._transport.exchanges[0].request.body  # type: ignore[attr-defined]


# The settings together


@pytest.mark.parametrize(
    "settings",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "otel.example"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://otel.example"},
        {"OTEL_TRACES_SAMPLER_ARG": "half"},
        {"OTEL_TRACES_SAMPLER_ARG": "nan"},
        {"OTEL_TRACES_SAMPLER_ARG": "1.5"},
        {"OTEL_TRACES_SAMPLER_ARG": "-0.1"},
    ],
)
def test_a_setting_that_cannot_be_read_is_named(settings: dict[str, str]) -> None:
    """The operator learns it at the start, not from missing traces."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example", **settings}
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        make_telemetry(
            ScriptedTransport([]),
            Settings.from_env(env),
            console=Logged(),
            now_ns=lambda: 1,
            new_id=lambda size: "1" * 2 * size,
        )
