"""
The Worker: hands each request to the routes, and each tick of the cron to the sweeper.

Every public method of the class is callable from outside, so there are only handlers.
"""

from pyodide.ffi import JsProxy
from workers import Request, WorkerEntrypoint

from chatturn.http.routes import handle
from chatturn.workerd.deployment import application, service
from chatturn.workerd.requests import from_js_request, to_response
from products import load_hooks

__all__ = ["Default"]


class Default(WorkerEntrypoint):
    """The handlers that the platform calls."""

    async def fetch(self, request: Request) -> JsProxy:
        """Answer one request."""
        http_request = from_js_request(request.js_object)
        app = application(load_hooks, http_request.headers.get("traceparent"))
        return to_response(await handle(http_request, app), self.ctx.waitUntil)

    async def scheduled(self, controller: object, env: object, ctx: object) -> None:  # noqa: ARG002 - the platform's
        """Make the hook calls that are due, and go on with the turns that are."""
        await service(load_hooks).sweep()
