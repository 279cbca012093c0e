"""
What a message has besides text, as each API takes it.

A conversation has contents in the form of OpenAI's chat completions.  A content that the model does not take is an
error in the user's last message; in an earlier message a note replaces it.

Source:
    OpenAI, Chat Completions, content parts (image_url, file.file_data); OpenRouter, PDF inputs (file.file_data may be
    an address); Mistral, Document QnA (document_url).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from chatturn.errors import ContentNotTaken

__all__ = ["with_contents"]

_INLINE: Final = "data:"


def with_contents(
    messages: Sequence[Mapping[str, Any]], takes: frozenset[str], *, form: str, backend: str
) -> list[dict[str, Any]]:
    """
    Return *messages* as an API takes them.

    Args:
        messages: The conversation.
        takes: What the model takes; see `chatturn.backends.api.CONTENTS`.
        form: How the API wants files: ``file``, or Mistral's ``document_url``.
        backend: Its name, for the error.

    Raises:
        ContentNotTaken: The user's last message has a content that the model does not take.
    """
    if not any(isinstance(message.get("content"), list) for message in messages):
        return [dict(message) for message in messages]
    last = max((at for at, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    return [_message(message, takes, form, backend, is_asked=at == last) for at, message in enumerate(messages)]


def _message(
    message: Mapping[str, Any], takes: frozenset[str], form: str, backend: str, *, is_asked: bool
) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list) or message.get("role") != "user":
        return dict(message)
    needs = [_need(part) for part in content]
    if is_asked and (missing := {need for need in needs if need} - takes):
        raise ContentNotTaken(f"the model takes no {', '.join(sorted(missing))}", backend=backend)
    parts = [
        _part(part, form) if need is None or need in takes else _note(part)
        for part, need in zip(content, needs, strict=True)
    ]
    if all(part.get("type") == "text" for part in parts):
        return {**message, "content": "\n".join(str(part.get("text", "")) for part in parts)}
    return {**message, "content": parts}


def _need(part: Any) -> str | None:
    """Return which of `CONTENTS` a model must take for *part*; None for text, and for a product's own part."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image_url":
        url = part["image_url"].get("url") if isinstance(part.get("image_url"), Mapping) else part.get("image_url")
        return f"image_{_place(url)}"
    if kind == "file" and isinstance(part.get("file"), Mapping) and "file_data" in part["file"]:
        return f"file_{_place(part['file']['file_data'])}"
    return None


def _place(url: object) -> str:
    return "data" if str(url).startswith(_INLINE) else "url"


def _part(part: Mapping[str, Any], form: str) -> dict[str, Any]:
    if form == "document_url" and part.get("type") == "file" and "file_data" in part["file"]:
        return {"type": form, form: part["file"]["file_data"], "document_name": part["file"].get("filename", "file")}
    return dict(part)


def _note(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "image_url":
        return {"type": "text", "text": "[image]"}
    return {"type": "text", "text": f"[file: {part['file'].get('filename', 'file')}]"}
