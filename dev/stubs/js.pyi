# ruff: noqa: N802, N803, N816 - the names are JavaScript's

# JavaScript's globals that the Worker uses, as Pyodide shows them. What their methods return is JavaScript
# again, so it is typed only where it is one thing: a name that is not here is a mistake or a new dependency.

from collections.abc import Callable
from typing import Any, Protocol

from pyodide.ffi import JsException, JsProxy

class _Class(Protocol):
    def new(self, *args: Any) -> Any: ...

class _AbortController(JsProxy):
    signal: JsProxy
    def abort(self, reason: JsException) -> None: ...

class AbortController:
    @staticmethod
    def new() -> _AbortController: ...

class Array:
    @staticmethod
    def new(*items: Any) -> JsProxy: ...
    @staticmethod
    def of(*items: Any) -> JsProxy: ...
    @staticmethod
    def from_(items: JsProxy, function: JsProxy = ...) -> JsProxy: ...

class _Crypto(JsProxy):
    subtle: JsProxy

crypto: _Crypto

class Error:
    @staticmethod
    def new(message: str) -> JsException: ...

class Function:
    prototype: JsProxy
    call: JsProxy

class _TransformStream(JsProxy):
    readable: JsProxy
    writable: JsProxy

class IdentityTransformStream:
    @staticmethod
    def new() -> _TransformStream: ...

class JSON:
    @staticmethod
    def parse(text: str) -> Any: ...
    @staticmethod
    def stringify(value: Any) -> str: ...

class Object:
    @staticmethod
    def defineProperty(target: JsProxy, name: str, descriptor: JsProxy) -> JsProxy: ...
    @staticmethod
    def fromEntries(entries: Any) -> JsProxy: ...
    @staticmethod
    def keys(value: Any) -> JsProxy: ...

class Promise:
    @staticmethod
    def withResolvers() -> JsProxy: ...

class Proxy:
    @staticmethod
    def new(target: JsProxy, handler: JsProxy) -> JsProxy: ...

class Reflect:
    # As a function to call, and as an object to bind.
    apply: Any
    set: Any

class Response:
    @staticmethod
    def new(body: Any = ..., init: JsProxy = ...) -> JsProxy: ...

class Set:
    @staticmethod
    def new(items: JsProxy = ...) -> JsProxy: ...

class String:
    prototype: JsProxy

class TextDecoder:
    @staticmethod
    def new(encoding: str = ..., *, ignoreBOM: bool = ...) -> JsProxy: ...

class TextEncoder:
    @staticmethod
    def new() -> JsProxy: ...

class Uint8Array:
    prototype: JsProxy
    @staticmethod
    def fromHex(text: str) -> JsProxy: ...

class WritableStream:
    @staticmethod
    def new(sink: JsProxy, strategy: JsProxy = ...) -> JsProxy: ...

class URL:
    @staticmethod
    def new(url: str) -> JsProxy: ...

fetch: JsProxy

def setTimeout(callback: Callable[[], Any] | JsProxy, ms: float) -> int: ...  # further arguments are dropped
def clearTimeout(timer: int | None) -> None: ...

# What pyodide-http asks for by name; Workers have none of them until `workerd/sync_http.py` gives them.
XMLHttpRequest: _Class
crossOriginIsolated: bool
importScripts: bool
