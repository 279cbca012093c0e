"""
Synchronous HTTP for hooks: `urllib.request` and `requests`, over ``fetch`` and stack switching.

::

    urllib.request ──┐
                     ├── pyodide-http ── XMLHttpRequest ── run_sync ── fetch
    requests ────────┘

A Worker has no sockets, so both libraries send through pyodide-http; that wants the synchronous
XMLHttpRequest of a browser, which Workers lack and this module supplies.  While a call waits, `run_sync` sets
the hook's stack aside and the isolate goes on with its other tasks and requests.

pyodide-http 0.2.2 is used for what it carries, not for how it patches `urllib`: its own ``urlopen`` drops
``data=`` and ``timeout=`` and returns a 404 as if it were a success.  Here it is a handler of the standard
library's openers instead, which keep their rules on errors, redirects, cookies and authentication.
"""

import asyncio
import functools
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from http import client
from typing import Any, Final, TypeVar
from urllib import request as urllib_request
from urllib.error import URLError

import js
from pyodide.ffi import JsBuffer, JsException, can_run_sync, run_sync

from chatturn.workerd.ffi import allow_run_sync, js_error, js_object, settled, started

# pyodide-http looks for this name of a browser's when it is imported, and is told that there is no SharedArrayBuffer.
js.crossOriginIsolated = False
try:
    from pyodide_http._core import Request, send
    from pyodide_http._urllib import FakeSock
finally:
    del js.crossOriginIsolated
try:  # The product's own dependency: it may not be there.
    import netrc  # noqa: F401 - requests imports it with its first request

    import requests
    from pyodide_http._requests import PyodideHTTPAdapter
except ModuleNotFoundError:
    _REQUESTS: Any = None
else:
    _REQUESTS = requests

__all__ = ["enable_sync_http"]

_DEFAULT_TIMEOUT_S: Final = 9.0
"""The timeout of calls that name none; shorter than a hook's own, so that the error names the call."""

_T = TypeVar("_T")


@functools.cache
def enable_sync_http() -> None:
    """
    Let `urllib.request`, and `requests` if the product has vendored it, work inside hooks.

    Both libraries may have been imported before.  Only Python is kept: nothing belongs to a request.
    """
    allow_run_sync()
    js.XMLHttpRequest = XMLHttpRequest
    # pyodide-http looks for this name and obeys timeouts if it exists; it must not look callable to other code.
    js.importScripts = False
    _serve_urllib()
    _serve_requests()


def _serve_urllib() -> None:
    """Make `fetch` the connection of every opener that is built from now on, `urlopen`'s included."""

    class FetchHandler(urllib_request.HTTPHandler):
        def http_open(self, req: urllib_request.Request) -> client.HTTPResponse:
            """Send *req* as `AbstractHTTPHandler.do_open` would."""
            asked = getattr(req, "timeout", None)
            call = Request(
                req.get_method(),
                req.full_url,
                headers=dict(req.header_items()),
                body=req.data,
                timeout=asked if isinstance(asked, int | float) else 0,
            )
            try:
                answer = send(call)
            except OSError as error:
                raise URLError(error) from error
            reason = client.responses.get(answer.status_code, "")
            head = [f"HTTP/1.1 {answer.status_code} {reason}"]
            head += [f"{name}: {value}" for name, value in answer.headers.items()]
            received = "\r\n".join([*head, "", ""]).encode("latin-1", "replace") + answer.body
            response = client.HTTPResponse(FakeSock(received), method=req.get_method())
            response.begin()
            response.url = req.full_url
            response.msg = response.reason  # type: ignore[assignment]  # as `urlopen` documents
            return response

        https_open = http_open
        https_request = urllib_request.HTTPHandler.http_request

    urllib_request.HTTPHandler = FetchHandler  # type: ignore[misc]  # `build_opener` looks it up by name
    urllib_request.install_opener(None)  # `urlopen` then builds its own again


def _serve_requests() -> None:
    """Make `fetch` the connection of every session, also of one that exists already."""
    if _REQUESTS is None:
        return
    adapter = PyodideHTTPAdapter()

    def send(_self: object, request: Any, _stream: object = None, timeout: Any = None, *_: Any, **_options: Any) -> Any:
        """Stand in for `requests.adapters.HTTPAdapter.send`."""
        try:
            return adapter.send(request, timeout=timeout)
        except TimeoutError as error:
            raise requests.exceptions.ReadTimeout(error, request=request) from error
        except ConnectionError as error:
            raise requests.exceptions.ConnectionError(error, request=request) from error

    _REQUESTS.adapters.HTTPAdapter.send = send


class XMLHttpRequest:
    """
    The part of the browser's XMLHttpRequest that pyodide-http uses.

    A redirect is returned, not followed: the libraries decide whether to follow it.
    """

    def __init__(self) -> None:
        self.responseType = ""
        self.timeout = 0  # in milliseconds; 0 for the default of 9,000
        self.status = 0
        self.response: JsBuffer | None = None
        self._method = ""
        self._url = ""
        self._headers: dict[str, str] = {}
        self._response_headers: dict[str, str] = {}

    @classmethod
    def new(cls) -> "XMLHttpRequest":
        """Make one, as JavaScript's ``new`` does."""
        return cls()

    def open(self, method: str, url: str, _asynchronous: object) -> None:
        """Say what to send."""
        self._method, self._url = method, url

    def setRequestHeader(self, name: str, value: str) -> None:  # noqa: N802
        """Add a header, except for the accepted encodings: `fetch`, which decodes the body, sets them itself."""
        if name.lower() != "accept-encoding":
            self._headers[name] = value

    def getAllResponseHeaders(self) -> str:  # noqa: N802
        """Return the answer's headers that hold for its decoded body, one a line."""
        hidden = {"transfer-encoding"}
        if "content-encoding" in self._response_headers:
            hidden |= {"content-encoding", "content-length"}
        shown = (f"{n}: {v}" for n, v in self._response_headers.items() if n not in hidden)
        return "\r\n".join(shown)

    def send(self, body: JsBuffer | str | None) -> None:
        """
        Send the request and wait for the whole answer.

        Raises:
            TimeoutError: It took longer than `timeout`.
            ConnectionError: There was no answer, or it broke off.
            RuntimeError: The caller's stack cannot be set aside to wait.
        """
        if not (body is None or isinstance(body, JsBuffer | str)):
            raise TypeError("the body of a synchronous request must be bytes or str")
        if not can_run_sync():
            raise RuntimeError("synchronous HTTP needs a task to wait in: a hook, not a callback of JavaScript")
        answer = _wait(self._exchange(body, self.timeout / 1000 or _DEFAULT_TIMEOUT_S))
        self.status, self._response_headers, self.response = answer.status, answer.headers, answer.body

    async def _exchange(self, body: JsBuffer | str | None, seconds: float) -> "_Answer":
        controller = js.AbortController.new()
        options = {
            "method": self._method,
            "headers": self._headers,
            "body": body,
            "redirect": "manual",
            "signal": controller.signal,
        }
        fetch = js.fetch.bind(None, self._url, js_object(options))
        # A timer that is taken back at the end.  AbortSignal.timeout cannot be, and one that fires after its
        # request is over can wedge the isolate (workerd 6624); Pyodide 0.28 never clears those of asyncio.
        deadline = time.monotonic() + seconds
        try:
            response = await settled(started(fetch), within_s=seconds)
            read = response.arrayBuffer.bind(response)
            content = await settled(started(read), within_s=deadline - time.monotonic())
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {seconds:g} s") from error
        except JsException as error:
            raise ConnectionError(error.message) from error
        finally:
            controller.abort(js_error("the call is over"))
        headers = js.Object.fromEntries(response.headers).to_py()
        return _Answer(status=response.status, headers=headers, body=content)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: JsBuffer


def _wait(work: Coroutine[Any, Any, _T]) -> _T:
    """
    Do *work* with the caller's stack set aside.

    asyncio cancels a task at its next ``await``, but a caller whose stack is set aside is at none.  So a cancellation
    of its task meanwhile, as by a hook's deadline, cancels *work*, and the caller sees CancelledError at once.
    """
    inner = asyncio.ensure_future(work)
    caller = asyncio.current_task()
    if caller is None:
        return run_sync(inner)
    cancel = caller.cancel

    def cancel_both(msg: object = None) -> bool:
        inner.cancel(msg)
        return cancel(msg)

    caller.cancel = cancel_both  # type: ignore[method-assign]  # on this one task, for the length of the call
    try:
        return run_sync(inner)
    finally:
        del caller.cancel
