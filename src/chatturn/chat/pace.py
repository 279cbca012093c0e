"""How often something that costs a query may be done: often at first, ever more rarely later.  Pure."""

import math
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FOLLOW_PACES", "LOG_PACES", "Pace"]

_HORIZON_MS: Final = 900_000
"""A budget lasts for 15 minutes, which is what the platform gives work that nobody waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """
    Intervals that keep whatever lasts up to 15 minutes within so many queries.

    At first every *first_ms*.  After a while the interval is a fixed part of the time that has passed, so the
    queries grow with its logarithm: ``k`` of them until then, and ``k * ln(passed / then)`` after.

    Attributes:
        first_ms: The shortest interval.
        queries: About so many in 15 minutes.
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


# Cloudflare allows 1,000 D1 queries in one invocation on the paid plan, and 50 on the free one.  The claim, the
# finish, the renewals, the hooks and an agent's steps want their part of them.  (developers.cloudflare.com/d1/platform)

LOG_PACES: Final = {"paid": Pace(first_ms=250, queries=600), "free": Pace(first_ms=250, queries=20)}
"""How often the lines of a turn are stored, by plan."""

FOLLOW_PACES: Final = {"paid": Pace(first_ms=100, queries=900), "free": Pace(first_ms=250, queries=35)}
"""How often a follower asks the database for more of them."""
