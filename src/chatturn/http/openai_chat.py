"""
OpenAI chat completions: the OpenAI SDKs, and what is built on them, work unmodified.

The first of these that a request has decides which turn it is about:

* results of the client's tools: the turn that has asked for the results, whatever else the request says.  It gets them,
  and continues; if no turn has asked for them, they are a part of the conversation;
* ``Idempotency-Key``: the turn of that key, of this user;
* Open WebUI's chat and message id: the turn of that message; its background tasks have turns of their own;
* ``metadata.session_id`` (and ``turn_index``): a turn of a session, as our own routes have it: the stored thread is the
  history;
* an SDK's retry, known by its header ``x-stainless-retry-count``: the latest turn with the same body, of this user;
* none of these: a new turn.

Without a session, the model is shown all messages of the request in their order, and they are part of the turn's input:
the same turn with other messages is refused.

Source:
    The packages ``openai`` 3.57.0 (PyPI: _base_client.py) and 7.59.0 (npm: client.js).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from chatturn.backends.parameters import PARAMETERS, TOOLS
from chatturn.chat.requests import TurnRequest
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_of_run, with_version_of
from chatturn.chat.thread.versions import Replace
from chatturn.chat.turn.given import Given
from chatturn.chat.turn.sinks import BufferSink
from chatturn.durable.identifiers import derive_worker_id
from chatturn.errors import (
    ChatTurnError,
    DurableRunInputMismatchError,
    IdempotencyKeyReused,
    InvalidField,
    NotFound,
    RequestError,
    UnsupportedParameter,
    error_class,
)
from chatturn.http.application import Call
from chatturn.http.client_bodies import ROLES, Conversation, file_or_address, read_conversation, text_in
from chatturn.http.completion_names import BY_KEY, digest_of, header, named_by_headers
from chatturn.http.limits import (
    MAX_BODY_BYTES,
    check_body_headers,
    check_session_id,
    read_model,
    read_model_name,
    read_parameters,
    read_tool_result,
    read_turn_index,
    read_version,
)
from chatturn.http.messages import HttpResponse
from chatturn.http.problems import detail_of, error_headers, json_response, shown
from chatturn.http.projected import (
    EVENTS,
    OpenedTurn,
    ProjectedTurn,
    Projection,
    go_on_or_follow,
    gone_on,
    open_or_follow,
)
from chatturn.http.query_strings import check_no_query
from chatturn.http.strict_json import read_json_object
from chatturn.http.user_messages import read_text
from chatturn.wire.openai_chat import ChatCompletion, ChatCompletionChunks, CompletionHead, Failure, error_members

__all__ = [
    "COMPLETIONS",
    "MODELS",
    "NOT_TAKEN",
    "get_model",
    "get_models",
    "openai_problem",
    "post_completion",
]

COMPLETIONS: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"

DEFAULT_MODEL: Final = "default"
"""The name of the deployment's own model, for clients."""

_RETRIED_WITHIN_S: Final = 900
"""A repeated request counts as an SDK's retry for 15 min: SDKs wait 10 min for an answer, and retry twice."""

_IGNORED: Final = frozenset(("logit_bias",))
"""Parameters that are accepted but not passed on to the model, because clients send them by themselves."""

_ABOUT_THE_MODEL: Final = PARAMETERS.keys() | _IGNORED

_ABOUT_TOOLS: Final = frozenset(("parallel_tool_calls", "tool_choice"))
"""Parameters that are not passed on if the request has no tools."""

NOT_TAKEN: Final = frozenset(("audio", "function_call", "functions", "logprobs", "prediction", "top_logprobs"))
"""Members that are refused, because no answer could do what they ask for."""

_ROLES: Final = (*ROLES, "tool")
_MAX_CALL_ID_CHARACTERS: Final = 200

_FILES: Final = ("image_url", "file")
"""The part types, other than text, that a message's content may have."""

_KINDS: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CLIENT_ERRORS: Final = range(400, 500)

_METADATA: Final[Mapping[str, str]] = {"session": "session_id", "version": "regenerate"}
"""The names of members of a request's metadata, by their names in our own routes."""

_STATUSES: Final[Mapping[str, int]] = {"cancelled": 409, "suspended": 409}
"""The HTTP status of the ends of a turn that are errors for these clients only, by code."""


def openai_problem(error: ChatTurnError) -> HttpResponse:
    """Make the response for an error; ``X-Should-Retry`` tells the SDKs whether to try again."""
    headers = {**error_headers(error), "Content-Type": "application/json"}
    headers["X-Should-Retry"] = "true" if error.retryable else "false"
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status in _CLIENT_ERRORS else "server_error")
    param = error.field if isinstance(error, RequestError) else None
    members = error_members(error.code, detail_of(error), kind=kind, param=param)
    return HttpResponse(status=error.status, headers=headers, body=json.dumps(members, ensure_ascii=False).encode())


async def get_models(call: Call) -> HttpResponse:
    """List the models that a request may name."""
    check_no_query(call.request)
    return json_response({"object": "list", "data": [_model(name) for name in _models(call)]})


async def get_model(call: Call) -> HttpResponse:
    """Show one model that a request may name; if the deployment lists none, any name is one."""
    check_no_query(call.request)
    name = read_model_name(call.parameters["model"])
    if call.service.deployment.settings.models and name not in _models(call):
        raise NotFound(f"no request may name the model {shown(name)}", field="model")
    return json_response(_model(name))


def _models(call: Call) -> list[str]:
    return [DEFAULT_MODEL, *call.service.model_names()]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "chatturn"}


async def post_completion(call: Call) -> HttpResponse:
    """Answer a conversation, as a stream or as one object."""
    check_body_headers(call.request.headers)
    body = await call.request.read(MAX_BODY_BYTES)
    asked = _read(read_json_object(body), call.service.deployment.may_say)
    place = await _place(call, asked, body)
    del body
    try:
        opened = await _opened(call, place)
    except DurableRunInputMismatchError as error:
        if not place.by_key:
            raise
        raise IdempotencyKeyReused("the key was used with another request", field="Idempotency-Key") from error
    id_ = _completion_id(opened.run_id, place.answered)
    head = CompletionHead(id=id_, created=opened.created, model=asked.model)
    headers = {
        "X-Workflow-Run-Id": opened.run_id,
        "X-Turn-Attempt": str(opened.attempt),
        "X-Turn-Replayed": str(opened.replayed).lower(),
        "X-Ping-Ms": str(call.service.ping_every_ms),
        **({"X-Ignored-Parameters": ", ".join(asked.ignored)} if asked.ignored else {}),
    }
    background = None if place.given is None else gone_on(call.service, place.given)
    if asked.stream:
        chunks = ChatCompletionChunks(
            head,
            attempt=opened.attempt,
            answered=place.answered,
            include_usage=asked.include_usage,
            hold=opened.redacting,
            stored_to=opened.stored_to,
        )
        turn = _turn(call, place, opened, chunks)
        return HttpResponse(status=200, headers={**EVENTS, **headers}, stream=turn.run, background=background)
    completion = ChatCompletion(head, attempt=opened.attempt, answered=place.answered)
    turn = _turn(call, place, opened, completion)
    return HttpResponse(status=200, headers={}, late=lambda: _whole(turn, completion, headers), background=background)


async def _whole(turn: ProjectedTurn, projection: ChatCompletion, headers: Mapping[str, str]) -> HttpResponse:
    await turn.run(BufferSink())
    if not projection.ended:
        failure = Failure(code="turn_in_flight", message="The answer is not ready. Send the request again.")
        return _failed(failure, status=503, retryable=True)
    if projection.failure is not None:
        status = _STATUSES.get(projection.failure.code) or error_class(projection.failure.code).status
        return _failed(projection.failure, status=status, retryable=projection.failure.retryable)
    response = json_response(projection.members())
    return HttpResponse(status=200, headers={**response.headers, **headers}, body=response.body)


def _failed(failure: Failure, *, status: int, retryable: bool) -> HttpResponse:
    response = json_response(error_members(failure.code, failure.message), status=status)
    retry = {"X-Should-Retry": "true", "Retry-After": "1"} if retryable else {"X-Should-Retry": "false"}
    return HttpResponse(status=status, headers={**response.headers, **retry}, body=response.body)


def _turn(call: Call, place: "_Place", opened: OpenedTurn, projection: Projection) -> ProjectedTurn:
    identity = with_version_of(place.identity, opened.run_id)
    return ProjectedTurn.of(opened, call.service, identity, projection)


async def _opened(call: Call, place: "_Place") -> OpenedTurn:
    """Claim or follow the turn; a different question for a turn of a session is an edit, and makes a new version."""
    if place.request is None:
        return await go_on_or_follow(call.service, place.identity)
    try:
        return await open_or_follow(call.service, place.identity, place.request)
    except DurableRunInputMismatchError:
        is_edit = place.of_session and place.request.replace is None
        if not is_edit or call.service.deployment.settings.threads == "off":
            raise
    edit = replace(place.request, replace=Replace(kind="edit", version=None, anew=True))
    return await open_or_follow(call.service, place.identity, edit)


def _completion_id(run_id: str, answered: Collection[str]) -> str:
    """Return a completion's id: a turn has one completion more for each round of tool results."""
    named = "\n".join((run_id, *sorted(answered)))
    return f"chatcmpl-{hashlib.sha256(named.encode()).hexdigest()[:24]}"


# Which turn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """
    Which turn a request is about.

    Attributes:
        identity: The turn.
        request: What is asked; None if the request only brings results for which the turn waits.
        by_key: Whether an idempotency key decides it.
        of_session: Whether ``metadata.session_id`` decides it; then the turn may have several versions.
        answered: The ids of the tool calls whose results the request brings.
        given: The run of an earlier turn that has got results from this request, and is to be resumed beside it.
    """

    identity: ChatTurnIdentity
    request: TurnRequest | None
    by_key: bool = False
    of_session: bool = False
    answered: Collection[str] = ()
    given: str | None = None


async def _place(call: Call, asked: "_Asked", body: bytes) -> _Place:
    conversation, user = asked.conversation, call.principal.user_id
    if (place := await _of_results(call, conversation)) is not None:
        return place
    session = named_by_headers(call.request.headers, user)
    by_key = session is not None and session.startswith(BY_KEY)
    if session is None and "session_id" in asked.metadata:
        return await _of_session(call, asked)
    if session is None:
        prefix = f"once.{digest_of(user, hashlib.sha256(body).hexdigest())}."
        session = await _retried(call, prefix) or prefix + derive_worker_id().removeprefix("worker-")
    request = TurnRequest(
        message=conversation.question,
        parts=conversation.parts,
        model=asked.asked_model,
        history=conversation.before,
        behind=conversation.behind,
        parameters=asked.parameters,
        follow=True,
        stays=True,
    )
    return _Place(identity=call.turn(session, 0), request=request, by_key=by_key)


async def _of_results(call: Call, conversation: Conversation) -> _Place | None:
    """Give the results after the question to the turn that has asked for them; None if there is no such turn."""
    given = await _give(call, conversation.behind)
    if given is None or (turn := turn_of_run(given.run_id)) is None:
        return None
    identity = with_version_of(call.turn(*turn), given.run_id)
    return _Place(identity=identity, request=None, answered=frozenset(given.results))


async def _give(call: Call, messages: Sequence[Mapping[str, Any]]) -> Given | None:
    """Give the results in *messages*; see `DurableChatService.take_results`."""
    results = {
        str(message["tool_call_id"]): read_tool_result({"result": message["content"]}, "messages")
        for message in messages
        if message["role"] == "tool"
    }
    return await call.service.take_results(call.principal.tenant_id, call.principal.user_id, results)


async def _retried(call: Call, prefix: str) -> str | None:
    """Return the session of the request that an SDK is retrying; None if this is no retry."""
    count = header(call.request.headers, "x-stainless-retry-count")
    if not count.isdecimal() or not int(count[:3]):
        return None
    return await call.service.recent_turn(call.principal.tenant_id, prefix, _RETRIED_WITHIN_S)


async def _of_session(call: Call, asked: "_Asked") -> _Place:
    """
    Find the turn of a session; the model is shown the session's stored thread.

    If the client has edited earlier questions, the model is shown the thread of the request instead.  Results directly
    before the question are given to the turn that waits for them: without them, the question would wait for that turn.
    """
    metadata, conversation = asked.metadata, asked.conversation
    try:
        session = check_session_id(_named(metadata["session_id"], "session_id"))
        given = metadata.get("turn_index")
        index = conversation.turn_index if given is None else read_turn_index(_named(given, "turn_index"))
        wanted = metadata.get("regenerate")
        version = None if wanted is None else read_version(_named(wanted, "regenerate"))
    except InvalidField as error:
        field = _METADATA.get(str(error.field), error.field)
        raise InvalidField(str(error).replace(f"{error.field} ", f"{field} ", 1), field=f"metadata.{field}") from None
    identity = call.turn(session, index)
    given = await _give(call, conversation.just_before)
    request = TurnRequest(
        message=conversation.question,
        parts=conversation.parts,
        model=asked.asked_model,
        history=conversation.before if await _is_another_thread(call, identity, conversation) else None,
        behind=conversation.behind,
        parameters=asked.parameters,
        follow=True,
        stays=True,
        replace=None if version is None else Replace(kind="regenerate", version=version),
    )
    return _Place(identity=identity, request=request, of_session=True, given=None if given is None else given.run_id)


async def _is_another_thread(call: Call, identity: ChatTurnIdentity, conversation: Conversation) -> bool:
    """Say whether a request brings the whole thread, with other questions than the stored ones."""
    said = [text_in(message["content"]) for message in conversation.before if message["role"] == "user"]
    if not said or len(said) != identity.turn_index or call.service.deployment.settings.threads == "off":
        return False
    return not await call.service.has_asked(identity, said)


def _named(value: object, field: str) -> str:
    """Return a name as text; clients send a number as a number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidField(f"{field} must be text", field=field)
    return str(value)


# What is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """
    The members of a body.

    Attributes:
        conversation: The messages.
        model: The model's name in the body, which the answer repeats.
        asked_model: The model to ask; None for the deployment's own.
        metadata: The metadata of the request.
        stream: Whether the answer is a stream.
        include_usage: Whether the stream ends with the usage.
        parameters: The parameters that are passed on to the model.
        ignored: The names of the parameters that are not.
    """

    conversation: Conversation
    model: str
    asked_model: str | None
    metadata: Mapping[str, Any]
    stream: bool
    include_usage: bool
    parameters: Mapping[str, Any]
    ignored: tuple[str, ...]


def _read(members: Mapping[str, Any], may_say: Callable[[str], bool]) -> _Asked:
    _refuse_what_cannot_be_done(members, may_say)
    said = [name for name in sorted(_ABOUT_THE_MODEL & members.keys()) if members[name] is not None]
    left_out = _IGNORED if members.get(TOOLS) else _IGNORED | _ABOUT_TOOLS
    taken = [name for name in said if name not in left_out and members[name] != [] and may_say(name)]
    asked_model = read_model(members.get("model"))
    metadata = members.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidField("metadata must be an object", field="metadata")
    options = members.get("stream_options") or {}
    return _Asked(
        conversation=_conversation(members.get("messages"), may_say),
        model=asked_model or DEFAULT_MODEL,
        asked_model=None if asked_model == DEFAULT_MODEL else asked_model,
        metadata=metadata,
        stream=_flag(members.get("stream"), "stream"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        parameters=_parameters({name: members[name] for name in taken}),
        ignored=tuple(name for name in said if name not in taken),
    )


def _flag(value: object, field: str) -> bool:
    """Read a boolean; null and absent are false."""
    if value is not None and not isinstance(value, bool):
        raise InvalidField(f"{field} must be true or false", field=field)
    return value is True


def _parameters(said: dict[str, Any]) -> Mapping[str, Any]:
    try:
        return read_parameters(said)
    except InvalidField as error:
        name = (error.field or "").removeprefix("parameters.")
        raise InvalidField(str(error).removeprefix("parameters."), field=name) from None


def _refuse_what_cannot_be_done(members: Mapping[str, Any], may_say: Callable[[str], bool]) -> None:
    """
    Refuse a request with a parameter that the answer would not obey.

    Raises:
        UnsupportedParameter: There is such a parameter.
    """
    for name in sorted(NOT_TAKEN & members.keys()):
        if members[name]:
            raise UnsupportedParameter(f"{name} cannot be used here: leave it out", field=name)
    if members.get(TOOLS) and not may_say(TOOLS):
        raise UnsupportedParameter("tools cannot be used here: leave it out", field=TOOLS)
    if members.get("n") not in (None, 1):
        raise UnsupportedParameter("n can only be 1", field="n")
    if members.get("modalities") not in (None, ["text"]):
        raise UnsupportedParameter("modalities can only be text", field="modalities")
    form = members.get("response_format")
    is_text = form is None or (isinstance(form, dict) and form.get("type") == "text")
    if not is_text and not may_say("response_format"):
        raise UnsupportedParameter("response_format can only be text", field="response_format")


def _conversation(messages: object, may_say: Callable[[str], bool]) -> Conversation:
    """
    Read the messages; where clients may bring tools, also the tool calls and their results.

    Raises:
        InvalidField, UnsupportedParameter: A message is malformed, or has content that no model can be shown.
    """
    may_have_tools, called = may_say(TOOLS), set[str]()

    def more_of(message: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        calls, of_call = message.get("tool_calls"), message["role"] == "tool"
        if message.get("function_call") or ((calls or of_call) and not may_have_tools):
            raise UnsupportedParameter(f"{place} has calls of the client's tools, which cannot be used", field=place)
        if of_call:
            return {"tool_call_id": _answered(message.get("tool_call_id"), called, place)}
        if not calls:
            return {}
        read = _calls(calls, message["role"], place)
        called.update(call["id"] for call in read)
        return {"tool_calls": read}

    roles = _ROLES if may_have_tools else ROLES
    return read_conversation(messages, _text_of, roles=roles, more_of=more_of, parts_of=_parts_of)


def _answered(id_: object, called: Collection[str], place: str) -> str:
    if not isinstance(id_, str) or id_ not in called:
        raise InvalidField(f"{place}.tool_call_id is that of no call before it", field=place)
    return id_


def _calls(calls: object, role: object, place: str) -> list[Mapping[str, Any]]:
    if role != "assistant" or not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise InvalidField(
            f"{place}.tool_calls must be the assistant's, each with an id, a function's name and its arguments as text",
            field=place,
        )
    functions = [(call["id"], call["function"]) for call in calls]
    return [
        {
            "id": id_,
            "type": "function",
            "function": {name: read_text(function[name], place) for name in ("name", "arguments")},
        }
        for id_, function in functions
    ]


def _is_call(call: object) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
        return False
    id_ = call.get("id")
    return (
        isinstance(id_, str)
        and id_.isprintable()
        and 0 < len(id_) <= _MAX_CALL_ID_CHARACTERS
        and all(isinstance(function.get(name), str) for name in ("name", "arguments"))
    )


def _text_of(message: Mapping[str, Any], place: str) -> str:
    """Return the text of a message, whose content is a text or a list of parts."""
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidField(f"{place}.content must be text or a list of parts", field=place)
    return "".join(_text_of_part(part, place) for part in content)


def _text_of_part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind == "text" and isinstance(text, str):
        return text
    if kind in _FILES:
        return ""
    words = "only text, images and files can be taken"
    raise UnsupportedParameter(f"{place} has a part of type {shown(str(kind))}: {words}", field=place)


def _parts_of(message: Mapping[str, Any], place: str) -> list[Any]:
    """Return a user's message with images or files as parts in our own form; [] for any other message."""
    content = message.get("content")
    if message.get("role") != "user" or not isinstance(content, list):
        return []
    _text_of(message, place)  # refuses parts of other types
    if all(part["type"] == "text" for part in content):
        return []
    return [{"type": "text", "text": part["text"]} if part["type"] == "text" else _file(part) for part in content]


def _file(part: Mapping[str, Any]) -> dict[str, Any]:
    said = part.get(part["type"])
    members = said if isinstance(said, dict) else {}
    if part["type"] == "image_url":
        return {"type": "image", **file_or_address(members.get("url"))}
    name = {"name": members["filename"]} if members.get("filename") else {}
    return {"type": "file", **file_or_address(members.get("file_id") or members.get("file_data")), **name}
