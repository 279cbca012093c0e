"""Asking the deployment's model what the user asked: what most products' `ChatTurnHooks.produce` comes to."""

from collections.abc import AsyncGenerator

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, ChatMessage
from chatturn.chat.hooks.hooks import TurnContext
from chatturn.events import EventBatch, text_so_far

__all__ = ["answer"]


async def answer(context: TurnContext, *, system: str | None = None) -> AsyncGenerator[EventBatch, None]:
    """
    Stream the answer of the deployment's backend to the conversation so far.

    Where an attempt before broke off, and the model can go on from there, what it had said comes first, as one piece.

    Args:
        context: The turn.
        system: Said to the model before the conversation.
    """
    instructions: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
    request = AgentBackendInput(
        messages=[*instructions, *context.history, context.question, *context.behind],
        model=context.model,
        continue_from=context.continue_from,
        options=context.parameters,
    )
    backend_context = AgentBackendContext(request_id=context.request_id, tracer=context.tracer)
    if context.continue_from:
        yield text_so_far(context.continue_from)
    async for events in context.backend.stream(request, backend_context):
        yield events
