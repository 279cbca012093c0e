"""
How often one user and one tenant may ask, so that no one user fills an isolate.

Where the platform counts, for all isolates of a place together, it is asked; else each isolate counts for itself.
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
"""The burst: as many requests at once as the rate allows in 15 s."""

_MOST_KEYS: Final = 10_000
_UNTOLD_S: Final = 10.0
"""The wait that a client is told where the platform does not give one."""


class Rate(Protocol):
    """Counts requests by a key."""

    async def wait_s(self, key: str) -> float:
        """Count a request; return 0 if it may go on, else in how many seconds to ask again."""


class IsolateRate:
    """
    Counts in this isolate, with one number for each key: when all that it has asked for would be paid off.

    Args:
        per_minute: How many requests; 0 for any number.
        now: Seconds since the epoch.
    """

    def __init__(self, per_minute: int, *, now: Callable[[], float]) -> None:
        self._each_s = _MINUTE_S / per_minute if per_minute else 0.0
        self._now = now
        self._paid_off_at_s: dict[str, float] = {}

    async def wait_s(self, key: str) -> float:
        """Count a request; see `Rate.wait_s`.  One that is refused is not counted."""
        now = self._now()
        paid_off_at_s = max(self._paid_off_at_s.pop(key, now), now) + self._each_s
        ahead_s = paid_off_at_s - now - max(BURST_S, self._each_s)
        self._paid_off_at_s[key] = paid_off_at_s if ahead_s <= 0 else paid_off_at_s - self._each_s
        if len(self._paid_off_at_s) > _MOST_KEYS:
            self._forget(now)
        return max(0.0, ahead_s)

    def _forget(self, now: float) -> None:
        """Forget keys whose requests are paid off; without any, the key that asked longest ago."""
        self._paid_off_at_s = {key: at_s for key, at_s in self._paid_off_at_s.items() if at_s > now}
        if len(self._paid_off_at_s) > _MOST_KEYS:
            del self._paid_off_at_s[next(iter(self._paid_off_at_s))]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRate:
    """
    Counts at the platform.

    Attributes:
        allows: Counts a request by a key there; returns whether it may go on.
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
            RateLimited: There were too many.
        """
        # A user who is refused does not use up what belongs to the tenant's others.
        wait_s = await self._subject.wait_s(f"{len(principal.tenant_id)}:{principal.tenant_id}:{principal.user_id}")
        wait_s = wait_s or await self._tenant.wait_s(principal.tenant_id)
        if wait_s:
            raise RateLimited("too many requests", retry_after_s=math.ceil(wait_s))
