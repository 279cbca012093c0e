"""
The Worker's HTTP: a table of routes, and what each does with a request.

Everything about a response but its body is decided before the first byte of it: who asks, whether the request
is within its limits, and whether the turn can be had.  Adding a route is adding a row to `ROUTES`.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Self, TypeAlias

from chatturn.chat.identity import ChatTurnIdentity
from chatturn.chat.request import TurnView
from chatturn.errors import (
    ChatTurnError,
    ConfigurationError,
    DurableRunLeaseHeldError,
    MethodNotAllowed,
    NotFound,
    RequestError,
)
from chatturn.http.auth import Authenticator, Principal, UnconfiguredAuth, require_scope
from chatturn.http.limits import (
    MAX_BODY_BYTES,
    check_body_headers,
    read_event_key,
    read_event_payload,
    read_run_id,
    read_session_id,
    read_turn_index,
    read_turn_request,
)
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.problems import json_response, problem, shown
from chatturn.http.readiness import check_readiness
from chatturn.http.service import ChatService, UnconfiguredService

__all__ = ["ROUTES", "Application", "PublicRoute", "Route", "handle"]

Parameters: TypeAlias = Mapping[str, str]
"""The variable segments of a path, still percent-encoded, by their names in the template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """
    What the routes work with.

    Attributes:
        authenticator: Who is asking; kept between requests, it remembers tokens.
        service: The chat.
        log: Takes a sentence and what was raised, for the operator.  Never raises.
    """

    authenticator: Authenticator
    service: ChatService
    log: Callable[[str, BaseException], None]

    @classmethod
    def unconfigured(cls, error: ConfigurationError, *, log: Callable[[str, BaseException], None]) -> Self:
        """Make what is left when the settings cannot be read: alive, not ready, and saying why."""
        return cls(authenticator=UnconfiguredAuth(error), service=UnconfiguredService(error), log=log)


@dataclass(frozen=True, slots=True)
class Route:
    """An operation that needs to know who is asking, and that the token's scope contains *scope*."""

    method: str
    template: str
    scope: str
    operation: Callable[[Application, HttpRequest, Principal, Parameters], Awaitable[HttpResponse]]


@dataclass(frozen=True, slots=True)
class PublicRoute:
    """An operation that answers everybody, and so is told nothing about the request."""

    method: str
    template: str
    operation: Callable[[Application], Awaitable[HttpResponse]]


# The operations


async def _healthz(_app: Application) -> HttpResponse:
    return json_response({"status": "ok"})


async def _readyz(app: Application) -> HttpResponse:
    checks = await check_readiness(app.authenticator, app.service)
    ready = all(check.ok for check in checks)
    return json_response(
        {"ready": ready, "checks": [check.to_json() for check in checks]}, status=200 if ready else 503
    )


async def _post_turn(
    app: Application, request: HttpRequest, principal: Principal, parameters: Parameters
) -> HttpResponse:
    identity = _turn_identity(principal, parameters)
    check_body_headers(request.headers)
    turn_request = read_turn_request(await request.read(MAX_BODY_BYTES))
    try:
        turn = await app.service.open(identity, turn_request)
    except DurableRunLeaseHeldError as error:
        return problem(error, stream=f"/v1/sessions/{identity.session_id}/turns/{identity.turn_index}")
    headers = {
        **_STREAM_HEADERS,
        "X-Workflow-Run-Id": turn.run_id,
        "X-Turn-Attempt": str(turn.attempt),
        "X-Turn-Replayed": "true" if turn.replayed else "false",
    }
    return HttpResponse(status=200, headers=headers, stream=turn.run)


async def _get_turn(
    app: Application, _request: HttpRequest, principal: Principal, parameters: Parameters
) -> HttpResponse:
    identity = _turn_identity(principal, parameters)
    view = await app.service.show(identity)
    if view is None:
        raise NotFound("there is no such turn")
    return json_response(_turn_members(identity, view))


async def _post_event(
    app: Application, request: HttpRequest, principal: Principal, parameters: Parameters
) -> HttpResponse:
    run_id, key = read_run_id(parameters["run_id"]), read_event_key(parameters["key"])
    check_body_headers(request.headers)
    payload = read_event_payload(await request.read(MAX_BODY_BYTES), key)
    accepted, event = await app.service.emit(principal.tenant_id, run_id, key, payload)

    async def resume() -> None:
        await app.service.resume(run_id)

    members = {"accepted": accepted, "payload": event.payload, "emittedAt": event.emitted_at}
    return replace(json_response(members), background=resume)


# What of a response's headers does not depend on the turn.  The run id's name is the one that the AI SDK's
# WorkflowChatTransport looks for; X-Accel-Buffering keeps proxies from holding lines back.
_STREAM_HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "application/x-ndjson",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",
}


def _turn_identity(principal: Principal, parameters: Parameters) -> ChatTurnIdentity:
    return ChatTurnIdentity(
        tenant_id=principal.tenant_id,
        session_id=read_session_id(parameters["session"]),
        user_id=principal.user_id,
        turn_index=read_turn_index(parameters["turn_index"]),
    )


def _turn_members(identity: ChatTurnIdentity, view: TurnView) -> dict[str, Any]:
    return {
        "runId": view.run_id,
        "sessionId": identity.session_id,
        "turnIndex": identity.turn_index,
        "status": view.status,
        "attempts": view.attempts,
        "model": view.model,
        "createdAt": view.created_at,
        "updatedAt": view.updated_at,
        "completedAt": view.completed_at,
        "outcome": None if view.outcome is None else view.outcome.to_json(),
    }


# The table

_TURN: Final = "/v1/sessions/{session}/turns/{turn_index}"

ROUTES: Final[tuple[Route | PublicRoute, ...]] = (
    PublicRoute("GET", "/healthz", _healthz),
    PublicRoute("GET", "/readyz", _readyz),
    Route("POST", _TURN, "turns", _post_turn),
    Route("GET", _TURN, "turns", _get_turn),
    Route("POST", "/v1/runs/{run_id}/events/{key}", "turns", _post_event),
)


def _compiled(template: str) -> re.Pattern[str]:
    """Turn ``/a/{b}`` into a pattern: a variable is one whole segment, a trailing slash another address."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]*)", re.escape(template)))


def _table() -> tuple[tuple[re.Pattern[str], Mapping[str, Route | PublicRoute]], ...]:
    """Gather the rows by address, HEAD beside every GET."""
    by_template: dict[str, dict[str, Route | PublicRoute]] = {}
    for route in ROUTES:
        methods = by_template.setdefault(route.template, {})
        methods[route.method] = route
        if route.method == "GET":
            methods["HEAD"] = route
    return tuple((_compiled(template), MappingProxyType(methods)) for template, methods in by_template.items())


_TABLE: Final = _table()


# The way of a request


async def handle(request: HttpRequest, app: Application) -> HttpResponse:
    """
    Answer *request*.

    Never raises: an error of ours becomes its problem, anything else is logged and becomes a 500.
    """
    try:
        response = await _dispatch(request, app)
    except RequestError as error:
        response = problem(error)
    except ChatTurnError as error:
        if error.status >= 500:  # noqa: PLR2004  # ours, so the operator wants to know why
            app.log(f"{request.method} {shown(request.path)} failed", error)
        response = problem(error)
    except Exception as error:  # noqa: BLE001  # the route boundary: whatever it is, the client gets an answer
        app.log(f"{request.method} {shown(request.path)} crashed", error)
        response = problem(ChatTurnError("unexpected"))
    return replace(response, body=b"", stream=None) if request.method == "HEAD" else response


async def _dispatch(request: HttpRequest, app: Application) -> HttpResponse:
    for pattern, methods in _TABLE:
        found = pattern.fullmatch(request.path)
        if found is None:
            continue
        route = methods.get(request.method)
        if route is None:
            return _other_method(request, methods)
        if isinstance(route, PublicRoute):
            return await route.operation(app)
        principal = app.authenticator.authenticate(request.headers)
        require_scope(principal, route.scope)
        return await route.operation(app, request, principal, found.groupdict())
    raise NotFound("no route has this path")


def _other_method(request: HttpRequest, methods: Mapping[str, Route | PublicRoute]) -> HttpResponse:
    allow = (*sorted(methods), "OPTIONS")
    if request.method == "OPTIONS":
        return HttpResponse(status=204, headers={"Allow": ", ".join(allow)})
    raise MethodNotAllowed(f"{shown(request.method)} is not one of {', '.join(allow)}", allow=allow)
