"""
Errors as clients see them: ``application/problem+json`` (RFC 9457) with a stable ``code``.

A client sees the message of a `RequestError`, since it was made from the request alone.  Of every other error the
client sees the fixed sentence of its class: no SQL, no host names, nothing that a model's API said.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from chatturn.errors import (
    ChatTurnError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    MethodNotAllowed,
    RateLimited,
    RequestError,
    SessionBusy,
    Unauthenticated,
    UnsupportedMediaType,
)
from chatturn.http.messages import HttpResponse

__all__ = ["detail_of", "error_headers", "json_response", "problem", "shortened", "shown"]

# Seconds until the next try, for errors that do not say when: soon, while a turn runs, and where an operator must act.
_RETRY_SOON_S: Final = 1
_RETRY_IN_FLIGHT_S: Final = 5
_RETRY_LATER_S: Final = 60

_SERVICE_UNAVAILABLE: Final = 503
_MOST_DETAIL_CHARACTERS: Final = 400
_MOST_SHOWN_CHARACTERS: Final = 60

_COMMON_HEADERS: Final[Mapping[str, str]] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_JSON_HEADERS: Final[Mapping[str, str]] = {"Content-Type": "application/json", **_COMMON_HEADERS}
_PROBLEM_HEADERS: Final[Mapping[str, str]] = {"Content-Type": "application/problem+json", **_COMMON_HEADERS}


def json_response(members: Mapping[str, Any], *, status: int = 200) -> HttpResponse:
    """Make a JSON response of *members*; nobody may cache it, since it is for this caller alone."""
    return HttpResponse(status=status, headers=_JSON_HEADERS, body=_encoded(members))


def problem(error: ChatTurnError, *, stream: str | None = None) -> HttpResponse:
    """
    Make the response that tells a client about *error*.

    Args:
        error: The error, raised before the first byte of an answer.
        stream: The address where the turn that already runs can be read.
    """
    members: dict[str, Any] = {
        "type": f"urn:chatturn:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "code": error.code,
        "detail": detail_of(error),
        "retryable": error.retryable,
    }
    if isinstance(error, RequestError) and error.field is not None:
        members["field"] = _printable(error.field)
    if isinstance(error, DurableRunInputMismatchError) and error.next_index is not None:
        members["turnIndex"] = error.next_index
    headers = {**_PROBLEM_HEADERS, **_extra_headers(error)}
    if isinstance(error, DurableRunLeaseHeldError | SessionBusy) and stream is not None:
        members["stream"] = headers["Location"] = stream
    return HttpResponse(status=error.status, headers=headers, body=_encoded(members))


def detail_of(error: ChatTurnError) -> str:
    """Return the sentence about *error* that a client may see."""
    return _printable(str(error)) if isinstance(error, RequestError) else error.public


def error_headers(error: ChatTurnError) -> dict[str, str]:
    """Return the headers of a response about *error*, without its Content-Type."""
    return {**_COMMON_HEADERS, **_extra_headers(error)}


def _extra_headers(error: ChatTurnError) -> Mapping[str, str]:
    match error:
        case Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case MethodNotAllowed(allow=allow):
            return {"Allow": ", ".join(allow)}
        case UnsupportedMediaType():
            return {"Accept": "application/json", "Accept-Encoding": "identity"}
    if error.retryable or error.status == _SERVICE_UNAVAILABLE:
        return {"Retry-After": str(_retry_after_s(error))}
    return {}


def _retry_after_s(error: ChatTurnError) -> int:
    if isinstance(error, RateLimited):
        return error.retry_after_s
    if isinstance(error, DurableRunLeaseHeldError):
        # Most turns end long before their lease does.  So a client is told to ask again after at most 5 s, even if the
        # lease lasts longer.
        return min(max(_RETRY_SOON_S, -(-error.retry_after_ms // 1000)), _RETRY_IN_FLIGHT_S)
    return _RETRY_SOON_S if error.retryable else _RETRY_LATER_S


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "\ufffd" for each in text[:_MOST_DETAIL_CHARACTERS])


def _encoded(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def shown(text: str) -> str:
    """Return a caller's *text* as an error message may show it: quoted, in ASCII, shortened."""
    return ascii(shortened(text))


def shortened(text: str) -> str:
    """Return *text*, cut after `_MOST_SHOWN_CHARACTERS`."""
    return text if len(text) <= _MOST_SHOWN_CHARACTERS else text[:_MOST_SHOWN_CHARACTERS] + "…"
