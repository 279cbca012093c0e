"""
The parts of a message that is more than text: how they are asked, stored, compared, and shown to a model.  Pure.

A part is ``{"type": "text", "text"}``, or an image or a file: ``{"type": "image" | "file", "url"}`` or ``"file"`` in
place of the address, the id of a stored one; a file may have a ``name``.  A message of text alone has no parts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

__all__ = [
    "INLINE",
    "STORED",
    "Part",
    "content_of",
    "file_ids_of",
    "identity_of",
    "needs_of",
    "note_of",
    "text_of",
    "with_notes",
]

Part: TypeAlias = Mapping[str, Any]

INLINE: Final = "data:"
"""Begins the address of an image or a file whose content stands in the message itself."""

STORED: Final = "stored:"
"""Begins the placeholder for a stored file's address until the file is loaded; the file's id follows."""


def text_of(parts: Sequence[Part]) -> str:
    """Return the joined text of the text parts."""
    return "".join(str(part["text"]) for part in parts if part["type"] == "text")


def note_of(part: Part) -> str:
    """Return the note that stands for an image or a file that cannot be shown."""
    name = part.get("name")
    return f"[{part['type']}: {name}]" if name else f"[{part['type']}]"


def with_notes(parts: Sequence[Part]) -> str:
    """Return the text of *parts*, with a note in place of each image or file."""
    return "\n".join(str(part["text"]) if part["type"] == "text" else note_of(part) for part in parts)


def file_ids_of(parts: Sequence[Part]) -> list[str]:
    """Return the ids of the stored files that *parts* name, each once."""
    return list(dict.fromkeys(str(part["file"]) for part in parts if "file" in part))


def identity_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return *parts* for the turn's manifest: content that stands in the message itself becomes its digest."""
    return [{**part, "url": _digest(part["url"])} if _is_inline(part) else dict(part) for part in parts]


def needs_of(parts: Sequence[Part]) -> frozenset[str]:
    """Return the kinds of parts that a model must take: ``image_url``, ``image_data``, ``file_url``, ``file_data``."""
    return frozenset(
        f"{part['type']}_{'data' if 'file' in part or _is_inline(part) else 'url'}"
        for part in parts
        if part["type"] != "text"
    )


def content_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """
    Return *parts* as the content of a message of the chat completions API.

    A stored file's address is `STORED` and its id.

    Source:
        OpenAI's API reference, chat completions, content parts; a file's address as OpenRouter takes it.
    """
    return [_content(part) for part in parts]


def _content(part: Part) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    url = part["url"] if "url" in part else f"{STORED}{part['file']}"
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": part.get("name", "file"), "file_data": url}}


def _is_inline(part: Part) -> bool:
    return str(part.get("url", "")).startswith(INLINE)


def _digest(url: str) -> str:
    return f"sha256:{hashlib.sha256(url.encode()).hexdigest()}"
