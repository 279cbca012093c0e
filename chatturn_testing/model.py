"""A scripted model for tests: it replies with text, tool calls or an error, and costs nothing."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.backends.iterable import create_iterable_backend
from chatturn.events import EventBatch, text_delta, tool_call, usage_event

__all__ = ["Reply", "ScriptedModel", "ToolCalls", "call_tool"]


@dataclass(frozen=True)
class ToolCalls:
    """
    A reply in which the model calls tools, all at once.

    Attributes:
        calls: Each tool's name and its arguments.
    """

    calls: tuple[tuple[str, Mapping[str, Any]], ...]

    def __and__(self, other: "ToolCalls") -> "ToolCalls":
        """Return one reply with the tool calls of both."""
        return ToolCalls(self.calls + other.calls)


def call_tool(name: str, **arguments: Any) -> ToolCalls:
    """Return a reply that calls one tool; join several with ``&``."""
    return ToolCalls(((name, arguments),))


Reply: TypeAlias = str | ToolCalls | Exception


class ScriptedModel:
    """
    A model that gives the n-th reply when its tools have answered n - 1 times, whoever asks.

    So a worker that takes over a turn gets the same replies as the worker before it.  Text comes a word at a time, with
    *pause_s* of virtual time before each word.

    Args:
        replies: In order; the last is repeated.  An exception is raised in place of a reply.
        pause_s: Seconds before each word, 0 or more.

    Attributes:
        requests: The requests in order: messages, model and options.
        request_ids: The idempotency key of each request, in the same order.
    """

    def __init__(self, *replies: Reply, pause_s: float = 0.05) -> None:
        if not replies:
            raise ValueError("a model needs a reply")
        self._replies = replies
        self._pause_s = pause_s
        self.requests: list[AgentBackendInput] = []
        self.request_ids: list[str] = []

    def fresh(self) -> "ScriptedModel":
        """Return a new model with the same replies and no requests."""
        return ScriptedModel(*self._replies, pause_s=self._pause_s)

    def backend(self) -> AgentExecutionBackend:
        """Return the model as a deployment's backend."""
        return create_iterable_backend("scripted", self._stream)

    async def _stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        self.requests.append(request)
        self.request_ids.append(context.request_id)
        rounds = sum("tool_calls" in message for message in request.messages)
        reply = self._replies[min(rounds, len(self._replies) - 1)]
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, ToolCalls):
            yield [
                tool_call(tool_call_id=f"call-{number}", tool_name=name, args=dict(arguments))
                for number, (name, arguments) in enumerate(reply.calls)
            ]
        else:
            for word in _words(reply):
                await asyncio.sleep(self._pause_s)
                yield text_delta(word)
        yield usage_event(tokensIn=len(request.messages), tokensOut=1)


def _words(text: str) -> list[str]:
    """Cut *text* after each blank; the pieces join to *text*."""
    return [word for word in text.replace(" ", " \0").split("\0") if word]
