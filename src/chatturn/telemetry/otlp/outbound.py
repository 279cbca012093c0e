"""
The bounded queue of an isolate's spans, log records and metrics that wait to be sent.

Only plain Python objects are kept between requests.  A flush sends all waiting items within the request that flushes.
Items that cannot be delivered are counted, and each reason is logged once.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from chatturn.telemetry.operator_log import OperatorLog, log_record
from chatturn.telemetry.otlp.encoding import SIGNALS, Signal, encode_log
from chatturn.telemetry.otlp.metrics import Metrics
from chatturn.telemetry.otlp.sending import Loss, Sender

__all__ = ["MAX_WAITING_CHARACTERS", "MAX_WAITING_ITEMS", "Outbound"]

MAX_WAITING_ITEMS: Final = 4_096
MAX_WAITING_CHARACTERS: Final = 2_000_000
"""Of spans, and of log records, each."""

_MAX_PENDING: Final = 64
"""Ended attempts that wait to be encoded; with one more, the oldest is encoded at once."""

_DEADLINE_S: Final = 10.0
"""For one flush, its tries included."""

_MAX_ITEM_CHARACTERS: Final = 250_000


class Outbound:
    """
    Gathers and flushes.

    Args:
        sender: Sends batches to the collector.
        console: The log that gets every line.
        now_ns: Nanoseconds since the epoch.
        shows_content: Whether records may hold the error texts of a model's API, which may quote the conversation.

    Attributes:
        metrics: The isolate's metrics.
    """

    def __init__(
        self, sender: Sender, *, console: OperatorLog, now_ns: Callable[[], int], shows_content: bool = False
    ) -> None:
        self.metrics = Metrics(now_ns)
        self._sender = sender
        self._log = console
        self._now_ns = now_ns
        self._shows_content = shows_content
        self._waiting: dict[Signal, list[str]] = {"traces": [], "logs": []}
        self._characters: dict[Signal, int] = {"traces": 0, "logs": 0}
        self._told: set[tuple[Signal, str]] = set()
        self._pending: list[Callable[[], None]] = []
        self._flushes_at_s = 0.0

    @property
    def has_records(self) -> bool:
        """Whether log records wait; if no turn follows, none would send them."""
        return bool(self._waiting["logs"])

    def add(self, signal: Signal, item: str) -> None:
        """Add the encoded *item* to the queue; drop and count it if it is too large or the queue is full."""
        waiting = self._waiting[signal]
        if len(item) > _MAX_ITEM_CHARACTERS:
            self.lose(Loss(signal, "too_large", 1))
        elif len(waiting) >= MAX_WAITING_ITEMS or self._characters[signal] + len(item) > MAX_WAITING_CHARACTERS:
            self.lose(Loss(signal, "queue_full", 1))
        else:
            waiting.append(item)
            self._characters[signal] += len(item)

    def before_flush(self, gather: Callable[[], None]) -> None:
        """Call *gather* before the next flush, whichever turn flushes, so that it can add its items."""
        self._pending.append(gather)
        if len(self._pending) > _MAX_PENDING:
            self._gather(self._pending.pop(0))

    def log(self, event: str, particulars: Mapping[str, object]) -> None:
        """Log outside any turn; see `OperatorLog`."""
        self.log_in(event, particulars, None, None)

    def log_in(self, event: str, particulars: Mapping[str, object], trace_id: str | None, span_id: str | None) -> None:
        """Write a line to the console, and queue it as a record of the span *span_id*."""
        self._log(event, particulars)
        # A failure of the log itself cannot be logged; the turn goes on.
        with suppress(Exception):
            record = log_record(event, particulars)
            if not self._shows_content:
                record = _without_detail(record)
            self.add("logs", encode_log(record, self._now_ns(), trace_id, span_id))

    def lose(self, loss: Loss) -> None:
        """Count items that are not delivered; log the first loss for each signal and reason."""
        attributes = {"chatturn.telemetry.signal": loss.signal, "chatturn.telemetry.reason": loss.reason}
        self.metrics.count("chatturn.telemetry.dropped", loss.items, attributes)
        if (loss.signal, loss.reason) in self._told:
            return
        self._told.add((loss.signal, loss.reason))
        # To the console only: a queued record of the loss could be lost, too.
        particulars = {"signal": loss.signal, "reason": loss.reason, "items": loss.items, **loss.detail}
        self._log("telemetry.dropped", {"level": "warning", **particulars})

    async def flush_within(self, seconds: float) -> None:
        """Flush after *seconds*, unless another flush is due by then: of simultaneous callers only one flushes."""
        now_s = asyncio.get_running_loop().time()
        # A time, not a flag: the platform may have ended the caller that was to flush.
        if now_s < self._flushes_at_s <= now_s + seconds:
            return
        self._flushes_at_s = now_s + seconds
        await asyncio.sleep(seconds)
        await self.flush()

    async def flush(self) -> None:
        """Send all waiting items.  Raises nothing but cancellation."""
        pending, self._pending = self._pending, []
        for gather in pending:
            self._gather(gather)
        metrics = self.metrics.take()
        if self.metrics.dropped:
            self.lose(Loss("metrics", "too_many_series", self.metrics.dropped))
            self.metrics.dropped = 0
        batches = {"traces": self._take("traces"), "metrics": metrics, "logs": self._take("logs")}
        until_s = asyncio.get_running_loop().time() + _DEADLINE_S
        # One signal after the other: a request may have only a few open connections.
        for signal in SIGNALS:
            if batches[signal]:
                for loss in await self._sender.send(signal, batches[signal], until_s):
                    self.lose(loss)

    def _gather(self, gather: Callable[[], None]) -> None:
        try:
            gather()
        except Exception as error:  # noqa: BLE001 - one turn's telemetry must not cost another its own
            self.lose(Loss("traces", "error", 1, {"error": error}))

    def _take(self, signal: Signal) -> list[str]:
        taken, self._waiting[signal], self._characters[signal] = self._waiting[signal], [], 0
        return taken


def _without_detail(value: Any) -> Any:
    """Return a copy of a record, JSON, without the error texts of a model's API."""
    if isinstance(value, dict):
        described = "type" in value and "code" in value  # an error of ours: see `log_record`
        return {name: _without_detail(each) for name, each in value.items() if not (described and name == "detail")}
    return [_without_detail(each) for each in value] if isinstance(value, list) else value
