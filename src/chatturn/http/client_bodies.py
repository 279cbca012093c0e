"""
The conversation in a request of another service's client, read alike for all these clients.

Unlike our own routes, the routes for these clients ignore unknown members: the clients send some by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, TypeAlias

from chatturn.chat.files import FILE_ID
from chatturn.chat.parts import Part, content_of
from chatturn.errors import InvalidField
from chatturn.http.limits import MAX_BODY_BYTES, check_body_headers
from chatturn.http.messages import HttpRequest
from chatturn.http.problems import shown
from chatturn.http.strict_json import read_json_object
from chatturn.http.user_messages import UserMessage, read_text, read_user_message

__all__ = [
    "ROLES",
    "Conversation",
    "PartsOf",
    "TextOf",
    "file_or_address",
    "read_client_body",
    "read_conversation",
    "text_in",
]

TextOf: TypeAlias = Callable[[Mapping[str, Any], str], str]
"""Returns the text of a message; the second argument names the message in errors, as in ``messages[3]``."""

MoreOf: TypeAlias = Callable[[Mapping[str, Any], str], Mapping[str, Any]]
"""Returns the members of a message, apart from role and content, that the model is shown; arguments as `TextOf`."""

PartsOf: TypeAlias = Callable[[Mapping[str, Any], str], Sequence[Any]]
"""Returns a user's message as parts in our own form, or [] if it is text alone; arguments as `TextOf`."""

ROLES: Final = ("system", "developer", "user", "assistant")

_PLAIN: Final = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """
    The messages of a request.

    Attributes:
        question: The text of the user's last message.
        parts: The question's parts, where it is more than text.
        before: All messages before the question, each ``{"role", "content", …}``.
        behind: All messages after the question, if results of the client's tools are among them.
        turn_index: The question's index: the number of questions before it.
    """

    question: str
    before: tuple[Mapping[str, Any], ...]
    turn_index: int
    parts: Sequence[Part] = ()
    behind: tuple[Mapping[str, Any], ...] = ()

    @property
    def just_before(self) -> Sequence[Mapping[str, Any]]:
        """The results of the client's tools directly before the question."""
        return [*takewhile(lambda message: message["role"] == "tool", reversed(self.before))][::-1]


async def read_client_body(request: HttpRequest) -> dict[str, Any]:
    """
    Read a body that is a JSON object, also with the Content-Type text/plain or none, as browsers send text.

    Raises:
        UnsupportedMediaType, PayloadTooLarge, MalformedRequest: As for our own routes.
    """
    headers = dict(request.headers)
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type in {"", _PLAIN}:
        headers["content-type"] = "application/json"
    check_body_headers(headers)
    return read_json_object(await request.read(MAX_BODY_BYTES))


def read_conversation(
    messages: object,
    text_of: TextOf,
    *,
    roles: Sequence[str] = ROLES,
    more_of: MoreOf = lambda _message, _place: {},
    parts_of: PartsOf = lambda _message, _place: (),
) -> Conversation:
    """
    Read the messages of a request.

    Args:
        messages: The member ``messages``.
        text_of: Reads the text of one message.
        roles: The roles that a message may have.
        more_of: Reads the further members of one message.
        parts_of: Reads the parts of one of the user's messages.

    Raises:
        PayloadTooLarge: A part is longer than its limit.
        InvalidField: None of them is the user's, or one is malformed.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidField("messages must be a list with at least one message", field="messages")
    reading = _Reading(text_of, roles, more_of, parts_of)
    read = [reading.message(message, f"messages[{at}]") for at, message in enumerate(messages)]
    questions = [at for at, message in enumerate(read) if message["role"] == "user"]
    if not questions:
        raise InvalidField("messages has no message of the user", field="messages")
    last = questions[-1]
    behind = read[last + 1 :]
    said = reading.said(messages[last], f"messages[{last}]")
    return Conversation(
        question=said.text,
        parts=said.parts,
        before=tuple(read[:last]),
        turn_index=len(questions) - 1,
        behind=tuple(behind) if any(message["role"] == "tool" for message in behind) else (),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads the messages of one format; the fields are the arguments of `read_conversation`."""

    text_of: TextOf
    roles: Sequence[str]
    more_of: MoreOf
    parts_of: PartsOf

    def message(self, message: object, place: str) -> Mapping[str, Any]:
        if not isinstance(message, dict):
            raise InvalidField(f"{place} must be an object", field=place)
        role = message.get("role")
        if role not in self.roles:
            words = f"{place}.role is {shown(str(role))}, but must be one of {', '.join(self.roles)}"
            raise InvalidField(words, field=place)
        parts = self.said(message, place).parts if role == "user" and self.parts_of(message, place) else ()
        content = content_of(parts) if parts else read_text(self.text_of(message, place), place)
        return {"role": role, "content": content, **self.more_of(message, place)}

    def said(self, message: Mapping[str, Any], place: str) -> UserMessage:
        """Read a message of the user, which may not be blank."""
        parts = self.parts_of(message, place)
        return read_user_message(list(parts) or self.text_of(message, place), place)


def text_in(content: Any) -> str:
    """Return the text in the content of a message, which is a text or a list of parts."""
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


def file_or_address(value: object) -> dict[str, Any]:
    """Return the member of a part that names its content: the id of a stored file, or an address."""
    name = str(value).rpartition("/v1/files/")[2]
    return {"file": name} if FILE_ID.fullmatch(name) else {"url": value}
