"""
The public names for a product: it imports from this module, and from nothing else of chatturn.

A product is a module whose class ``Hooks`` derives from `ChatTurnHooks`::

    from chatturn.product import ChatTurnHooks, StreamProducer, TurnContext, answer

    class Hooks(ChatTurnHooks):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(answer(context, system="You help lawyers to read documents."))

Hooks and what they are given:
    `ChatTurnHooks`, `TurnContext`, `ModelRequest`, `FinishedTurn`, `ThreadChange`, `ChatTurnIdentity`;
    `EndedAttempt`, whose end is
    `Completed`, `Cancelled`, `Suspended` or `Failed`;
    `PastTurn`, `ShownHistory` and `recent`, for a history of its own.
The answer:
    `StreamProducer` and `DurableTurnProducer`, `answer`, `AgentBackendInput`, `AgentBackendContext`,
    `AgentExecutionBackend`, `ChatMessage`.
What an answer is made of:
    `ChatStreamEvent`, `EventBatch`, `text_delta`, `reasoning_delta`, `text_so_far`, `usage_event`.
Tools and durable steps:
    `Tool`, `ToolContext`, `ToolError`, `DurableContext`, `StepCall`, `StepRetry`.
Failures and the operator's log:
    `OperatorLog`, `print_log`; `ChatTurnError`, and of the errors below it those that a hook meets: `BackendError`,
    `BackendRejected`, `BackendTimeout`, `BackendTransportError`, `BudgetExceeded`, `DurableAwaitEventTimeoutError`,
    `DurableRunDivergenceError`, `StepTimeout`, `StepTooLarge`.
"""

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend, ChatMessage
from chatturn.chat.hooks.answering import answer
from chatturn.chat.hooks.hooks import (
    ChatTurnHooks,
    DurableTurnProducer,
    EndedAttempt,
    FinishedTurn,
    ModelRequest,
    TurnContext,
)
from chatturn.chat.hooks.thread_changes import ThreadChange
from chatturn.chat.hooks.tool import Tool, ToolContext, ToolError
from chatturn.chat.thread.history import PastTurn, ShownHistory, recent
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.turn.stream import StreamProducer
from chatturn.durable.context import DurableContext
from chatturn.durable.ends import Cancelled, Completed, Failed, Suspended
from chatturn.durable.steps import StepRetry
from chatturn.durable.tasks import StepCall
from chatturn.errors import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendTransportError,
    BudgetExceeded,
    ChatTurnError,
    DurableAwaitEventTimeoutError,
    DurableRunDivergenceError,
    StepTimeout,
    StepTooLarge,
)
from chatturn.events import ChatStreamEvent, EventBatch, reasoning_delta, text_delta, text_so_far, usage_event
from chatturn.telemetry.operator_log import OperatorLog, print_log

__all__ = [
    "AgentBackendContext",
    "AgentBackendInput",
    "AgentExecutionBackend",
    "BackendError",
    "BackendRejected",
    "BackendTimeout",
    "BackendTransportError",
    "BudgetExceeded",
    "Cancelled",
    "ChatMessage",
    "ChatStreamEvent",
    "ChatTurnError",
    "ChatTurnHooks",
    "ChatTurnIdentity",
    "Completed",
    "DurableAwaitEventTimeoutError",
    "DurableContext",
    "DurableRunDivergenceError",
    "DurableTurnProducer",
    "EndedAttempt",
    "EventBatch",
    "Failed",
    "FinishedTurn",
    "ModelRequest",
    "OperatorLog",
    "PastTurn",
    "ShownHistory",
    "StepCall",
    "StepRetry",
    "StepTimeout",
    "StepTooLarge",
    "StreamProducer",
    "Suspended",
    "ThreadChange",
    "Tool",
    "ToolContext",
    "ToolError",
    "TurnContext",
    "answer",
    "print_log",
    "reasoning_delta",
    "recent",
    "text_delta",
    "text_so_far",
    "usage_event",
]
