"""
A Durable Object for each session, where one is bound: its turns run there, and may outlive their clients for long.

A Worker is ended about 30 s after its client has gone.  The object goes on, and sets itself an alarm that looks after
the session every 20 s (or every lease term, if that is shorter) while a turn is being answered.  So the platform does
not evict the object, and a turn lost with it, in a deployment or a crash, is taken over once its lease has lapsed.
"""

import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import js
from pyodide.ffi import JsException, JsProxy, to_js

from chatturn.errors import OwnerUnavailable
from chatturn.http.messages import HttpResponse
from chatturn.workerd.ffi import js_object, settled, started

__all__ = ["SessionObjects", "SessionWatch"]

_new_request: Final = js.Request.new  # type: ignore[attr-defined]  # no class in the stub: the SDK's own has its name

_LOOK_EVERY_MS: Final = 20_000
"""Below 70 s, the time without a request after which the platform evicts an object."""

_NAME: Final = "name"
"""The key under which the object stores its name: the platform does not always tell it to an alarm."""


class SessionObjects:
    """
    `SessionOwner` for one request.

    Args:
        namespace: The raw binding.
        request: The raw request, its body unread.
    """

    def __init__(self, namespace: JsProxy, request: JsProxy) -> None:
        self._namespace = namespace
        self._request = request

    async def forward(self, tenant_id: str, session_id: str, body: bytes | None = None) -> HttpResponse:
        """Pass the request on to the session's object; see `SessionOwner.forward`."""
        stub = self._namespace.getByName(json.dumps([tenant_id, session_id]))
        request = self._request if body is None else _with_body(self._request, body)
        try:
            response = await settled(started(stub.fetch.bind(stub, request)))
        except JsException as error:
            raise OwnerUnavailable(str(error)) from error
        return HttpResponse(status=response.status, headers={}, passed_on=response)


class SessionWatch:
    """
    The alarm of one session's object.

    Args:
        state: The raw state of the object.
        lease_ms: The lease term of the session's turns.
        look_after: Takes a tenant's id and a session's id; takes over the session's lost turns and returns whether a
            turn is being answered.
    """

    def __init__(
        self, state: JsProxy, lease_ms: int, look_after: Callable[[str, str], Coroutine[Any, Any, bool]]
    ) -> None:
        self._look_after = look_after
        self._every_ms = min(_LOOK_EVERY_MS, lease_ms)
        self._state = state
        self._storage = state.storage

    async def keep(self) -> None:
        """Set the alarm anew, for each request; an alarm that is running then does not delete it."""
        if self._state.id.name and not await self._asked("getAlarm"):
            await self._asked("put", _NAME, self._state.id.name)
        await self._asked("setAlarm", _now_ms() + self._every_ms)

    async def look(self) -> None:
        """
        Look after the session, and again later if a turn of it is being answered.

        Raises:
            StoreError: The database does not answer; the platform calls the alarm again, after growing waits.
        """
        name = self._state.id.name or await self._asked("get", _NAME)
        tenant_id, session_id = json.loads(name)
        # Set before looking after the session: that may take as long as a turn, and this object may die meanwhile.
        at_ms = _now_ms() + self._every_ms
        await self._asked("setAlarm", at_ms)
        if not await self._look_after(tenant_id, session_id) and await self._asked("getAlarm") == at_ms:
            await self._asked("deleteAlarm")

    async def _asked(self, method: str, *arguments: Any) -> Any:
        function = getattr(self._storage, method)
        return await settled(started(function.bind(self._storage, *arguments)))


def _with_body(request: JsProxy, body: bytes) -> JsProxy:
    """Return a copy of *request*, whose body was read, with *body* as its body."""
    options = js_object({"method": request.method, "headers": request.headers, "body": to_js(body)})
    return _new_request(request.url, options)


def _now_ms() -> int:
    return int(time.time() * 1000)
