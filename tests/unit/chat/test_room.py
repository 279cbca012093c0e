"""Room for what followers hold: for all together and for one user, given back, or taken back in the end."""

import asyncio
from contextlib import ExitStack
from functools import partial

from chatturn.chat.log.room import Room


async def test_no_more_is_held_than_there_is_room_for() -> None:
    """By all together, and by one user; who holds nothing is never kept out by a share that is too small for him."""
    room = Room(100, 40, 60.0)
    with ExitStack() as stack:
        stack.enter_context(room.holding("ann", 30))
        assert not room.fits("ann", 20)
        assert room.fits("ann", 10)
        stack.enter_context(room.holding("bob", 50))
        assert not room.fits("cem", 30)
        assert room.fits("cem", 20)
    assert room.fits("ann", 100), "all is given back"
    assert room.fits("ann", 1_000), "what is longer than all room is sent alone"


async def test_who_waits_is_woken_in_turn_and_not_all_at_once() -> None:
    """As many as there is room for, whoever came first."""
    room, rung = Room(100, 100, 60.0), list[str]()
    with ExitStack() as waiting:
        with room.holding("ann", 100):
            with room.watching("eve", 1, partial(rung.append, "eve")):
                pass  # she has gone
            for who in ("bob", "cem", "dan"):
                waiting.enter_context(room.watching(who, 50, partial(rung.append, who)))
        assert rung == ["bob", "cem"]


async def test_what_an_ended_request_held_falls_free() -> None:
    """The platform ends a request without a word: its block never comes to its end."""
    room = Room(100, 100, 60.0)
    ended = room.holding("ann", 100)
    ended.__enter__()
    await asyncio.sleep(59)
    before = room.fits("bob", 50)
    await asyncio.sleep(2)

    assert not before
    assert room.fits("bob", 50)
    ended.__exit__(None, None, None)  # if it comes to it after all, nothing is given back twice
    assert room.fits("bob", 100)
