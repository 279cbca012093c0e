"""
Which session a request for a chat completion names: by its headers, or in its body.

A request with a key has a session of its own, whose only turn is the key's.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.errors import InvalidField, RequestError
from chatturn.http.application import Call
from chatturn.http.auth import Principal
from chatturn.http.limits import check_session_id
from chatturn.http.messages import HttpRequest
from chatturn.http.parameters import printable
from chatturn.http.strict_json import read_json_object

__all__ = [
    "BY_KEY",
    "KEY",
    "digest_of",
    "header",
    "named_by_headers",
    "session_of_completion",
    "turn_of_completion",
]

_MAX_KEY_CHARACTERS: Final = 255
KEY: Final = printable("names the turn: again under it, it is replayed", most=_MAX_KEY_CHARACTERS)

BY_KEY: Final = "key."
"""The prefix of the ids of sessions that stand for an idempotency key."""


def named_by_headers(headers: Mapping[str, str], user: str) -> str | None:
    """Return the session for an idempotency key, or for Open WebUI's ids; None if the headers have neither."""
    if key := header(headers, "idempotency-key"):
        return f"{BY_KEY}{digest_of(user, key)}"
    chat, message = header(headers, "x-openwebui-chat-id"), header(headers, "x-openwebui-message-id")
    if chat and message:
        return f"owui.{digest_of(user, chat, message, header(headers, 'x-openwebui-task'))}"
    return None


def session_of_completion(request: HttpRequest, principal: Principal, body: bytes) -> str | None:
    """Return the session whose owner is to answer; None for a new turn, or a request that is refused later."""
    try:
        if (session := named_by_headers(request.headers, principal.user_id)) is not None:
            return session
        metadata = read_json_object(body).get("metadata")
        if not isinstance(metadata, dict) or "session_id" not in metadata:
            return None
        return check_session_id(str(metadata["session_id"]))
    except RequestError:
        return None


def turn_of_completion(call: Call) -> ChatTurnIdentity | None:
    """
    Return the turn that a request's headers name; None if only its body says which turn it is about.

    Results of the client's tools, in a body, come first; see `chatturn.http.openai_chat`.

    Raises:
        InvalidField: A header is too long.
    """
    if call.service.deployment.takes_client_tools:
        return None
    session = named_by_headers(call.request.headers, call.principal.user_id)
    return None if session is None else call.turn(session, 0)


def header(headers: Mapping[str, str], name: str) -> str:
    """
    Return a header that is part of a name; "" for none.

    Raises:
        InvalidField: It is too long.
    """
    value = headers.get(name, "")
    if len(value) > _MAX_KEY_CHARACTERS:
        raise InvalidField(f"{name} may have at most {_MAX_KEY_CHARACTERS} characters", field=name)
    return value


def digest_of(*parts: str) -> str:
    """Return a short name for *parts*, in that order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
