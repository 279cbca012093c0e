"""
The limits of requests, each with its unit, and the readers that refuse a request beyond them.

What a reader returns can be stored, hashed and sent on without another check: its text is UTF-8 without NUL, its
numbers are finite, and it nests no deeper than `chatturn.http.strict_json` allows.  Each refusal names the member and
its limit.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast, get_args
from urllib.parse import unquote_to_bytes

from chatturn.backends.parameters import MAX_PARAMETERS_BYTES, PARAMETERS, whole, wrong_parameter
from chatturn.chat.agent.tool_calls import APPROVAL_PREFIX, CLIENT_CALL, TOOL_PREFIX
from chatturn.chat.files import FILE_ID
from chatturn.chat.requests import TurnRequest
from chatturn.chat.sessions.sessions import Feedback
from chatturn.chat.thread.identity import turn_of_run
from chatturn.chat.thread.versions import Replace, ReplaceKind
from chatturn.errors import InvalidField, UnsupportedMediaType
from chatturn.http.problems import shortened, shown
from chatturn.http.strict_json import read_json_object
from chatturn.http.user_messages import MESSAGE, is_utf8, read_text, read_user_message, too_large
from chatturn.settings import WhenBusy

__all__ = [
    "EVENT_MEMBERS",
    "FEEDBACK_MEMBERS",
    "MAX_BODY_BYTES",
    "MAX_COMMENT_CHARACTERS",
    "MAX_EVENT_KEY_CHARACTERS",
    "MAX_EVENT_PAYLOAD_BYTES",
    "MAX_ID_CHARACTERS",
    "MAX_METADATA_BYTES",
    "MAX_MODEL_CHARACTERS",
    "MAX_REASON_CHARACTERS",
    "MAX_TICKET_CHARACTERS",
    "MAX_TITLE_CHARACTERS",
    "MAX_TOKEN_CHARACTERS",
    "MAX_TOKEN_HEADER_CHARACTERS",
    "MAX_TOOL_RESULT_CHARACTERS",
    "MAX_TURN_INDEX",
    "MAX_VERSION",
    "PATH_MEMBERS",
    "SESSION_MEMBERS",
    "TURN_MEMBERS",
    "Members",
    "check_body_headers",
    "check_session_id",
    "read_event_key",
    "read_event_payload",
    "read_feedback",
    "read_members",
    "read_model",
    "read_model_name",
    "read_parameters",
    "read_person",
    "read_run_id",
    "read_session_id",
    "read_title",
    "read_tool_result",
    "read_turn_index",
    "read_turn_request",
    "read_version",
]

MAX_BODY_BYTES: Final = 1_048_576
MAX_MODEL_CHARACTERS: Final = 200
MAX_METADATA_BYTES: Final = 16_384
MAX_ID_CHARACTERS: Final = 200
MAX_TURN_INDEX: Final = 1_000_000
MAX_VERSION: Final = 10_000
MAX_EVENT_KEY_CHARACTERS: Final = 200
MAX_EVENT_PAYLOAD_BYTES: Final = 65_536
MAX_TOOL_RESULT_CHARACTERS: Final = 200_000
MAX_REASON_CHARACTERS: Final = 2_000
MAX_TITLE_CHARACTERS: Final = 200
MAX_COMMENT_CHARACTERS: Final = 4_000
MAX_TICKET_CHARACTERS: Final = 4_096
MAX_TOKEN_CHARACTERS: Final = 8_192
# PyJWT parses a token's header before it checks the signature; a header this short cannot nest too deep for the stack.
MAX_TOKEN_HEADER_CHARACTERS: Final = 512

_BROKEN_ENCODING: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DIRECTORIES: Final = (".", "..")
_TURN_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,6}")
_REPLACE_KINDS: Final = get_args(ReplaceKind)
_ON_MISMATCH: Final = ("refuse", "supersede")
_WHEN_BUSY: Final = get_args(WhenBusy)

RATINGS: Final = ("up", "down")
"""The ratings that a user may give an answer."""

Members = Mapping[str, Mapping[str, Any]]
"""The members of a JSON object: the JSON Schema of each, by its name."""

TURN_MEMBERS: Final[Members] = {
    "message": MESSAGE,
    "model": {"type": ["string", "null"], "format": "printable", "minLength": 1, "maxLength": MAX_MODEL_CHARACTERS},
    "metadata": {"type": ["object", "null"]},
    "parameters": {"type": ["object", "null"], "properties": PARAMETERS, "additionalProperties": False},
    "on_mismatch": {"type": "string", "enum": list(_ON_MISMATCH), "default": _ON_MISMATCH[0]},
    "follow": {"type": "boolean", "default": False},
    "replace": {
        "type": ["object", "null"],
        "properties": {
            "kind": {"type": "string", "enum": list(_REPLACE_KINDS)},
            "version": {"type": "integer", "minimum": 1, "maximum": MAX_VERSION},
        },
        "required": ["kind", "version"],
        "additionalProperties": False,
    },
    "when_busy": {"type": ["string", "null"], "enum": [*_WHEN_BUSY, None]},
}
EVENT_MEMBERS: Final[Members] = {"payload": {}}
SESSION_MEMBERS: Final[Members] = {
    "title": {"type": ["string", "null"], "format": "printable", "minLength": 1, "maxLength": MAX_TITLE_CHARACTERS},
}
FEEDBACK_MEMBERS: Final[Members] = {
    "rating": {"type": ["string", "null"], "enum": [*RATINGS, None]},
    "comment": {"type": ["string", "null"], "format": "storable", "maxLength": MAX_COMMENT_CHARACTERS},
    "version": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_VERSION},
}

_SESSION: Final[Mapping[str, Any]] = {
    "type": "string",
    "format": "session-id",
    "minLength": 1,
    "maxLength": MAX_ID_CHARACTERS,
    "not": {"enum": list(_DIRECTORIES)},
}

# The JSON Schema of each variable segment of a path, after percent-decoding.
PATH_MEMBERS: Final[Members] = {
    "session": _SESSION,
    "turn_index": {"type": "integer", "minimum": 0, "maximum": MAX_TURN_INDEX},
    "version": {"type": "integer", "minimum": 1, "maximum": MAX_VERSION},
    "run_id": {"type": "string", "format": "printable", "minLength": 1},
    "key": {"type": "string", "format": "printable", "minLength": 1, "maxLength": MAX_EVENT_KEY_CHARACTERS},
    "file": {"type": "string", "pattern": f"^{FILE_ID.pattern}$"},
    "id": _SESSION,
    "model": {"type": "string", "format": "printable", "minLength": 1, "maxLength": MAX_MODEL_CHARACTERS},
    "user": {"type": "string", "format": "printable", "minLength": 1, "maxLength": MAX_ID_CHARACTERS},
    "tenant": {"type": "string", "format": "printable", "minLength": 1, "maxLength": MAX_ID_CHARACTERS},
}


# The headers


def check_body_headers(headers: Mapping[str, str]) -> None:
    """
    Refuse a body by its headers alone, so that it is never read.

    Raises:
        UnsupportedMediaType: The body is not ``application/json`` in UTF-8, or is compressed.
        PayloadTooLarge: Its Content-Length is more than `MAX_BODY_BYTES`.
    """
    media_type = headers.get("content-type", "")
    if media_type != "application/json" and not _is_json(media_type):
        raise UnsupportedMediaType(
            f"Content-Type is {shown(media_type)}, but must be application/json", field="Content-Type"
        )
    if encoding := headers.get("content-encoding", ""):
        raise UnsupportedMediaType(
            f"Content-Encoding is {shown(encoding)}, but the body must be sent as it is",
            field="Content-Encoding",
        )
    length = headers.get("content-length", "")
    # A length of more than 15 digits is refused without `int`, whose time grows with the square of the digits.
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY_BYTES):  # noqa: PLR2004
        raise too_large("body", f"{MAX_BODY_BYTES} bytes")


def _is_json(media_type: str) -> bool:
    essence, *parameters = (part.strip().lower() for part in media_type.split(";"))
    charsets = [value.strip('" ') for name, _, value in (p.partition("=") for p in parameters) if name == "charset"]
    return essence == "application/json" and all(charset in {"utf-8", "utf8"} for charset in charsets)


# The path


def read_session_id(segment: str) -> str:
    """
    Read the session's id from its percent-encoded path *segment*.

    Raises:
        InvalidField: As for `check_session_id`.
    """
    return check_session_id(_decoded(segment, "session"))


def check_session_id(text: str) -> str:
    """
    Return *text*, if it can be a session's id: 1 to `MAX_ID_CHARACTERS` printable characters, not all blank.

    ``.`` and ``..`` are refused, because URL parsers take them for directories even if they are encoded.  A text in the
    form of a turn's run id is refused, because some routes take either id.

    Raises:
        InvalidField: It cannot be a session's id.
    """
    fits = 0 < len(text) <= MAX_ID_CHARACTERS and text.isprintable() and not text.isspace()
    if not fits or text in _DIRECTORIES or turn_of_run(text) is not None:
        raise InvalidField(
            f"session is {shown(text)}, but must have 1 to {MAX_ID_CHARACTERS} printable characters"
            " and be neither . nor .. nor the id of a run",
            field="session",
        )
    return text


def read_version(segment: str) -> int:
    """
    Read a version's number from its path *segment*: decimal, without sign or leading zeros.

    Raises:
        InvalidField: The segment is no such number, or not from 1 to `MAX_VERSION`.
    """
    text = _decoded(segment, "version")
    if not _TURN_INDEX.fullmatch(text) or not 1 <= int(text) <= MAX_VERSION:
        message = f"version is {shown(text)}, but must be a whole number from 1 to {MAX_VERSION}"
        raise InvalidField(message, field="version")
    return int(text)


def read_turn_index(segment: str) -> int:
    """
    Read the turn's index from its path *segment*: decimal, without sign or leading zeros.

    Raises:
        InvalidField: The segment is no such number, or above `MAX_TURN_INDEX`.
    """
    text = _decoded(segment, "turn_index")
    if not _TURN_INDEX.fullmatch(text) or int(text) > MAX_TURN_INDEX:
        raise InvalidField(
            f"turn_index is {shown(text)}, but must be a whole number from 0 to {MAX_TURN_INDEX}",
            field="turn_index",
        )
    return int(text)


def read_run_id(segment: str) -> str:
    """
    Read a run's id from its percent-encoded path *segment*; whether such a run exists is not checked.

    Raises:
        InvalidField: It is not UTF-8, or not printable.
    """
    text = _decoded(segment, "run_id")
    if not text.isprintable():
        raise InvalidField("run_id must be printable", field="run_id")
    return text


def read_model_name(segment: str) -> str:
    """
    Read a model's name from its path *segment*; a slash in the name is percent-encoded.

    Raises:
        InvalidField: It is not UTF-8, not printable, or too long.
    """
    return str(read_model(_decoded(segment, "model")))


def read_event_key(segment: str) -> str:
    """
    Read an event's key from its percent-encoded path *segment*.

    Raises:
        InvalidField: It is empty, too long or not printable; or has a misspelt prefix, as ``Approve:``.
    """
    text = _decoded(segment, "key")
    asked_for = (APPROVAL_PREFIX, TOOL_PREFIX)
    if text.casefold().strip().startswith(asked_for) and not text.startswith(asked_for):
        raise InvalidField("key must begin with approve: or tool: in small letters, and no space before", field="key")
    if not 0 < len(text) <= MAX_EVENT_KEY_CHARACTERS or not text.isprintable():
        raise InvalidField(f"key must have 1 to {MAX_EVENT_KEY_CHARACTERS} printable characters", field="key")
    return text


def _decoded(segment: str, field: str) -> str:
    if "%" not in segment:
        return segment
    if _BROKEN_ENCODING.search(segment):
        raise InvalidField(f"{field} is not percent-encoded UTF-8", field=field)
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeError:
        raise InvalidField(f"{field} is not percent-encoded UTF-8", field=field) from None


# The body


def read_turn_request(body: bytes) -> TurnRequest:
    """
    Read the *body* of a request for a turn: ``{"message", "model"?, "metadata"?, "parameters"?, …}``.

    An unknown member is refused rather than ignored, so that a misspelt name (``mesage``, ``Model``) is noticed.

    Raises:
        MalformedRequest: It is not one JSON object in UTF-8.
        PayloadTooLarge: It, its message or its metadata is longer than its limit.
        InvalidField: A member is missing, unknown or not of its type.
    """
    members = read_members(body, TURN_MEMBERS)
    said = read_user_message(members.get("message"))
    return TurnRequest(
        message=said.text,
        parts=said.parts,
        model=read_model(members.get("model")),
        metadata=_metadata(members.get("metadata")),
        parameters=read_parameters(members.get("parameters")),
        supersede=_on_mismatch(members.get("on_mismatch", "refuse")) == "supersede",
        follow=_follow(members.get("follow", False)),
        replace=_replace(members.get("replace")),
        when_busy=_when_busy(members.get("when_busy")),
    )


def read_members(body: bytes, known: Members) -> dict[str, Any]:
    """
    Read a *body* that is one JSON object and has no member that is not *known*.

    Raises:
        MalformedRequest: It is not one JSON object in UTF-8.
        PayloadTooLarge: It is longer than its limit.
        InvalidField: A member is unknown.
    """
    if len(body) > MAX_BODY_BYTES:
        raise too_large("body", f"{MAX_BODY_BYTES} bytes")
    members = read_json_object(body)
    for name in members:
        if name not in known:
            raise InvalidField(
                f"{shown(name)} is not a member of this request; these are: {', '.join(sorted(known))}",
                field=shortened(name),
            )
    return members


def read_title(body: bytes) -> str | None:
    """
    Read the *body* of a request that names a session: ``{"title"}``, text or null.

    Raises:
        MalformedRequest: It is not one JSON object in UTF-8.
        PayloadTooLarge: It is longer than its limit.
        InvalidField: The title is missing, or neither null nor 1 to `MAX_TITLE_CHARACTERS` printable characters.
    """
    members = read_members(body, SESSION_MEMBERS)
    title: Any = members.get("title", ...)
    fits = isinstance(title, str) and len(title) <= MAX_TITLE_CHARACTERS and title.isprintable() and title.strip()
    if title is not None and not fits:
        raise InvalidField(f"title must be 1 to {MAX_TITLE_CHARACTERS} printable characters, or null", field="title")
    return None if title is None else str(title)


def read_feedback(body: bytes) -> Feedback:
    """
    Read the *body* of a request that rates an answer: ``{"rating"?, "comment"?, "version"?}``, a rating or a comment.

    Raises:
        MalformedRequest: It is not one JSON object in UTF-8.
        PayloadTooLarge: It or its comment is longer than its limit.
        InvalidField: A member is missing, unknown or not of its type.
    """
    members = read_members(body, FEEDBACK_MEMBERS)
    rating, comment, version = members.get("rating"), members.get("comment"), whole(members.get("version"))
    if rating not in (None, *RATINGS):
        raise InvalidField(f"rating must be {' or '.join(map(repr, RATINGS))}, or null", field="rating")
    if comment is not None and not isinstance(comment, str):
        raise InvalidField("comment must be text, or null", field="comment")
    if comment is not None and len(comment) > MAX_COMMENT_CHARACTERS:
        raise too_large("comment", f"{MAX_COMMENT_CHARACTERS} characters")
    if rating is None and comment is None:
        raise InvalidField("feedback needs a rating or a comment", field="rating")
    if version is not None and (type(version) is not int or not 1 <= version <= MAX_VERSION):
        raise InvalidField(f"version must be a whole number from 1 to {MAX_VERSION}, or null", field="version")
    return Feedback(rating=rating, comment=None if comment is None else read_text(comment, "comment"), version=version)


def read_person(segment: str, field: str) -> str:
    """
    Read a tenant's or a user's id from its percent-encoded path *segment*.

    Raises:
        InvalidField: It is empty, too long, or not printable.
    """
    text = _decoded(segment, field)
    if not 0 < len(text) <= MAX_ID_CHARACTERS or not text.isprintable():
        raise InvalidField(f"{field} must be 1 to {MAX_ID_CHARACTERS} printable characters", field=field)
    return text


def read_event_payload(body: bytes, key: str) -> Any:
    """
    Read the *body* of a request for an event: ``{"payload"}``, any JSON.

    An approval's payload must be ``{"approved", "reason"?}``: only the first event under a key counts, so a malformed
    one would deny the approval for good.  The payload for a client's tool must be ``{"result"}`` or ``{"error"}``.

    Raises:
        MalformedRequest: It is not one JSON object in UTF-8.
        PayloadTooLarge: It or its payload is longer than its limit.
        InvalidField: A member is missing, unknown or not of its type.
    """
    members = read_members(body, EVENT_MEMBERS)
    if "payload" not in members:
        raise InvalidField("payload is required; it may be any JSON", field="payload")
    payload = members["payload"]
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    if not is_utf8(text):
        raise InvalidField("payload holds half a surrogate pair, which cannot be stored", field="payload")
    if key.startswith(TOOL_PREFIX + CLIENT_CALL):
        return read_tool_result(payload, "payload")
    if len(text.encode()) > MAX_EVENT_PAYLOAD_BYTES:
        raise too_large("payload", f"{MAX_EVENT_PAYLOAD_BYTES} bytes of JSON")
    if key.startswith(APPROVAL_PREFIX) and not _is_decision(payload):
        raise InvalidField(
            'the payload of an approval must be {"approved": true or false, "reason": text, or left out}',
            field="payload",
        )
    return payload


def read_tool_result(value: object, field: str) -> dict[str, Any]:
    """
    Read the outcome of a client's tool call: ``{"result"}`` with any JSON, or ``{"error"}`` with a text.

    Raises:
        InvalidField: It has neither form, or cannot be stored.
        PayloadTooLarge: It is longer than its limit.
    """
    if not isinstance(value, dict) or value.keys() not in ({"result"}, {"error"}):
        raise InvalidField(f'{field} must be {{"result": any JSON}} or {{"error": text}}', field=field)
    if not isinstance(value.get("error", ""), str):
        raise InvalidField(f"{field}.error must be text", field=field)
    text = json.dumps(value, ensure_ascii=False)
    if not is_utf8(text):
        raise InvalidField(f"{field} holds half a surrogate pair, which cannot be stored", field=field)
    if len(text) > MAX_TOOL_RESULT_CHARACTERS:
        raise too_large(field, f"{MAX_TOOL_RESULT_CHARACTERS} characters of JSON")
    return value


def _is_decision(payload: object) -> bool:
    if not isinstance(payload, dict) or not set(payload) <= {"approved", "reason"}:
        return False
    reason = payload.get("reason", "")
    return (
        isinstance(payload.get("approved"), bool) and isinstance(reason, str) and len(reason) <= MAX_REASON_CHARACTERS
    )


def _on_mismatch(value: object) -> object:
    if value not in _ON_MISMATCH:
        raise InvalidField(f"on_mismatch must be {' or '.join(map(repr, _ON_MISMATCH))}", field="on_mismatch")
    return value


def _replace(value: object) -> Replace | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {"kind", "version"}:
        raise InvalidField("replace must be an object of kind and version", field="replace")
    kind, version = value["kind"], whole(value["version"])
    if kind not in _REPLACE_KINDS:
        raise InvalidField(f"replace.kind must be {' or '.join(map(repr, _REPLACE_KINDS))}", field="replace.kind")
    if type(version) is not int or not 1 <= version <= MAX_VERSION:
        raise InvalidField(f"replace.version must be a whole number from 1 to {MAX_VERSION}", field="replace.version")
    return Replace(kind=kind, version=version)


def _when_busy(value: object) -> WhenBusy | None:
    if value is not None and value not in _WHEN_BUSY:
        raise InvalidField(f"when_busy must be one of {', '.join(_WHEN_BUSY)}", field="when_busy")
    return cast("WhenBusy | None", value)


def _follow(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidField("follow must be true or false", field="follow")
    return value


def read_model(value: object) -> str | None:
    """
    Read the name of a model; null, the deployment's own model, is returned as None.

    Raises:
        InvalidField: It is no printable text, or too long.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_MODEL_CHARACTERS or not value.isprintable():
        raise InvalidField(f"model must be 1 to {MAX_MODEL_CHARACTERS} printable characters, or null", field="model")
    return value


def read_parameters(value: object) -> dict[str, Any]:
    """
    Read the parameters for the model, as ``{"temperature": 0.5}``; null is returned as {}.

    Raises:
        PayloadTooLarge: They are longer than their limit.
        InvalidField: They are no object, or one is unknown or has a wrong value.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidField("parameters must be an object, or null", field="parameters")
    for name, parameter in value.items():
        if (wrong := wrong_parameter(name, parameter)) is not None:
            raise InvalidField(f"parameters.{shortened(name)} {wrong}", field=f"parameters.{shortened(name)}")
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_PARAMETERS_BYTES:
        raise too_large("parameters", f"{MAX_PARAMETERS_BYTES} bytes of JSON")
    return {name: whole(each) if PARAMETERS[name].get("type") == "integer" else each for name, each in value.items()}


def _metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidField("metadata must be an object", field="metadata")
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not is_utf8(text):
        raise InvalidField("metadata holds half a surrogate pair, which cannot be stored", field="metadata")
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise too_large("metadata", f"{MAX_METADATA_BYTES} bytes of JSON")
    return value
