"""A product for the recorded cases: the user's message decides which tools the model may use."""

from collections.abc import Mapping
from typing import Any, Final

from chatturn.chat.agent.agent import AgentProducer
from chatturn.product import (
    ChatTurnHooks,
    DurableTurnProducer,
    EventBatch,
    StreamProducer,
    Tool,
    ToolContext,
    TurnContext,
    answer,
)

__all__ = ["TOOLS", "Hooks"]


async def _done(args: Mapping[str, Any], _call: ToolContext) -> Any:
    return {"done": dict(args)}


_TEXT: Final = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

TOOLS: Final[Mapping[str, Tool]] = {
    "notes": Tool(name="add_note", description="Keeps a note.", parameters=_TEXT, run=_done),
    "wipe": Tool(name="wipe", description="Forgets all notes.", parameters={"type": "object"}, run=_done),
}


class Hooks(ChatTurnHooks):
    """Answer, with a tool if the message begins with one's name and a colon."""

    def produce(self, context: TurnContext) -> DurableTurnProducer[EventBatch]:
        """Ask the model."""
        tool = TOOLS.get(context.user_message.partition(":")[0])
        return StreamProducer(answer(context)) if tool is None else AgentProducer(context, [tool])
