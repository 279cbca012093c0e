"""The routes that list a session's messages and a tenant's turns, and the one that gives a run an event."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from chatturn.chat.lists.lists import TurnRow
from chatturn.chat.log.room import PAGE_CHARACTERS, SMALL_CHARACTERS, wait_for_room
from chatturn.chat.thread.identity import session_id_of
from chatturn.chat.turn.sinks import Sink
from chatturn.errors import Forbidden, NotFound
from chatturn.http.application import Call, Parameters
from chatturn.http.auth import OPERATE
from chatturn.http.limits import (
    MAX_BODY_BYTES,
    check_body_headers,
    read_event_key,
    read_event_payload,
    read_run_id,
    read_session_id,
)
from chatturn.http.messages import HttpResponse
from chatturn.http.problems import json_response
from chatturn.http.projected import gone_on
from chatturn.http.query_strings import check_no_query, read_message_query, read_turn_query

__all__ = ["get_messages", "get_runs", "post_event", "session_of_run"]

_NOT_MODIFIED: Final = 304
_TAGGED: Final[Mapping[str, str]] = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}


async def get_messages(call: Call) -> HttpResponse:
    """Show a session's messages, and its turns without an answer; with ``If-None-Match``, if they have changed."""
    session_id = read_session_id(call.parameters["session"])
    query, wait_s = read_message_query(call.request)
    who = (call.principal.tenant_id, session_id, call.principal.user_id)
    known = call.request.headers.get("if-none-match", "").strip()
    if (known or wait_s) and not await call.service.session_changed(*who, partial(_knows, known), wait_s):
        return HttpResponse(status=_NOT_MODIFIED, headers=_TAGGED)
    sending, name = call.service.deployment.sending, call.principal.name
    while not sending.fits(name, PAGE_CHARACTERS):
        await wait_for_room(sending, name, PAGE_CHARACTERS, call.service.deployment.alarm())
    with sending.holding(name, PAGE_CHARACTERS):
        page = await call.service.messages(*who, query)
    if page is None:
        raise NotFound("there is no such session")
    shown = {"messages": page.messages, "open": page.open_turns, "next": page.next, "revision": page.revision}
    response = json_response(shown)
    if page.tag is not None:
        response = replace(response, headers={**response.headers, **_TAGGED, "ETag": f'"{page.tag}"'})
    if len(response.body) <= SMALL_CHARACTERS:
        return response
    release = sending.take(name, len(response.body))
    return replace(response, body=b"", stream=partial(_send, response.body, release))


async def _send(body: bytes, release: Callable[[], None], sink: Sink) -> None:
    """Send a long page, which has room of the isolate until the reader has taken it, or is given up."""
    try:
        sink.write(body.decode())
        del body
        await sink.drain(0)
        await sink.close()
    finally:
        release()


def _knows(known: str, tag: str) -> bool:
    # ``W/"tag"`` matches, too: a proxy that compresses the response makes our tag a weak one.
    return known == "*" or f'"{tag}"' in known


async def get_runs(call: Call) -> HttpResponse:
    """List turns: the tenant's own, or, for an operator, any tenant's."""
    query = read_turn_query(call.request)
    operates = OPERATE in call.principal.scopes
    if not operates:
        if query.tenant_id not in {None, call.principal.tenant_id}:
            raise Forbidden(f"the token's scope must contain {OPERATE!r} to see another tenant's", field="tenant")
        query = replace(query, tenant_id=call.principal.tenant_id, user_id=call.principal.user_id)
    page = await call.service.turns(query)
    return json_response({"runs": [_run(row, operates=operates) for row in page.turns], "next": page.next})


async def post_event(call: Call) -> HttpResponse:
    """Give a run an event that it waits for."""
    run_id, key = read_run_id(call.parameters["run_id"]), read_event_key(call.parameters["key"])
    check_no_query(call.request)
    check_body_headers(call.request.headers)
    payload = read_event_payload(await call.request.read(MAX_BODY_BYTES), key)
    accepted, event = await call.service.emit(call.principal.tenant_id, call.principal.user_id, run_id, key, payload)

    payload, emitted_at = (None, None) if event is None else (event.payload, event.emitted_at)
    members = {"accepted": accepted, "payload": payload, "emittedAt": emitted_at}
    return replace(json_response(members), background=gone_on(call.service, run_id))


def session_of_run(parameters: Parameters) -> str | None:
    """
    Return the session whose owner is to answer for the run; None for a run that is no chat turn.

    Raises:
        InvalidField: The path has no run's id.
    """
    return session_id_of(read_run_id(parameters["run_id"]))


def _run(row: TurnRow, *, operates: bool) -> dict[str, Any]:
    run, turn = row.run, row.turn
    members: dict[str, Any] = {
        "runId": run.run_id,
        "status": row.status,
        "attempts": run.epoch,
        "createdAt": run.created_at,
        "updatedAt": run.updated_at,
        "completedAt": run.completed_at,
        "leaseExpiresAt": run.lease_expires_at,
        "outcome": None if run.outcome is None else run.outcome.to_json(),
    }
    if turn is None or turn["tenant_id"] is None:
        return members
    members |= {
        "tenantId": turn["tenant_id"],
        "sessionId": turn["session_id"],
        "turnIndex": turn["turn_index"],
        "model": turn["model"],
    }
    # Why a hook failed is text of the product's own, which only an operator may read.
    hidden = set() if operates else {"lastError"}
    calls = [{name: value for name, value in each.items() if name not in hidden} for each in row.undelivered]
    return {**members, "undelivered": calls} if calls else members
