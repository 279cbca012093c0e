"""Any function that yields events, as a backend."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from chatturn.backends.api import NULL_METER, AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.events import EventBatch, TextDeltas, events_of

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

    async def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        with context.meter.call(request.model, context.request_id) as call:
            call.tried()
            # It may ask another backend, whose calls are a part of this one.
            stream = self.function(request, replace(context, meter=NULL_METER))
            try:
                async for batch in stream:
                    events = events_of(batch)
                    call.said(events)
                    for event in () if isinstance(events, TextDeltas) else events:
                        if event.type == "usage" and event.data is not None:
                            call.reported(event.data)
                    yield batch
            finally:
                if isinstance(stream, AsyncGenerator):
                    await stream.aclose()
