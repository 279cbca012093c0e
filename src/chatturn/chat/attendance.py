"""Whether anybody still reads a turn, and what becomes of it if nobody does: the product's disconnect policy."""

import asyncio
from collections.abc import Callable
from typing import Final

from chatturn.settings import DisconnectPolicy

__all__ = ["Attendance"]

_NOT_KNOWN: Final = "not known yet"


class Attendance:
    """
    Watches over one turn's readers.

    ``continue`` never ends a turn; ``cancel`` does so as soon as nobody reads it, ``grace`` after a while in which
    nobody came back.  A turn that had no reader from the beginning has lost none.

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
        self._followed_at: object = _NOT_KNOWN

    def lost(self) -> None:
        """Take note that the reader is gone who asked for the turn."""
        self._unread_since = asyncio.get_running_loop().time()
        self.look()

    def look(self) -> None:
        """End the turn if it has been without readers for too long."""
        if self._unread_since is None or self._policy == "continue":
            return
        now = asyncio.get_running_loop().time()
        if self._followers():
            self._unread_since = now
        elif now - self._unread_since >= self._grace_s:
            self._end()

    def followed(self, followed_at: str | None) -> None:
        """Take note of when a follower in another isolate last read the turn."""
        if followed_at != self._followed_at and self._unread_since is not None and self._followed_at is not _NOT_KNOWN:
            self._unread_since = asyncio.get_running_loop().time()
        self._followed_at = followed_at
