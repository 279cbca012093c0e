"""How often an action that costs a query may be repeated: often at first, ever more rarely later.  Pure."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from chatturn.settings import Plan

__all__ = [
    "FOLLOW_PACES",
    "RENEWALS_PER_TERM",
    "RESUMED_AT_ONCE",
    "REVISION_LOOK_EVERY_S",
    "WAIT_PACES",
    "Pace",
    "log_pace",
]

_HORIZON_MS: Final = 900_000
"""A budget lasts for 15 minutes, the platform's limit for work that nobody waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """
    Intervals between queries that keep up to 15 minutes of work within a number of queries.

    The interval is ``max(first_ms, passed_ms / k)``: ``k`` queries until ``k * first_ms`` have passed, and
    ``k * ln(passed_ms / (k * first_ms))`` queries after that.

    Attributes:
        first_ms: The shortest interval.
        queries: About how many queries this makes in 15 minutes.
    """

    first_ms: int
    queries: int
    _part: float = field(init=False)

    def __post_init__(self) -> None:
        if self.first_ms < 1 or self.queries < 1:
            raise ValueError("first_ms and queries must be at least 1")
        low, high = 0.0, float(self.queries)
        for _ in range(60):  # the count grows with k: halve the range until it is exact
            k = (low + high) / 2
            low, high = (k, high) if self._count(k) <= self.queries else (low, k)
        object.__setattr__(self, "_part", low)

    def interval_ms(self, passed_ms: float) -> float:
        """Return how many ms to wait for the next query, *passed_ms* after the first."""
        return max(float(self.first_ms), passed_ms / self._part)

    def _count(self, k: float) -> float:
        steady_ms = k * self.first_ms
        return k * (1 + math.log(_HORIZON_MS / steady_ms)) if 0 < steady_ms < _HORIZON_MS else k


_NEVER_MS: Final = 10**12

# Cloudflare allows 1,000 D1 queries in one invocation on the paid plan, and 50 on the free one.  The claim, the
# finish, the renewals, the hooks and an agent's steps need a part of them.  (developers.cloudflare.com/d1/platform)

_LOG_QUERIES: Final[Mapping[Plan, int]] = {"paid": 500, "free": 8}

FOLLOW_PACES: Final[Mapping[Plan, Pace]] = {
    "paid": Pace(first_ms=100, queries=400),
    "free": Pace(first_ms=250, queries=25),
}
"""How often a follower asks the database for more of a log, by plan; queries are left to take the turn over."""

WAIT_PACES: Final[Mapping[Plan, Pace]] = {
    "paid": Pace(first_ms=100, queries=400),
    "free": Pace(first_ms=500, queries=6),
}
"""How often a turn that waits for others of its session asks whether it may begin, by plan; queries are left to run."""

REVISION_LOOK_EVERY_S: Final[Mapping[Plan, float]] = {"paid": 0.5, "free": 2.0}
"""Seconds between two looks at a session by a request that waits for a change, by plan: 60 or 15 looks in 30 s."""

RENEWALS_PER_TERM: Final[Mapping[Plan, float]] = {"paid": 3.0, "free": 1.5}
"""How many times a lease is renewed within its term, by plan."""

RESUMED_AT_ONCE: Final[Mapping[Plan, int]] = {"paid": 5, "free": 1}
"""
How many turns one invocation runs without a request for them, by plan: at once, or one after another.

Each may keep a connection to the model open; the platform gives an invocation 6 connections.
"""


@functools.cache
def log_pace(plan: Plan, first_ms: int, *, turns: int = 1) -> Pace:
    """
    Return how often the lines of a turn are stored.

    Args:
        plan: The plan whose limits apply.
        first_ms: The interval at first; 0 to store only at the turn's end.
        turns: How many turns share one invocation's queries.
    """
    queries = max(1, _LOG_QUERIES[plan] // turns)
    return Pace(first_ms=first_ms, queries=queries) if first_ms else Pace(first_ms=_NEVER_MS, queries=1)
