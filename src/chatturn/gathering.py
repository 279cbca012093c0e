"""
When the chunks of a model's answer are taken one by one, and when they gather first.

A chunk is taken at once, unless it comes right behind another.  Where the isolate has other work as well, those that
come next gather for a moment in any case: a timer ends it, and comes later the more there is to do.  So what came
meanwhile is taken together, however busy the isolate is, and no clock has to say how busy that is.
"""

import math
from typing import Final

__all__ = ["Gathering", "Work"]

_QUICK_S: Final = 0.005
"""Chunks that come sooner behind a delivery are a burst, or an answer that was ready before."""

_SHORTEST_S: Final = 0.002
_LONGEST_S: Final = 0.016
"""How long chunks gather: at first, and while crowds come."""

_CROWD: Final = 4
"""More than any model says in so short a time: then few steps of Python count for more than a few milliseconds."""

_LATE_FACTOR: Final = 4
"""Chunks gather for so many times what the timer was late, so that looking at them takes a fifth of the time."""

_LATEST_S: Final = 0.1
"""They gather no longer than this, however busy the isolate is."""


class Work:
    """
    What one isolate does.

    Attributes:
        pieces: How many pieces of work it has done: a task was woken each time.
    """

    def __init__(self) -> None:
        self.pieces = 0


class Gathering:
    """
    Decides for one answer.  `delivered` is called behind each delivery of its chunks.

    Args:
        work: Of the isolate.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._seen = work.pieces
        self._delivered_at = -math.inf
        self._gather_s = _SHORTEST_S

    def came(self, now_s: float) -> float | None:
        """Take note that a chunk comes by itself; return for how long the next ones gather, None for no time."""
        alone = now_s - self._delivered_at >= _QUICK_S and self._work.pieces == self._seen
        self._gather_s = _SHORTEST_S
        return None if alone else _SHORTEST_S

    def gathered(self, chunks: int, late_s: float) -> float:
        """
        Take note that chunks have gathered; return for how long the next ones gather.

        Args:
            chunks: How many those were.
            late_s: By how much the timer that looks at them was late.
        """
        self._gather_s = min(2 * self._gather_s, _LONGEST_S) if chunks >= _CROWD else _SHORTEST_S
        return min(max(self._gather_s, _LATE_FACTOR * late_s), _LATEST_S)

    def delivered(self, now_s: float) -> None:
        """Take note that what came was delivered: that much was work for this answer."""
        self._delivered_at = now_s
        self._seen = self._work.pieces
