"""Traces on their way out: the payload as OpenTelemetry's schema reads it, collectors that misbehave."""

import asyncio
import base64
import json
import math
import re
from collections.abc import Mapping
from itertools import count, pairwise
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.backends import Transport
from chatturn.errors import BackendTransportError, ConfigurationError
from chatturn.telemetry import AttributeValue
from chatturn.telemetry.otlp import Exporter, encode_trace, make_exporter, parse_headers
from chatturn.telemetry.spans import FinishedSpan, SpanRecorder
from tests.support.transport import HANG, Reply, ScriptedTransport

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
    [resource] = json.loads(encode_trace(spans, {}))["resourceSpans"]
    [scope] = resource["scopeSpans"]
    found: list[dict[str, Any]] = scope["spans"]
    return found


# Encoding


def read_strictly(payload: str) -> Any:
    """Parse with OpenTelemetry's schema, where unknown members and wrong types are errors."""
    service = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs opentelemetry-proto"
    )
    json_format = pytest.importorskip("google.protobuf.json_format", reason="needs protobuf")
    # The one place where OTLP leaves protobuf's JSON: its ids are hex, not base64.
    in_base64 = re.sub(
        r'("(?:traceId|spanId|parentSpanId)":)"([0-9a-f]+)"',
        lambda found: f'{found[1]}"{base64.b64encode(bytes.fromhex(found[2])).decode()}"',
        payload,
    )
    return json_format.Parse(in_base64, service.ExportTraceServiceRequest())


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
    spans = [span(name=name, attributes=attributes, error_type=error_type, parent_span_id="1" * 16)]
    request = read_strictly(encode_trace(spans, {"service.name": "chatturn"}))

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


class Logged(list[tuple[str, dict[str, object]]]):
    """A log that remembers."""

    def __call__(self, event: str, particulars: Mapping[str, object]) -> None:
        """Remember a record."""
        self.append((event, dict(particulars)))


def exporter(collector: Transport, log: Logged, *, timeout_ms: int = 10_000) -> Exporter:
    """An exporter on 2026-01-01T00:00:00Z."""
    return Exporter(
        collector,
        endpoint="https://otel.example/base/",
        headers={"authorization": "Bearer t"},
        service_name="legal",
        log=log,
        timeout_ms=timeout_ms,
        now=lambda: 1_767_225_600.0,
    )


def recorded(*names: str, limit: int = 512) -> SpanRecorder:
    """A recorder in which spans of these names have ended."""
    ids = count(1)
    spans = SpanRecorder(now_ns=lambda: 1, new_id=lambda size: f"{next(ids):0{2 * size}x}", limit=limit)
    for name in names:
        with spans.span(name):
            pass
    return spans


async def test_a_turns_spans_leave_in_one_request() -> None:
    """One POST with the configured headers; a second flush has nothing left to send."""
    collector, log = ScriptedTransport([reply(200)]), Logged()
    spans = recorded("claim", "turn")
    sending = exporter(collector, log)
    await sending.flush(spans)
    await sending.flush(spans)

    [exchange] = collector.exchanges
    request = exchange.request
    assert (request.method, request.url) == ("POST", "https://otel.example/base/v1/traces")
    assert request.headers == {"authorization": "Bearer t", "content-type": "application/json"}
    [resource] = json.loads(request.body)["resourceSpans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "legal"}}]
    assert [item["name"] for item in resource["scopeSpans"][0]["spans"]] == ["claim", "turn"]
    assert log == []


async def test_without_spans_there_is_no_request() -> None:
    """A turn that recorded nothing costs nothing."""
    collector, log = ScriptedTransport([]), Logged()
    await exporter(collector, log).flush(recorded())

    assert (collector.exchanges, log) == ([], [])


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_collector_is_asked_again(status: int) -> None:
    """With a growing pause; what then succeeds is not logged."""
    collector, log = ScriptedTransport([reply(status), reply(status), reply(200)]), Logged()
    await exporter(collector, log).flush(recorded("turn"))

    assert waits(collector) == [1.0, 2.0]
    assert len({exchange.request.body for exchange in collector.exchanges}) == 1
    assert (still_open(collector), log) == (0, [])


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("5", [5.0]),
        ("Thu, 01 Jan 2026 00:00:04 GMT", [4.0]),
        ("0", [1.0]),
        ("Thu, 01 Jan 1970 00:00:00 GMT", [1.0]),
        ("soon", [1.0]),
    ],
)
async def test_the_collector_says_how_long_to_wait(retry_after: str, seconds: list[float]) -> None:
    """Seconds or a date; never less than our own pause."""
    collector, log = ScriptedTransport([reply(503, retry_after=retry_after), reply(200)]), Logged()
    await exporter(collector, log).flush(recorded("turn"))

    assert waits(collector) == seconds
    assert log == []


async def test_a_pause_that_would_outlast_the_deadline_is_not_begun() -> None:
    """Giving up at once frees the worker."""
    collector, log = ScriptedTransport([reply(429, b"slow down", retry_after="10")]), Logged()
    await exporter(collector, log, timeout_ms=10_000).flush(recorded("turn"))

    assert asyncio.get_running_loop().time() - collector.exchanges[0].sent_at < 0.001
    assert log == [
        (
            "telemetry.export_failed",
            {"level": "error", "spans": 1, "status": 429, "reply": "slow down", "tries": 1},
        )
    ]


@pytest.mark.parametrize("status", [301, 400, 401, 404, 408, 413, 500])
async def test_a_refusal_is_logged_once_and_not_repeated(status: int) -> None:
    """The same request would be refused again."""
    collector, log = ScriptedTransport([reply(status, b"no")]), Logged()
    await exporter(collector, log).flush(recorded("turn"))

    assert len(collector.exchanges) == 1
    assert log == [
        (
            "telemetry.export_failed",
            {"level": "error", "spans": 1, "status": status, "reply": "no", "tries": 1},
        )
    ]


async def test_an_unreachable_collector_is_logged_once() -> None:
    """Nothing is raised, nothing is sent again."""
    error = BackendTransportError("refused", backend="fetch")
    collector, log = ScriptedTransport([error]), Logged()
    await exporter(collector, log).flush(recorded("turn"))

    assert log == [("telemetry.export_failed", {"level": "error", "spans": 1, "error": error})]


async def test_a_collector_that_never_answers_is_left_at_the_deadline() -> None:
    """The connection is closed, the loss is logged."""
    collector, log = ScriptedTransport([HANG]), Logged()
    await exporter(collector, log, timeout_ms=3_000).flush(recorded("turn"))

    [(event, particulars)] = log
    assert event == "telemetry.export_failed"
    assert isinstance(particulars["error"], TimeoutError)
    assert asyncio.get_running_loop().time() - collector.exchanges[0].sent_at == pytest.approx(3.0, abs=0.01)
    assert still_open(collector) == 0


async def test_a_flush_can_be_cancelled() -> None:
    """Whoever stops the worker is not held up."""
    collector, log = ScriptedTransport([HANG]), Logged()
    flushing = asyncio.create_task(exporter(collector, log).flush(recorded("turn")))
    await asyncio.sleep(1)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing

    assert (still_open(collector), log) == (0, [])


async def test_what_the_collector_threw_away_is_logged_and_not_sent_again() -> None:
    """A partial success is the end of it."""
    partial = reply(200, b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too old"}}')
    collector, log = ScriptedTransport([partial]), Logged()
    await exporter(collector, log).flush(recorded("turn", "chat"))

    assert len(collector.exchanges) == 1
    assert log == [("telemetry.export_failed", {"level": "error", "spans": 2, "rejected_spans": 2, "reply": "too old"})]


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
        b"x" * 10_000,
        b"\xff",
    ],
)
async def test_any_other_answer_to_a_success_is_a_success(body: bytes) -> None:
    """Collectors say nothing in many ways."""
    log = Logged()
    await exporter(ScriptedTransport([reply(200, body)]), log).flush(recorded("turn"))

    assert log == []


async def test_only_the_start_of_a_reply_is_kept() -> None:
    """A collector that answers with a web page does not fill the log."""
    log = Logged()
    await exporter(ScriptedTransport([reply(500, b"x" * 10_000)]), log).flush(recorded("turn"))

    assert log[0][1]["reply"] == "x" * 4_096


async def test_forgotten_spans_are_told_of() -> None:
    """A trace that was cut says so in the log."""
    log = Logged()
    await exporter(ScriptedTransport([reply(200)]), log).flush(recorded("a", "b", "c", limit=1))

    assert log == [("telemetry.spans_dropped", {"level": "warning", "spans": 2})]


# The settings together


def test_without_an_endpoint_there_is_no_exporter() -> None:
    """No endpoint, no cost, whatever the other settings are."""
    made = make_exporter(
        ScriptedTransport([]), endpoint="", headers="not even read", service_name="legal", log=Logged()
    )

    assert made is None


async def test_the_settings_make_an_exporter() -> None:
    """The endpoint and the headers are those of the settings."""
    collector = ScriptedTransport([reply(200)])
    made = make_exporter(
        collector, endpoint="http://localhost:4318", headers="x-key=k", service_name="legal", log=Logged()
    )
    assert made is not None
    await made.flush(recorded("turn"))

    [exchange] = collector.exchanges
    request = exchange.request
    assert request.url == "http://localhost:4318/v1/traces"
    assert request.headers["x-key"] == "k"


@pytest.mark.parametrize("endpoint", ["otel.example", "ftp://otel.example", "//otel.example"])
def test_an_endpoint_that_is_no_address_names_the_setting(endpoint: str) -> None:
    """The operator learns it at the start, not from missing traces."""
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        make_exporter(ScriptedTransport([]), endpoint=endpoint, headers="", service_name="legal", log=Logged())
