"""
Getting a response that can be read, with patience: the tries of one model call.

    try --+-- no headers, or a status that may pass --> wait --> try …      at most `max_attempts`
          +-- any other status -----------------------> BackendRejected
          +-- 2xx ------------------------------------> Exchange, whose body has not been touched

Tries end where a body begins.  All carry the same headers, so the same idempotency key: an API that knows
the key bills them once.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from chatturn.backends.openai.completions import MAX_DETAIL_BYTES, shortened
from chatturn.backends.openai.deadlines import UNLIMITED, Deadline, Watchdog
from chatturn.backends.openai.retry import NO_HINT, BackendRetryPolicy, RetryHint
from chatturn.errors import BackendRejected, BackendTimeout, BackendTransportError
from chatturn.telemetry import conventions
from chatturn.telemetry.tracer import Span
from chatturn.transport import Transport, TransportRequest, TransportResponse

__all__ = ["Connector", "Exchange", "SpanOfTry"]

_SUCCESS: Final = range(200, 300)
_ERROR_BODY: Final = Deadline("error_body_timeout_ms", 5_000, "end of the error's body")

SpanOfTry: TypeAlias = Callable[[int], AbstractContextManager[Span]]
"""Begins the span of one try; takes its number, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """
    The try that worked.

    Attributes:
        response: Open, its body unread.
        began_s: When it began, in seconds of the call.
        span: The try's own, still open.
        stack: Closes the response and ends the span; whoever has the exchange must enter it.
    """

    response: TransportResponse
    began_s: float
    span: Span
    stack: AsyncExitStack


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """
    Sends one request until its response can be read.

    Attributes:
        kind: The backend's name, for errors.
        transport: How to reach the API.
        retry: How often and how patiently.
        uniform: Like `random.uniform`.
        now: Seconds since the epoch.
    """

    kind: str
    transport: Transport
    retry: BackendRetryPolicy
    uniform: Callable[[float, float], float]
    now: Callable[[], float]

    async def connect(self, request: TransportRequest, watchdog: Watchdog, span_of_try: SpanOfTry) -> Exchange:
        """
        Return the first response that can be read.

        Raises:
            BackendRejected: The API refused the request, and would again; its reason is in ``detail``.
            BackendTransportError: The tries are used up, or the wait that the API asks for is too long.
            BackendTimeout: The last try got no headers in time, or the call's whole time is over.
        """
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._try(request, watchdog, span_of_try, attempt)
            if isinstance(outcome, Exchange):
                return outcome
            with watchdog.limit(UNLIMITED):
                await asyncio.sleep(outcome)

    async def _try(
        self, request: TransportRequest, watchdog: Watchdog, span_of_try: SpanOfTry, attempt: int
    ) -> Exchange | float:
        """Try once; return the exchange, or the seconds to wait; raise if there should be no next try."""
        async with AsyncExitStack() as stack:
            began_s = watchdog.elapsed_s()
            span = stack.enter_context(span_of_try(attempt))
            try:
                with watchdog.limit(self._until_headers()):
                    response = await stack.enter_async_context(self.transport.send(_below(span, request)))
            except (BackendTransportError, BackendTimeout) as error:
                wait_s = self._wait_s(attempt, NO_HINT, watchdog)
                if wait_s is None:
                    raise
                span.fail(error.code)
                return wait_s
            span.set(conventions.HTTP_STATUS, response.status)
            if response.status in _SUCCESS:
                return Exchange(response=response, began_s=began_s, span=span, stack=stack.pop_all())
            wait_s = await self._wait_after(response, attempt, watchdog)
            span.fail(BackendTransportError.code)
            return wait_s

    def _until_headers(self) -> Deadline:
        return Deadline("request_timeout_ms", self.retry.request_timeout_ms, "response headers")

    async def _wait_after(self, response: TransportResponse, attempt: int, watchdog: Watchdog) -> float:
        hint = RetryHint.from_headers(response.headers, now=self.now)
        passing = self.retry.may_retry(response.status, hint)
        wait_s = self._wait_s(attempt, hint, watchdog) if passing else None
        if wait_s is not None:
            return wait_s
        raise (BackendTransportError if passing else BackendRejected)(
            f"status {response.status} at try {attempt}",
            backend=self.kind,
            upstream_status=response.status,
            detail=shortened(await self._excuse(response, watchdog)),
        )

    def _wait_s(self, attempt: int, hint: RetryHint, watchdog: Watchdog) -> float | None:
        delay_ms = self.retry.delay_ms(attempt, hint, self.uniform)
        if delay_ms is None or delay_ms / 1000 >= watchdog.remaining_s():
            return None  # a wait that would use up the call's time only hides what went wrong
        return delay_ms / 1000

    async def _excuse(self, response: TransportResponse, watchdog: Watchdog) -> bytes:
        """Read as much of an error's body as the log may keep; what cannot be had is done without."""
        body = bytearray()
        with suppress(BackendTransportError, BackendTimeout), watchdog.limit(_ERROR_BODY):
            async for chunk in response.chunks():
                body += chunk
                if len(body) >= MAX_DETAIL_BYTES:
                    break
        return bytes(body)


def _below(span: Span, request: TransportRequest) -> TransportRequest:
    """Return *request*, which says whose trace it belongs to, if it does to any."""
    traceparent = span.traceparent()
    if traceparent is None:
        return request
    return replace(request, headers={**request.headers, "traceparent": traceparent})
