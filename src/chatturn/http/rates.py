"""
How often one user and one tenant may send requests, so that no single user fills an isolate.

If the platform has a rate limiter, it counts for all isolates of a location; else each isolate counts for itself.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from chatturn.errors import RateLimited
from chatturn.http.auth import Principal

__all__ = ["AskedRate", "IsolateRate", "Rate", "Rates"]

_MINUTE_S: Final = 60.0
BURST_S: Final = 15.0
"""As many requests may come at once as the rate allows in 15 s: 15 at 60 a minute."""

_MOST_KEYS: Final = 10_000
_UNTOLD_S: Final = 10.0
"""The wait, in seconds, that a client is told where the platform gives none."""


class Rate(Protocol):
    """Counts requests by a key."""

    async def wait_s(self, key: str) -> float:
        """Count a request; return 0 if it is allowed, else how many seconds to wait before the next try."""


class IsolateRate:
    """
    Counts in this isolate.

    Each request costs its key 60 / *per_minute* s.  One number is kept for each key: the time at which its requests are
    paid off.  A request is allowed if that time, with the request, is at most `BURST_S` ahead, or one request's cost
    if that is more.

    Args:
        per_minute: How many requests a minute are allowed; 0 for no limit.
        now: Seconds since the epoch.
    """

    def __init__(self, per_minute: int, *, now: Callable[[], float]) -> None:
        self._each_s = _MINUTE_S / per_minute if per_minute else 0.0
        self._now = now
        self._paid_off_at_s: dict[str, float] = {}

    async def wait_s(self, key: str) -> float:
        """Count a request; see `Rate.wait_s`.  A refused request is not counted."""
        now = self._now()
        paid_off_at_s = max(self._paid_off_at_s.pop(key, now), now) + self._each_s
        ahead_s = paid_off_at_s - now - max(BURST_S, self._each_s)
        self._paid_off_at_s[key] = paid_off_at_s if ahead_s <= 0 else paid_off_at_s - self._each_s
        if len(self._paid_off_at_s) > _MOST_KEYS:
            self._forget(now)
        return max(0.0, ahead_s)

    def _forget(self, now: float) -> None:
        """Forget the keys whose requests are paid off; if there are none, the key whose last request is the oldest."""
        self._paid_off_at_s = {key: at_s for key, at_s in self._paid_off_at_s.items() if at_s > now}
        if len(self._paid_off_at_s) > _MOST_KEYS:
            del self._paid_off_at_s[next(iter(self._paid_off_at_s))]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRate:
    """
    Asks the platform's rate limiter.

    Attributes:
        allows: Counts a request by its key at the platform; returns whether it is allowed.
    """

    allows: Callable[[str], Awaitable[bool]]

    async def wait_s(self, key: str) -> float:
        """Count a request; see `Rate.wait_s`."""
        return 0.0 if await self.allows(key) else _UNTOLD_S


class Rates:
    """
    The rates of a deployment.

    Args:
        subject: The rate of one user of one tenant.
        tenant: The rate of all users of one tenant together.
    """

    def __init__(self, *, subject: Rate, tenant: Rate) -> None:
        self._subject = subject
        self._tenant = tenant

    async def check(self, principal: Principal) -> None:
        """
        Count a request of *principal*.

        Raises:
            RateLimited: There were too many requests.
        """
        # A refused user's request is not counted for the tenant, whose other users may go on.
        wait_s = await self._subject.wait_s(principal.name)
        wait_s = wait_s or await self._tenant.wait_s(principal.tenant_id)
        if wait_s:
            raise RateLimited("too many requests", retry_after_s=math.ceil(wait_s))
