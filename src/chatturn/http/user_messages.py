"""The user's message in a request: a text, or a list of parts, some of them images and files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.chat.files import FILE_ID
from chatturn.chat.parts import INLINE, Part, text_of
from chatturn.errors import InvalidField, PayloadTooLarge
from chatturn.http.problems import shown

__all__ = [
    "FILE_TYPES",
    "IMAGE_TYPES",
    "MAX_INLINE_CHARACTERS",
    "MAX_MESSAGE_CHARACTERS",
    "MAX_NAME_CHARACTERS",
    "MAX_PARTS",
    "MAX_URL_CHARACTERS",
    "MESSAGE",
    "TEXT",
    "UserMessage",
    "is_utf8",
    "read_message",
    "read_name",
    "read_text",
    "read_user_message",
    "too_large",
]

MAX_MESSAGE_CHARACTERS: Final = 200_000
MAX_PARTS: Final = 32
MAX_URL_CHARACTERS: Final = 2_048
MAX_NAME_CHARACTERS: Final = 200
MAX_INLINE_CHARACTERS: Final = 700_000
"""The most characters of all ``data:`` addresses of a message together: a row of the database holds 2 MB."""

IMAGE_TYPES: Final = ("image/png", "image/jpeg", "image/webp", "image/gif")
FILE_TYPES: Final = (
    *IMAGE_TYPES,
    "application/pdf",
    "application/json",
    "text/plain",
    "text/markdown",
    "text/csv",
    "text/html",
)
_TYPES: Final[Mapping[str, Sequence[str]]] = {"image": IMAGE_TYPES, "file": FILE_TYPES}

_BASE64: Final = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
_ADDRESS: Final = "https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:[/?#][!-~]*)?"
_URLS: Final[Mapping[str, str]] = {
    kind: f"{_ADDRESS}|data:(?:{'|'.join(map(re.escape, types))});base64,{_BASE64}" for kind, types in _TYPES.items()
}
"""The patterns of addresses by kind: an ``https:`` address without a password, or the content as a ``data:`` one."""

TEXT: Final[Mapping[str, Any]] = {
    "type": "string",
    "format": "storable",
    "minLength": 1,
    "maxLength": MAX_MESSAGE_CHARACTERS,
}
_LONG: Final[Mapping[str, Any]] = {"type": "string", "maxLength": MAX_INLINE_CHARACTERS}
_NAME: Final[Mapping[str, Any]] = {
    "type": "string",
    "format": "printable",
    "minLength": 1,
    "maxLength": MAX_NAME_CHARACTERS,
}
_FILE: Final[Mapping[str, Any]] = {"type": "string", "pattern": f"^{FILE_ID.pattern}$"}


def _part_schema(kind: str, **members: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = {"type": {"const": kind}, **members}
    required = [name for name in properties if name != "name"]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


MESSAGE: Final[Mapping[str, Any]] = {
    "anyOf": [
        TEXT,
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PARTS,
            "items": {
                "anyOf": [
                    _part_schema("text", text=TEXT),
                    _part_schema("image", url={**_LONG, "pattern": f"^({_URLS['image']})$"}),
                    _part_schema("image", file=_FILE),
                    _part_schema("file", url={**_LONG, "pattern": f"^({_URLS['file']})$"}, name=_NAME),
                    _part_schema("file", file=_FILE, name=_NAME),
                ]
            },
        },
    ]
}
"""The JSON Schema of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage:
    """
    A message within the limits.

    Attributes:
        text: The message's text, which may be "" where there are parts.
        parts: The message's parts, if it is more than text; else empty.  See `chatturn.chat.parts`.
    """

    text: str
    parts: Sequence[Part] = ()


def read_user_message(value: object, field: str = "message") -> UserMessage:
    """
    Read a user's message: a text, or a list of parts.  Parts that are all text become one text.

    Args:
        value: The value of the member.
        field: The name of the member, for errors.

    Raises:
        InvalidField: It is neither, is blank, or cannot be stored; or a part is malformed.
        PayloadTooLarge: It, or a part of it, is longer than its limit.
    """
    if not isinstance(value, list):
        return UserMessage(text=read_message(value, field))
    if not 0 < len(value) <= MAX_PARTS:
        raise InvalidField(f"{field} must be a text, or a list of 1 to {MAX_PARTS} parts", field=field)
    parts = [_part(part, f"{field}[{at}]") for at, part in enumerate(value)]
    if sum(len(part.get("url", "")) for part in parts) > MAX_INLINE_CHARACTERS:
        limit = f"{MAX_INLINE_CHARACTERS} characters in the addresses of its parts; send larger files to /v1/files"
        raise too_large(field, limit)
    text = text_of(parts)
    if all(part["type"] == "text" for part in parts):
        return UserMessage(text=read_message(text, field))
    if len(text) > MAX_MESSAGE_CHARACTERS:
        raise too_large(field, f"{MAX_MESSAGE_CHARACTERS} characters")
    return UserMessage(text=text, parts=parts)


def _part(value: object, place: str) -> Part:
    if not isinstance(value, dict):
        raise InvalidField(f"{place} must be an object", field=place)
    kind = value.get("type")
    if kind == "text":
        _check_members(value, {"type", "text"}, place)
        if not isinstance(value.get("text"), str):
            raise InvalidField(f"{place}.text is required and must be text", field=f"{place}.text")
        return {"type": "text", "text": read_text(value["text"], f"{place}.text")}
    if kind not in ("image", "file"):
        words = f"{place}.type is {shown(str(kind))}, but must be text, image or file"
        raise InvalidField(words, field=f"{place}.type")
    _check_members(value, {"type", "url", "file", "name"} if kind == "file" else {"type", "url", "file"}, place)
    if ("url" in value) == ("file" in value):
        raise InvalidField(f"{place} must have either url or file", field=place)
    name = {"name": read_name(value["name"], f"{place}.name")} if "name" in value else {}
    if "url" in value:
        return {"type": kind, "url": _url(value["url"], kind, f"{place}.url"), **name}
    if not isinstance(value["file"], str) or not FILE_ID.fullmatch(value["file"]):
        raise InvalidField(f"{place}.file must be the id of a file that was sent to /v1/files", field=f"{place}.file")
    return {"type": kind, "file": value["file"], **name}


def _check_members(value: Mapping[str, Any], known: set[str], place: str) -> None:
    for name in value:
        if name not in known:
            text = f"{shown(name)} is not a member of {place}; these are: {', '.join(sorted(known))}"
            raise InvalidField(text, field=place)


def _url(value: object, kind: str, place: str) -> str:
    if isinstance(value, str) and not value.startswith(INLINE) and len(value) > MAX_URL_CHARACTERS:
        raise too_large(place, f"{MAX_URL_CHARACTERS} characters")
    if not isinstance(value, str) or not re.fullmatch(_URLS[kind], value):
        types = ", ".join(_TYPES[kind])
        words = f"{place} must be an https: address without a password, or data:TYPE;base64,… of a TYPE out of {types}"
        raise InvalidField(words, field=place)
    return value


def read_name(value: object, field: str) -> str:
    """
    Read the name of a file.

    Raises:
        InvalidField: It is no printable text, or too long.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS or not value.isprintable():
        raise InvalidField(f"{field} must be 1 to {MAX_NAME_CHARACTERS} printable characters", field=field)
    return value


def read_message(value: object, field: str = "message") -> str:
    """
    Read a user's message that is a text.

    Args:
        value: The value of the member.
        field: The name of the member, for errors.

    Raises:
        InvalidField: It is no text, is blank, or cannot be stored.
        PayloadTooLarge: It is longer than its limit.
    """
    if not isinstance(value, str):
        raise InvalidField(f"{field} is required and must be text", field=field)
    if len(value) > MAX_MESSAGE_CHARACTERS:
        raise too_large(field, f"{MAX_MESSAGE_CHARACTERS} characters")
    if not value.strip():
        raise InvalidField(f"{field} must have 1 to {MAX_MESSAGE_CHARACTERS} characters, not all blank", field=field)
    return read_text(value, field)


def read_text(value: str, field: str) -> str:
    """
    Return *value*, if it can be stored.

    Raises:
        InvalidField: It has a NUL, or half a surrogate pair.
    """
    if "\0" in value or not is_utf8(value):
        raise InvalidField(f"{field} holds a NUL or half a surrogate pair, which cannot be stored", field=field)
    return value


def is_utf8(text: str) -> bool:
    """Say whether *text* can be encoded as UTF-8: it has no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def too_large(field: str, limit: str) -> PayloadTooLarge:
    """Make the error about a member that is longer than its limit."""
    return PayloadTooLarge(f"{field} may have at most {limit}", field=field)
