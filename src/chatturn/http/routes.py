"""
The table of routes, and how a request is answered by it.  A new route is a new row of `ROUTES`.

Before the first byte of a response the sender is authenticated, the request is read within its limits, and its turn, if
any, is claimed: so a failure of these gets an error status.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final

from chatturn.chat.replays import ReplayingChat
from chatturn.chat.turn.sinks import NoSink
from chatturn.errors import ChatTurnError, MethodNotAllowed, NotFound, RateLimited, RequestError
from chatturn.http.ai_sdk import (
    AI_SDK_CHAT,
    ai_sdk_problem,
    get_chat_stream,
    has_chat_stream,
    post_chat,
    session_of_body,
    session_of_chat,
)
from chatturn.http.application import Application, Call, Parameters, PublicRoute, Route, SessionOwner
from chatturn.http.auth import OPERATE, READ_TURNS, RUN_TURNS, Principal, require_scope
from chatturn.http.completion_names import session_of_completion, turn_of_completion
from chatturn.http.files import FILES, get_file, post_file
from chatturn.http.limits import MAX_BODY_BYTES
from chatturn.http.lists import get_messages, get_runs, post_event, session_of_run
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.openai_chat import (
    COMPLETIONS,
    MODELS,
    get_model,
    get_models,
    openai_problem,
    post_completion,
)
from chatturn.http.openapi import describe
from chatturn.http.problems import json_response, problem, shown
from chatturn.http.query_strings import ticket_in
from chatturn.http.readiness import check_readiness
from chatturn.http.sessions import (
    SESSION,
    TENANT,
    USER,
    delete_session,
    delete_tenant,
    delete_user_sessions,
    export_session,
    export_tenant,
    export_user,
    get_sessions,
    patch_session,
    post_feedback,
)
from chatturn.http.tickets import Ticket
from chatturn.http.turns import (
    TURN,
    get_stream,
    get_turn,
    get_versions,
    has_stream,
    identity_of,
    post_activate,
    post_cancel,
    post_ticket,
    post_turn,
    session_of,
)
from chatturn.http.usage import get_usage

__all__ = ["ROUTES", "handle"]


async def _healthz(_app: Application) -> HttpResponse:
    """Say that the Worker is alive, without asking the database."""
    return json_response({"status": "ok"})


async def _readyz(app: Application) -> HttpResponse:
    """Say whether a turn could run and, if not, what to change."""
    checks = await check_readiness(app)
    ready = all(check.ok for check in checks)
    return json_response(
        {"ready": ready, "checks": [check.to_json() for check in checks]}, status=200 if ready else 503
    )


async def _openapi(_app: Application) -> HttpResponse:
    """Describe this interface to programs, as OpenAPI 3.1."""
    return json_response(describe(ROUTES))


# The table

_READERS: Final = (RUN_TURNS, READ_TURNS)


def _in_its_body(_call: Call) -> None:
    """Name no turn: which one the request is about stands in its body."""


ROUTES: Final[tuple[Route | PublicRoute, ...]] = (
    PublicRoute("GET", "/healthz", _healthz),
    PublicRoute("GET", "/readyz", _readyz),
    PublicRoute("GET", "/openapi.json", _openapi),
    Route("POST", TURN, (RUN_TURNS,), post_turn, session_of, replays=identity_of),
    Route("GET", TURN, _READERS, get_turn),
    Route("GET", TURN + "/stream", _READERS, get_stream, session_of, streams=has_stream, takes_tickets=True),
    Route("POST", TURN + "/ticket", _READERS, post_ticket),
    Route("POST", TURN + "/cancel", (RUN_TURNS,), post_cancel, session_of),
    Route("GET", TURN + "/versions", _READERS, get_versions),
    Route("POST", TURN + "/versions/{version}/activate", (RUN_TURNS,), post_activate),
    Route(
        "POST",
        AI_SDK_CHAT,
        (RUN_TURNS,),
        post_chat,
        session_in_body=session_of_body,
        replays=_in_its_body,
        problem=ai_sdk_problem,
    ),
    Route(
        "GET",
        AI_SDK_CHAT + "/{id}/stream",
        _READERS,
        get_chat_stream,
        session_of_chat,
        streams=has_chat_stream,
        problem=ai_sdk_problem,
    ),
    Route(
        "POST",
        COMPLETIONS,
        (RUN_TURNS,),
        post_completion,
        session_in_body=session_of_completion,
        replays=turn_of_completion,
        problem=openai_problem,
    ),
    Route("POST", FILES, (RUN_TURNS,), post_file),
    Route("GET", FILES + "/{file}", _READERS, get_file),
    Route("GET", MODELS, _READERS, get_models, problem=openai_problem),
    Route("GET", MODELS + "/{model}", _READERS, get_model, problem=openai_problem),
    Route("GET", SESSION + "/messages", _READERS, get_messages),
    Route("POST", TURN + "/feedback", _READERS, post_feedback),
    Route("GET", "/v1/sessions", (*_READERS, OPERATE), get_sessions),
    Route("PATCH", SESSION, (RUN_TURNS,), patch_session),
    Route("DELETE", SESSION, (RUN_TURNS,), delete_session),
    Route("GET", SESSION + "/export", _READERS, export_session),
    Route("DELETE", USER + "/sessions", (RUN_TURNS, OPERATE), delete_user_sessions),
    Route("GET", USER + "/export", (*_READERS, OPERATE), export_user),
    Route("DELETE", TENANT, (OPERATE,), delete_tenant),
    Route("GET", TENANT + "/export", (OPERATE,), export_tenant),
    Route("GET", "/v1/runs", (*_READERS, OPERATE), get_runs),
    Route("GET", "/v1/usage", (OPERATE,), get_usage),
    Route("POST", "/v1/runs/{run_id}/events/{key}", (RUN_TURNS,), post_event, session_of_run),
)


def _compiled(template: str) -> re.Pattern[str]:
    """Compile a template: ``/a/{b}`` matches ``/a/1``, but neither ``/a/1/2`` nor ``/a/1/``."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]*)", re.escape(template)))


def _by_template() -> Mapping[str, Mapping[str, Route | PublicRoute]]:
    """Group the routes by their addresses, and add HEAD to every GET."""
    by_template: dict[str, dict[str, Route | PublicRoute]] = {}
    for route in ROUTES:
        methods = by_template.setdefault(route.template, {})
        methods[route.method] = route
        if route.method == "GET":
            methods["HEAD"] = route
    return {template: MappingProxyType(methods) for template, methods in by_template.items()}


_BY_TEMPLATE: Final = _by_template()
_TABLE: Final = tuple((_compiled(template), methods) for template, methods in _BY_TEMPLATE.items())


def _found(path: str) -> tuple[Mapping[str, Route | PublicRoute], Parameters] | None:
    """Return the routes of a path by method, and the path's variables; None if no route has the path."""
    if (methods := _BY_TEMPLATE.get(path)) is not None and "{" not in path:
        return methods, {}
    for pattern, methods in _TABLE:
        if (found := pattern.fullmatch(path)) is not None:
            return methods, found.groupdict()
    return None


# One request


async def handle(request: HttpRequest, app: Application) -> HttpResponse:
    """
    Answer *request*.

    Never raises: a `ChatTurnError` becomes its error response; any other exception is logged and becomes a 500.
    """
    try:
        response = app.cors.preflight(request) or await _dispatch(request, app)
    except RequestError as error:
        response = _problem_form(request)(error)
    except ChatTurnError as error:
        if error.status >= 500:  # noqa: PLR2004  # a fault of the service, which the operator must see
            app.log(f"{request.method} {shown(request.path)} failed", error)
        response = _problem_form(request)(error)
    except Exception as error:  # noqa: BLE001  # the route boundary: the client gets an answer in any case
        app.log(f"{request.method} {shown(request.path)} crashed", error)
        response = _problem_form(request)(ChatTurnError("unexpected"))
    response = _marked(request, response, app)
    return _without_body(response) if request.method == "HEAD" else response


def _without_body(response: HttpResponse) -> HttpResponse:
    """Return *response* without its body; a stream runs without a reader, so that it frees its share of memory."""
    if response.stream is None:
        return replace(response, body=b"")
    return replace(response, stream=None, background=partial(response.stream, NoSink()))


def _marked(request: HttpRequest, response: HttpResponse, app: Application) -> HttpResponse:
    """Add the CORS headers to *response*, or, if it is late, to the response that it stands for."""
    if response.late is None:
        return app.cors.marked(request, response)
    late = response.late

    async def marked() -> HttpResponse:
        return app.cors.marked(request, await late())

    return replace(response, late=marked)


def _problem_form(request: HttpRequest) -> Callable[[ChatTurnError], HttpResponse]:
    """Return the function that makes error responses for the request's route."""
    found = _found(request.path)
    routes = [] if found is None else [route for route in found[0].values() if isinstance(route, Route)]
    return routes[0].problem if routes else problem


async def _dispatch(request: HttpRequest, app: Application) -> HttpResponse:
    if (found := _found(request.path)) is None:
        raise NotFound("no route has this path")
    methods, parameters = found
    route = methods.get(request.method)
    if route is None:
        return _other_method(request, methods)
    if isinstance(route, PublicRoute):
        return await route.operation(app)
    ticket = _ticket(request, app) if route.takes_tickets else None
    principal = await app.authenticator.authenticate(request.headers) if ticket is None else ticket.principal
    require_scope(principal, route.scopes)
    call = Call(app.chat(), _bounded(request, principal, app), principal, parameters, app.tickets, ticket)
    call = await _check_rates(call, route, app)
    begins_nothing = isinstance(call.service, ReplayingChat)  # its owner would begin what is not there
    return await (route.operation(call) if app.owner is None or begins_nothing else _by_owner(call, route, app.owner))


async def _by_owner(call: Call, route: Route, owner: SessionOwner) -> HttpResponse:
    """Forward the request to the owner of the session in its path or body; answer it here if it names none."""
    if route.session is not None and (session := route.session(call.parameters)) is not None:
        return await owner.forward(call.principal.tenant_id, session)
    if route.session_in_body is not None:
        body = await call.request.read(MAX_BODY_BYTES)
        if (session := route.session_in_body(call.request, call.principal, body)) is not None:
            return await owner.forward(call.principal.tenant_id, session, body)
        call = replace(call, request=replace(call.request, read=partial(_read_already, body)))
    return await route.operation(call)


async def _check_rates(call: Call, route: Route, app: Application) -> Call:
    """
    Count the request against the rates; return *call*, which begins nothing if there were too many.

    Raises:
        RateLimited: There were too many requests, and this one neither repeats a stored answer nor reads a stream.
    """
    if app.rates is None:
        return call
    try:
        await app.rates.check(call.principal)
    except RateLimited as refusal:
        if route.streams is not None and await route.streams(call):
            return call
        if route.replays is None:
            raise
        service = ReplayingChat.of(call.service, refusal)
        if (turn := route.replays(call)) is not None:  # refused before its body is read
            await service.require_begun(turn)
        return replace(call, service=service)
    return call


def _bounded(request: HttpRequest, principal: Principal, app: Application) -> HttpRequest:
    """Return *request* with a deadline for its body, which waits for room if it is long."""
    return replace(request, read=partial(app.bodies.read, request, principal.name))


async def _read_already(body: bytes, _most: int) -> bytes:
    return body


def _ticket(request: HttpRequest, app: Application) -> Ticket | None:
    text = ticket_in(request.query)
    return None if text is None else app.tickets.read(text, request.headers.get("last-event-id", ""))


def _other_method(request: HttpRequest, methods: Mapping[str, Route | PublicRoute]) -> HttpResponse:
    allow = (*sorted(methods), "OPTIONS")
    if request.method == "OPTIONS":
        return HttpResponse(status=204, headers={"Allow": ", ".join(allow)})
    raise MethodNotAllowed(f"{shown(request.method)} is not one of {', '.join(allow)}", allow=allow)
