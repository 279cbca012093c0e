"""Who reads a turn, and who wants it stopped: the product's disconnect policy, and requests to stop from anywhere."""

import asyncio
import math
from typing import Final

from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.sql import NEWS
from chatturn.database.api import Row
from chatturn.durable.attempt import Attempt
from chatturn.durable.store import News
from chatturn.settings import Settings

__all__ = ["CANCEL_REQUESTED", "DISCONNECTED", "Readership"]

CANCEL_REQUESTED: Final = "requested"
DISCONNECTED: Final = "disconnected"
"""Why a turn was cancelled, as its last line says."""


class Readership:
    """
    Watches one turn's readers; cancels the turn when somebody asks for it, or when the policy ends an unread turn.

    ``continue`` never ends a turn; ``cancel`` ends a turn as soon as nobody reads it; ``grace`` ends it after
    `Settings.grace_ms` without a reader.  A turn that never had a reader goes on.  Only the database knows of readers
    in other isolates, so it is asked before a turn is ended.

    Args:
        settings: The policy, and how long the grace is.
        log: Knows the other readers in this isolate, and their wish to stop the turn.
        attempt: The attempt to cancel.
    """

    def __init__(self, settings: Settings, log: TurnLog, attempt: Attempt) -> None:
        self._policy = settings.on_disconnect
        self._grace_s = settings.grace_ms / 1000 if settings.on_disconnect == "grace" else 0.0
        self._log = log
        self._attempt = attempt
        self._unread_since = math.inf
        self._followed = False
        self._told_at = -math.inf

    @property
    def news(self) -> News:
        """The columns that every renewal of the lease returns, and what takes them."""
        return News(columns=NEWS, told=self.told)

    def lost(self) -> None:
        """Take note that the reader whose request began the turn is gone."""
        self._unread_since = asyncio.get_running_loop().time()

    def look(self) -> bool:
        """Look whether somebody in this isolate wants the turn stopped; return whether to ask the database now."""
        if self._log.cancel_requested:
            self._attempt.cancel(CANCEL_REQUESTED)
        return self._end_if_unread()

    def told(self, news: Row, asked_at: float) -> None:
        """Take the database's answer: whether the turn is to be stopped, and whether it is read elsewhere."""
        if news["cancel_requested_at"] is not None:
            self._attempt.cancel(CANCEL_REQUESTED)
        self._told_at, self._followed = asked_at, bool(news["followed"])
        self._end_if_unread()

    def _end_if_unread(self) -> bool:
        """Cancel the turn if it has been without readers for too long; return whether the database has to be asked."""
        if self._policy == "continue" or self._unread_since == math.inf:
            return False
        now = asyncio.get_running_loop().time()
        over_at = self._unread_since + self._grace_s
        if self._log.followers:
            self._unread_since = now
        elif now < over_at:
            return False
        elif self._told_at < over_at:
            return True
        elif self._followed:
            self._unread_since = now
        else:
            self._attempt.cancel(DISCONNECTED)
        return False
