"""
Metrics of one isolate, since they were last sent.

Their temporality is delta: isolates come and go, so totals since an isolate's start could not be added up.

Source:
    OpenTelemetry semantic conventions for generative AI, client metrics and their buckets; what they have no name for
    is under ``chatturn.``.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from chatturn.telemetry.otlp.encoding import attributes_of, text_of
from chatturn.telemetry.tracer import AttributeValue

__all__ = ["INSTRUMENTS", "MAX_SERIES", "Instrument", "Metrics"]

MAX_SERIES: Final = 256
"""Series of one instrument between two flushes: invented attribute values, as model names, must not fill the memory."""

_DELTA: Final = 1

_TOKEN_BOUNDS: Final = tuple(float(4**power) for power in range(14))
_DURATION_BOUNDS: Final = tuple(0.01 * 2**power for power in range(14))
_FIRST_CHUNK_BOUNDS: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)


class Instrument(NamedTuple):
    """
    One metric.

    Attributes:
        unit: The unit in UCUM.
        help: The metric's meaning in a sentence.
        bounds: The bounds of a histogram's buckets; empty for a counter.
    """

    unit: str
    help: str
    bounds: tuple[float, ...] = ()


INSTRUMENTS: Final[Mapping[str, Instrument]] = {
    "gen_ai.client.token.usage": Instrument("{token}", "Tokens of a model call, as the model counts.", _TOKEN_BOUNDS),
    "gen_ai.client.operation.duration": Instrument("s", "Model calls, all tries included.", _DURATION_BOUNDS),
    "gen_ai.client.operation.time_to_first_chunk": Instrument(
        "s", "From a model call's beginning to the first piece of its answer.", _FIRST_CHUNK_BOUNDS
    ),
    "gen_ai.invoke_agent.duration": Instrument("s", "Attempts of turns.", _DURATION_BOUNDS),
    "chatturn.turns": Instrument("{attempt}", "Attempts of turns, by how they ended; replays are none."),
    "chatturn.replays": Instrument("{request}", "Requests for turns that had finished."),
    "chatturn.takeovers": Instrument("{attempt}", "Attempts that followed on one whose worker was lost."),
    "chatturn.tokens.wasted": Instrument("{token}", "Tokens of attempts that delivered nothing."),
    "chatturn.database.size": Instrument("By", "The database, as it was last seen."),
    "chatturn.telemetry.dropped": Instrument("{item}", "Spans, points and records that were not delivered."),
}

_Key = tuple[tuple[str, AttributeValue], ...]


class _Histogram:
    __slots__ = ("buckets", "count", "least", "most", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0
        self.least = float("inf")
        self.most = float("-inf")

    def add(self, bounds: tuple[float, ...], value: float) -> None:
        self.buckets[bisect_left(bounds, value)] += 1
        self.count += 1
        self.sum += value
        self.least, self.most = min(self.least, value), max(self.most, value)


class Metrics:
    """
    Counts and distributions.

    Args:
        now_ns: Nanoseconds since the epoch.

    Attributes:
        dropped: Measurements dropped because of `MAX_SERIES`.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.dropped = 0
        self._now_ns = now_ns
        self._since_ns: int | None = None
        self._counts: dict[str, dict[_Key, int]] = {}
        self._histograms: dict[str, dict[_Key, _Histogram]] = {}
        self._levels: dict[str, int] = {}

    def set(self, name: str, value: int) -> None:
        """Set a gauge to its present value."""
        self._levels[name] = value

    def count(self, name: str, amount: int, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Add to a counter."""
        series, key = self._counts.setdefault(name, {}), _key(attributes)
        if amount and self._has_room(series, key):
            series[key] = series.get(key, 0) + amount

    def record(self, name: str, value: float | None, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Add a value to a histogram; None, unknown, is not added."""
        if value is None:
            return
        series, key = self._histograms.setdefault(name, {}), _key(attributes)
        if self._has_room(series, key):
            bounds = INSTRUMENTS[name].bounds
            series.setdefault(key, _Histogram(bounds)).add(bounds, value)

    def take(self) -> list[str]:
        """Return the gathered metrics, one encoded text for each instrument, and start from zero."""
        since, now = self._since_ns, self._now_ns()
        times = {"startTimeUnixNano": str(now if since is None else since), "timeUnixNano": str(now)}
        taken = [
            _encoded(name, "sum", [_sum(key, count) | times for key, count in series.items()])
            for name, series in self._counts.items()
            if series
        ] + [
            _encoded(name, "histogram", [_points(name, key, found) | times for key, found in series.items()])
            for name, series in self._histograms.items()
        ]
        taken += [
            _encoded(name, "gauge", [{"attributes": [], "asInt": str(value), "timeUnixNano": str(now)}])
            for name, value in self._levels.items()
        ]
        self._counts, self._histograms, self._since_ns, self._levels = {}, {}, None, {}
        return taken

    def _has_room(self, series: Mapping[_Key, object], key: _Key) -> bool:
        if self._since_ns is None:
            self._since_ns = self._now_ns()
        if key in series or len(series) < MAX_SERIES:
            return True
        self.dropped += 1
        return False


def _key(attributes: Mapping[str, AttributeValue | None]) -> _Key:
    return tuple((name, value) for name, value in attributes.items() if value is not None)


def _encoded(name: str, kind: str, points: list[dict[str, Any]]) -> str:
    instrument = INSTRUMENTS[name]
    data: dict[str, Any] = {"dataPoints": points}
    if kind != "gauge":
        data["aggregationTemporality"] = _DELTA
    if kind == "sum":
        data["isMonotonic"] = True
    return text_of({"name": name, "unit": instrument.unit, "description": instrument.help, kind: data})


def _sum(key: _Key, count: int) -> dict[str, Any]:
    return {"attributes": attributes_of(dict(key)), "asInt": str(count)}


def _points(name: str, key: _Key, found: _Histogram) -> dict[str, Any]:
    return {
        "attributes": attributes_of(dict(key)),
        "count": str(found.count),
        "sum": found.sum,
        "min": found.least,
        "max": found.most,
        "bucketCounts": [str(count) for count in found.buckets],
        "explicitBounds": list(INSTRUMENTS[name].bounds),
    }
