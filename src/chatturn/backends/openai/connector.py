"""
Getting a response that can be read, with patience: the tries of one model call.

    try --+-- no headers, or a status that may pass --> wait --> try …      at most `max_attempts`
          +-- elsewhere on the same host -------------> try there            at most `_MOST_REDIRECTS`
          +-- refused for the request's form ---------> try another form      each once
          +-- any other status -----------------------> BackendRejected, QuotaExhausted, ContextOverflow
          +-- 2xx ------------------------------------> Exchange, whose body has not been touched

Tries end where a body begins.  All carry the same headers, so the same idempotency key: an API that knows
the key bills them once.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from urllib.parse import urljoin, urlsplit

from chatturn.backends.openai.deadlines import UNLIMITED, Deadline, Watchdog
from chatturn.backends.openai.failures import MAX_DETAIL_BYTES, refusal, shortened
from chatturn.backends.openai.retry import NO_HINT, BackendRetryPolicy, RetryHint
from chatturn.errors import BackendRejected, BackendTimeout, BackendTransportError
from chatturn.telemetry import conventions
from chatturn.telemetry.tracer import Span
from chatturn.transport import Transport, TransportRequest, TransportResponse

__all__ = ["Connector", "Exchange", "SpanOfTry"]

_SUCCESS: Final = range(200, 300)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 3
_SERVER_ERROR: Final = 500
_ERROR_BODY: Final = Deadline("error_body_timeout_ms", 5_000, "end of the error's body")

SpanOfTry: TypeAlias = Callable[[int], AbstractContextManager[Span]]
"""Begins the span of one try; takes its number, from 1."""

Remake: TypeAlias = Callable[[int, str], TransportRequest | None]
"""Takes the status and the words of a refusal; returns a changed request, None if no change can help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """
    The try that worked.

    Attributes:
        response: The open response, its body unread.
        began_s: When the try began, in seconds since the call's begin.
        span: The try's span, still open.
        stack: Closes the response and ends the span; the holder of the exchange must enter it.
    """

    response: TransportResponse
    began_s: float
    span: Span
    stack: AsyncExitStack


def _as_it_is(_status: int, _words: str) -> None:
    return None


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

    async def connect(
        self, request: TransportRequest, watchdog: Watchdog, span_of_try: SpanOfTry, remake: Remake = _as_it_is
    ) -> Exchange:
        """
        Return the first response that can be read.

        Raises:
            BackendRejected: The API refused the request, and would again; its reason is in ``detail``.
            QuotaExhausted, ContextOverflow: The API refused the request for the reason in the class's name.
            BackendTransportError: The tries are used up, or the wait that the API asks for is too long.
            BackendTimeout: The last try got no headers in time, or the call's whole time is over.
        """
        attempt, redirects = 1, 0
        while True:
            outcome = await self._try(request, watchdog, span_of_try, remake, attempt)
            if isinstance(outcome, Exchange):
                return outcome
            if isinstance(outcome, TransportRequest):
                redirects += outcome.body == request.body  # a redirect keeps the body, a changed form does not
                if redirects > _MOST_REDIRECTS:
                    raise BackendRejected(
                        "redirects without end", backend=self.kind, detail=_without_query(outcome.url)
                    )
                request = outcome
                continue
            attempt += 1
            with watchdog.limit(UNLIMITED):
                await asyncio.sleep(outcome)

    async def _try(
        self,
        request: TransportRequest,
        watchdog: Watchdog,
        span_of_try: SpanOfTry,
        remake: Remake,
        attempt: int,
    ) -> Exchange | TransportRequest | float:
        """Try once; return the exchange, a request to send instead, or the seconds to wait; raise if no try is left."""
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
            if (elsewhere := _elsewhere(request, response)) is not None:
                return elsewhere
            words = await self._words(response, attempt, watchdog)
            if (remade := remake(response.status, words)) is not None:
                return replace(remade, url=request.url)
            wait_s = self._wait_after(response, words, attempt, watchdog)
            span.fail(BackendTransportError.code)
            return wait_s

    def _until_headers(self) -> Deadline:
        return Deadline("request_timeout_ms", self.retry.request_timeout_ms, "response headers")

    def _wait_after(self, response: TransportResponse, words: str, attempt: int, watchdog: Watchdog) -> float:
        status = response.status
        hint = RetryHint.from_headers(response.headers, now=self.now).with_words(words)
        if (refused := refusal(words, status, self.kind, comes_back=hint.after_ms is not None)) is not None:
            refused.retry_after_ms = hint.after_ms
            raise refused
        passing = self.retry.may_retry(status, hint)
        wait_s = self._wait_s(attempt, hint, watchdog) if passing else None
        if wait_s is not None:
            return wait_s
        location = _without_query(response.headers.get("location", ""))
        raise (BackendTransportError if passing else BackendRejected)(
            f"status {status} at try {attempt}",
            backend=self.kind,
            upstream_status=status,
            detail=shortened(f"Location: {location}\n{words}" if location else words),
            retry_after_ms=hint.after_ms,
        )

    def _wait_s(self, attempt: int, hint: RetryHint, watchdog: Watchdog) -> float | None:
        delay_ms = self.retry.delay_ms(attempt, hint, self.uniform)
        if delay_ms is None or delay_ms / 1000 >= watchdog.remaining_s():
            return None  # a wait that uses up the call's time would only hide the failure
        return delay_ms / 1000

    async def _words(self, response: TransportResponse, attempt: int, watchdog: Watchdog) -> str:
        """Return a refusal's text; "" for a server error that is tried again, whose text is not used."""
        status = response.status
        if status >= _SERVER_ERROR and status in self.retry.retry_statuses and attempt < self.retry.max_attempts:
            return ""
        return (await self._excuse(response, watchdog)).decode("utf-8", "replace")

    async def _excuse(self, response: TransportResponse, watchdog: Watchdog) -> bytes:
        """Read as much of an error's body as the log may keep, or as arrives in time."""
        body = bytearray()
        with suppress(BackendTransportError, BackendTimeout), watchdog.limit(_ERROR_BODY):
            async for chunk in response.chunks():
                body += chunk
                if len(body) >= MAX_DETAIL_BYTES:
                    break
        return bytes(body)


def _elsewhere(request: TransportRequest, response: TransportResponse) -> TransportRequest | None:
    """Return the request to the address of a redirect, if that is on the same host and no less secure; else None."""
    location = response.headers.get("location", "")
    if response.status not in _REDIRECTS or not location:
        return None
    url = urljoin(request.url, location)
    here, there = urlsplit(request.url), urlsplit(url)
    is_safe = there.scheme in {here.scheme, "https"} and there.username is None
    return replace(request, url=url) if here.hostname == there.hostname and is_safe else None


def _without_query(url: str) -> str:
    """Return an address for the log, without its query: some APIs take their key there."""
    address, query, _ = url.partition("?")
    return f"{address}{query and '?…'}"


def _below(span: Span, request: TransportRequest) -> TransportRequest:
    """Return *request* with a ``traceparent`` header, if *span* has one."""
    traceparent = span.traceparent()
    if traceparent is None:
        return request
    return replace(request, headers={**request.headers, "traceparent": traceparent})
