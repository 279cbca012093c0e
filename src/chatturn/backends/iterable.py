"""Any function that yields events, as a backend."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

from chatturn.backends import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.events import EventBatch

__all__ = ["StreamFunction", "create_iterable_backend"]

StreamFunction: TypeAlias = Callable[[AgentBackendInput, AgentBackendContext], AsyncIterator[EventBatch]]


def create_iterable_backend(kind: str, stream: StreamFunction) -> AgentExecutionBackend:
    """Make the backend named *kind* that answers with what *stream* yields."""
    return _IterableBackend(kind, stream)


@dataclass(frozen=True, slots=True)
class _IterableBackend:
    kind: str
    function: StreamFunction

    def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        return self.function(request, context)
