"""Asking the deployment's model what the user asked: what most products' `ChatTurnHooks.produce` comes to."""

from collections.abc import AsyncGenerator

from chatturn.backends.api import AgentBackendContext, AgentBackendInput
from chatturn.chat.hooks.hooks import TurnContext
from chatturn.events import EventBatch, text_so_far

__all__ = ["answer"]


async def answer(context: TurnContext, *, system: str | None = None) -> AsyncGenerator[EventBatch, None]:
    """
    Stream the answer of the deployment's backend to the conversation so far.

    The product's `ChatTurnHooks.shape_request` has the last word about what is asked.  Where an attempt before broke
    off, and the model can go on from there, what it had said comes first, as one piece.

    Args:
        context: The turn.
        system: Said to the model before the conversation.
    """
    asked = await context.request(system=system or "")
    goes_on = context.continue_from
    if goes_on and not context.backend.continues(asked.model):  # the hook has chosen another model
        goes_on = ""
    request = AgentBackendInput(
        messages=asked.conversation,
        model=asked.model,
        continue_from=goes_on,
        options=asked.parameters,
    )
    backend_context = AgentBackendContext(request_id=context.request_id, tracer=context.tracer)
    if goes_on:
        yield text_so_far(goes_on)
    async for events in context.backend.stream(request, backend_context):
        yield events
