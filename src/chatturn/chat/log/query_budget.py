"""How often something that costs a query may be done: often at first, ever more rarely later.  Pure."""

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
"""A budget lasts for 15 minutes, which is what the platform gives work that nobody waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """
    Intervals that keep whatever lasts up to 15 minutes within a number of queries.

    At first every *first_ms*.  After a while the interval is a fixed part of the time that has passed, so the
    queries grow with its logarithm: ``k`` of them until then, and ``k * ln(passed / then)`` after.

    Attributes:
        first_ms: The shortest interval.
        queries: How many it comes to in 15 minutes, about.
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
        """Return how long to wait for the next time, *passed_ms* after the first."""
        return max(float(self.first_ms), passed_ms / self._part)

    def _count(self, k: float) -> float:
        steady_ms = k * self.first_ms
        return k * (1 + math.log(_HORIZON_MS / steady_ms)) if 0 < steady_ms < _HORIZON_MS else k


_NEVER_MS: Final = 10**12

# Cloudflare allows 1,000 D1 queries in one invocation on the paid plan, and 50 on the free one.  The claim, the
# finish, the renewals, the hooks and an agent's steps want their part of them.  (developers.cloudflare.com/d1/platform)

_LOG_QUERIES: Final[Mapping[Plan, int]] = {"paid": 500, "free": 8}

FOLLOW_PACES: Final[Mapping[Plan, Pace]] = {
    "paid": Pace(first_ms=100, queries=400),
    "free": Pace(first_ms=250, queries=25),
}
"""How often a follower asks the database for more of a log, by plan; it may take the turn over after that."""

WAIT_PACES: Final[Mapping[Plan, Pace]] = {
    "paid": Pace(first_ms=100, queries=400),
    "free": Pace(first_ms=500, queries=6),
}
"""How often a turn that waits for others of its session asks whether it may begin, by plan; it is to run after that."""

REVISION_LOOK_EVERY_S: Final[Mapping[Plan, float]] = {"paid": 0.5, "free": 2.0}
"""How often who waits for a session to change asks the database, by plan: 60 and 15 queries in 30 s."""

RENEWALS_PER_TERM: Final[Mapping[Plan, float]] = {"paid": 3.0, "free": 1.5}
"""How often a lease is renewed, by plan."""

RESUMED_AT_ONCE: Final[Mapping[Plan, int]] = {"paid": 5, "free": 1}
"""
How many turns one invocation runs that nobody asked for, by plan: at once, or each when the one before it has ended.

Each may keep a connection to the model open, of which the platform gives an invocation six.
"""


@functools.cache
def log_pace(plan: Plan, first_ms: int, *, turns: int = 1) -> Pace:
    """
    Return how often the lines of a turn are stored.

    Args:
        plan: Whose limits are kept to.
        first_ms: How often at first; 0 for only with the turn's end.
        turns: How many run in one invocation.
    """
    queries = max(1, _LOG_QUERIES[plan] // turns)
    return Pace(first_ms=first_ms, queries=queries) if first_ms else Pace(first_ms=_NEVER_MS, queries=1)
