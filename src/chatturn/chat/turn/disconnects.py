"""Whether anybody still reads a turn, and what becomes of it if nobody does: the product's disconnect policy."""

import asyncio
from collections.abc import Callable

from chatturn.settings import DisconnectPolicy

__all__ = ["Attendance"]


class Attendance:
    """
    Watches over one turn's readers.

    ``continue`` never ends a turn; ``cancel`` does so as soon as nobody reads it, ``grace`` after a while in which
    nobody came back.  A turn that had no reader from the beginning has lost none.  Readers in other isolates are known
    by the database only, so no turn is ended before that was asked.

    Args:
        policy: The product's.
        grace_ms: Of ``grace``.
        followers: Returns how many others read the turn in this isolate.
        end: Ends the turn; called again as long as nobody reads it.
    """

    def __init__(
        self, policy: DisconnectPolicy, grace_ms: int, followers: Callable[[], int], end: Callable[[], None]
    ) -> None:
        self._policy = policy
        self._grace_s = grace_ms / 1000 if policy == "grace" else 0.0
        self._followers = followers
        self._end = end
        self._unread_since: float | None = None
        self._followed = False
        self._told_at = float("-inf")

    def lost(self) -> None:
        """Take note that the reader is gone who asked for the turn."""
        self._unread_since = asyncio.get_running_loop().time()

    def told(self, asked_at: float, *, followed: bool) -> None:
        """Take what the database said when it was asked: whether somebody reads the turn in another isolate."""
        self._told_at, self._followed = asked_at, followed

    def end_if_unread(self) -> bool:
        """End the turn if it has been without readers for too long; return whether the database has to be asked."""
        if self._unread_since is None or self._policy == "continue":
            return False
        now = asyncio.get_running_loop().time()
        over_at = self._unread_since + self._grace_s
        if self._followers():
            self._unread_since = now
        elif now >= over_at and self._told_at < over_at:
            return True
        elif now >= over_at and self._followed:
            self._unread_since = now
        elif now >= over_at:
            self._end()
        return False
