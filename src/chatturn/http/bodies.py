"""
How a request's body is read: within a time, and, if it is long, when this isolate has room for it.

A client may send half a body and wait.  300 such bodies of a megabyte would fill the isolate, so a long body is not
read before there is room: until then it stays in the connection, where it takes none.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from chatturn.chat.log.live import Alarm, EventAlarm
from chatturn.chat.log.room import SMALL_CHARACTERS, body_room, wait_for_room
from chatturn.errors import BodyTimeout
from chatturn.http.messages import HttpRequest

__all__ = ["Bodies"]

_FALLS_FREE_S: Final = 90.0
"""When room falls free where bodies may take as long as they like."""


class Bodies:
    """
    The bodies that are read in one isolate.

    Args:
        alarm: Makes the alarm that wakes a request that waits.
        within_s: How long the wait for room and the reading may take together; None for as long as they take.
    """

    def __init__(self, alarm: Callable[[], Alarm] = EventAlarm, within_s: float | None = None) -> None:
        self._alarm = alarm
        self._within_s = within_s
        # What is held for longer was held by a request that the platform ended with its client.
        self._room = body_room(within_s or _FALLS_FREE_S)

    async def read(self, request: HttpRequest, who: str, most_bytes: int) -> bytes:
        """
        Read the body of *request*.

        Args:
            request: The request.
            who: Whose request it is, in the room.
            most_bytes: The most bytes that the body may have.

        Raises:
            BodyTimeout: The body did not arrive in time, or there was no room for it in time.
            PayloadTooLarge: It is too long.
        """
        within_s, size = self._within_s, _announced(request.headers, most_bytes)
        what = "there was no room for the body"
        try:
            async with nullcontext() if within_s is None else asyncio.timeout(within_s):
                room = await self._room_for(who, size)
                what = "the body did not arrive"
                with room:
                    return await request.read(most_bytes)
        except TimeoutError:
            raise BodyTimeout(f"{what} within {within_s} s") from None

    async def _room_for(self, who: str, size: int) -> AbstractContextManager[None]:
        """Wait until there is room for so many bytes, and return what holds it; a short body needs none."""
        if size <= SMALL_CHARACTERS:
            return nullcontext()
        while not self._room.fits(who, size):
            await wait_for_room(self._room, who, size, self._alarm())
        return self._room.holding(who, size)


def _announced(headers: Mapping[str, str], most_bytes: int) -> int:
    """Return how long the body may be, by its headers: a body whose length is not announced may be as long as any."""
    length = headers.get("content-length", "")
    known = length.isdecimal() and len(length) <= len(str(most_bytes))
    return min(int(length), most_bytes) if known else most_bytes
