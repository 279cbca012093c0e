"""
One look at the database for all who follow the same turn from this isolate.

A follower of a turn that runs elsewhere asks the database again and again.  After a deployment every open chat is such
a follower, and what a hundred ask separately they are also told separately.  So whoever is first to want to look does,
and all others are shown what it found::

    follower A ──▶ nobody looks, and it is time ──▶ looks ──▶ keeps the page, rings
    follower B ──▶ somebody looks, or it is too early ──▶ waits ──▶ is shown the page

Here is only plain data, since requests must not touch each other's tasks and connections; what wakes a follower is its
own (see `chatturn.chat.log.live.Alarm`).  A follower that goes away while it looks is replaced after a while.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

from chatturn.chat.log.pages import LogPage

__all__ = ["Poll", "Polls"]

_LOOKS_FOR_S: Final = 10.0
"""How long a look may take until somebody else may look: the database is slow, or who looked is gone."""

_KEPT_CHARACTERS: Final = 256_000
"""Of lines, for followers that are a few looks behind; who is further behind asks for itself."""


class Poll:
    """
    What was last seen of one turn.

    Attributes:
        looks: How many looks have ended: a follower sees by it whether there is anything new.
        looked_at: When the last one began, in the loop's seconds.
        noted_until: Until when the turn's worker knows that it is followed from here.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.looked_at = float("-inf")
        self.noted_until = float("-inf")
        self._looking_until = float("-inf")
        self._taking_until = float("-inf")
        self._pages: list[tuple[int, LogPage]] = []
        self._watchers: list[Callable[[], object]] = []

    def may_look(self, now: float) -> bool:
        """Say whether nobody looks."""
        return now >= self._looking_until

    def begin_look(self, now: float) -> None:
        """Keep others from looking."""
        self.looked_at, self._looking_until = now, now + _LOOKS_FOR_S

    def end_look(self, after: int, page: LogPage | None) -> None:
        """
        Show what was found behind the seq *after* to all who wait; None if nothing was, because the look failed.

        A turn that is gone is for each follower to find out.
        """
        self._looking_until = float("-inf")
        if page is not None:
            if not self._pages or self._pages[-1][1].last != after:
                self._pages.clear()
            self._pages.append((after, page))
            while len(self._pages) > 1 and sum(len(kept.text) for _, kept in self._pages) > _KEPT_CHARACTERS:
                del self._pages[0]
        self.looks += 1
        self.ring()

    def may_take_over(self, now: float) -> bool:
        """Say whether nobody of this isolate claims the turn; then it is for whoever asked, for a while."""
        if now < self._taking_until:
            return False
        self._taking_until = now + _LOOKS_FOR_S
        return True

    def page_after(self, seq: int) -> LogPage | None:
        """Return what was found behind *seq*, with the state of the last look; None if it is not known here."""
        if not self._pages:
            return None
        latest = self._pages[-1][1]
        if seq == latest.last:
            return replace(latest, text="")
        at = next((at for at, (after, _) in enumerate(self._pages) if after == seq), None)
        return None if at is None else replace(latest, text="".join(page.text for _, page in self._pages[at:]))

    def watch(self, ring: Callable[[], object]) -> None:
        """Call *ring*, once, when somebody has looked."""
        self._watchers.append(ring)

    def unwatch(self, ring: Callable[[], object]) -> None:
        """Do not call *ring* any more, if it was not called yet."""
        if ring in self._watchers:
            self._watchers.remove(ring)

    def ring(self) -> None:
        """Wake all who wait."""
        watchers, self._watchers = self._watchers, []
        for ring in watchers:
            ring()


class Polls:
    """The polls of this isolate, by run; each is kept as long as somebody follows."""

    def __init__(self) -> None:
        self._polls: WeakValueDictionary[str, Poll] = WeakValueDictionary()

    def of(self, run_id: str) -> Poll:
        """Return the one poll of a run."""
        poll = self._polls.get(run_id)
        if poll is None:
            poll = self._polls[run_id] = Poll()
        return poll
