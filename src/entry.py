"""
The Worker: hands each request to the routes, each tick of the cron to the sweep, and each alarm to its session.

Every public method of these classes is callable from outside, so there are only handlers.  Requests of the internet
reach `Default` alone.
"""

from pyodide.ffi import JsProxy
from workers import DurableObject, Request, WorkerEntrypoint

import chatturn.workerd.stdlib_imports  # noqa: F401 - for what it imports
from chatturn.http.routes import handle
from chatturn.workerd.deployment import application, flush_logs, run_part, sweep, watch
from chatturn.workerd.lifetime import outlive
from chatturn.workerd.requests import from_js_request, made, read_rest, to_response
from products import make_hooks

__all__ = ["Default", "Session", "SweepPart"]


class Default(WorkerEntrypoint):
    """The handlers that the platform calls for requests and cron ticks."""

    async def fetch(self, request: Request) -> JsProxy:
        """Answer one request."""
        raw = request.js_object
        http_request = from_js_request(raw)
        app = application(make_hooks, raw, http_request.headers)
        response = await made(await handle(http_request, app), self.ctx)
        await read_rest(http_request, raw)
        flush_logs(make_hooks, self.ctx)
        return to_response(response, raw, self.ctx)

    async def scheduled(self, controller: object, env: object, ctx: object) -> None:  # noqa: ARG002 - the platform's
        """Do the work that no request waits for; see `chatturn.chat.sweep`."""
        try:
            await sweep(make_hooks)
        finally:
            flush_logs(make_hooks, self.ctx)


class SweepPart(WorkerEntrypoint):
    """Runs a part of a sweep in an invocation of its own, where ``SWEEP`` is bound; only that binding reaches it."""

    async def fetch(self, request: Request) -> JsProxy:
        """Continue the turns that the request names."""
        raw = request.js_object
        try:
            response = await run_part(make_hooks, from_js_request(raw))
        finally:
            flush_logs(make_hooks, self.ctx)
        return to_response(response, raw, self.ctx)


class Session(DurableObject):  # type: ignore[no-untyped-call]  # the SDK's own __init_subclass__
    """The owner of one session's turns, where ``SESSIONS`` is bound: see `chatturn.workerd.owner`."""

    async def fetch(self, request: Request) -> JsProxy:
        """Answer one request of the session."""
        raw = request.js_object
        outlive(watch(make_hooks, self.ctx._ctx).keep(), self.ctx)  # noqa: SLF001 - the raw one
        http_request = from_js_request(raw)
        app = application(make_hooks, raw, http_request.headers, owned=True)
        response = await made(await handle(http_request, app), self.ctx)
        await read_rest(http_request, raw)
        flush_logs(make_hooks, self.ctx)
        return to_response(response, raw, self.ctx)

    async def alarm(self) -> None:
        """Take over the session's turns whose worker was lost."""
        await watch(make_hooks, self.ctx._ctx).look()  # noqa: SLF001 - the raw one
