"""A Worker whose modules hold what the upload's snapshot can store, and what it cannot."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, partial

import js
import late  # type: ignore[import-not-found]  # beside this file in the Worker
from pyodide.ffi import create_proxy, to_js
from workers import Response, WorkerEntrypoint, import_from_javascript

__all__ = ["Default"]

env = import_from_javascript("cloudflare:workers").env
array_of = js.Array.of
stringify = js.JSON.stringify
call = js.Function.call

of_a_prototype = js.Function.prototype.call
fresh = [js.Object.fromEntries([])]
proxied = {"callback": create_proxy(print)}
bound = partial(print, to_js([1, 2]))
in_a_deque = deque([js.Object.fromEntries([])])


@cache
def asked_at_import() -> object:
    return js.Object.fromEntries([])


def begun() -> Iterator[None]:
    kept = js.Object.fromEntries([])
    yield
    del kept


def enclosed() -> Callable[[], object]:
    kept = js.Object.fromEntries([])
    never: object
    if kept is None:
        never = kept
    return lambda: (kept, never)


class Keeper:
    __slots__ = ("__kept",)

    def __init__(self) -> None:
        self.__kept = js.Object.fromEntries([])

    @staticmethod
    def call(options: object = js.Object.fromEntries([])) -> None: ...

    def method(self) -> None: ...


class Reticent:
    """Refuses to be looked at."""

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        raise LookupError


asked_at_import()
generator = begun()
next(generator)
closure = enclosed()
method = Keeper().method
reticent = Reticent()


class Default(WorkerEntrypoint):
    options = js.Object.fromEntries([])

    async def fetch(self, request: object, decoder: object = js.TextDecoder.new()) -> Response:
        del request, decoder
        return Response(late.__name__)
