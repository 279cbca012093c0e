"""Bodies of requests: read in time, and not more at once than an isolate has room for."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from chatturn.errors import BodyTimeout
from chatturn.http.bodies import Bodies
from chatturn.http.messages import HttpRequest

MOST = 1_048_576


class Sent:
    """
    Bodies that take a while to arrive.

    Attributes:
        reading: Bytes that are being read.
        most: Bytes that were being read at the same time, at most.
    """

    def __init__(self, takes_s: float) -> None:
        self.reading = self.most = 0
        self._takes_s = takes_s

    def request(self, size: int, *, announced: bool = True) -> HttpRequest:
        """Return a request with a body of so many bytes."""

        async def read(_most: int) -> bytes:
            self.reading += size
            self.most = max(self.most, self.reading)
            try:
                await asyncio.sleep(self._takes_s)
            finally:
                self.reading -= size
            return bytes(size)

        headers = {"content-length": str(size)} if announced else {}
        return HttpRequest(method="POST", path="/", query="", headers=headers, read=read)


@pytest.mark.parametrize("announced", [True, False])
async def test_long_bodies_wait_unread_until_there_is_room(announced: bool) -> None:
    """Those of one user have a quarter of it; all are read in the end, and short ones wait for nobody."""
    bodies, sent, began = Bodies(within_s=30.0), Sent(1.0), asyncio.get_running_loop().time()
    long = [sent.request(1_000_000, announced=announced) for _ in range(30)]
    reading = [asyncio.ensure_future(bodies.read(each, "ann", MOST)) for each in long]
    await asyncio.sleep(0.5)
    assert 5_000_000 <= sent.reading <= 6_000_000
    await bodies.read(sent.request(16_000), "ann", MOST)
    await bodies.read(sent.request(1_000_000), "bob", MOST)
    assert asyncio.get_running_loop().time() - began < 3
    assert {1_000_000} == {len(body) for body in await asyncio.gather(*reading)}


async def test_all_users_together_fill_no_isolate() -> None:
    """However many they are."""
    bodies, sent = Bodies(within_s=60.0), Sent(1.0)
    users = [bodies.read(sent.request(4_000_000), f"user-{each}", 4_194_304) for each in range(40)]
    await asyncio.gather(*users)
    assert 20_000_000 <= sent.most <= 24_000_000


async def test_who_finds_no_room_is_told_so_and_who_sends_nothing_is_given_up() -> None:
    """Each within the time for a body; then there is room again."""
    bodies, never = Bodies(within_s=30.0), Sent(1_000.0)
    tries = [bodies.read(never.request(1_000_000), "ann", MOST) for _ in range(8)]
    told = await asyncio.gather(*tries, return_exceptions=True)
    assert ["the body did not arrive within 30.0 s"] * 6 + ["there was no room for the body within 30.0 s"] * 2 == [
        str(each) for each in told if isinstance(each, BodyTimeout)
    ]
    assert 1_000_000 == len(await bodies.read(Sent(1.0).request(1_000_000), "ann", MOST))


async def test_a_client_that_is_gone_keeps_no_room_for_longer_than_a_body_may_take() -> None:
    """The platform ends its request without a word: a second try with a large file is not refused for long."""
    bodies, file, over = Bodies(within_s=30.0), Sent(1.0).request(4_000_000), asyncio.Event()

    async def never(_most: int) -> bytes:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()
        return b""

    gone = asyncio.ensure_future(bodies.read(replace(file, read=never), "ann", 4_194_304))
    await asyncio.sleep(11)
    assert 4_000_000 == len(await bodies.read(file, "ann", 4_194_304))
    over.set()
    await gone
