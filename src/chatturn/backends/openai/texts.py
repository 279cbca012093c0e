"""What a delta, or a message, says in words: text, and reasoning, in the forms that servers give them."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["SAID_AS_TEXT", "Mender", "parts_of", "plain_text", "reasoning_of"]

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TEXTS: Final = frozenset({None, "text", "output_text"})
_THOUGHTS: Final = frozenset({"reasoning.text", "reasoning.summary", "thinking", "reasoning", "reasoning_text"})
SAID_AS_TEXT: Final = _TEXTS | _THOUGHTS
"""The types of a content's parts that are text or reasoning."""


class Mender:
    """Joins the halves of a character whose surrogate pair a server has split over two deltas."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""

    def mended(self, text: str) -> str:
        """Return *text* as far as it can be sent; half of a pair without its other half is replaced."""
        if not self.held and not _SURROGATE.search(text):
            return text
        text = self.held + text
        self.held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        whole = text[: len(text) - len(self.held)]
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain_text(content: object) -> str:
    """Return the text of *content*, a string or a list of parts."""
    if isinstance(content, str):
        return content
    if type(content) in {int, float}:
        return json.dumps(content)
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") in _TEXTS]
    return "".join(text for text in texts if isinstance(text, str))


def parts_of(content: dict[str, Any] | list[Any]) -> list[Any]:
    """Return a content's parts, of which each text is one by name."""
    parts = content if type(content) is list else [content]
    return [
        {"type": "text", "text": part}
        if type(part) is str
        else {"type": "text", **part}
        if type(part) is dict and type(part.get("text")) is str
        else part
        for part in parts
    ]


def reasoning_of(delta: Mapping[str, Any]) -> str:
    """Return the reasoning in *delta*, wherever the server puts it."""
    for name in ("reasoning_content", "reasoning", "reasoning_text", "thinking"):
        if text := plain_text(delta.get(name)):
            return text
    parts = [delta.get("reasoning_details"), delta.get("thinking_blocks"), delta.get("content")]
    return "".join(_thought(part) for part in parts if type(part) is list for part in part if type(part) is dict)


def _thought(part: Mapping[str, Any]) -> str:
    """Return what a part of a model's reasoning says that may be shown."""
    if part.get("type") not in _THOUGHTS:
        return ""
    return next(filter(None, (plain_text(part.get(name)) for name in ("text", "thinking", "summary"))), "")
