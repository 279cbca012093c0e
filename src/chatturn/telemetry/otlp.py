"""
Traces on their way out: OTLP over HTTP, encoded as JSON.

`encode_trace` is pure.  `Exporter.flush` sends what one turn recorded, once, after the response, under its
own deadline; whatever goes wrong with it ends in one log line.

Source:
    OTLP specification 1.x, "OTLP/HTTP" and "JSON Protobuf Encoding"; OpenTelemetry protocol exporter
    specification for the two settings.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, assert_never
from urllib.parse import unquote

from chatturn.backends import Transport, TransportRequest, TransportResponse
from chatturn.errors import ConfigurationError
from chatturn.telemetry import AttributeValue, SpanKind
from chatturn.telemetry.conventions import ERROR_TYPE, SERVICE_NAME
from chatturn.telemetry.logs import Log
from chatturn.telemetry.spans import FinishedSpan, SpanRecorder

__all__ = ["Exporter", "encode_trace", "make_exporter", "parse_headers"]

ENDPOINT_SETTING: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
HEADERS_SETTING: Final = "OTEL_EXPORTER_OTLP_HEADERS"
SCOPE: Final = "chatturn"

_KINDS: Final[Mapping[SpanKind, int]] = {"internal": 1, "server": 2, "client": 3}
_STATUS_ERROR: Final = 2
_INT64: Final = range(-(2**63), 2**63)
_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

_TAKEN: Final = range(200, 300)
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S: Final = 1.0
_REPLY_BYTES: Final = 4_096  # what is read of a collector's answer

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


# Encoding


def encode_trace(spans: Iterable[FinishedSpan], resource: Mapping[str, AttributeValue]) -> str:
    """
    Return the body of an export request: *spans* of one *resource*, as JSON without line ends.

    Lone surrogates, which no UTF-8 can carry, become question marks.
    """
    scope_spans = {"scope": {"name": SCOPE}, "spans": [_span(span) for span in spans]}
    resource_spans = {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope_spans]}
    text = json.dumps({"resourceSpans": [resource_spans]}, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace").decode()


def _span(span: FinishedSpan) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
    }
    if span.parent_span_id is not None:
        encoded["parentSpanId"] = span.parent_span_id
    if span.error_type is not None:
        encoded["attributes"] = _attributes({**span.attributes, ERROR_TYPE: span.error_type})
        encoded["status"] = {"code": _STATUS_ERROR}
    return encoded


def _attributes(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: AttributeValue) -> dict[str, Any]:
    match value:
        case bool():  # before int, which it is too
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)} if value in _INT64 else {"stringValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
        case str():
            return {"stringValue": value}
        case tuple():
            return {"arrayValue": {"values": [{"stringValue": item} for item in value]}}
        case _:
            assert_never(value)


# Settings


def parse_headers(text: str) -> dict[str, str]:
    """
    Read ``name=value,name2=value2``, the values percent-encoded.

    Names come out in lower case; of two entries with one name the last counts.

    Raises:
        ConfigurationError: An entry is not of that form, or could not be sent.  The values are secrets, so
            the message counts entries and quotes none.

    Source:
        OpenTelemetry protocol exporter, "Specifying headers via environment variables".
    """
    headers: dict[str, str] = {}
    for position, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        name, equals, encoded = entry.partition("=")
        name, value = name.strip().lower(), unquote(encoded.strip())
        if not equals or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(HEADERS_SETTING, f"entry {position} is not `name=value`")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(HEADERS_SETTING, f"entry {position} has a value that no header can carry")
        headers[name] = value
    return headers


def make_exporter(
    transport: Transport, *, endpoint: str, headers: str, service_name: str, log: Log
) -> "Exporter | None":
    """
    Return the exporter that the settings describe; None without an endpoint: then record nothing either.

    Raises:
        ConfigurationError: The endpoint is no http(s) address, or as for `parse_headers`.
    """
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(ENDPOINT_SETTING, "must begin with http:// or https://")
    return Exporter(transport, endpoint=endpoint, headers=parse_headers(headers), service_name=service_name, log=log)


# Sending


class Exporter:
    """
    Sends a turn's spans to a collector.

    Args:
        transport: Reaches the collector.
        endpoint: The collector's base address; ``/v1/traces`` is appended.
        headers: Sent with every request.
        service_name: This service's name in its resource.
        log: Told of every flush that failed, once.
        timeout_ms: For one flush, its retries included.
        now: Seconds since the epoch, for a Retry-After that is a date.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        endpoint: str,
        headers: Mapping[str, str],
        service_name: str,
        log: Log,
        timeout_ms: int = 10_000,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._url = f"{endpoint.rstrip('/')}/v1/traces"
        self._headers = {**headers, "content-type": "application/json"}
        self._resource: dict[str, AttributeValue] = {SERVICE_NAME: service_name}
        self._log = log
        self._timeout_s = timeout_ms / 1_000
        self._now = now

    async def flush(self, recorder: SpanRecorder) -> None:
        """
        Send the spans that have ended since the last flush; without any, do nothing.

        They are sent again only where the collector asks for it, and only within the deadline; after that
        they are lost.  Never raises, except that it can be cancelled.
        """
        spans = recorder.take()
        if recorder.dropped:
            self._log("telemetry.spans_dropped", {"level": "warning", "spans": recorder.dropped})
        if not spans:
            return
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                failure = await self._send(encode_trace(spans, self._resource), deadline)
        except Exception as error:  # noqa: BLE001  a trace is never worth a turn
            failure = {"error": error}
        if failure:
            self._log("telemetry.export_failed", {"level": "error", "spans": len(spans), **failure})

    async def _send(self, body: str, deadline: asyncio.Timeout) -> Mapping[str, object] | None:
        """Send *body* until it is taken or refused; return what is to be logged about it."""
        request = TransportRequest(url=self._url, headers=self._headers, body=body)
        tries = 0
        while True:
            tries += 1
            async with self._transport.send(request) as response:
                status, headers, reply = response.status, response.headers, await _start_of_body(response)
            if status in _TAKEN:
                return _partial_success(reply)
            pause_s = self._pause_s(headers.get("retry-after"), tries)
            now_s = asyncio.get_running_loop().time()
            if status not in _RETRYABLE or now_s + pause_s >= (deadline.when() or 0):
                return {"status": status, "reply": reply, "tries": tries}
            await asyncio.sleep(pause_s)

    def _pause_s(self, retry_after: str | None, tries: int) -> float:
        """Return the seconds to wait after *tries*: a second, twice as long each time, or longer if asked."""
        return max(_FIRST_PAUSE_S * 2.0 ** (tries - 1), self._asked_pause_s(retry_after or ""))

    def _asked_pause_s(self, retry_after: str) -> float:
        if _SECONDS.fullmatch(retry_after):
            return float(retry_after)
        try:
            date = datetime.strptime(retry_after, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        except ValueError:
            return 0.0
        return date.timestamp() - self._now()


async def _start_of_body(response: TransportResponse) -> str:
    body = b""
    async for chunk in response.chunks():
        body += chunk
        if len(body) >= _REPLY_BYTES:
            break
    return body[:_REPLY_BYTES].decode(errors="replace")


def _partial_success(reply: str) -> Mapping[str, object] | None:
    """Return what a collector says about spans that it threw away: sending them again would not help."""
    try:
        told = json.loads(reply)["partialSuccess"]
        rejected, message = int(told.get("rejectedSpans", 0)), str(told.get("errorMessage", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # mostly `{}` or nothing, which is how a collector says that all is well
    return {"rejected_spans": rejected, "reply": message} if rejected or message else None
