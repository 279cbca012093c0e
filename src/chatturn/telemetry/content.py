"""What users, models and tools say, in the form in which spans may carry it: cut, and without what looks secret."""

import json
from collections.abc import Mapping
from typing import Any, Final

from chatturn.telemetry.redaction import without_secret_members

__all__ = ["MAX_CONTENT", "content_text"]

MAX_CONTENT: Final = 16_384
"""Characters of one attribute that are kept."""


def content_text(said: Any) -> str:
    """Return *said*, JSON, as text; messages of the chat completions API in the form of the conventions."""
    if isinstance(said, list | tuple) and all(isinstance(item, Mapping) and "role" in item for item in said):
        said = [_message(message) for message in said]
    return json.dumps(without_secret_members(said), ensure_ascii=False)[:MAX_CONTENT]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content, calls = message.get("content"), message.get("tool_calls")
    if message["role"] == "tool":
        result = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": _parsed(content)}
        return {"role": "tool", "parts": [result]}
    parts: list[dict[str, Any]] = [{"type": "text", "content": content}] if content is not None else []
    for call in calls or ():
        function = call.get("function", {})
        part = {"type": "tool_call", "id": call.get("id"), "name": function.get("name")}
        parts.append({**part, "arguments": _parsed(function.get("arguments"))})
    return {"role": message["role"], "parts": parts}


def _parsed(said: Any) -> Any:
    """Return the JSON in a text, so that what is called secret in it is found; any other text as it is."""
    try:
        return json.loads(said)
    except (TypeError, ValueError, RecursionError):
        return said
