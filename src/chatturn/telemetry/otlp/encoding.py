"""
OTLP's JSON: spans, log records and metrics as text.  Pure.

Each item is encoded by itself as soon as it is known, so the size of the waiting items is known; `wrapped` puts many
items into one request.  Lone surrogates, which no UTF-8 can carry, become question marks.

Source:
    OTLP specification 1.x, "JSON Protobuf Encoding".
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from chatturn.telemetry.conventions import ERROR_TYPE, LINK_REASON
from chatturn.telemetry.spans import FinishedSpan, SpanLink
from chatturn.telemetry.tracer import AttributeValue, SpanKind

__all__ = ["SIGNALS", "Signal", "attributes_of", "encode_log", "encode_span", "text_of", "wrapped"]

Signal: TypeAlias = Literal["traces", "metrics", "logs"]

SIGNALS: Final[Mapping[Signal, tuple[str, str, str]]] = {
    "traces": ("resourceSpans", "scopeSpans", "spans"),
    "metrics": ("resourceMetrics", "scopeMetrics", "metrics"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords"),
}
"""The names of a request's members."""

_SCOPE: Final = "chatturn"
_KINDS: Final[Mapping[SpanKind, int]] = {"internal": 1, "server": 2, "client": 3}
_SEVERITIES: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17}
_STATUS_ERROR: Final = 2
_INT64: Final = range(-(2**63), 2**63)
_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_MAX_DEPTH: Final = 8
_KEPT: Final = {str, int, bool}
_MOST_KEPT: Final = 100
"""Characters of a value that is kept as it is encoded."""

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_span(span: FinishedSpan) -> str:
    """Return one span; built as text, since a turn has several spans and most of their values repeat."""
    attributes = {**span.attributes, ERROR_TYPE: span.error_type} if span.error_type is not None else span.attributes
    parent = "" if span.parent_span_id is None else f',"parentSpanId":"{span.parent_span_id}"'
    status = "" if span.error_type is None else f',"status":{{"code":{_STATUS_ERROR}}}'
    links = f',"links":[{",".join(map(_link, span.links))}]' if span.links else ""
    return _sendable(
        f'{{"traceId":"{span.trace_id}","spanId":"{span.span_id}"{parent},"name":{_encode(span.name)},'
        f'"kind":{_KINDS[span.kind]},"startTimeUnixNano":"{span.start_ns}","endTimeUnixNano":"{span.end_ns}",'
        f'"attributes":[{_pairs(attributes)}]{status}{links}}}'
    )


def _link(link: SpanLink) -> str:
    about = _pairs({LINK_REASON: link.reason})
    return f'{{"traceId":"{link.trace_id}","spanId":"{link.span_id}","attributes":[{about}]}}'


def encode_log(record: Mapping[str, Any], at_ns: int, trace_id: str | None, span_id: str | None) -> str:
    """Return one log record; *record* is `chatturn.telemetry.operator_log.log_record`'s."""
    level, event = str(record["level"]), str(record["event"])
    particulars = {name: value for name, value in record.items() if name not in {"level", "event"}}
    encoded: dict[str, Any] = {
        "timeUnixNano": str(at_ns),
        "observedTimeUnixNano": str(at_ns),
        "severityNumber": _SEVERITIES.get(level, _SEVERITIES["info"]),
        "severityText": level,
        "eventName": event,
        "body": {"stringValue": event},
        "attributes": attributes_of(particulars),
    }
    if trace_id and span_id:
        encoded |= {"traceId": trace_id, "spanId": span_id}
    return text_of(encoded)


def attributes_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return attributes, each value in the wrapper that says its type."""
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def text_of(encoded: Mapping[str, Any]) -> str:
    """Return JSON without line ends."""
    return _sendable(_encode(encoded))


def wrapped(signal: Signal, items: Sequence[str], resource: Mapping[str, AttributeValue]) -> str:
    """Return the body of an export request: the encoded *items* of one *resource*."""
    resources, scopes, members = SIGNALS[signal]
    described = text_of({"attributes": attributes_of(resource)})
    scoped = f'{{"scope":{{"name":"{_SCOPE}"}},"{members}":[{",".join(items)}]}}'
    return f'{{"{resources}":[{{"resource":{described},"{scopes}":[{scoped}]}}]}}'


def _sendable(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()


def _pairs(attributes: Mapping[str, AttributeValue]) -> str:
    return ",".join(
        [
            _kept_pair(key, value) if type(value) in _KEPT and len(str(value)) <= _MOST_KEPT else _pair(key, value)
            for key, value in attributes.items()
        ]
    )


def _pair(key: str, value: AttributeValue) -> str:
    return _encode({"key": key, "value": _value(value)})


_kept_pair: Final = functools.lru_cache(maxsize=1_024, typed=True)(_pair)


def _value(value: Any, depth: int = 0) -> dict[str, Any]:  # noqa: PLR0911 - one for each wrapper
    if type(value) is str:  # which most are
        return {"stringValue": value}
    match value:
        case bool():  # before int, which it is too
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)} if value in _INT64 else {"stringValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
        case str():
            return {"stringValue": value}
        case None:
            return {}
        case Mapping() if depth < _MAX_DEPTH:
            members = [{"key": str(key), "value": _value(item, depth + 1)} for key, item in value.items()]
            return {"kvlistValue": {"values": members}}
        case list() | tuple() if depth < _MAX_DEPTH:
            return {"arrayValue": {"values": [_value(item, depth + 1) for item in value]}}
        case _:
            return {"stringValue": f"<{type(value).__name__}>"}
