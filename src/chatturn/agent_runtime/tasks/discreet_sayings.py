"""
A backend's events without the credentials of `Unsaid`, even if one is split over several pieces of text.

Text that was held back is told before the next event of another kind, so the order stays.
"""

from dataclasses import replace

from chatturn.agent_runtime.values.events import (
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.unsaid import Unsaid, UnsaidPieces

__all__ = ["DiscreetSayings"]


class DiscreetSayings:
    """The events of one answer, as they may be told."""

    def __init__(self, unsaid: Unsaid) -> None:
        self._unsaid = unsaid
        self._text, self._reasoning = UnsaidPieces(unsaid), UnsaidPieces(unsaid)
        self._latest: TextDeltaEvent | ReasoningDeltaEvent | None = None
        self._before_answer = ""

    def told_of(self, event: RuntimeStreamEvent) -> list[RuntimeStreamEvent]:
        """Take the next *event*; return the events that can be told now."""
        if not isinstance(event, TextDeltaEvent | ReasoningDeltaEvent):
            held = self.cut()
            if isinstance(event, ToolResultEvent):  # the answer starts again after a tool's result
                self._before_answer = self._text.told()
            return [*held, event]
        held = [] if type(event) is type(self._latest) else self.cut()
        self._latest, text = event, self._pieces_of(event).feed(event.text)
        return [*held, replace(event, text=text)] if text or not event.text else held

    def _pieces_of(self, event: TextDeltaEvent | ReasoningDeltaEvent) -> UnsaidPieces:
        return self._text if isinstance(event, TextDeltaEvent) else self._reasoning

    def cut(self) -> list[RuntimeStreamEvent]:
        """Return the text that was held back, as an event."""
        latest, self._latest = self._latest, None
        text = "" if latest is None else self._pieces_of(latest).cut()
        return [replace(latest, text=text)] if latest is not None and text else []

    def whole(self, answer: str) -> str:
        """Return *answer*, the text since the latest tool's result, as it may be told."""
        pieces = UnsaidPieces(self._unsaid, after=self._before_answer)
        return pieces.feed(answer) + pieces.cut()
