"""Any function that yields events, as a backend."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

from chatturn.backends import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.events import EventBatch

__all__ = ["StreamFunction", "create_iterable_backend"]

StreamFunction: TypeAlias = Callable[[AgentBackendInput, AgentBackendContext], AsyncIterator[EventBatch]]


def create_iterable_backend(kind: str, stream: StreamFunction, *, continues: bool = False) -> AgentExecutionBackend:
    """
    Make the backend named *kind* that answers with what *stream* yields.

    Args:
        kind: Its short name.
        stream: Answers.
        continues: Whether it takes account of `AgentBackendInput.continue_from`.
    """
    return _IterableBackend(kind, stream, continues)


@dataclass(frozen=True, slots=True)
class _IterableBackend:
    kind: str
    function: StreamFunction
    can_continue: bool

    def continues(self, _model: str | None) -> bool:
        return self.can_continue

    def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        return self.function(request, context)
