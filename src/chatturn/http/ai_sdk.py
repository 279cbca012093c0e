"""
The routes for the AI SDK: ``useChat`` and its transports work unmodified.

A chat is a session.  Each request brings the whole thread: the question is the user's last message, and its index the
number of the user's messages before it.  A model is shown the stored thread, unless the request names no chat.

Source:
    The packages ``ai`` 7.0.173 (src/ui/http-chat-transport.ts, chat.ts) and ``@ai-sdk/workflow`` 2.0.43
    (src/workflow-chat-transport.ts).
"""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl

from chatturn.backends.parameters import whole
from chatturn.chat.agent.tool_calls import APPROVAL_PREFIX, CLIENT_CALL
from chatturn.chat.requests import TurnRequest
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_of_run, turn_run_id, version_of_run, with_version_of
from chatturn.chat.thread.versions import Replace
from chatturn.chat.turn.reader import PING_EVERY_MS
from chatturn.durable.identifiers import derive_worker_id
from chatturn.errors import ChatTurnError, InvalidField, RequestError, RunNotFound, StoreError, StoreUnavailable
from chatturn.http.application import Call, Parameters
from chatturn.http.auth import RUN_TURNS, Principal
from chatturn.http.client_bodies import file_or_address, read_client_body, read_conversation
from chatturn.http.limits import (
    MAX_EVENT_KEY_CHARACTERS,
    MAX_REASON_CHARACTERS,
    MAX_TURN_INDEX,
    check_session_id,
    read_model,
    read_parameters,
    read_run_id,
    read_session_id,
    read_tool_result,
)
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.parameters import Parameter, Query, whole_number
from chatturn.http.problems import detail_of, error_headers
from chatturn.http.projected import EVENTS, OpenedTurn, ProjectedTurn, find, go_on_or_follow, gone_on, open_or_follow
from chatturn.http.strict_json import read_json_object
from chatturn.http.user_messages import IMAGE_TYPES
from chatturn.wire.ai_sdk import NEWEST, UiMessageStream

__all__ = [
    "AI_SDK_CHAT",
    "CHAT_QUERY",
    "CHAT_STREAM_QUERY",
    "ai_sdk_problem",
    "get_chat_stream",
    "has_chat_stream",
    "post_chat",
    "session_of_body",
    "session_of_chat",
]

AI_SDK_CHAT: Final = "/v1/ai-sdk/chat"

_HEADERS: Final[Mapping[str, str]] = {**EVENTS, "X-Vercel-AI-UI-Message-Stream": "v1"}
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
_MOST_CHUNKS: Final = 10**9 - 1
_OLDEST, _LATEST = 5, 99
_MOST_MEMBERS: Final = 64
"""The most members of a query."""

_TAKEN_OF_A_USER: Final = ("text", "file", "data-")
"""How the part types of a user's message may begin; ``data-`` parts are accepted, but no model is shown them."""

_DECIDED: Final = "approval-responded"
"""The state of a tool part that the user has approved or denied, and whose turn does not know it yet."""

_FOUND_WITHIN_S: Final = 20
"""How long a reconnect asks a database that does not answer for the chat's latest turn, once a second."""


def ai_sdk_problem(error: ChatTurnError) -> HttpResponse:
    """Make the response for an error: plain text, since these clients show any body as the error's message."""
    headers = {**error_headers(error), "Content-Type": "text/plain; charset=utf-8", "X-Error-Code": error.code}
    return HttpResponse(status=error.status, headers=headers, body=detail_of(error).encode())


def session_of_chat(parameters: Parameters) -> str | None:
    """
    Return the session whose owner is to answer for a chat's stream.

    Raises:
        InvalidField: The path has neither a session's id nor a run's.
    """
    named = read_run_id(parameters["id"])
    turn = turn_of_run(named)
    return read_session_id(parameters["id"]) if turn is None else turn[0]


def session_of_body(_request: HttpRequest, _principal: Principal, body: bytes) -> str | None:
    """Return the session whose owner is to answer a chat; None if the body names none or cannot be read."""
    try:
        chat = read_json_object(body).get("id")
        return None if chat is None else _session(chat)
    except RequestError:
        return None


async def post_chat(call: Call) -> HttpResponse:
    """Answer the question of a chat, or continue the turn for which the chat brings decisions or tool results."""
    body = await read_client_body(call.request)
    sdk = _query(call.request, CHAT_QUERY)["v"]
    messages: Any = body.get("messages")
    conversation = read_conversation(messages, _text_of, parts_of=_parts_of)
    if body.get("trigger") == "regenerate-message" and call.service.deployment.settings.threads == "off":
        raise InvalidField("this deployment cannot regenerate an answer: its THREADS is off", field="trigger")
    chat = body.get("id")
    identity = call.turn(
        _own_session() if chat is None else _session(chat),
        0 if chat is None else _turn_index(body.get("turnIndex"), conversation.turn_index),
    )
    parameters, ignored = _parameters(body.get("parameters"), call.service.deployment.may_say)
    request = TurnRequest(
        message=conversation.question,
        parts=conversation.parts,
        model=read_model(body.get("model")),
        parameters=parameters,
        history=conversation.before if chat is None else None,
        supersede=_is_edit(body),
        follow=True,
        stays=True,
        replace=_replaces(body, identity) if call.service.deployment.settings.threads == "on" else None,
    )
    given = await _give(call, identity, messages)
    if given is not None and not _asks(messages):
        opened = await go_on_or_follow(call.service, given)
        return _stream(call, given, opened, sdk=sdk, given=_given_calls(_last_parts(messages)))
    opened = await open_or_follow(call.service, identity, request)
    response = _stream(call, identity, opened, sdk=sdk)
    if ignored:
        response = replace(response, headers={**response.headers, "X-Ignored-Parameters": ", ".join(ignored)})
    return response if given is None else replace(response, background=gone_on(call.service, turn_run_id(given)))


async def _give(
    call: Call, identity: ChatTurnIdentity, messages: Sequence[Mapping[str, Any]]
) -> ChatTurnIdentity | None:
    """
    Give a waiting turn what the thread's last answer holds: decisions on approvals, and results of the client's tools.

    They are given even if a question follows the answer: without them, the question would wait for that turn.

    Returns:
        The turn; None if the answer holds neither.
    """
    asks = _asks(messages)
    parts = _last_parts(messages[:-1] if asks else messages)
    decisions, results = _decisions(parts), _results(parts)
    given: ChatTurnIdentity | None = None
    if results:
        taken = await call.service.take_results(identity.tenant_id, identity.user_id, results)
        if taken is not None and (turn := turn_of_run(taken.run_id)) is not None:
            given = with_version_of(call.turn(*turn), taken.run_id)
    if not decisions:
        return given
    if given is None:
        answered = replace(identity, turn_index=max(0, identity.turn_index - asks))
        given = await call.service.shown_version(answered)
    for key, payload in decisions.items():
        try:
            await call.service.emit(identity.tenant_id, identity.user_id, turn_run_id(given), key, payload)
        except RunNotFound:
            if not asks:
                raise
    return given


def _asks(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the thread ends with a question."""
    return messages[-1].get("role") == "user"


async def has_chat_stream(call: Call) -> bool:
    """Say whether there is the run, or a turn of the chat, whose stream is asked for."""
    identity = await _identity_of(call)
    return identity is not None and await call.service.show(identity) is not None


async def get_chat_stream(call: Call) -> HttpResponse:
    """
    Show a chat's latest turn, or a run, from a chunk on, live until it ends; 204 where there is nothing to show.

    These clients take an error status for the end of the turn.  So if the database does not answer, the latest turn is
    asked for again for `_FOUND_WITHIN_S`; once the turn is known, the status is 200, and the body waits.
    """
    query = _query(call.request, CHAT_STREAM_QUERY)
    seen, sdk = query.get("startIndex"), query["v"]
    may_take_over = RUN_TURNS in call.principal.scopes
    identity = await _identity_of(call)
    opened: OpenedTurn | None = None
    if identity is not None:
        try:
            opened = await find(call.service, identity, may_take_over=may_take_over)
        except StoreError:
            return _stream(call, identity, None, seen=seen, sdk=sdk, may_take_over=may_take_over)
    if identity is None or opened is None:
        return HttpResponse(status=204, headers={"Cache-Control": "no-store"})
    return _stream(call, identity, opened, seen=seen, sdk=sdk, may_take_over=may_take_over)


def _stream(
    call: Call,
    identity: ChatTurnIdentity,
    opened: OpenedTurn | None,
    *,
    seen: int | None = None,
    sdk: int,
    given: Collection[str] = (),
    may_take_over: bool = True,
) -> HttpResponse:
    if opened is not None:
        identity = with_version_of(identity, opened.run_id)
    run_id = turn_run_id(identity) if opened is None else opened.run_id
    headers = {**_HEADERS, "X-Workflow-Run-Id": run_id, "X-Ping-Ms": str(PING_EVERY_MS)}
    if opened is not None:
        headers |= {"X-Turn-Attempt": str(opened.attempt), "X-Turn-Replayed": str(opened.replayed).lower()}
        headers["X-Ping-Ms"] = str(call.service.ping_every_ms)
    if seen is not None and seen < 0:
        # A client that asks for the last n chunks gets all chunks, since a chunk may need the chunks before it.  The
        # header says that there are n, so that the client counts from the first.
        headers["X-Workflow-Stream-Tail-Index"] = str(-seen - 1)
    projection = UiMessageStream(
        run_id,
        version=identity.version,
        seen=None if seen is None else max(0, seen),
        attempt=1 if opened is None else opened.attempt,
        sdk=sdk,
        stored_to=None if opened is None else opened.stored_to,
        given=given,
    )
    turn = ProjectedTurn(
        service=call.service,
        identity=identity,
        projection=projection,
        first=None if opened is None else opened.run,
        may_take_over=may_take_over,
        created_at=None if opened is None else opened.created_at,
    )
    return HttpResponse(status=200, headers=headers, stream=turn.run)


# Which turn


async def _identity_of(call: Call) -> ChatTurnIdentity | None:
    """Return the turn that a run's id names, or the latest turn of a chat; None for a chat without turns."""
    turn = turn_of_run(read_run_id(call.parameters["id"]))
    if turn is not None:
        return with_version_of(call.turn(*turn), read_run_id(call.parameters["id"]))
    session_id = read_session_id(call.parameters["id"])
    latest = await _latest_turn(call, session_id)
    return None if latest is None else await call.service.shown_version(call.turn(session_id, latest))


async def _latest_turn(call: Call, session_id: str) -> int | None:
    principal = call.principal
    for _ in range(_FOUND_WITHIN_S):
        try:
            return await call.service.latest_turn(principal.tenant_id, session_id, principal.user_id)
        except StoreUnavailable:
            await asyncio.sleep(1)
    return await call.service.latest_turn(principal.tenant_id, session_id, principal.user_id)


def _own_session() -> str:
    """Make a session id for a request that names none; only the run's id finds that session again."""
    return derive_worker_id().replace("worker-", "chat.")


def _turn_index(said: object, counted: int) -> int:
    """Return the index that the request names, as one without the whole thread must; else the *counted* index."""
    if said is None:
        return counted
    index = whole(said)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= MAX_TURN_INDEX:
        raise InvalidField(f"turnIndex must be a whole number from 0 to {MAX_TURN_INDEX}", field="turnIndex")
    return index


def _parameters(value: object, may_say: Callable[[str], bool]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the parameters that a request may set, and the names of those that it may not."""
    said = read_parameters(value)
    return {name: each for name, each in said.items() if may_say(name)}, [name for name in said if not may_say(name)]


def _session(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidField("id must be text", field="id")
    try:
        return check_session_id(value)
    except InvalidField as error:
        raise InvalidField(str(error).replace("session is", "id is", 1), field="id") from None


def _replaces(body: Mapping[str, Any], identity: ChatTurnIdentity) -> Replace | None:
    """
    Return the version that the question replaces, if it replaces one.

    A regeneration may name the answer to replace by its message id, which is the id of its run.
    """
    if body.get("trigger") == "regenerate-message":
        named = str(body.get("messageId"))
        is_ours = turn_of_run(named) == (identity.session_id, identity.turn_index)
        return Replace(kind="regenerate", version=version_of_run(named) if is_ours else None, anew=True)
    return Replace(kind="edit", version=None, anew=True) if _is_edit(body) else None


def _is_edit(body: Mapping[str, Any]) -> bool:
    """Say whether the question replaces the stored one: then ``messageId`` is the id of the thread's last message."""
    [*_, last] = body["messages"]
    if body.get("trigger") == "regenerate-message":
        return False
    return last.get("role") == "user" and body.get("messageId") is not None and body["messageId"] == last.get("id")


# The query


def _start_index(text: str, name: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidField(f"{name} must be a whole number", field=name)
    return int(text)


CHAT_QUERY: Final[Query] = {
    "v": whole_number("the major version of the AI SDK", least=_OLDEST, most=_LATEST, default=NEWEST)
}
CHAT_STREAM_QUERY: Final[Query] = {
    "startIndex": Parameter(
        about="the number of chunks that the client has seen; with a negative number it is sent all chunks",
        schema={"type": "integer", "minimum": -_MOST_CHUNKS, "maximum": _MOST_CHUNKS},
        read=_start_index,
    ),
    **CHAT_QUERY,
}
"""The members that are read; others are ignored, since clients send some by themselves."""


def _query(request: HttpRequest, known: Query) -> Mapping[str, int]:
    try:
        said = dict(parse_qsl(request.query, keep_blank_values=True, max_num_fields=_MOST_MEMBERS))
    except ValueError:
        raise InvalidField(f"the query may have at most {_MOST_MEMBERS} members", field="query") from None
    read = {name: each.read(said[name], name) for name, each in known.items() if name in said}
    defaults = {name: each.schema["default"] for name, each in known.items() if "default" in each.schema}
    return defaults | read


# The messages


def _text_of(message: Mapping[str, Any], place: str) -> str:
    """Return the text of a UI message; refuse a user's message with a part that cannot be shown to a model."""
    parts = _listed_parts(message, place)
    if message.get("role") == "user":
        for part in parts:
            if not str(part.get("type", "")).startswith(_TAKEN_OF_A_USER):
                raise InvalidField(f"{place} has a part that cannot be taken: only text and files can", field=place)
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidField(f"{place} has a text part without text", field=place)
    return "".join(map(str, texts))


def _listed_parts(message: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    parts = message.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise InvalidField(f"{place}.parts must be a list of objects", field=place)
    return parts


def _parts_of(message: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Return a user's UI message with files as parts in our own form; [] for any other message."""
    parts = [part for part in _listed_parts(message, place) if part.get("type") in ("text", "file")]
    if message.get("role") != "user" or all(part["type"] == "text" for part in parts):
        return []
    return [{"type": "text", "text": part.get("text")} if part["type"] == "text" else _file(part) for part in parts]


def _file(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = "image" if str(part.get("mediaType")) in IMAGE_TYPES else "file"
    name = {"name": part["filename"]} if kind == "file" and part.get("filename") else {}
    return {"type": kind, **file_or_address(part.get("url")), **name}


def _decisions(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Return the decisions on approvals in an answer, by the keys of their events."""
    decisions: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        if part.get("state") == _DECIDED:
            key, payload = _decision(part.get("approval"))
            decisions[key] = payload
    return decisions


def _results(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Return the results of the client's tools in an answer, by the ids of their calls."""
    results: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        id_, state = part.get("toolCallId"), part.get("state")
        if not isinstance(id_, str) or not id_.startswith(CLIENT_CALL) or part.get("providerExecuted"):
            continue
        if state == "output-available":
            results[id_] = read_tool_result({"result": part.get("output")}, "output")
        elif state == "output-error":
            results[id_] = read_tool_result({"error": part.get("errorText")}, "errorText")
    return results


def _given_calls(parts: Sequence[Mapping[str, Any]]) -> Collection[str]:
    """Return the ids of the calls in an answer that the client has just approved, denied or run."""
    decided = {str(part.get("toolCallId")) for part in parts if part.get("state") == _DECIDED}
    return decided | _results(parts).keys()


def _last_parts(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the parts of the last of *messages* if it is the assistant's; else []."""
    last = messages[-1] if messages else {}
    return _listed_parts(last, "messages") if last.get("role") == "assistant" else []


def _decision(approval: object) -> tuple[str, Mapping[str, Any]]:
    members = approval if isinstance(approval, dict) else {}
    key, approved, reason = members.get("id"), members.get("approved"), members.get("reason")
    if not isinstance(key, str) or not key.startswith(APPROVAL_PREFIX) or len(key) > MAX_EVENT_KEY_CHARACTERS:
        raise InvalidField("an approval's id is not one that was asked for", field="approval")
    if not isinstance(approved, bool):
        raise InvalidField("an approval must be approved or not: true or false", field="approval")
    if reason is None:
        return key, {"approved": approved}
    if not isinstance(reason, str) or len(reason) > MAX_REASON_CHARACTERS:
        raise InvalidField(f"a reason may have at most {MAX_REASON_CHARACTERS} characters", field="approval")
    return key, {"approved": approved, "reason": reason}
