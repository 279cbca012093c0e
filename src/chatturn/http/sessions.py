"""The routes for sessions as users' data: list, title, feedback, export, deletion."""

from collections.abc import AsyncIterator
from typing import Any, Final

from chatturn.chat.log.room import PAGE_CHARACTERS, wait_for_room
from chatturn.chat.sessions.deletion import EVERYBODY
from chatturn.chat.sessions.export import ExportQuery
from chatturn.chat.sessions.sessions import SessionQuery
from chatturn.chat.turn.sinks import Sink
from chatturn.errors import ChatTurnError, Forbidden, NotFound
from chatturn.http.application import Call
from chatturn.http.auth import OPERATE
from chatturn.http.limits import (
    MAX_BODY_BYTES,
    check_body_headers,
    read_feedback,
    read_person,
    read_session_id,
    read_title,
)
from chatturn.http.messages import HttpResponse
from chatturn.http.parameters import read_query
from chatturn.http.problems import json_response
from chatturn.http.query_strings import EXPORT_QUERY, PEOPLE_EXPORT_QUERY, PEOPLE_QUERY, SESSIONS_QUERY, check_no_query
from chatturn.http.turns import identity_of

__all__ = [
    "SESSION",
    "TENANT",
    "USER",
    "delete_session",
    "delete_tenant",
    "delete_user_sessions",
    "export_session",
    "export_tenant",
    "export_user",
    "get_sessions",
    "patch_session",
    "post_feedback",
]

SESSION: Final = "/v1/sessions/{session}"
USER: Final = "/v1/users/{user}"
TENANT: Final = "/v1/tenants/{tenant}"

_NDJSON: Final = "application/x-ndjson"
_ACCEPTED: Final = 202


async def get_sessions(call: Call) -> HttpResponse:
    """List sessions, the most recently active first: one's own, or a user's."""
    said = read_query(call.request.query, SESSIONS_QUERY)
    tenant_id = _tenant(call, said["tenant"])
    user_id = said["user"]
    if not _operates(call):
        user_id = _user(call, call.principal.user_id if user_id is None else user_id)
    query = SessionQuery(tenant_id=tenant_id, user_id=user_id, limit=said["limit"], after=said["after"])
    page = await call.service.sessions.list(query)
    return json_response({"sessions": [_shown(call, tenant_id, each) for each in page.sessions], "next": page.next})


async def patch_session(call: Call) -> HttpResponse:
    """Give a session a title; null removes it."""
    session_id = read_session_id(call.parameters["session"])
    check_no_query(call.request)
    check_body_headers(call.request.headers)
    title = read_title(await call.request.read(MAX_BODY_BYTES))
    principal = call.principal
    session = await call.service.sessions.rename(principal.tenant_id, session_id, principal.user_id, title)
    if session is None:
        raise NotFound("there is no such session")
    return json_response(_shown(call, principal.tenant_id, session))


async def post_feedback(call: Call) -> HttpResponse:
    """Record the user's feedback on an answer, in place of their earlier feedback."""
    identity = identity_of(call)
    check_no_query(call.request)
    check_body_headers(call.request.headers)
    feedback = read_feedback(await call.request.read(MAX_BODY_BYTES))
    recorded = await call.service.sessions.rate(identity, feedback)
    if recorded is None:
        raise NotFound("there is no such answer")
    return json_response(recorded)


async def delete_session(call: Call) -> HttpResponse:
    """Delete a session with all its data, at once; a turn that is being answered is stopped."""
    session_id = read_session_id(call.parameters["session"])
    check_no_query(call.request)
    principal = call.principal
    if not await call.service.sessions.delete(principal.tenant_id, session_id, principal.user_id):
        raise NotFound("there is no such session")
    return json_response({"deleted": True})


async def delete_user_sessions(call: Call) -> HttpResponse:
    """Delete all sessions that a user has now."""
    said = read_query(call.request.query, PEOPLE_QUERY)
    user_id = read_person(call.parameters["user"], "user")
    return await _delete(call, _tenant(call, said["tenant"]), _own_or_operated(call, user_id))


async def delete_tenant(call: Call) -> HttpResponse:
    """Delete all sessions that a tenant has now, and its name from the records of what its calls have cost."""
    check_no_query(call.request)
    return await _delete(call, read_person(call.parameters["tenant"], "tenant"), EVERYBODY)


async def export_session(call: Call) -> HttpResponse:
    """Export all data of a session."""
    session_id = read_session_id(call.parameters["session"])
    said, principal = read_query(call.request.query, EXPORT_QUERY), call.principal
    if not await call.service.sessions.exists(principal.tenant_id, session_id, principal.user_id):
        raise NotFound("there is no such session")
    user_id = principal.user_id if call.service.sessions.owned_by_subject else None
    query = ExportQuery(tenant_id=principal.tenant_id, user_id=user_id, session_id=session_id, after=said["after"])
    return await _export(call, query)


async def export_user(call: Call) -> HttpResponse:
    """Export all data of a user's sessions."""
    said = read_query(call.request.query, PEOPLE_EXPORT_QUERY)
    user_id = _own_or_operated(call, read_person(call.parameters["user"], "user"))
    query = ExportQuery(tenant_id=_tenant(call, said["tenant"]), user_id=user_id, after=said["after"])
    return await _export(call, query)


async def export_tenant(call: Call) -> HttpResponse:
    """Export all data of a tenant's sessions."""
    said = read_query(call.request.query, EXPORT_QUERY)
    return await _export(
        call, ExportQuery(tenant_id=read_person(call.parameters["tenant"], "tenant"), after=said["after"])
    )


async def _delete(call: Call, tenant_id: str, user_id: str) -> HttpResponse:
    done = await call.service.sessions.delete_all(tenant_id, user_id)
    return json_response({"deleted": done}, status=200 if done else _ACCEPTED)


async def _export(call: Call, query: ExportQuery) -> HttpResponse:
    lines = call.service.sessions.export(query)
    first = await anext(lines)  # before the response begins: a wrong cursor gets an error status

    async def run(sink: Sink) -> None:
        try:
            sink.write(first)
            await _send_in_turn(call, lines, sink)
        except ChatTurnError as error:
            call.service.deployment.log("export.failed", {"error": error})
            sink.abort()
            return
        await sink.close()

    headers = {"Content-Type": _NDJSON, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return HttpResponse(status=200, headers=headers, stream=run)


async def _send_in_turn(call: Call, lines: AsyncIterator[str], sink: Sink) -> None:
    """Send lines, some at a time, each when there is room of the isolate for them: a reader may take nothing."""
    deployment, who = call.service.deployment, call.principal.name
    while not sink.closed:
        if not deployment.sending.fits(who, PAGE_CHARACTERS):
            await wait_for_room(deployment.sending, who, PAGE_CHARACTERS, deployment.alarm())
            continue
        with deployment.sending.holding(who, PAGE_CHARACTERS):
            text = await anext(lines, None)
            if text is None:
                return
            sink.write(text)
            del text
            await sink.drain(0)


def _operates(call: Call) -> bool:
    return OPERATE in call.principal.scopes


def _tenant(call: Call, named: str | None) -> str:
    own = call.principal.tenant_id
    if named not in {None, own} and not _operates(call):
        raise Forbidden(f"the token's scope must contain {OPERATE!r} to see another tenant's", field="tenant")
    return own if named is None else named


def _user(call: Call, named: str) -> str:
    if named != call.principal.user_id and call.service.sessions.owned_by_subject:
        raise Forbidden(f"the token's scope must contain {OPERATE!r} to see another user's", field="user")
    return named


def _own_or_operated(call: Call, user_id: str) -> str:
    if user_id != call.principal.user_id and not _operates(call):
        raise Forbidden(f"the token's scope must contain {OPERATE!r} to do this for another user", field="user")
    return user_id


def _shown(call: Call, tenant_id: str, session: Any) -> dict[str, Any]:
    """Return a session as the caller may see it: only operators see its cost, and only its tenant sees its title."""
    shown = dict(session)
    if not _operates(call):
        del shown["costMicroUsd"]
    elif tenant_id != call.principal.tenant_id:
        shown["title"] = None
    return shown
