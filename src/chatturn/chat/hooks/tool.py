"""
Tools: what a product lets a model do.

A tool's effect must happen once, and no engine can promise that alone: a worker may die between the effect and
its record.  So a tool is given a `ToolContext.step_key`, the same at every try of the same call, and passes it
on to whoever has the effect.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.durable.steps import StepRetry

__all__ = ["Tool", "ToolContext", "ToolError"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ONCE: Final = StepRetry()

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


class ToolError(Exception):
    """
    Raised by a tool to tell the model why it failed, in the exception's own words.

    Of any other exception the model learns only that there was one.  Neither ends the turn, so this is no part of
    the tree of `chatturn.errors`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """
    The call for which a tool runs.

    Attributes:
        identity: The turn.
        tool_call_id: The model's id of the call; not unique.
        step_key: Names this call among all of all runs, the same at every try on every attempt: an idempotency
            key for the tool's effect.
        traceparent: The W3C header that puts what the tool calls below its own span; None: nobody traces it.
    """

    identity: ChatTurnIdentity
    tool_call_id: str
    step_key: str
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """
    Something that the model may do.

    Attributes:
        name: 1 to 64 letters, digits, ``_`` and ``-``.
        description: For the model.
        parameters: The JSON schema of the arguments, an object's.
        run: Does it; returns JSON, or raises `ToolError`.  None: the client does it, and the turn waits for its result
            without a worker.
        needs_approval: Whether somebody must agree first.  The turn waits for that without a worker.
        retry: How often it is tried before the model is told that it failed.
        timeout_ms: For each try; 0 for no end.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any], ToolContext], Awaitable[Any]] | None
    needs_approval: bool = False
    retry: StepRetry = _ONCE
    timeout_ms: int = 60_000

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = f"{self.name!r} cannot be a tool's name"
            raise ValueError(message)
        if self.run is None and self.needs_approval:
            message = f"{self.name!r} is done by the client, who asks whomever it must"
            raise ValueError(message)

    def definition(self) -> dict[str, Any]:
        """Return the tool as the chat completions API wants it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def objection(self, args: Any) -> str | None:
        """
        Say what is wrong with a model's *args*, or None.

        Looks at the outermost level only: what is required is there, and of its type.
        """
        if not isinstance(args, dict):
            return "the arguments must be one JSON object"
        if missing := [name for name in self.parameters.get("required", ()) if name not in args]:
            return f"required but missing: {', '.join(missing)}"
        for name, schema in self.parameters.get("properties", {}).items():
            if name in args and not _is_of_type(args[name], schema.get("type")):
                return f"{name} must be of type {schema['type']}"
        return None


def _is_of_type(value: Any, declared: Any) -> bool:
    names = [declared] if isinstance(declared, str) else declared
    if not isinstance(names, list) or not set(names) <= set(_TYPES):
        return True  # not said, or in words that are not known here: the tool itself must see
    # A bool is an int to Python only.
    return any(isinstance(value, _TYPES[name]) and (name == "boolean" or type(value) is not bool) for name in names)
