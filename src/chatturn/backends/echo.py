"""
The built-in model: it quotes the user's message back, word by word, and is the default where no key is set.

It answers the same message with the same events, and does all that a model's backend does: pieces with time
between them, usage, a span.

Where it is offered tools, each line ``use <tool> {json}`` of the message orders one call.  The calls come one after
another, before the answer.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend, ChatMessage
from chatturn.backends.openai.tool_calls import parse_arguments
from chatturn.events import ChatStreamEvent, EventBatch, text_delta, tool_call, usage_event
from chatturn.telemetry import conventions

__all__ = ["EchoBackend", "create_echo_backend"]

_MODEL: Final = "echo"
_WORD: Final = re.compile(r"\s*\S+|\s+\Z")
_ORDER: Final = re.compile(r"^use ([\w-]+)(?: +(.*))?$", re.MULTILINE)
_MAX_QUOTED: Final = 400  # characters, about 80 words: some 3 s at 40 ms a word


def create_echo_backend(*, pace_ms: int = 40) -> AgentExecutionBackend:
    """Make the built-in model, which waits *pace_ms* between two words."""
    return EchoBackend(pace_ms=pace_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoBackend:
    """Answers with the user's own words."""

    pace_ms: int
    kind: str = _MODEL

    def continues(self, _model: str | None) -> bool:
        """Say that every answer can be continued: the same message has always the same answer."""
        return True

    async def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """Answer, with one event per word and at the end the usage, which counts words as tokens."""
        attributes = {conventions.OPERATION_NAME: conventions.CHAT, conventions.REQUEST_MODEL: _MODEL}
        span_name = conventions.span_name(conventions.CHAT, _MODEL)
        with (
            context.meter.call(_MODEL, context.request_id) as call,
            context.tracer.span(span_name, attributes=attributes) as span,
        ):
            call.tried()
            order = _next_order(request) if request.options.get("tools") else None
            answer = "" if order is not None else _answer(request.messages).removeprefix(request.continue_from)
            words = _WORD.findall(answer)
            for position, word in enumerate(words):
                if position and self.pace_ms:
                    await asyncio.sleep(self.pace_ms / 1000)
                delta = text_delta(word)
                call.said((delta,))
                yield delta
            if order is not None:
                yield order
            tokens_in = sum(len(_text(message).split()) for message in request.messages)
            span.set(conventions.USAGE_INPUT_TOKENS, tokens_in)
            span.set(conventions.USAGE_OUTPUT_TOKENS, len(words))
            reason = "stop" if order is None else "tool_calls"
            counts = {"tokensIn": tokens_in, "tokensOut": len(words)}
            usage = usage_event(model=_MODEL, **counts, finishReason=reason, call=call.index)
            call.reported(usage.data or {})
            yield usage


def _next_order(request: AgentBackendInput) -> ChatStreamEvent | None:
    """Return the call for the first order that no tool has answered yet."""
    said, told = _turn(request.messages)
    for position, order in enumerate(_ORDER.finditer(said)):
        if position == len(told):
            args = parse_arguments(order[2] or "")
            return tool_call(tool_call_id=f"call_{position}", tool_name=order[1], args=args)
    return None


def _answer(messages: Sequence[ChatMessage]) -> str:
    said, told = _turn(messages)
    answer = "This is the built-in echo model of chatturn, no real model was called."
    if told:
        answer += f" The tools said: {', '.join(_quoted(text) for text in told)}."
    return f"{answer} You said: {_quoted(said)}"


def _turn(messages: Sequence[ChatMessage]) -> tuple[str, list[str]]:
    """Return the user's last message, and the results of tools since."""
    said, told = "", list[str]()
    for message in messages:
        if message.get("role") == "user":
            said, told = _text(message), []
        elif message.get("role") == "tool":
            told.append(_text(message))
    return said, told


def _quoted(text: str) -> str:
    return f"“{text}”" if len(text) <= _MAX_QUOTED else f"“{text[:_MAX_QUOTED]}…”"


def _text(message: ChatMessage) -> str:
    content: Any = message.get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
