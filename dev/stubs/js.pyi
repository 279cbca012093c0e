# ruff: noqa: N802, N816 - the names are JavaScript's

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

class ArrayBuffer:
    @staticmethod
    def isView(value: Any) -> bool: ...

class Error:
    @staticmethod
    def new(message: str) -> JsException: ...

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
    def fromEntries(entries: Any) -> JsProxy: ...
    @staticmethod
    def keys(value: Any) -> JsProxy: ...

class Promise:
    @staticmethod
    def withResolvers() -> JsProxy: ...

class Proxy:
    @staticmethod
    def new(target: JsProxy, handler: JsProxy) -> JsProxy: ...

class Response:
    @staticmethod
    def new(body: Any = ..., init: JsProxy = ...) -> JsProxy: ...

class WritableStream:
    @staticmethod
    def new(sink: JsProxy, strategy: JsProxy = ...) -> JsProxy: ...

class URL:
    @staticmethod
    def new(url: str) -> JsProxy: ...

fetch: JsProxy

def setTimeout(callback: Callable[..., Any] | JsProxy, ms: float) -> int: ...
def queueMicrotask(callback: Callable[..., Any] | JsProxy) -> None: ...
def clearTimeout(timer: int | None) -> None: ...

# What pyodide-http asks for by name; Workers have none of them until `workerd/sync_http.py` gives them.
XMLHttpRequest: _Class
crossOriginIsolated: bool
importScripts: bool
