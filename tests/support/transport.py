"""
A transport whose other end follows a script: one entry per request, in order.

An entry is a `Reply`, an exception to be raised instead of a response, or `HANG`.  A reply's body is a list
of chunks; between them may stand a float, the seconds that pass before the next one, an exception, or `HANG`.
What happened is on record in `ScriptedTransport.exchanges`, in the loop's time.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from chatturn.transport import TransportRequest

__all__ = ["HANG", "BodyPart", "Exchange", "Reply", "ScriptedTransport"]

HANG: Final = "hang"

Hang: TypeAlias = Literal["hang"]
BodyPart: TypeAlias = bytes | float | Exception | Hang


@dataclass(frozen=True, kw_only=True)
class Reply:
    """
    One scripted response.

    Attributes:
        status: The HTTP status.
        headers: Its headers, names in lower case.
        body: Its chunks and what happens between them.
        after_s: Until the headers come.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    body: Iterable[BodyPart] = ()
    after_s: float = 0.0


@dataclass
class Exchange:
    """
    What became of one request.

    Attributes:
        request: As it was sent.
        sent_at: The loop's time then.
        closed_at: The loop's time when its connection was closed; None while it is open.
        chunks: How many chunks of the body were taken.
    """

    request: TransportRequest
    sent_at: float
    closed_at: float | None = None
    chunks: int = 0


class ScriptedTransport:
    """A `Transport` that plays *script*."""

    def __init__(self, script: Iterable[Reply | Exception | Hang]) -> None:
        self._script = list(script)
        self.exchanges: list[Exchange] = []

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator["ScriptedResponse"]:
        """Play the script's next entry."""
        loop = asyncio.get_running_loop()
        exchange = Exchange(request, loop.time())
        self.exchanges.append(exchange)
        assert self._script, "the script has no entry for this request"
        entry = self._script.pop(0)
        try:
            if isinstance(entry, Exception):
                raise entry
            if not isinstance(entry, Reply):
                await _never()
                return
            await asyncio.sleep(entry.after_s)
            yield ScriptedResponse(entry, exchange)
        finally:
            exchange.closed_at = loop.time()


class ScriptedResponse:
    """A response whose headers have arrived."""

    def __init__(self, reply: Reply, exchange: Exchange) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._body = iter(reply.body)
        self._exchange = exchange

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as the script has it."""
        return self

    def __aiter__(self) -> "ScriptedResponse":
        return self

    async def __anext__(self) -> bytes:
        for part in self._body:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, bytes):
                self._exchange.chunks += 1
                return part
            await (asyncio.sleep(part) if isinstance(part, float) else _never())
        raise StopAsyncIteration


async def _never() -> None:
    await asyncio.get_running_loop().create_future()
