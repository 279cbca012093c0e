"""
Decides when the chunks of a model's answer are taken one by one, and when they are gathered first.

A chunk is taken at once.  The next chunks are then gathered until a timer fires, and taken together, in two cases: the
chunk came less than 5 ms after the previous delivery, or the isolate has done other work since then and may be busy.
A busy isolate fires timers later, and so gathers more chunks at a time.  Where no two chunks are gathered together, it
is tried more and more rarely, until it succeeds again.
"""

import math
from typing import Final

__all__ = ["Gathering", "Work"]

_QUICK_S: Final = 0.005
"""A chunk that comes sooner after a delivery belongs to a burst, or to an answer that was ready before."""

_SHORTEST_S: Final = 0.002
_LONGEST_S: Final = 0.016
"""How long chunks are gathered: at first, and at most, doubling while `_CROWD` or more chunks come at a time."""

_OFTEN_ALONE: Final = 2
"""Gatherings of a single chunk, one after the other, that show that gathering only delays."""

_CROWD: Final = 4
"""Chunks gathered at a time; a model makes fewer in 2 ms, so from here on fewer wake-ups matter more than delay."""

_MOST_SKIPPED: Final = 15
"""So many chunks are taken one by one, at most, before gathering is tried again."""

_LATE_FACTOR: Final = 4
"""A timer late by t s lets the next chunks gather for 4 t s, so taking them uses a fifth of the time."""

_KNOWN_S: Final = 1.0
"""How long after a timer its lateness still tells whether the isolate is busy."""

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

    def late_s_at(self, now_s: float) -> float:
        """Return how late timers are; 0 if the latest fired too long ago to tell."""
        return self.late_s if now_s - self._fired_at < _KNOWN_S else 0.0


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
        self._skips = self._left = self._alone = 0

    def came(self, now_s: float) -> float | None:
        """Note a chunk that came ungathered; return how long to gather the next ones, None for not at all."""
        self._gather_s = _SHORTEST_S
        if now_s - self._delivered_at < _QUICK_S:
            return self._time_s(self._work.late_s_at(now_s))
        if self._work.pieces == self._seen:
            return None
        if self._left:
            self._left -= 1
            return None
        return self._time_s(self._work.late_s_at(now_s))

    def gathered(self, chunks: int) -> float | None:
        """
        Note how many chunks were gathered until the latest timer.

        Returns:
            How long to gather the next, in seconds; None for not at all.
        """
        self._alone = self._alone + 1 if chunks == 1 else 0
        if not chunks or self._alone == _OFTEN_ALONE:
            self._alone = 0
            self._skips = self._left = min(2 * self._skips + 1, _MOST_SKIPPED)
            return None
        if chunks > 1:
            self._skips = 0
        self._gather_s = min(2 * self._gather_s, _LONGEST_S) if chunks >= _CROWD else _SHORTEST_S
        return self._time_s(_LATE_FACTOR * self._work.late_s)

    def delivered(self, now_s: float) -> None:
        """Note a delivery; the isolate's work up to now counts as work for this answer."""
        self._delivered_at = now_s
        self._seen = self._work.pieces

    def _time_s(self, by_load_s: float) -> float:
        return min(max(self._gather_s, by_load_s), _LATEST_S)
