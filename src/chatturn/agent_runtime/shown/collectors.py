"""
Collectors: the sanitized events of a stream or a loop, for a line of a log or a row of a database.

A collector keeps the first events and counts all, so that an endless turn takes bounded memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from chatturn.agent_runtime.shown.sanitize import NOTHING_ASKED, RuntimeTelemetryOptions, Sanitizer
from chatturn.agent_runtime.values.control import AgentRuntimeEvent
from chatturn.agent_runtime.values.events import (
    BackendStartEvent,
    FinalEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TextDeltaEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.telemetry.redaction import REDACTED, without_secrets

__all__ = [
    "MAX_CHARACTERS",
    "MAX_EVENTS",
    "RuntimeEventCollector",
    "RuntimeStreamEventCollector",
    "RuntimeStreamEventSink",
    "RuntimeStreamEventSummary",
    "create_runtime_event_collector",
    "create_runtime_stream_event_collector",
]

MAX_EVENTS: Final = 1_000
"""The most events that a collector keeps."""

MAX_CHARACTERS: Final = 1_000_000
"""The most characters of the kept events' JSON, and of an answer's text."""

RuntimeStreamEventSink: TypeAlias = Callable[[RuntimeStreamEvent], None]
"""Takes the events of a stream, one after another; it must not block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStreamEventSummary:
    """
    The summary of a stream.

    Attributes:
        event_count: The number of events seen, kept or not.
        event_counts_by_type: The number of events seen, by type.
        first_session_id: The id of the first session created or resumed; None before there was one.
        final_status: The status of the last `final`; None before there was one.
        final_reason: The reason of the last `final`, or None; masked unless it is one of chatturn's own
            (`fixed_words`), or reasons are asked for.
        final_text: The answer: the text of the last `final`, or else the pieces since the backend was last asked.
            Masked if text is not asked for, "" if there is no answer.
    """

    event_count: int
    event_counts_by_type: Mapping[str, int]
    first_session_id: str | None
    final_status: AgentTaskStatus | None
    final_reason: str | None
    final_text: str


class _Kept:
    """
    The first events, up to the limits.

    Attributes:
        events: Their JSON, in their order.
        dropped: The number of events after them.
    """

    def __init__(self, max_events: int, max_characters: int) -> None:
        self.events: list[dict[str, Any]] = []
        self.dropped = 0
        self._room = max_events
        self._characters = max_characters

    def add(self, members: dict[str, Any]) -> None:
        """Keep *members* if there is room; after the first event without room none is kept, so there is no gap."""
        self._characters -= len(json.dumps(members)) if self._room > 0 else 0
        if self._room <= 0 or self._characters < 0:
            self._room = 0
            self.dropped += 1
        else:
            self._room -= 1
            self.events.append(members)


class RuntimeStreamEventCollector:
    """
    Collects the events of one stream.

    Args:
        options: What is shown that is redacted by default.
        max_events: The most events that are kept.
        max_characters: The most characters of the kept events' JSON, and of the answer's text.
    """

    def __init__(self, options: RuntimeTelemetryOptions, *, max_events: int, max_characters: int) -> None:
        self._sanitizer = Sanitizer(options)
        self._kept = _Kept(max_events, max_characters)
        self._counts: Counter[str] = Counter()
        self._session_id: str | None = None
        self._final: dict[str, Any] = {}
        self._status: AgentTaskStatus | None = None
        self._text = _Text(max_characters if options.include_text else 0)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The kept events as JSON; events of one task share the task's JSON object."""
        return self._kept.events

    @property
    def dropped(self) -> int:
        """The number of events that were not kept."""
        return self._kept.dropped

    def on_event(self, event: RuntimeStreamEvent) -> None:
        """Take the next event."""
        sanitized = self._sanitizer.stream_event(event)
        self._kept.add(sanitized)
        self._counts[event.type] += 1
        match event:
            case TextDeltaEvent(text=text):
                self._text.add(text)
            case BackendStartEvent():  # asked again, after a worker was lost: the text before is void
                self._text.clear()
            case SessionCreatedEvent() | SessionResumedEvent():
                self._session_id = self._session_id or sanitized["session"]["id"]
            case FinalEvent(status=status, text=text):
                self._status, self._final = status, sanitized
                if text is not None:
                    self._text.clear()
                    self._text.add(text)

    def summary(self) -> RuntimeStreamEventSummary:
        """Return the summary of the events so far."""
        return RuntimeStreamEventSummary(
            event_count=self._counts.total(),
            event_counts_by_type=dict(self._counts),
            first_session_id=self._session_id,
            final_status=self._status,
            final_reason=self._final.get("reason"),
            final_text=self._text.shown(),
        )


class _Text:
    """The answer, up to *room* characters; with a room of 0, only whether there is an answer."""

    def __init__(self, room: int) -> None:
        self._most = room
        self.clear()

    def clear(self) -> None:
        self._room = self._most
        self._said = False
        self._pieces: list[str] = []

    def add(self, text: str) -> None:
        self._said = self._said or bool(text)
        if piece := text[: self._room]:
            self._room -= len(piece)
            self._pieces.append(piece)

    def shown(self) -> str:
        if self._most:
            return without_secrets("".join(self._pieces))
        return REDACTED if self._said else ""


class RuntimeEventCollector:
    """
    Collects the events of one control loop.

    Args:
        options: What is shown that is redacted by default.
        max_events: The most events that are kept.
        max_characters: The most characters of the kept events' JSON.
    """

    def __init__(self, options: RuntimeTelemetryOptions, *, max_events: int, max_characters: int) -> None:
        self._sanitizer = Sanitizer(options)
        self._kept = _Kept(max_events, max_characters)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The kept events as JSON; events of one task share the task's JSON object."""
        return self._kept.events

    @property
    def dropped(self) -> int:
        """The number of events that were not kept."""
        return self._kept.dropped

    def on_event(self, event: AgentRuntimeEvent) -> None:
        """Take the next event."""
        self._kept.add(self._sanitizer.agent_event(event))


def create_runtime_stream_event_collector(
    options: RuntimeTelemetryOptions = NOTHING_ASKED,
    *,
    max_events: int = MAX_EVENTS,
    max_characters: int = MAX_CHARACTERS,
) -> RuntimeStreamEventCollector:
    """Return a `RuntimeStreamEventCollector` with these arguments."""
    return RuntimeStreamEventCollector(options, max_events=max_events, max_characters=max_characters)


def create_runtime_event_collector(
    options: RuntimeTelemetryOptions = NOTHING_ASKED,
    *,
    max_events: int = MAX_EVENTS,
    max_characters: int = MAX_CHARACTERS,
) -> RuntimeEventCollector:
    """Return a `RuntimeEventCollector` with these arguments."""
    return RuntimeEventCollector(options, max_events=max_events, max_characters=max_characters)
