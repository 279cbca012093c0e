"""Makes the telemetry that the settings describe, once per isolate, and binds it to each request."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from chatturn.errors import ConfigurationError
from chatturn.settings import Settings
from chatturn.telemetry import conventions
from chatturn.telemetry.operator_log import OperatorLog
from chatturn.telemetry.otlp.outbound import Outbound
from chatturn.telemetry.otlp.sending import Sender
from chatturn.telemetry.otlp.turns import TurnTrace
from chatturn.telemetry.tracer import AttributeValue
from chatturn.telemetry.w3c import TraceParent, parse_ratio, parse_traceparent
from chatturn.transport import ADDRESS, Transport, is_address

__all__ = ["RequestTelemetry", "Telemetry", "make_telemetry", "parse_headers"]

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_RATIO: Final = "OTEL_TRACES_SAMPLER_ARG"

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTelemetry:
    """The telemetry of one request: makes the telemetry of its turns."""

    outbound: Outbound
    ratio: float
    shows_content: bool
    caller: TraceParent | None
    now_ns: Callable[[], int]
    new_id: Callable[[int], str]

    def turn(self, about: Mapping[str, AttributeValue]) -> TurnTrace:
        """Begin an attempt at the turn that has these attributes."""
        return TurnTrace(
            self.outbound,
            about=about,
            caller=self.caller,
            ratio=self.ratio,
            shows_content=self.shows_content,
            now_ns=self.now_ns,
            new_id=self.new_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """
    The telemetry of one isolate.

    Attributes:
        outbound: The queue of items to send.
        ratio: The share of traces that is kept, 0 to 1.
        shows_content: Whether spans carry message content.
        now_ns: Nanoseconds since the epoch.
        new_id: Takes a number of bytes; returns that many random ones in lower-case hex.
    """

    outbound: Outbound
    ratio: float
    shows_content: bool
    now_ns: Callable[[], int]
    new_id: Callable[[int], str]

    @property
    def log(self) -> OperatorLog:
        """The log for events outside any turn."""
        return self.outbound.log

    def request(self, traceparent: str | None) -> RequestTelemetry:
        """Return the telemetry of a request, whose ``traceparent`` header may name its trace."""
        return RequestTelemetry(
            outbound=self.outbound,
            ratio=self.ratio,
            shows_content=self.shows_content,
            caller=parse_traceparent(traceparent),
            now_ns=self.now_ns,
            new_id=self.new_id,
        )


def make_telemetry(
    transport: Transport,
    settings: Settings,
    *,
    console: OperatorLog,
    now_ns: Callable[[], int],
    new_id: Callable[[int], str],
) -> Telemetry:
    """
    Make what the settings describe.

    Args:
        transport: Sends requests to the collector.
        settings: The settings, with an endpoint.
        console: The log that gets every line.
        now_ns: Nanoseconds since the epoch.
        new_id: Takes a number of bytes; returns that many random ones in lower-case hex.

    Raises:
        ConfigurationError: A setting cannot be read.
    """
    endpoint = settings.otel_exporter_otlp_endpoint
    if not is_address(endpoint):
        raise ConfigurationError(_ENDPOINT, f"must be {ADDRESS}")
    sender = Sender(
        transport,
        endpoint=endpoint,
        headers=parse_headers(settings.otel_exporter_otlp_headers),
        resource={conventions.SERVICE_NAME: settings.otel_service_name},
        now=lambda: now_ns() / 1e9,
    )
    shows_content = settings.otel_instrumentation_genai_capture_message_content == "true"
    return Telemetry(
        outbound=Outbound(sender, console=console, now_ns=now_ns, shows_content=shows_content),
        ratio=parse_ratio(_RATIO, settings.otel_traces_sampler_arg),
        shows_content=shows_content,
        now_ns=now_ns,
        new_id=new_id,
    )


def parse_headers(text: str) -> dict[str, str]:
    """
    Read ``name=value,name2=value2``, the values percent-encoded.

    Names become lower case; of two entries with one name the last counts.

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
            raise ConfigurationError(_HEADERS, f"entry {position} is not `name=value`")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(_HEADERS, f"entry {position} has a value that no header can carry")
        headers[name] = value
    return headers
