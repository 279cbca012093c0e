"""
`Transport` over the platform's ``fetch``.

Cancelling a Python task does not stop its fetch, so every way out of a request goes through its
AbortController: an aborted signal closes the connection, whether headers or body were on their way.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import js
from pyodide.ffi import JsException, JsProxy

from chatturn.backends import TransportRequest, TransportResponse
from chatturn.errors import BackendTransportError
from chatturn.workerd.ffi import js_error, js_object

__all__ = ["FetchTransport"]


class FetchTransport:
    """Sends requests with ``fetch``; redirects are answers like others."""

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator[TransportResponse]:
        """Send *request*; see `Transport.send`."""
        controller = js.AbortController.new()
        options = {
            "method": request.method,
            "headers": dict(request.headers),
            "body": request.body,
            "redirect": "manual",
            "signal": controller.signal,
        }
        try:
            try:
                response = await js.fetch(request.url, js_object(options))
            except JsException as error:
                raise BackendTransportError(str(error), backend="fetch") from error
            yield _FetchResponse(response)
        finally:
            controller.abort(js_error("the request is over"))


class _FetchResponse:
    def __init__(self, response: JsProxy) -> None:
        self._response = response
        self.status: int = response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return {
            str(name).lower(): str(value)
            for name, value in js.Object.fromEntries(self._response.headers).to_py().items()
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        body = self._response.body
        if not body:
            return
        reader = body.getReader()
        try:
            while True:
                result = await reader.read()
                if result.done:
                    return
                yield result.value.to_bytes()
        except JsException as error:
            raise BackendTransportError(str(error), backend="fetch") from error
