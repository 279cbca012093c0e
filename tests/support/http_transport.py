"""A transport over real HTTP on CPython, for engines that run outside the Worker."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from chatturn.errors import BackendTransportError
from chatturn.transport import TransportRequest

__all__ = ["HttpTransport"]


class HttpTransport:
    """`Transport` over httpx, in one event loop."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(None), trust_env=False, verify=False)  # noqa: S501 - plain HTTP

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator["_Response"]:
        """Send *request*; see `Transport.send`."""
        try:
            async with self._client.stream(
                request.method, request.url, headers=dict(request.headers), content=request.body
            ) as response:
                yield _Response(response)
        except httpx.HTTPError as error:
            raise BackendTransportError(repr(error), backend="httpx") from error


class _Response:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_raw():
                if chunk:
                    yield chunk
        except httpx.HTTPError as error:
            raise BackendTransportError(repr(error), backend="httpx") from error
