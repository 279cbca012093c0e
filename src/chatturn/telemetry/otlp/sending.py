"""
Sends items in batches; a batch is tried again if the collector asks for it, and never after the deadline.

Source:
    OTLP specification 1.x, "OTLP/HTTP": response codes, partial success, throttling.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

from chatturn.errors import BackendTransportError
from chatturn.telemetry.otlp.encoding import Signal, wrapped
from chatturn.telemetry.tracer import AttributeValue
from chatturn.transport import Transport, TransportRequest, TransportResponse

__all__ = ["MAX_BATCH_CHARACTERS", "MAX_BATCH_ITEMS", "Loss", "Sender"]

MAX_BATCH_ITEMS: Final = 512
MAX_BATCH_CHARACTERS: Final = 500_000
"""Of one request; collectors take at least a few megabytes."""

_TAKEN: Final = range(200, 300)
_TOO_LARGE: Final = 413
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S: Final = 1.0
_REPLY_BYTES: Final = 65_536  # what is read of a collector's answer: a partial success may name every item
_REPLY_S: Final = 1.0  # how long that may take, or what waits behind it would not be sent
_SECONDS: Final = re.compile(r"[0-9]{1,9}")

_REJECTED: Final[Mapping[Signal, str]] = {
    "traces": "rejectedSpans",
    "metrics": "rejectedDataPoints",
    "logs": "rejectedLogRecords",
}


class Loss(NamedTuple):
    """
    Items that were not delivered.

    Attributes:
        reason: One word of a small set, such as ``queue_full``.
        items: The number of items; 0 if the collector only warns.
        detail: Particulars for the operator's log.
    """

    signal: Signal
    reason: str
    items: int
    detail: Mapping[str, object] = {}


class Sender:
    """
    Sends batches to one collector.

    Args:
        transport: Sends the requests.
        endpoint: The collector's base address; ``/v1/traces`` and so on are appended.
        headers: Sent with every request.
        resource: The attributes of the sender.
        now: Seconds since the epoch, for a Retry-After that is a date.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        endpoint: str,
        headers: Mapping[str, str],
        resource: Mapping[str, AttributeValue],
        now: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._endpoint = endpoint.rstrip("/")
        self._headers = {**headers, "content-type": "application/json"}
        self._resource = resource
        self._now = now

    async def send(self, signal: Signal, items: Sequence[str], until_s: float) -> list[Loss]:
        """
        Send *items* until they are taken or refused.

        Raises nothing but cancellation.

        Args:
            signal: The kind of the items.
            items: The encoded items.
            until_s: When to give up, by the event loop's clock.

        Returns:
            The items that were not delivered.
        """
        losses: list[Loss] = []
        for batch in _batches(items):
            try:
                async with asyncio.timeout_at(until_s):
                    losses += await self._deliver(signal, batch, until_s)
            except TimeoutError:
                losses.append(Loss(signal, "timeout", len(batch)))
            except BackendTransportError as error:
                losses.append(Loss(signal, "unreachable", len(batch), {"error": error}))
            except Exception as error:  # noqa: BLE001  telemetry is never worth a turn
                losses.append(Loss(signal, "error", len(batch), {"error": error}))
        return losses

    async def _deliver(self, signal: Signal, batch: Sequence[str], until_s: float, *, split: bool = True) -> list[Loss]:
        request = TransportRequest(
            url=f"{self._endpoint}/v1/{signal}", headers=self._headers, body=wrapped(signal, batch, self._resource)
        )
        tries = 0
        while True:
            tries += 1
            async with self._transport.send(request) as response:
                status, headers, reply = response.status, response.headers, await _start_of_body(response)
            if status in _TAKEN:
                return _partial_success(signal, reply, len(batch))
            if status == _TOO_LARGE and split and len(batch) > 1:
                half = len(batch) // 2
                return [
                    *await self._deliver(signal, batch[:half], until_s, split=False),
                    *await self._deliver(signal, batch[half:], until_s, split=False),
                ]
            pause_s = self._pause_s(headers.get("retry-after"), tries)
            if status not in _RETRYABLE or asyncio.get_running_loop().time() + pause_s >= until_s:
                return [Loss(signal, f"status_{status}", len(batch), {"reply": reply, "tries": tries})]
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


def _batches(items: Sequence[str]) -> Iterator[Sequence[str]]:
    batch: list[str] = []
    characters = 0
    for item in items:
        if batch and (len(batch) == MAX_BATCH_ITEMS or characters + len(item) > MAX_BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(item)
        characters += len(item)
    if batch:
        yield batch


async def _start_of_body(response: TransportResponse) -> str:
    """Read the body of a collector's answer as far as it arrives; only the status decides success."""
    body = bytearray()
    with suppress(TimeoutError, BackendTransportError):
        async with asyncio.timeout(_REPLY_S):
            async for chunk in response.chunks():
                body += chunk
                if len(body) >= _REPLY_BYTES:
                    break
    return body[:_REPLY_BYTES].decode(errors="replace")


def _partial_success(signal: Signal, reply: str, sent: int) -> list[Loss]:
    """Return the items that a collector has rejected from a batch; sending them again would not help."""
    try:
        told = json.loads(reply)["partialSuccess"]
        rejected, message = int(told.get(_REJECTED[signal], 0)), str(told.get("errorMessage", ""))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return []  # mostly `{}` or nothing, which means full success
    return [Loss(signal, "rejected", min(max(0, rejected), sent), {"reply": message})] if rejected or message else []
