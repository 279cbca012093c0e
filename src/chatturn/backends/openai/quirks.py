"""How one API wants requests that others want otherwise: known beforehand, or learnt from a refusal."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from chatturn.backends.openai.kept import KEPT

__all__ = ["Content", "Quirks"]

Content = Literal["empty", "null", "absent"]
"""The ``content`` of an assistant's message that only calls tools: "", null, or no such member."""

_REFUSALS: Final = frozenset({400, 422})
_STREAM_OPTIONS: Final = re.compile("stream_options|include_usage")
_NO_CONTENT: Final = re.compile(
    r"content\b.{0,80}(?:null|nil|none|missing|required|empty|blank|string|type|least)"
    r"|(?:null|nil|none|missing|required|empty|blank).{0,80}\bcontent",
    re.DOTALL,
)
_NEXT: Final[Mapping[Content, Content]] = {"empty": "null", "null": "absent", "absent": "empty"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """
    How one API wants requests.

    Attributes:
        stream_options: Whether it takes ``stream_options``.
        content: The ``content`` of an assistant's message that only calls tools.
        max_tokens: The name of the parameter that limits an answer's length.
        later_turns: Whether it wants back, in later turns, too, what it said besides text.
    """

    stream_options: bool = True
    content: Content = "empty"
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    later_turns: bool = False

    def after(self, status: int, words: str, body: Mapping[str, Any]) -> "Quirks | None":
        """
        Return the quirks changed by what a refusal says; None if it says nothing about them.

        Args:
            status: The response's HTTP status.
            words: The refusal's text.
            body: The refused request's body.
        """
        lower = words.lower()
        if status not in _REFUSALS:
            return None
        if "stream_options" in body and _STREAM_OPTIONS.search(lower):
            return replace(self, stream_options=False)
        if "max_tokens" in body and "max_completion_tokens" in lower:
            return replace(self, max_tokens="max_completion_tokens")
        if _NO_CONTENT.search(lower) and any(_only_calls(message) for message in body["messages"]):
            return replace(self, content=_NEXT[self.content])
        return None

    def applied(self, body: dict[str, Any], provider: str) -> dict[str, Any]:
        """Return *body* as the API wants it, without what another provider or another model wants back."""
        body["messages"] = [self._message(message, provider, body["model"]) for message in body["messages"]]
        if not self.stream_options:
            body.pop("stream_options", None)
        if self.max_tokens != "max_tokens" and "max_tokens" in body:
            body[self.max_tokens] = body.pop("max_tokens")
        return body

    def _message(self, message: Mapping[str, Any], provider: str, model: str) -> dict[str, Any]:
        said = {name: value for name, value in message.items() if name != KEPT}
        if _only_calls(said):
            said["content"] = None if self.content == "null" else ""
            if self.content == "absent":
                del said["content"]
        kept = message.get(KEPT) or {}
        calls = said.get("tool_calls", [])
        is_own = kept.get("provider") == provider and kept.get("model", model) == model  # of before, it has no model
        if not is_own or not (calls or self.later_turns):
            return said
        together = {**said, **kept["message"], **({"tool_calls": _with_kept(calls, kept["calls"])} if calls else {})}
        if "content" in kept["message"] and said.get("content"):
            together["content"] = [*kept["message"]["content"], {"type": "text", "text": said["content"]}]
        return together


def _with_kept(calls: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    together = []
    for call, more in zip(calls, kept, strict=False):
        function = {**more.get("function", {}), **call["function"]}
        together.append({**more, **call, "function": function})
    return together


def _only_calls(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant" and not message.get("content") and bool(message.get("tool_calls"))
