"""The routes for one turn: run it, stream its log, show it, stop it, choose its version."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from chatturn.chat.following import FollowedTurn
from chatturn.chat.requests import CANCELLED, TurnView
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_of_run, version_of_run, with_version_of
from chatturn.chat.turn.reader import PING_EVERY_MS
from chatturn.chat.turn.sinks import Sink
from chatturn.database.api import Row
from chatturn.errors import DurableRunLeaseHeldError, NotFound, SessionBusy
from chatturn.http.application import Call, Parameters
from chatturn.http.auth import OPERATE, RUN_TURNS
from chatturn.http.limits import (
    MAX_BODY_BYTES,
    check_body_headers,
    read_session_id,
    read_turn_index,
    read_turn_request,
    read_version,
)
from chatturn.http.messages import HttpRequest, HttpResponse, accepted_type
from chatturn.http.problems import json_response, problem
from chatturn.http.query_strings import LogCursor, check_no_query, read_cursor, read_version_query
from chatturn.http.sse import CONTENT_TYPE as SSE
from chatturn.http.sse import SseSink
from chatturn.http.usage import shown_usage
from chatturn.timestamps import iso_timestamp

__all__ = [
    "TURN",
    "get_stream",
    "get_turn",
    "get_versions",
    "has_stream",
    "identity_of",
    "post_activate",
    "post_cancel",
    "post_ticket",
    "post_turn",
    "session_of",
]

TURN: Final = "/v1/sessions/{session}/turns/{turn_index}"
_NDJSON: Final = "application/x-ndjson"

# The headers of every stream.  X-Accel-Buffering keeps proxies from buffering it.
_STREAM_HEADERS: Final[Mapping[str, str]] = {"X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}

_UNCHANGING: Final = "private, max-age=31536000, immutable"
_OVER: Final = frozenset({"cancelled", "completed", "failed"})
_NO_CONTENT: Final = 204
_NOT_MODIFIED: Final = 304
_ACCEPTED: Final = 202


async def post_turn(call: Call) -> HttpResponse:
    """Run the turn, or replay it; with ``follow``, stream it if it is already running."""
    identity = identity_of(call)
    check_no_query(call.request)
    check_body_headers(call.request.headers)
    turn_request = read_turn_request(await call.request.read(MAX_BODY_BYTES))
    try:
        turn = await call.service.open(identity, turn_request)
    except DurableRunLeaseHeldError as error:
        about = turn_of_run(error.run_id)
        running = identity if about is None else replace(identity, turn_index=about[1])
        if not turn_request.follow or not error.same_input:
            return problem(error, stream=f"{_address(running)}/stream")
        running = with_version_of(running, error.run_id)
        followed = await call.service.follow(running, None, may_take_over=True)
        if followed is None:
            raise
        return _log_response(call, followed, LogCursor(None, None))
    except SessionBusy as error:
        return problem(error, stream=_stream_of(error.run_id))
    # The AI SDK's WorkflowChatTransport reads the run's id from the header X-Workflow-Run-Id.
    headers = {
        "Cache-Control": "no-store",
        "X-Workflow-Run-Id": turn.run_id,
        "X-Turn-Attempt": str(turn.attempt),
        "X-Turn-Replayed": "true" if turn.replayed else "false",
        "X-Ping-Ms": str(call.service.ping_every_ms),
    }
    if turn.retry_after_ms:
        headers["Retry-After"] = str(-(-turn.retry_after_ms // 1000))
    return _stream(call, headers, turn.run)


async def has_stream(call: Call) -> bool:
    """Say whether this user has the turn whose log is asked for."""
    return await call.service.show(identity_of(call)) is not None


async def get_stream(call: Call) -> HttpResponse:
    """Show the turn's log from a cursor on, live until it ends."""
    identity = identity_of(call)
    cursor = read_cursor(call.request, id_suffix=_id_suffix(call))
    if call.ticket is not None:
        call.ticket.check_turn(identity.session_id, identity.turn_index)
    identity = await _shown(call, identity, cursor.version, cursor.after)
    if call.ticket is not None:
        await _check_ticket(call, identity)
    may_take_over = RUN_TURNS in call.principal.scopes
    # An EventSource does not reconnect after an error status, so its request waits until there is room for its log.
    waits = _wants_sse(call.request)
    log = await call.service.follow(identity, cursor.after, may_take_over=may_take_over, waits=waits)
    if log is None or (cursor.attempt is not None and not (log.finished and log.page.attempt == cursor.attempt)):
        if log is not None:
            log.release()
        raise NotFound("there is no such turn, or not yet the finished log of this attempt")
    return _log_response(call, log, cursor)


async def _check_ticket(call: Call, identity: ChatTurnIdentity) -> None:
    view = await call.service.show(identity)
    if view is not None and view.status in _OVER and view.completed_at is not None:
        call.tickets.check_end(view.completed_at)


async def post_ticket(call: Call) -> HttpResponse:
    """Issue a ticket for the turn's stream, whether or not the turn has begun; nothing is stored."""
    identity = identity_of(call)
    check_no_query(call.request)
    if not await call.service.may_see(identity.tenant_id, identity.session_id, identity.user_id):
        raise NotFound("there is no such session")
    text, opens_until_s, expires_at_s = call.tickets.issue(call.principal, identity.session_id, identity.turn_index)
    return json_response(
        {
            "ticket": text,
            "stream": f"{_address(identity)}/stream?ticket={text}",
            "opensUntil": iso_timestamp(int(opens_until_s * 1000)),
            "expiresAt": iso_timestamp(int(expires_at_s * 1000)),
        }
    )


async def get_turn(call: Call) -> HttpResponse:
    """Show the turn's run, without its answer."""
    identity = identity_of(call)
    identity = await _shown(call, identity, read_version_query(call.request))
    view = await call.service.show(identity)
    if view is None:
        raise NotFound("there is no such turn")
    usage = None if view.usage is None else shown_usage(view.usage, money=OPERATE in call.principal.scopes)
    return json_response({**_members(identity, view), "usage": usage})


async def post_cancel(call: Call) -> HttpResponse:
    """Stop the turn for good; a turn that is over stays as it is."""
    identity = identity_of(call)
    identity = await _shown(call, identity, read_version_query(call.request))
    cancellation = await call.service.cancel(identity)
    if cancellation is None:
        raise NotFound("there is no such turn")
    members = {**_members(identity, cancellation.turn), "cancelRequested": cancellation.requested}
    if not cancellation.requested:
        return json_response(members)

    async def end_if_nobody_runs_it() -> None:
        await call.service.resume(cancellation.turn.run_id)

    return replace(json_response(members, status=_ACCEPTED), background=end_if_nobody_runs_it)


async def get_versions(call: Call) -> HttpResponse:
    """List the turn's versions, without their answers."""
    identity = identity_of(call)
    check_no_query(call.request)
    versions = await call.service.versions(identity)
    if versions is None:
        raise NotFound("there is no such turn")
    return json_response({"versions": [_version(identity, row) for row in versions]})


async def post_activate(call: Call) -> HttpResponse:
    """Make a version the one that counts, with the turns that followed it."""
    version = read_version(call.parameters["version"])
    identity = replace(identity_of(call), version=version)
    check_no_query(call.request)
    await call.service.activate(identity)
    return replace(json_response({"version": version}), background=partial(call.service.tell_changes, identity))


async def _shown(
    call: Call, identity: ChatTurnIdentity, version: int | None, after: int | None = None
) -> ChatTurnIdentity:
    return await call.service.shown_version(identity, after) if version is None else replace(identity, version=version)


def _version(identity: ChatTurnIdentity, row: Row) -> dict[str, Any]:
    return {
        "version": row["version"],
        "runId": row["run_id"],
        "counts": bool(row["counts"]),
        "replaces": row["replaces"],
        "kind": row["replace_kind"],
        "message": row["user_message"],
        "model": row["model"],
        "status": CANCELLED if row["cancelled_at"] is not None else row["status"],
        "finishReason": row["finish_reason"],
        "createdAt": row["created_at"],
        "completedAt": row["completed_at"],
        "stream": f"{_address(identity)}/stream?version={row['version']}",
    }


def session_of(parameters: Parameters) -> str:
    """
    Return the session whose owner is to answer for the turn.

    Raises:
        InvalidField: The path has no session's id.
    """
    return read_session_id(parameters["session"])


def _log_response(call: Call, log: FollowedTurn, cursor: LogCursor) -> HttpResponse:
    """
    Stream a log.

    A finished log changes only if the turn is superseded, so its response has an ``ETag``.  A request that names the
    attempt that finished the log is told that the response never changes.
    """
    headers = {
        "X-Workflow-Run-Id": log.run_id,
        "X-Turn-Attempt": str(log.page.attempt),
        "X-Ping-Ms": str(PING_EVERY_MS),
        "Cache-Control": "no-store",
    }
    if log.finished:
        last = log.page.begins - 1 if cursor.after is None else cursor.after
        tag = f'"{log.page.attempt}.{log.page.ends}.{last}.{"sse" if _wants_sse(call.request) else "ndjson"}"'
        headers["ETag"] = tag
        headers["Cache-Control"] = "private, no-cache" if cursor.attempt is None else _UNCHANGING
        headers["Vary"] = "Authorization, Accept, Last-Event-ID"
        known = call.request.headers.get("if-none-match", "")
        if tag in known or known.strip() == "*":
            log.release()
            return HttpResponse(status=_NOT_MODIFIED, headers=headers)
    if log.nothing_left and _wants_sse(call.request):
        return HttpResponse(status=_NO_CONTENT, headers=headers)  # A 204 ends the reconnects of an EventSource.
    return _stream(call, headers, log.run)


def _stream(call: Call, headers: Mapping[str, str], run: Callable[[Sink], Awaitable[None]]) -> HttpResponse:
    """Make a streamed response in the format that the request accepts."""
    if not _wants_sse(call.request):
        return HttpResponse(status=200, headers={"Content-Type": _NDJSON, **_STREAM_HEADERS, **headers}, stream=run)

    async def run_as_events(sink: Sink) -> None:
        await run(SseSink(sink, _id_suffix(call)))

    return HttpResponse(status=200, headers={"Content-Type": SSE, **_STREAM_HEADERS, **headers}, stream=run_as_events)


def _wants_sse(request: HttpRequest) -> bool:
    return accepted_type(request, (_NDJSON, SSE)) == SSE


def _id_suffix(call: Call) -> str:
    return "" if call.ticket is None else call.ticket.id_suffix


def identity_of(call: Call) -> ChatTurnIdentity:
    """
    Return the turn that the path names, with the tenant and the user of the request.

    Raises:
        InvalidField: The path names no turn.
    """
    return call.turn(read_session_id(call.parameters["session"]), read_turn_index(call.parameters["turn_index"]))


def _address(identity: ChatTurnIdentity) -> str:
    return _address_of(identity.session_id, identity.turn_index)


def _address_of(session_id: str, turn_index: int) -> str:
    return TURN.format(session=quote(session_id, safe="@"), turn_index=turn_index)


def _stream_of(run_id: str) -> str | None:
    """Return the address of a run's log; None if the run is no chat turn."""
    turn = turn_of_run(run_id)
    if turn is None:
        return None
    return f"{_address_of(*turn)}/stream?version={version_of_run(run_id)}"


def _members(identity: ChatTurnIdentity, view: TurnView) -> dict[str, Any]:
    return {
        "runId": view.run_id,
        "sessionId": identity.session_id,
        "turnIndex": identity.turn_index,
        "version": view.version,
        "status": view.status,
        "attempts": view.attempts,
        "model": view.model,
        "createdAt": view.created_at,
        "updatedAt": view.updated_at,
        "completedAt": view.completed_at,
        "finishReason": view.finish_reason,
        "outcome": None if view.outcome is None else view.outcome.to_json(),
        "stream": f"{_address(identity)}/stream",
    }
