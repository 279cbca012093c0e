"""
W3C Trace Context: the trace of a request, and whether it is kept.

Source:
    W3C Trace Context, level 2, section 3.2; OpenTelemetry, "TraceIdRatioBased" and "Probability sampling".
"""

import re
from typing import Final, NamedTuple

from chatturn.errors import ConfigurationError

__all__ = ["SAMPLED", "TraceParent", "parse_ratio", "parse_traceparent", "sampled_at"]

SAMPLED: Final = 0x01
"""The flag "sampled": the service that began the trace keeps it."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_RANDOM_TRACE_ID: Final = 0x02
_RANDOM_DIGITS: Final = 14  # the last 56 bits of a trace id are random


class TraceParent(NamedTuple):
    """
    A span as named in a ``traceparent`` header.

    Attributes:
        trace_id: 32 lower-case hex digits.
        span_id: 16 lower-case hex digits.
        flags: The eight bits of the header's last field.
    """

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the trace is kept."""
        return bool(self.flags & SAMPLED)

    def header(self) -> str:
        """Return the ``traceparent`` header that names this span, without undefined flags."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & (_RANDOM_TRACE_ID | SAMPLED):02x}"


def parse_traceparent(header: str | None) -> TraceParent | None:
    """
    Read a ``traceparent`` header; None if it is missing or invalid: then a new trace begins.

    Valid: lower case, no ids of zeros only, not version ff, further fields only after version 00.
    """
    match = _TRACEPARENT.fullmatch((header or "").strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, further = match.groups()
    if version == "ff" or (version == "00" and further) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16))


def sampled_at(ratio: float, trace_id: str) -> bool:
    """Say whether a trace is in the kept share *ratio*; every service decides the same for one trace id."""
    return int(trace_id[-_RANDOM_DIGITS:], 16) < ratio * 16**_RANDOM_DIGITS


def parse_ratio(setting: str, text: str) -> float:
    """
    Read the share of traces that are kept, 0 to 1.

    Raises:
        ConfigurationError: The setting is no number from 0 to 1.
    """
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:  # NaN is neither
        raise ConfigurationError(setting, "must be a number from 0 to 1")
    return ratio
