"""
What waits to be sent, of one isolate: spans, log records and metrics, bounded.

Only plain Python is kept between requests.  Whoever flushes takes all that has gathered, and sends it with its own
request's means; what cannot be delivered is counted, and each reason is logged once.
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
"""Attempts that have ended and are not encoded yet; of one more, the oldest is."""

_DEADLINE_S: Final = 10.0
"""For one flush, its tries included."""

_MAX_ITEM_CHARACTERS: Final = 250_000


class Outbound:
    """
    Gathers and flushes.

    Args:
        sender: Sends.
        console: Where log lines go in any case.
        now_ns: Nanoseconds since the epoch.
        shows_content: Whether records may hold what a model's API said of an error: it may quote the conversation.

    Attributes:
        metrics: Of this isolate.
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
        """Whether log records wait that no turn may come to take along."""
        return bool(self._waiting["logs"])

    def add(self, signal: Signal, item: str) -> None:
        """Let *item* wait to be sent."""
        waiting = self._waiting[signal]
        if len(item) > _MAX_ITEM_CHARACTERS:
            self.lose(Loss(signal, "too_large", 1))
        elif len(waiting) >= MAX_WAITING_ITEMS or self._characters[signal] + len(item) > MAX_WAITING_CHARACTERS:
            self.lose(Loss(signal, "queue_full", 1))
        else:
            waiting.append(item)
            self._characters[signal] += len(item)

    def before_flush(self, gather: Callable[[], None]) -> None:
        """Let *gather* add what it has before the next flush, whichever turn makes it."""
        self._pending.append(gather)
        if len(self._pending) > _MAX_PENDING:
            self._gather(self._pending.pop(0))

    def log(self, event: str, particulars: Mapping[str, object]) -> None:
        """Log outside any turn; see `OperatorLog`."""
        self.log_in(event, particulars, None, None)

    def log_in(self, event: str, particulars: Mapping[str, object], trace_id: str | None, span_id: str | None) -> None:
        """Write a line to the console, and let the same wait to be sent, with the span that it belongs to."""
        self._log(event, particulars)
        # Nobody can be told that the log itself is broken, and the turn goes on.
        with suppress(Exception):
            record = log_record(event, particulars)
            if not self._shows_content:
                record = _without_detail(record)
            self.add("logs", encode_log(record, self._now_ns(), trace_id, span_id))

    def lose(self, loss: Loss) -> None:
        """Count what is not delivered; say so, the first time that it happens for this reason."""
        attributes = {"chatturn.telemetry.signal": loss.signal, "chatturn.telemetry.reason": loss.reason}
        self.metrics.count("chatturn.telemetry.dropped", loss.items, attributes)
        if (loss.signal, loss.reason) in self._told:
            return
        self._told.add((loss.signal, loss.reason))
        # To the console only: a record of it would be the next to be lost.
        particulars = {"signal": loss.signal, "reason": loss.reason, "items": loss.items, **loss.detail}
        self._log("telemetry.dropped", {"level": "warning", **particulars})

    async def flush_within(self, seconds: float) -> None:
        """Flush after so long, unless somebody does before: one of those that come at about the same time does."""
        now_s = asyncio.get_running_loop().time()
        # A time, not a mark: whoever was to flush may have been ended by the platform without a word.
        if now_s < self._flushes_at_s <= now_s + seconds:
            return
        self._flushes_at_s = now_s + seconds
        await asyncio.sleep(seconds)
        await self.flush()

    async def flush(self) -> None:
        """Send what has gathered.  Raises nothing but cancellation."""
        pending, self._pending = self._pending, []
        for gather in pending:
            self._gather(gather)
        metrics = self.metrics.take()
        if self.metrics.dropped:
            self.lose(Loss("metrics", "too_many_series", self.metrics.dropped))
            self.metrics.dropped = 0
        batches = {"traces": self._take("traces"), "metrics": metrics, "logs": self._take("logs")}
        until_s = asyncio.get_running_loop().time() + _DEADLINE_S
        # One after the other: a request may have few connections that wait for an answer.
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
    """Return a copy of a record, JSON, in which errors do not say what a model's API said."""
    if isinstance(value, dict):
        described = "type" in value and "code" in value  # an error of ours: see `log_record`
        return {name: _without_detail(each) for name, each in value.items() if not (described and name == "detail")}
    return [_without_detail(each) for each in value] if isinstance(value, list) else value
