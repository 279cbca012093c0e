"""A whole answer as the step of a durable task has it.  Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.events import BackendMadeEvent, RuntimeStreamEvent, TextDeltaEvent
from chatturn.agent_runtime.values.tasks import RuntimeSession

__all__ = ["RecordedAnswer", "compact_events"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """A whole answer as a step has it."""

    session: RuntimeSession
    resumed: bool
    text: str
    at: str
    events: tuple[Any, ...]


def compact_events(said: Sequence[RuntimeStreamEvent]) -> tuple[Any, ...]:
    """Return events as JSON without what a replay fills in again, pieces of text that follow one another as one."""
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
