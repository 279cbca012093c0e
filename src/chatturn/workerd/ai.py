"""
`Transport` over the binding ``AI``: Workers AI's models, asked without an address or a key.

The binding is asked for the raw response, so that its status and its stream are read like any server's.  A request
cancelled before its headers have come runs on unread: an AbortSignal does not cross to another Worker.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import js
from pyodide.ffi import JsException, JsProxy

from chatturn.errors import BackendTransportError
from chatturn.transport import TransportRequest, TransportResponse
from chatturn.workerd.fetch import FetchResponse
from chatturn.workerd.ffi import js_error, js_object, js_texts, settled, started

__all__ = ["BindingTransport"]


class BindingTransport:
    """
    Sends the body of a request to a binding's ``run``; the request's address and headers are not used.

    Args:
        binding: The raw binding.
    """

    def __init__(self, binding: JsProxy) -> None:
        self._binding = binding

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator[TransportResponse]:
        """Send *request*; see `Transport.send`."""
        inputs = json.loads(request.body)
        model = inputs.pop("model")
        said = js_texts(json.dumps(inputs)).map(js.JSON.parse)[0]
        controller = js.AbortController.new()
        arguments = js.Array.of(model, said, js_object({"returnRawResponse": True}))
        run = js.Reflect.apply.bind(
            None, self._binding.run, self._binding, arguments
        )  # `run.bind` may be another Worker's
        try:
            try:
                response = await settled(started(run))
            except JsException as error:
                raise BackendTransportError(str(error), backend="binding") from error
            yield FetchResponse(response, controller.signal)
        finally:
            controller.abort(js_error("the request is over"))
