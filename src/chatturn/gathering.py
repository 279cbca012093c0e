"""
Decides when the chunks of a model's answer are taken one by one, and when they are gathered first.

A chunk is taken at once, unless it comes less than 5 ms after the previous delivery, or the isolate has done other
work since then.  In these two cases the next chunks are gathered until a timer fires, and then taken together.  A busy
isolate fires the timer later, so it gathers more chunks at a time, and its load needs no other measure.
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

_LATE_FACTOR: Final = 4
"""A timer late by t s lets the next chunks gather for 4 t s, so taking them uses a fifth of the time."""

_LATEST_S: Final = 0.1
"""Chunks are gathered for this time at most, however busy the isolate is."""


class Work:
    """
    The work of one isolate.

    Attributes:
        pieces: The pieces of work done so far; each woke a task.
    """

    def __init__(self) -> None:
        self.pieces = 0


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
        alone = now_s - self._delivered_at >= _QUICK_S and self._work.pieces == self._seen
        self._gather_s = _SHORTEST_S
        return None if alone else _SHORTEST_S

    def gathered(self, chunks: int, late_s: float) -> float:
        """
        Note the end of a gathering; return how long to gather the next chunks, in seconds.

        Args:
            chunks: The number of gathered chunks.
            late_s: Seconds by which the timer fired late.
        """
        self._gather_s = min(2 * self._gather_s, _LONGEST_S) if chunks >= _CROWD else _SHORTEST_S
        return min(max(self._gather_s, _LATE_FACTOR * late_s), _LATEST_S)

    def delivered(self, now_s: float) -> None:
        """Note a delivery; the isolate's work up to now counts as work for this answer."""
        self._delivered_at = now_s
        self._seen = self._work.pieces
