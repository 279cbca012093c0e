"""HTTP across the border: the platform's Request as our value, our response as the platform's."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import js
from pyodide.ffi import JsException, JsProxy, to_js

from chatturn.errors import BodyTimeout, PayloadTooLarge
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.workerd.ffi import js_object, settled, started
from chatturn.workerd.headers import LazyHeaders
from chatturn.workerd.lifetime import outlive
from chatturn.workerd.streams import ResponseSink

__all__ = ["from_js_request", "made", "read_rest", "to_response"]

_REST_BYTES: Final = 16_384
_REST_WITHIN_S: Final = 1.0
"""A body that nobody needed is read if it has at most so many bytes, and as long as this."""

_new_response: Final = js.Response.new


def from_js_request(request: JsProxy) -> HttpRequest:
    """Make our value of the raw *request*; its body is not read yet."""
    url, headers = urlsplit(request.url), LazyHeaders(request.headers)
    read = partial(_read_or_lose, request, headers)
    return HttpRequest(method=request.method, path=url.path, query=url.query, headers=headers, read=read)


async def _read_or_lose(request: JsProxy, headers: Mapping[str, str], most_bytes: int) -> bytes:
    try:
        return await _read(request, headers, most_bytes)
    except JsException as error:
        if error.name == "TypeError":  # the body was read before: a fault of ours
            raise
        raise BodyTimeout(f"the client went away: {error}") from error


async def _read(request: JsProxy, headers: Mapping[str, str], most_bytes: int) -> bytes:
    """Read the body chunk by chunk, so that a body without a declared length cannot fill the memory."""
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) <= most_bytes:
        content: bytes = (await settled(started(request.arrayBuffer.bind(request)))).to_bytes()
        return content
    body = request.body
    if not body:
        return b""
    reader = body.getReader()
    chunks: list[bytes] = []
    size = 0
    read = reader.read.bind(reader)
    while not (result := await settled(started(read))).done:
        chunks.append(result.value.to_bytes())
        size += len(chunks[-1])
        if size > most_bytes:
            raise PayloadTooLarge(f"the body has more than {most_bytes} bytes", field="body")
    return b"".join(chunks)


async def read_rest(request: HttpRequest, raw: JsProxy) -> None:
    """
    Read the body of *raw* that nobody has read, if it is short and arrives soon.

    An answer that leaves it unread closes the connection, on which the client may have sent its next request already.
    """
    if request.method in {"GET", "HEAD"} or raw.bodyUsed:
        return
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and 0 < int(announced) <= _REST_BYTES:
        with suppress(JsException, TimeoutError):
            await settled(started(raw.arrayBuffer.bind(raw)), within_s=_REST_WITHIN_S)


async def made(response: HttpResponse, context: Any) -> HttpResponse:
    """Wait for a response that takes as long as a turn, which goes on even if the client does not wait."""
    if response.late is None:
        return response
    make = response.late
    if response.background is not None:
        outlive(response.background(), context)
    arrived: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()

    async def make_it() -> None:
        arrived.set_result(await make())

    outlive(make_it(), context)
    return await arrived


def to_response(response: HttpResponse, request: JsProxy, context: Any) -> JsProxy:
    """
    Make the platform's response of *response*: its own class, since the SDK's takes five times as long.

    Args:
        response: Ours; its stream is begun, not awaited: it outlives the request's handler.
        request: The raw one that it answers.
        context: The request's; keeps the stream running to its end, whatever the client does.
    """
    if isinstance(response.passed_on, JsProxy):
        return response.passed_on
    if response.background is not None:
        outlive(response.background(), context)
    options = js_object({"status": response.status, "headers": dict(response.headers)})
    if isinstance(response.content, JsProxy):
        return _new_response(response.content, options)
    if response.stream is None:
        return _new_response(to_js(response.body) if response.body else None, options)
    sink = ResponseSink(request)
    outlive(response.stream(sink), context)
    return _new_response(sink.body(), options)
