"""A Worker whose modules hold what the upload's snapshot can store, and what it cannot."""

from functools import partial

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


class Default(WorkerEntrypoint):
    options = js.Object.fromEntries([])

    async def fetch(self, request: object, decoder: object = js.TextDecoder.new()) -> Response:
        del request, decoder
        return Response(late.__name__)
