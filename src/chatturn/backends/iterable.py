"""Any function that yields events, as a backend."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from chatturn.backends.api import (
    NULL_METER,
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    CallMeter,
    Meter,
)
from chatturn.events import ChatStreamEvent, EventBatch, TextDeltas, events_of

__all__ = ["StreamFunction", "create_iterable_backend"]

StreamFunction: TypeAlias = Callable[[AgentBackendInput, AgentBackendContext], AsyncIterator[EventBatch]]


def create_iterable_backend(kind: str, stream: StreamFunction, *, continues: bool = False) -> AgentExecutionBackend:
    """
    Make the backend named *kind* that answers with what *stream* yields.

    Args:
        kind: Its short name, for logs and spans.
        stream: The function; it yields the answer's events.
        continues: Whether *stream* continues from `AgentBackendInput.continue_from`.
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
            reports = _Reports(call, context.meter)
            # *stream* may ask another backend, whose calls are a part of this one.
            stream = self.function(request, replace(context, meter=NULL_METER))
            try:
                async for batch in stream:
                    events = events_of(batch)
                    call.said(events)
                    yield batch if isinstance(events, TextDeltas) else reports.counted(events)
            finally:
                if isinstance(stream, AsyncGenerator):
                    await stream.aclose()


@dataclass(slots=True)
class _Reports:
    """The usage that a function reports: the last report is the metered call's, each earlier one another call's."""

    call: CallMeter
    meter: Meter
    latest: Mapping[str, Any] | None = None

    def counted(self, events: Sequence[ChatStreamEvent]) -> Sequence[ChatStreamEvent]:
        """Take what *events* report; return them, with the index of the call that each report is about."""
        return [self._taken(event) if event.type == "usage" and event.data is not None else event for event in events]

    def _taken(self, event: ChatStreamEvent) -> ChatStreamEvent:
        usage = {name: value for name, value in (event.data or {}).items() if name != "call"}
        if self.latest is not None:
            self.meter.report(self.latest)
        self.latest = usage
        self.call.reported(usage)
        index = self.call.index
        return ChatStreamEvent(event.type, usage if index is None else {**usage, "call": index})
