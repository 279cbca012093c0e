"""
Decides when the chunks of a model's answer are taken one by one, and when they are gathered first.

A chunk is taken at once.  The next chunks are then gathered until a timer fires, and taken together, in two cases: the
chunk came less than 5 ms after the previous delivery, or the isolate has done other work since then and may be busy.
The measure of that is how late its timers fire: an isolate whose latest timer was on time, and fired less than 0.1 s
ago, is not busy, and needs no timer.  A busy isolate fires timers later, and so gathers more chunks at a time.
"""

import math
from typing import Final

__all__ = ["Gathering", "Work"]

_QUICK_S: Final = 0.005
"""A chunk that comes sooner after a delivery belongs to a burst, or to an answer that was ready before."""

_SHORTEST_S: Final = 0.002
_LONGEST_S: Final = 0.016
"""How long chunks are gathered: at first, and at most, doubling while `_CROWD` or more chunks come at a time."""

_CROWD: Final = 4
"""Chunks gathered at a time; a model makes fewer in 2 ms, so from here on fewer wake-ups matter more than delay."""

_LATE_S: Final = 0.01
_LOOK_AGAIN_S: Final = 0.1
"""An isolate may be busy if a timer was this late, or if none has fired for so long."""

_LATE_FACTOR: Final = 4
"""A timer late by t s lets the next chunks gather for 4 t s, so taking them uses a fifth of the time."""

_LATEST_S: Final = 0.1
"""Chunks are gathered for this time at most, however busy the isolate is."""


class Work:
    """
    The work of one isolate.

    Attributes:
        pieces: The pieces of work done so far; each woke a task.
        late_s: How many seconds late the latest timer of a gathering fired.
    """

    def __init__(self) -> None:
        self.pieces = 0
        self.late_s = 0.0
        self._fired_at = -math.inf

    def fired(self, now_s: float, late_s: float) -> None:
        """Note that a timer has fired, *late_s* seconds late."""
        self._fired_at, self.late_s = now_s, late_s

    def may_be_busy(self, now_s: float) -> bool:
        """Say whether the latest timer was late, or is too long ago to tell."""
        return self.late_s >= _LATE_S or now_s - self._fired_at >= _LOOK_AGAIN_S


class Gathering:
    """
    Decides for one answer.  Call `delivered` after each delivery of its chunks.

    Args:
        work: The isolate's work.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._seen = work.pieces
        self._delivered_at = -math.inf
        self._gather_s = _SHORTEST_S

    def came(self, now_s: float) -> float | None:
        """Note a chunk that came ungathered; return how long to gather the next ones, None for not at all."""
        work, self._gather_s = self._work, _SHORTEST_S
        if now_s - self._delivered_at < _QUICK_S or (work.pieces != self._seen and work.may_be_busy(now_s)):
            return _SHORTEST_S
        return None

    def gathered(self, chunks: int) -> float:
        """Note *chunks* that were gathered until the latest timer; return how long to gather the next, in seconds."""
        self._gather_s = min(2 * self._gather_s, _LONGEST_S) if chunks >= _CROWD else _SHORTEST_S
        return min(max(self._gather_s, _LATE_FACTOR * self._work.late_s), _LATEST_S)

    def delivered(self, now_s: float) -> None:
        """Note a delivery; the isolate's work up to now counts as work for this answer."""
        self._delivered_at = now_s
        self._seen = self._work.pieces
