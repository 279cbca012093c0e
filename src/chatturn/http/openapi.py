"""
The OpenAPI description of the HTTP interface: ``/openapi.json``.

It is made from the tables that requests are answered by: addresses, methods and scopes from the routes, members and
their limits from the readers' tables, codes and statuses from the error classes.  A route's summary is the first line
of its operation's docstring.  Written here is what no table has: the form of each response, and its errors.

Source:
    OpenAPI Specification 3.1.1; JSON Schema 2020-12.  The formats ``printable`` (text for which `str.isprintable` is
    true), ``storable`` (text without NUL and half surrogate pairs, not all blank), ``cursor`` and ``ticket`` are ours.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from chatturn.backends.parameters import PARAMETERS
from chatturn.chat.files import MAX_FILE_BYTES
from chatturn.chat.lists.lists import RUN_STATUSES
from chatturn.chat.usage.totals import USAGE_KEYS
from chatturn.errors import (
    BackendError,
    BodyTimeout,
    BudgetExceeded,
    ChatTurnError,
    ConfigurationError,
    DurableRunError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    FileMissing,
    FilesNotKept,
    FilesUnavailable,
    Forbidden,
    InvalidField,
    KeysUnavailable,
    LimitReached,
    MalformedRequest,
    NotFound,
    OwnerUnavailable,
    PayloadTooLarge,
    QueueFull,
    RateLimited,
    ReadersBusy,
    RunEnded,
    SessionBusy,
    StoreError,
    TurnPassed,
    Unauthenticated,
    UnsupportedMediaType,
    VersionConflict,
    error_classes,
)
from chatturn.http.ai_sdk import AI_SDK_CHAT, CHAT_QUERY, CHAT_STREAM_QUERY, ai_sdk_problem
from chatturn.http.application import PublicRoute, Route
from chatturn.http.auth import SCOPES
from chatturn.http.completion_names import KEY
from chatturn.http.files import FILES
from chatturn.http.limits import (
    EVENT_MEMBERS,
    FEEDBACK_MEMBERS,
    MAX_TURN_INDEX,
    PATH_MEMBERS,
    SESSION_MEMBERS,
    TURN_MEMBERS,
    Members,
)
from chatturn.http.openai_chat import COMPLETIONS, MODELS, NOT_TAKEN, openai_problem
from chatturn.http.parameters import Parameter, Query
from chatturn.http.query_strings import (
    EXPORT_QUERY,
    FILES_QUERY,
    LAST_EVENT_ID,
    LOG_QUERY,
    MESSAGES_QUERY,
    PEOPLE_EXPORT_QUERY,
    PEOPLE_QUERY,
    SESSIONS_QUERY,
    TURNS_QUERY,
    USAGE_QUERY,
    VERSION_QUERY,
)
from chatturn.http.sessions import SESSION, TENANT, USER
from chatturn.http.turns import TURN
from chatturn.http.user_messages import FILE_TYPES, TEXT

__all__ = ["describe"]

Schema: TypeAlias = Mapping[str, Any]

_JSON: Final = "application/json"
Errors: TypeAlias = tuple[type[ChatTurnError], ...]

_EVERYWHERE: Final[Errors] = (
    ChatTurnError,
    Unauthenticated,
    Forbidden,
    InvalidField,
    ConfigurationError,
    KeysUnavailable,
    RateLimited,
)
_OF_A_BODY: Final[Errors] = (BodyTimeout, MalformedRequest, PayloadTooLarge, UnsupportedMediaType)
_OF_THE_STORE: Final[Errors] = (StoreError,)
_OF_FILES: Final[Errors] = (FilesNotKept, FilesUnavailable)
_OF_A_CLAIM: Final[Errors] = (
    *_OF_THE_STORE,
    OwnerUnavailable,
    DurableRunLeaseHeldError,
    DurableRunInputMismatchError,
    DurableRunError,
    QueueFull,
    SessionBusy,
    TurnPassed,
    BudgetExceeded,
    BackendError,
    FileMissing,
    *_OF_FILES,
)


@dataclass(frozen=True, kw_only=True)
class _Told:
    """
    The description of a route, apart from its row in the table of routes.

    Attributes:
        answers: The response body by status: a schema for JSON, a tuple of media types for others, None for no body.
        query: The members of its query.
        headers: The request headers that it reads.
        body: The schema of its request body, if that is JSON.
        content: Its request body by media type, if that is not JSON.
        json: The schema of its JSON response, where *answers* has a tuple of media types.
        errors: The errors that it may answer with, apart from those of every route.
    """

    answers: Mapping[int, Schema | tuple[str, ...] | None]
    query: Query = field(default_factory=dict)
    headers: Mapping[str, Parameter] = field(default_factory=dict)
    body: Schema | None = None
    content: Mapping[str, Schema] = field(default_factory=dict)
    json: Schema = field(default_factory=dict)
    errors: Errors = ()


# Schemas


def _object(members: Members, *, optional: Iterable[str] = (), open_: bool = False) -> Schema:
    left_out = set(optional)
    required = [name for name in members if name not in left_out]
    return {
        "type": "object",
        "properties": dict(members),
        **({"required": required} if required else {}),
        "additionalProperties": open_,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Final[Schema] = {"type": "string"}
_BYTES: Final[Schema] = {"type": "string", "format": "binary", "minLength": 1, "maxLength": MAX_FILE_BYTES}
_TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}
_YES_OR_NO: Final[Schema] = {"type": "boolean"}
_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}
_MOMENT_OR_NULL: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
_ANY_OBJECT: Final[Schema] = {"type": "object"}

_SUMS: Final[Schema] = {"type": "object", "additionalProperties": {"type": ["integer", "null"]}}
_USAGE: Final[Schema] = _object({"runningCalls": _COUNT, "delivered": _SUMS, "wasted": _SUMS})
_STATUS: Final[Schema] = {"type": "string", "enum": [status for status in RUN_STATUSES if status != "undelivered"]}

_OF_A_TURN: Final[Members] = {
    "runId": _TEXT,
    "sessionId": _TEXT,
    "turnIndex": _COUNT,
    "version": _COUNT,
    "status": _STATUS,
    "attempts": _COUNT,
    "model": _TEXT_OR_NULL,
    "createdAt": _MOMENT,
    "updatedAt": _MOMENT,
    "completedAt": _MOMENT_OR_NULL,
    "finishReason": _TEXT_OR_NULL,
    "outcome": {"type": ["object", "null"]},
    "stream": _TEXT,
}
_TURN: Final[Schema] = _object({**_OF_A_TURN, "usage": {"anyOf": [_USAGE, {"type": "null"}]}})
_CANCELLED: Final[Schema] = _object({**_OF_A_TURN, "cancelRequested": _YES_OR_NO})
_VERSION: Final[Schema] = _object(
    {
        "version": _COUNT,
        "runId": _TEXT,
        "counts": _YES_OR_NO,
        "replaces": _COUNT_OR_NULL,
        "kind": _TEXT_OR_NULL,
        "message": _TEXT_OR_NULL,
        "model": _TEXT_OR_NULL,
        "status": _STATUS,
        "finishReason": _TEXT_OR_NULL,
        "createdAt": _MOMENT,
        "completedAt": _MOMENT_OR_NULL,
        "stream": _TEXT,
    }
)
_VERSIONS: Final[Schema] = _object({"versions": _list(_VERSION)})
_TICKET: Final[Schema] = _object({"ticket": _TEXT, "stream": _TEXT, "opensUntil": _MOMENT, "expiresAt": _MOMENT})
_EVENT: Final[Schema] = _object(
    {"accepted": _YES_OR_NO, "payload": {}, "emittedAt": {**_MOMENT, "type": ["string", "null"]}}
)

_MESSAGE: Final[Schema] = _object(
    {
        "turnIndex": _COUNT,
        "role": {"type": "string", "enum": ["user", "assistant"]},
        "content": _TEXT,
        "createdAt": _MOMENT,
        "runId": _TEXT,
        "version": _COUNT,
        "finishReason": _TEXT,
        "cancelled": _YES_OR_NO,
        "parts": _list(_ANY_OBJECT),
    },
    optional=["cancelled", "finishReason", "parts"],
)
_OPEN: Final[Schema] = _object(
    {
        "turnIndex": _COUNT,
        "message": _TEXT,
        "status": _STATUS,
        "createdAt": _MOMENT,
        "parts": _list(_ANY_OBJECT),
    },
    optional=["parts"],
)
_FILE: Final[Schema] = _object(
    {"file": _TEXT, "mediaType": _TEXT, "name": _TEXT_OR_NULL, "bytes": _COUNT, "keptUntil": _TEXT_OR_NULL}
)
_MESSAGES: Final[Schema] = _object(
    {"messages": _list(_MESSAGE), "open": _list(_OPEN), "next": _COUNT_OR_NULL, "revision": _COUNT_OR_NULL}
)

_RUN: Final[Schema] = _object(
    {
        "runId": _TEXT,
        "status": _STATUS,
        "attempts": _COUNT,
        "createdAt": _MOMENT,
        "updatedAt": _MOMENT,
        "completedAt": _MOMENT_OR_NULL,
        "leaseExpiresAt": _MOMENT_OR_NULL,
        "outcome": {"type": ["object", "null"]},
        "tenantId": _TEXT,
        "sessionId": _TEXT,
        "turnIndex": _COUNT,
        "model": _TEXT_OR_NULL,
        "undelivered": _list(_ANY_OBJECT),
    },
    optional=["tenantId", "sessionId", "turnIndex", "model", "undelivered"],
)
_RUNS: Final[Schema] = _object({"runs": _list(_RUN), "next": _TEXT_OR_NULL})
_USAGE_PAGE: Final[Schema] = _object(
    {
        "by": {"type": "string", "enum": list(USAGE_KEYS)},
        "from": {"type": "string", "format": "date"},
        "to": {"type": "string", "format": "date"},
        "usage": _list(_ANY_OBJECT),
        "total": _ANY_OBJECT,
        "next": _TEXT_OR_NULL,
    }
)
_CHECK: Final[Schema] = _object(
    {"name": _TEXT, "ok": {"type": ["boolean", "null"]}, "detail": _TEXT, "mend": _TEXT}, optional=["detail", "mend"]
)
_READY: Final[Schema] = _object({"ready": _YES_OR_NO, "checks": _list(_CHECK)})

# Requests of the AI SDK's and OpenAI's clients: the members that this service reads.  The clients send others, too.
_UI_MESSAGE: Final[Schema] = _object(
    {
        "role": {"type": "string", "enum": ["user"]},
        "parts": {
            "type": "array",
            "minItems": 1,
            "items": _object({"type": {"type": "string", "enum": ["text"]}, "text": TEXT}, open_=True),
        },
    },
    open_=True,
)
_CHAT: Final[Schema] = _object(
    {
        "id": PATH_MEMBERS["session"],
        "messages": {"type": "array", "minItems": 1, "items": _UI_MESSAGE},
        "turnIndex": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_TURN_INDEX},
        "trigger": {"type": "string", "enum": ["submit-message"]},
        "messageId": _TEXT_OR_NULL,
        "model": TURN_MEMBERS["model"],
        "parameters": TURN_MEMBERS["parameters"],
    },
    optional=["id", "turnIndex", "trigger", "messageId", "model", "parameters"],
    open_=True,
)
_CHAT_MESSAGE: Final[Schema] = _object({"role": {"type": "string", "enum": ["user"]}, "content": TEXT}, open_=True)
_COMPLETION_PARAMETERS: Final[Members] = {
    name: {"anyOf": [schema, {"type": "null"}]} for name, schema in PARAMETERS.items() if name not in NOT_TAKEN
}
_COMPLETION_REQUEST: Final[Schema] = _object(
    {
        "model": TURN_MEMBERS["model"],
        "messages": {"type": "array", "minItems": 1, "items": _CHAT_MESSAGE},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
        "n": {"enum": [1, None]},
        "metadata": {
            "type": ["object", "null"],
            "properties": {"session_id": {"anyOf": [PATH_MEMBERS["session"], {"type": "integer"}]}},
        },
        **_COMPLETION_PARAMETERS,
    },
    optional=["model", "stream", "stream_options", "n", "metadata", *_COMPLETION_PARAMETERS],
    open_=True,
)
_COMPLETION: Final[Schema] = _object(
    {
        "id": _TEXT,
        "object": {"const": "chat.completion"},
        "created": _COUNT,
        "model": _TEXT,
        "choices": _list(
            _object(
                {
                    "index": {"const": 0},
                    "message": _object(
                        {"role": {"const": "assistant"}, "content": _TEXT_OR_NULL, "refusal": {"type": "null"}},
                        open_=True,
                    ),
                    "logprobs": {"type": "null"},
                    "finish_reason": {"type": "string", "enum": ["stop", "length", "content_filter", "tool_calls"]},
                }
            )
        ),
        "usage": _ANY_OBJECT,
    },
    optional=["usage"],
)
_MODEL: Final[Schema] = _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT})
_MODELS: Final[Schema] = _object({"object": {"const": "list"}, "data": _list(_MODEL)})

_SESSION: Final[Schema] = _object(
    {
        "sessionId": _TEXT,
        "userId": _TEXT,
        "title": _TEXT_OR_NULL,
        "named": _YES_OR_NO,
        "createdAt": _MOMENT,
        "lastActivityAt": _MOMENT,
        "costMicroUsd": _COUNT_OR_NULL,
    },
    optional=["costMicroUsd"],
)
_SESSIONS: Final[Schema] = _object({"sessions": _list(_SESSION), "next": _TEXT_OR_NULL})
_FEEDBACK: Final[Schema] = _object(
    {
        "runId": _TEXT,
        "rating": _TEXT_OR_NULL,
        "comment": _TEXT_OR_NULL,
        "createdAt": _MOMENT,
        "updatedAt": _MOMENT,
    }
)
_DELETED: Final[Schema] = _object({"deleted": _YES_OR_NO})

_LINES: Final = ("application/x-ndjson",)
_NDJSON_OR_EVENTS: Final = ("application/x-ndjson", "text/event-stream")
_EVENTS: Final = ("text/event-stream",)

_TOLD: Final[Mapping[tuple[str, str], _Told]] = {
    ("GET", "/healthz"): _Told(answers={200: _object({"status": {"const": "ok"}})}),
    ("GET", "/readyz"): _Told(answers={200: _READY, 503: _READY}),
    ("GET", "/openapi.json"): _Told(answers={200: _ANY_OBJECT}),
    ("POST", TURN): _Told(
        answers={200: _NDJSON_OR_EVENTS},
        body=_object(TURN_MEMBERS, optional=TURN_MEMBERS.keys() - {"message"}),
        errors=_OF_A_CLAIM,
    ),
    ("GET", TURN): _Told(answers={200: _TURN}, query=VERSION_QUERY, errors=(NotFound, *_OF_THE_STORE)),
    ("GET", TURN + "/versions"): _Told(answers={200: _VERSIONS}, errors=(NotFound, *_OF_THE_STORE)),
    ("POST", TURN + "/versions/{version}/activate"): _Told(
        answers={200: _object({"version": _COUNT})}, errors=(NotFound, VersionConflict, SessionBusy, *_OF_THE_STORE)
    ),
    ("GET", TURN + "/stream"): _Told(
        answers={200: _NDJSON_OR_EVENTS, 204: None, 304: None},
        query=LOG_QUERY,
        headers={"Last-Event-ID": LAST_EVENT_ID},
        errors=(NotFound, ReadersBusy, *_OF_A_CLAIM),
    ),
    ("POST", TURN + "/ticket"): _Told(answers={200: _TICKET}),
    ("POST", TURN + "/cancel"): _Told(
        answers={200: _CANCELLED, 202: _CANCELLED}, query=VERSION_QUERY, errors=(NotFound, *_OF_A_CLAIM)
    ),
    ("POST", AI_SDK_CHAT): _Told(answers={200: _EVENTS}, query=CHAT_QUERY, body=_CHAT, errors=_OF_A_CLAIM),
    ("GET", AI_SDK_CHAT + "/{id}/stream"): _Told(
        answers={200: _EVENTS, 204: None}, query=CHAT_STREAM_QUERY, errors=_OF_THE_STORE
    ),
    ("POST", COMPLETIONS): _Told(
        answers={200: (_JSON, "text/event-stream")},
        json=_COMPLETION,
        headers={"Idempotency-Key": KEY},
        body=_COMPLETION_REQUEST,
        errors=_OF_A_CLAIM,
    ),
    ("POST", FILES): _Told(
        answers={201: _FILE},
        query=FILES_QUERY,
        content={each: {"schema": _BYTES} for each in FILE_TYPES},
        errors=_OF_FILES,
    ),
    ("GET", FILES + "/{file}"): _Told(answers={200: FILE_TYPES}, errors=(NotFound, *_OF_FILES)),
    ("GET", MODELS): _Told(answers={200: _MODELS}),
    ("GET", MODELS + "/{model}"): _Told(answers={200: _MODEL}, errors=(NotFound,)),
    ("GET", "/v1/sessions/{session}/messages"): _Told(
        answers={200: _MESSAGES, 304: None}, query=MESSAGES_QUERY, errors=(NotFound, *_OF_THE_STORE)
    ),
    ("POST", TURN + "/feedback"): _Told(
        answers={200: _FEEDBACK},
        body=_object(FEEDBACK_MEMBERS, optional=FEEDBACK_MEMBERS),
        errors=(NotFound, *_OF_THE_STORE),
    ),
    ("GET", "/v1/sessions"): _Told(answers={200: _SESSIONS}, query=SESSIONS_QUERY, errors=_OF_THE_STORE),
    ("PATCH", SESSION): _Told(
        answers={200: _SESSION}, body=_object(SESSION_MEMBERS), errors=(NotFound, *_OF_THE_STORE)
    ),
    ("DELETE", SESSION): _Told(answers={200: _DELETED}, errors=(NotFound, *_OF_THE_STORE)),
    ("GET", SESSION + "/export"): _Told(answers={200: _LINES}, query=EXPORT_QUERY, errors=(NotFound, *_OF_THE_STORE)),
    ("DELETE", USER + "/sessions"): _Told(
        answers={200: _DELETED, 202: _DELETED}, query=PEOPLE_QUERY, errors=_OF_THE_STORE
    ),
    ("GET", USER + "/export"): _Told(answers={200: _LINES}, query=PEOPLE_EXPORT_QUERY, errors=_OF_THE_STORE),
    ("DELETE", TENANT): _Told(answers={200: _DELETED, 202: _DELETED}, errors=_OF_THE_STORE),
    ("GET", TENANT + "/export"): _Told(answers={200: _LINES}, query=EXPORT_QUERY, errors=_OF_THE_STORE),
    ("GET", "/v1/runs"): _Told(answers={200: _RUNS}, query=TURNS_QUERY, errors=_OF_THE_STORE),
    ("GET", "/v1/usage"): _Told(answers={200: _USAGE_PAGE}, query=USAGE_QUERY, errors=_OF_THE_STORE),
    ("POST", "/v1/runs/{run_id}/events/{key}"): _Told(
        answers={200: _EVENT},
        body=_object(EVENT_MEMBERS),
        errors=(NotFound, RunEnded, LimitReached, OwnerUnavailable, *_OF_THE_STORE),
    ),
}


# The description


def describe(routes: Sequence[Route | PublicRoute]) -> dict[str, Any]:
    """
    Describe *routes* as OpenAPI 3.1.

    Raises:
        KeyError: `_TOLD` has no entry for one of them.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    for template, operations in paths.items():
        names = re.findall(r"\{(\w+)\}", template)
        if names:
            operations["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": PATH_MEMBERS[name]} for name in names
            ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatturn", "version": "1", "summary": "Durable chat turns", "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {"Problem": _problem_schema(), "OpenAIError": _OPENAI_ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _scopes()},
                "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
            },
        },
    }


_DESCRIPTION: Final = (
    "Text is UTF-8. A member or a query parameter that is not described is refused, except where clients of other"
    " services send it by themselves. HEAD is answered wherever GET is, and OPTIONS lists an address's methods."
)

_OPENAI_ERROR: Final[Schema] = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
)


def _scopes() -> str:
    return "; ".join(f"`{scope}`: {meaning}" for scope, meaning in SCOPES.items())


def _operation(route: Route | PublicRoute) -> dict[str, Any]:
    told = _TOLD[route.method, route.template]
    operation: dict[str, Any] = {
        "operationId": route.operation.__name__.strip("_"),
        "summary": (inspect.getdoc(route.operation) or "").partition("\n")[0],
        "responses": {str(status): _answer(told.answers[status], status, told.json) for status in told.answers},
    }
    query = {name: each for name, each in told.query.items() if name != "ticket"}  # described as a security scheme
    parameters = [
        *({"name": name, "in": "query", **_parameter(each)} for name, each in query.items()),
        *({"name": name, "in": "header", **_parameter(each)} for name, each in told.headers.items()),
    ]
    if parameters:
        operation["parameters"] = parameters
    content = told.content if told.body is None else {_JSON: {"schema": told.body}}
    if content:
        operation["requestBody"] = {"required": True, "content": dict(content)}
    if isinstance(route, Route):
        operation["security"] = [{"bearer": list(route.scopes)}, *([{"ticket": []}] if route.takes_tickets else [])]
        errors = (*_EVERYWHERE, *told.errors, *(_OF_A_BODY if content else ()))
        operation["responses"] |= {str(status): each for status, each in _refusals(route, errors).items()}
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {"description": parameter.about, "schema": parameter.schema}


def _answer(form: Schema | tuple[str, ...] | None, status: int, json: Schema) -> dict[str, Any]:
    text = {
        200: "Done.",
        201: "Kept.",
        202: "On its way.",
        204: "There is nothing to show.",
        304: "Nothing has changed.",
    }
    described: dict[str, Any] = {"description": text.get(status, "Not ready.")}
    if isinstance(form, tuple):
        described["content"] = {each: {"schema": json} if each == _JSON else {} for each in form}
    elif form is not None:
        described["content"] = {_JSON: {"schema": form}}
    return described


def _refusals(route: Route, errors: Errors) -> dict[int, dict[str, Any]]:
    """Return the error responses by status, for the classes in *errors* and their subclasses."""
    by_status: dict[int, set[str]] = {}
    for cls in error_classes():
        # `ChatTurnError` in *errors* stands for a bug alone, and not for its subclasses, which are all other errors.
        if cls in errors or issubclass(cls, tuple(each for each in errors if each is not ChatTurnError)):
            by_status.setdefault(cls.status, set()).add(cls.code)
    return {
        status: {"description": " or ".join(f"`{code}`" for code in sorted(codes)), "content": _problem_form(route)}
        for status, codes in sorted(by_status.items())
    }


def _problem_form(route: Route) -> dict[str, Any]:
    if route.problem is openai_problem:
        return {_JSON: {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    if route.problem is ai_sdk_problem:
        return {"text/plain": {"schema": _TEXT}}
    return {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _problem_schema() -> Schema:
    return _object(
        {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer"},
            "code": {"type": "string", "enum": sorted({cls.code for cls in error_classes()})},
            "detail": _TEXT,
            "retryable": _YES_OR_NO,
            "field": _TEXT,
            "stream": _TEXT,
            "turnIndex": _COUNT,
        },
        optional=["field", "stream", "turnIndex"],
    )
