"""Who reads a turn, and who wants it stopped: the product's disconnect policy, and what is asked for from elsewhere."""

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
    Watches over one turn's readers, and cancels the turn if they, or nobody, want it so.

    ``continue`` never ends a turn; ``cancel`` does so as soon as nobody reads it, ``grace`` after a while in which
    nobody came back.  A turn that had no reader from the beginning has lost none.  Readers in other isolates are known
    by the database only, so no turn is ended before that was asked.

    Args:
        settings: The policy, and how long the grace is.
        log: Where others in this isolate read, and leave word.
        attempt: What is cancelled; again as long as nobody reads the turn.
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
        """What to hear with every renewal of the lease."""
        return News(columns=NEWS, told=self.told)

    def lost(self) -> None:
        """Take note that the reader is gone who asked for the turn."""
        self._unread_since = asyncio.get_running_loop().time()

    def look(self) -> bool:
        """Look whether somebody in this isolate wants the turn stopped; return whether to ask the database now."""
        if self._log.cancel_requested:
            self._attempt.cancel(CANCEL_REQUESTED)
        return self._end_if_unread()

    def told(self, news: Row, asked_at: float) -> None:
        """Take what the database said when it was asked: whether the turn is to be stopped, and is read elsewhere."""
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
