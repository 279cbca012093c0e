"""
The built-in model: it quotes the user's message back, word by word, and is the default where no key is set.

It answers the same message with the same events, and it goes the whole way of a model's answer: pieces with
time between them, usage, a span.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.backends import AgentBackendContext, AgentBackendInput, AgentExecutionBackend, ChatMessage
from chatturn.events import EventBatch, text_delta, usage_event
from chatturn.telemetry import conventions

__all__ = ["EchoBackend", "create_echo_backend"]

_MODEL: Final = "echo"
_WORD: Final = re.compile(r"\s*\S+|\s+\Z")
_MAX_QUOTED: Final = 400  # characters: at the usual pace, some seconds


def create_echo_backend(*, pace_ms: int = 40) -> AgentExecutionBackend:
    """Make the built-in model, which waits *pace_ms* between two words."""
    return EchoBackend(pace_ms=pace_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoBackend:
    """Answers with the user's own words."""

    pace_ms: int
    kind: str = _MODEL

    async def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """Answer, with one event per word and usage, in words, at the end."""
        attributes = {conventions.OPERATION_NAME: conventions.CHAT, conventions.REQUEST_MODEL: _MODEL}
        with context.tracer.span(conventions.span_name(conventions.CHAT, _MODEL), attributes=attributes) as span:
            words = _WORD.findall(_answer(request.messages))
            for position, word in enumerate(words):
                if position and self.pace_ms:
                    await asyncio.sleep(self.pace_ms / 1000)
                yield text_delta(word)
            tokens_in = sum(len(_text(message).split()) for message in request.messages)
            span.set(conventions.USAGE_INPUT_TOKENS, tokens_in)
            span.set(conventions.USAGE_OUTPUT_TOKENS, len(words))
            yield usage_event(model=_MODEL, tokensIn=tokens_in, tokensOut=len(words), finishReason="stop")


def _answer(messages: Sequence[ChatMessage]) -> str:
    said = next((_text(message) for message in reversed(messages) if message.get("role") == "user"), "")
    quoted = said if len(said) <= _MAX_QUOTED else f"{said[:_MAX_QUOTED]}…"
    return f"This is the built-in echo model of chatturn, no real model was called. You said: “{quoted}”"


def _text(message: ChatMessage) -> str:
    content: Any = message.get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
