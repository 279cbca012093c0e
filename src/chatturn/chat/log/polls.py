"""
One look at the database for all that wait in this isolate for the same news: of a turn, or of a session.

A follower of a turn that runs elsewhere asks the database again and again.  After a deployment every open chat is such
a follower, and 100 followers of one turn would read the same page 100 times.  So the first follower that is due looks,
and all others are shown the page that it found::

    follower A ──▶ nobody looks, and it is time ──▶ looks ──▶ keeps the page, rings
    follower B ──▶ somebody looks, or it is too early ──▶ waits ──▶ is shown the page

Here is only plain data, since requests must not touch each other's tasks and connections; what wakes a follower is its
own (see `chatturn.chat.log.live.Alarm`).  A follower that goes away while it looks is replaced after a while.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

from chatturn.chat.log.pages import LogPage

__all__ = ["Poll", "Polls", "RevisionPoll", "SharedLook"]

_LOOKS_FOR_S: Final = 10.0
"""After this time without a result somebody else may look: the database is slow, or the first follower is gone."""

_KEPT_CHARACTERS: Final = 256_000
"""Characters of lines kept for followers a few looks behind; a follower further behind asks for itself."""


class SharedLook:
    """
    Decides who looks next, and wakes those that wait for the result.

    Attributes:
        looks: How many looks have ended: a waiter learns by a higher count that there is a new result.
        looked_at: When the last look began, in seconds of the loop's clock.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.looked_at = float("-inf")
        self._looking_until = float("-inf")
        self._watchers: list[Callable[[], object]] = []

    def may_look(self, now: float) -> bool:
        """Say whether nobody looks."""
        return now >= self._looking_until

    def begin_look(self, now: float) -> None:
        """Keep others from looking."""
        self.looked_at, self._looking_until = now, now + _LOOKS_FOR_S

    def _looked(self) -> None:
        self._looking_until = float("-inf")
        self.looks += 1
        self.ring()

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


class Poll(SharedLook):
    """
    What was last seen of one turn.

    Attributes:
        noted_until: Until when the turn's worker knows that it is followed from here.
        stretch: By how much the next look is later than its pace says, as a factor; drawn anew for each look, so that
            many turns that are followed from the same moment on do not all ask at the same moments.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stretch = 1.0
        self.noted_until = float("-inf")
        self._taking_until = float("-inf")
        self._pages: list[tuple[int, LogPage]] = []

    def end_look(self, after: int, page: LogPage | None) -> None:
        """
        Show what was found behind the seq *after* to all who wait; None if nothing was, because the look failed.

        Each follower finds out for itself that a turn is gone.
        """
        if page is not None:
            if not self._pages or self._pages[-1][1].last != after:
                self._pages.clear()
            self._pages.append((after, page))
            while len(self._pages) > 1 and sum(len(kept.text) for _, kept in self._pages) > _KEPT_CHARACTERS:
                del self._pages[0]
        self._looked()

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


class RevisionPoll(SharedLook):
    """
    What was last seen of one session's revision.

    Attributes:
        tag: The revision's tag; None for a session whose revision is not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tag: str | None = None

    def end_look(self, tag: str | None) -> None:
        """Show what was found to all who wait; after a look that failed, what was found before."""
        self.tag = tag
        self._looked()

    def changes(self) -> None:
        """Take note that the session changes in this isolate: the next look is due."""
        self.looked_at = float("-inf")
        self.ring()


P = TypeVar("P", bound=SharedLook)


class Polls(Generic[P]):
    """
    The polls of this isolate, by what they look at; each is kept as long as somebody waits.

    Args:
        make: Makes one.
    """

    def __init__(self, make: Callable[[], P]) -> None:
        self._make = make
        self._polls: WeakValueDictionary[str, P] = WeakValueDictionary()

    def of(self, name: str) -> P:
        """Return the one poll of a run, or of a session."""
        poll = self._polls.get(name)
        if poll is None:
            poll = self._polls[name] = self._make()
        return poll

    def get(self, name: str) -> P | None:
        """Return the poll of a run, or of a session, if somebody waits for news of it."""
        return self._polls.get(name)
