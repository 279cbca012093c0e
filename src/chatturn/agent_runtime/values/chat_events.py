"""
Chat events as agent-runtime's events: tool calls and results, artifacts, proposals and model calls.

Each function takes the data of one chat event and returns agent-runtime's event, or None if the data lack a member that
the event needs: a product's producer may yield anything.  The functions are pure; `mapping` keeps what depends on
earlier events.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypedDict

from chatturn.agent_runtime.values.events import (
    ArtifactEvent,
    LlmCallEvent,
    ProposalCreatedEvent,
    RuntimeStreamEvent,
    ToolCallEvent,
    ToolResultEvent,
)

__all__ = ["SAID", "UNKNOWN_MODEL", "Data", "count_in", "llm_call", "text_in"]

Data: TypeAlias = Mapping[str, Any]
"""The data of a chat event."""

UNKNOWN_MODEL: Final = "unknown"
"""The model of a call whose usage names none."""


def llm_call(data: Data, model: str = UNKNOWN_MODEL) -> LlmCallEvent:
    """Make the event for one model call from its ``usage``; a count that is no number from 0 becomes None."""
    return LlmCallEvent(
        model=text_in(data, "model") or model,
        tokens_in=_number_in(data, "tokensIn"),
        tokens_out=_number_in(data, "tokensOut"),
        cost_usd=_number_in(data, "costUsd"),
        latency_ms=_number_in(data, "latencyMs"),
        finish_reason=text_in(data, "finishReason"),
    )


def _tool_call(data: Data) -> RuntimeStreamEvent:
    return ToolCallEvent(**_tool(data), args=data.get("args"))


def _tool_result(data: Data) -> RuntimeStreamEvent:
    return ToolResultEvent(**_tool(data), result=data.get("result"))


def _tool_error(data: Data) -> RuntimeStreamEvent:
    """Make a result of the error's message and code."""
    return ToolResultEvent(**_tool(data), result={"error": data.get("message"), "code": data.get("code")})


def _approval(data: Data) -> RuntimeStreamEvent | None:
    """Make a proposal; its id is the key under which the approval is given."""
    if (key := text_in(data, "key")) is None:
        return None
    content = {name: data[name] for name in ("toolCallId", "toolName", "args") if name in data}
    return ProposalCreatedEvent(proposal_id=key, title=_tool(data)["tool_name"], status="pending", content=content)


def _artifact(data: Data) -> RuntimeStreamEvent | None:
    if (artifact_id := text_in(data, "artifactId", "id")) is None:
        return None
    metadata = data.get("metadata")
    return ArtifactEvent(
        artifact_id=artifact_id,
        name=text_in(data, "name"),
        mime_type=text_in(data, "mimeType"),
        uri=text_in(data, "uri"),
        content=data.get("content"),
        metadata=metadata if isinstance(metadata, dict) else None,
    )


def _proposal(data: Data) -> RuntimeStreamEvent | None:
    if (proposal_id := text_in(data, "proposalId", "id")) is None:
        return None
    title = text_in(data, "title") or proposal_id
    content = data.get("content")
    match data.get("status"):
        case ("pending" | "approved" | "rejected") as status:
            return ProposalCreatedEvent(proposal_id=proposal_id, title=title, status=status, content=content)
        case _:
            return ProposalCreatedEvent(proposal_id=proposal_id, title=title, content=content)


SAID: Final[Mapping[str, Callable[[Data], RuntimeStreamEvent | None]]] = {
    "tool.call": _tool_call,
    "tool.client": _tool_call,
    "tool.result": _tool_result,
    "tool.error": _tool_error,
    "tool.approval": _approval,
    # Types that agent-runtime's own producers use, and chatturn's do not.
    "artifact": _artifact,
    "proposal_created": _proposal,
    "proposal": _proposal,
    "filing": _proposal,
}
"""The function for each type of chat event."""


class _Tool(TypedDict):
    tool_name: str
    tool_call_id: str | None


def _tool(data: Data) -> _Tool:
    return {"tool_name": text_in(data, "toolName", "name") or "tool", "tool_call_id": text_in(data, "toolCallId", "id")}


def text_in(data: Data, *names: str) -> str | None:
    """Return the first nonempty text that *data* has under one of *names*; None if there is none."""
    return next((value for name in names if isinstance(value := data.get(name), str) and value), None)


def count_in(data: Data, name: str) -> int | None:
    """Return the whole number from 1 that *data* has under *name*; None if there is none."""
    value = data.get(name)
    return value if type(value) is int and value > 0 else None


def _number_in(data: Data, name: str) -> float | None:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < math.inf else None
