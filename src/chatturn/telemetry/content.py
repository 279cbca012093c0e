"""The words of users, models and tools in the form that spans carry: cut, and with secrets replaced."""

import json
from collections.abc import Mapping
from typing import Any, Final

from chatturn.telemetry.redaction import without_secret_members

__all__ = ["MAX_CONTENT", "content_text"]

MAX_CONTENT: Final = 16_384
"""Characters kept of one attribute."""


_INLINE: Final = "data:"


def content_text(said: Any) -> str:
    """Return *said*, JSON, as text; chat completions messages in the form of the semantic conventions."""
    if isinstance(said, list | tuple) and all(isinstance(item, Mapping) and "role" in item for item in said):
        said = [_message(message) for message in said]
    return json.dumps(without_secret_members(said), ensure_ascii=False)[:MAX_CONTENT]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content, calls = message.get("content"), message.get("tool_calls")
    if message["role"] == "tool":
        result = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": _parsed(content)}
        return {"role": "tool", "parts": [result]}
    parts = [_part(part) for part in content] if isinstance(content, list) else []
    if content is not None and not isinstance(content, list):
        parts = [{"type": "text", "content": content}]
    for call in calls or ():
        function = call.get("function", {})
        part = {"type": "tool_call", "id": call.get("id"), "name": function.get("name")}
        parts.append({**part, "arguments": _parsed(function.get("arguments"))})
    return {"role": message["role"], "parts": parts}


def _part(part: Any) -> dict[str, Any]:
    """Return a part of a content: an image or a file by its address, or, where it is that itself, by what it is."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in {"image_url", "file"}:
        return {"type": "text", "content": part.get("text", part) if isinstance(part, Mapping) else part}
    said = part.get(kind)
    url = (said.get("url") or said.get("file_data")) if isinstance(said, Mapping) else said
    modality = "image" if kind == "image_url" else "file"
    if isinstance(url, str) and url.startswith(_INLINE):
        return {"type": "blob", "modality": modality, "mime_type": url[len(_INLINE) :].partition(";")[0]}
    return {"type": "uri", "modality": modality, "uri": url}


def _parsed(said: Any) -> Any:
    """Return the JSON value of a text, so that secret members in it are found; other text as it is."""
    try:
        return json.loads(said)
    except (TypeError, ValueError, RecursionError):
        return said
