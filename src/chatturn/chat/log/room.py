"""
How many characters of logs all followers of an isolate may hold together: read just now, or sent and not yet taken.

A follower that takes nothing holds the page that it was sent last, and 500 such followers would fill the isolate.  So
each page needs room; a follower that finds none holds nothing while it waits::

    room to read? ──▶ page read ──▶ room to send? ──▶ sent ──▶ taken, or the reader given up
        │ no: waits                      │ no: dropped, waits, read again

A room is only plain data, since requests must not touch each other's tasks; what wakes a follower is its own alarm.  A
follower that the platform ended never gives back what it held, so that falls free after a while.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

__all__ = [
    "PAGE_CHARACTERS",
    "SMALL_CHARACTERS",
    "Room",
    "body_room",
    "holder",
    "reading_room",
    "sending_room",
    "wait_for_room",
]

PAGE_CHARACTERS: Final = 256_000
"""The most characters of a page, which is what one reader has in memory; a first segment may alone be longer."""

SMALL_CHARACTERS: Final = 16_000
"""A text up to this length needs no room to be sent: 1,000 followers of live turns hold 16 MB."""

_LOOKS_AGAIN_S: Final = 10.0
"""Who waits for room looks again after this time, in case a ring was lost."""

_READ_AT_ONCE: Final = 4
_READ_WITHIN_S: Final = 10.0
"""Room for reading falls free after 10 s; a page is read in milliseconds."""

_SENT_CHARACTERS: Final = 4_000_000
_SENT_WITHIN_S: Final = 90.0
"""Room for sending falls free after 90 s: a page leaves in at most 2 writes, each given up after 30 s."""

_SHARE: Final = 4
"""One user may hold 1/4 of the room for sending, or for bodies, so that others are not kept out."""

_BODY_BYTES: Final = 24_000_000


class Room:
    """
    Room of one isolate, for one purpose.

    Args:
        characters: The whole room, in characters.
        of_one: How many characters one user may hold.
        within_s: After this many seconds room that was taken falls free.
    """

    def __init__(self, characters: int, of_one: int, within_s: float) -> None:
        self._characters = characters
        self._of_one = of_one
        self._within_s = within_s
        self._held: dict[object, tuple[float, str, int]] = {}
        self._of: Counter[str] = Counter()
        self._waiting: dict[object, tuple[str, int, Callable[[], object]]] = {}

    def fits(self, who: str, characters: int) -> bool:
        """Say whether a user may hold so much more now; what is longer than all room fits where nobody holds any."""
        self._forget()
        of_one = not self._of[who] or self._of[who] + characters <= self._of_one
        return of_one and (not self._held or self._of.total() + characters <= self._characters)

    def take(self, who: str, characters: int) -> Callable[[], None]:
        """Take room; return what gives it back, once, and wakes whoever waits, as many as there is room for."""
        key = object()
        self._held[key] = (asyncio.get_running_loop().time() + self._within_s, who, characters)
        self._of[who] += characters

        def release() -> None:
            if key in self._held:
                self._give_back(key)
                self._ring()

        return release

    @contextmanager
    def holding(self, who: str, characters: int) -> Iterator[None]:
        """Take room while the block runs."""
        release = self.take(who, characters)
        try:
            yield
        finally:
            release()

    @contextmanager
    def watching(self, who: str, characters: int, ring: Callable[[], object]) -> Iterator[None]:
        """Call *ring*, once at most, if there is room for so much while the block runs; first come, first served."""
        key = object()
        self._waiting[key] = (who, characters, ring)
        try:
            yield
        finally:
            self._waiting.pop(key, None)

    def _forget(self) -> None:
        """Take back room that is held for more than `within_s`; the oldest comes first."""
        now = asyncio.get_running_loop().time()
        while self._held and next(iter(self._held.values()))[0] <= now:
            self._give_back(next(iter(self._held)))

    def _give_back(self, key: object) -> None:
        if (held := self._held.pop(key, None)) is not None:
            _, who, characters = held
            self._of[who] -= characters
            if not self._of[who]:
                del self._of[who]

    def _ring(self) -> None:
        left = self._characters - self._of.total()
        for key, (who, characters, ring) in tuple(self._waiting.items()):
            if characters <= left and self.fits(who, characters):
                left -= characters
                del self._waiting[key]
                ring()


def holder(tenant_id: str, user_id: str) -> str:
    """Return the name of a user in a `Room`."""
    return f"{len(tenant_id)}:{tenant_id}:{user_id}"


class _Alarm(Protocol):
    def ring(self) -> None: ...
    async def wait(self, within_s: float) -> None: ...


async def wait_for_room(room: Room, who: str, characters: int, alarm: _Alarm) -> None:
    """Wait until there may be room for so much of a user's, or for `_LOOKS_AGAIN_S`."""
    with room.watching(who, characters, alarm.ring):
        await alarm.wait(_LOOKS_AGAIN_S)


def reading_room() -> Room:
    """Return room for pages that are being read."""
    return Room(_READ_AT_ONCE * PAGE_CHARACTERS, _READ_AT_ONCE * PAGE_CHARACTERS, _READ_WITHIN_S)


def sending_room() -> Room:
    """Return the room for text that was sent and is not yet taken."""
    return Room(_SENT_CHARACTERS, _SENT_CHARACTERS // _SHARE, _SENT_WITHIN_S)


def body_room(within_s: float) -> Room:
    """Return the room, in bytes, for long bodies of requests that are being read; it falls free after *within_s*."""
    return Room(_BODY_BYTES, _BODY_BYTES // _SHARE, within_s)
