"""A whole answer as a step of a durable task records it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.events import BackendMadeEvent, RuntimeStreamEvent, TextDeltaEvent
from chatturn.agent_runtime.values.tasks import RuntimeSession

__all__ = ["RecordedAnswer", "compact_events"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """A whole answer as a step records it; `at` is when it was complete."""

    session: RuntimeSession
    resumed: bool
    text: str
    at: str
    events: tuple[Any, ...]


def compact_events(said: Sequence[RuntimeStreamEvent]) -> tuple[Any, ...]:
    """Return events as JSON, without members that a replay fills in; consecutive pieces of text become one."""
    compact: list[Any] = []
    for event in said:
        if isinstance(event, TextDeltaEvent) and compact and compact[-1]["type"] == TextDeltaEvent.type:
            compact[-1]["text"] += event.text
        else:
            made: Any = event
            compact.append(
                to_json(replace(made, task=None, session=None) if isinstance(event, BackendMadeEvent) else event)
            )
    return tuple(compact)
