"""A collector for tests without a network: what it is sent is read strictly, with OpenTelemetry's own schema."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

from chatturn.settings import Settings
from chatturn.telemetry.otlp.setup import Telemetry, make_telemetry
from chatturn.transport import TransportRequest
from dev.otlp_relay import message_of
from tests.support.transport import Exchange, Reply, ScriptedResponse

__all__ = ["Collected", "Logged", "fixed_telemetry", "plain", "read_strictly"]

_EPOCH_NS: Final = 1_767_225_600_000_000_000  # 2026-01-01, as `tests.support.turns.virtual_moment`
_IDS: Final = count(1)


def read_strictly(signal: str, payload: str) -> Any:
    """Parse an export request, where unknown members and wrong types are errors."""
    return message_of(signal, payload)


class Logged(list[tuple[str, dict[str, object]]]):
    """A log that remembers."""

    def __call__(self, event: str, particulars: Mapping[str, object]) -> None:
        """Remember a record."""
        self.append((event, dict(particulars)))


class Collected:
    """
    A `Transport` to a collector that takes everything, if it reads as what it should be.

    Attributes:
        requests: What it was sent.
    """

    def __init__(self) -> None:
        self.requests: list[TransportRequest] = []

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator[ScriptedResponse]:
        """Take *request*."""
        read_strictly(request.url.rpartition("/")[2], request.body)
        self.requests.append(request)
        yield ScriptedResponse(Reply(body=[b"{}"]), Exchange(request, asyncio.get_running_loop().time()))

    def _items(self, signal: str, *members: str) -> list[dict[str, Any]]:
        bodies = [json.loads(request.body) for request in self.requests if request.url.endswith(f"/v1/{signal}")]
        return [item for body in bodies for item in body[members[0]][0][members[1]][0][members[2]]]

    @property
    def spans(self) -> list[dict[str, Any]]:
        """All spans, in the order in which they came, attributes as a mapping."""
        spans = self._items("traces", "resourceSpans", "scopeSpans", "spans")
        return [span | {"attributes": plain(span["attributes"])} for span in spans]

    @property
    def records(self) -> list[dict[str, Any]]:
        """All log records."""
        return self._items("logs", "resourceLogs", "scopeLogs", "logRecords")

    @property
    def points(self) -> dict[str, list[dict[str, Any]]]:
        """All data points by their metric's name, attributes as a mapping."""
        found: dict[str, list[dict[str, Any]]] = {}
        for metric in self._items("metrics", "resourceMetrics", "scopeMetrics", "metrics"):
            points = (metric.get("sum") or metric.get("gauge") or metric["histogram"])["dataPoints"]
            found.setdefault(metric["name"], []).extend(
                point | {"attributes": plain(point["attributes"])} for point in points
            )
        return found

    def named(self, name: str) -> dict[str, Any]:
        """Return the one span of that name."""
        [span] = [span for span in self.spans if span["name"] == name]
        return span


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return attributes as a mapping, out of their wrappers."""
    return {item["key"]: next(iter(item["value"].values()), None) for item in attributes}


def fixed_telemetry(collector: Any, log: Logged | None = None, **settings: str) -> Telemetry:
    """Make telemetry that sends to *collector*; its clock is the loop's, and no id comes twice."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example/base/", **settings}
    return make_telemetry(
        collector,
        Settings.from_env(env),
        console=Logged() if log is None else log,
        now_ns=lambda: _EPOCH_NS + round(asyncio.get_running_loop().time() * 1e9),
        new_id=lambda size: f"{next(_IDS):0{2 * size}x}",
    )
