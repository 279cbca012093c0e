"""
Replays recorded results in the order in which they were recorded.

A task may go on with whichever of several steps ends first (`asyncio.as_completed`, `asyncio.wait`), and its next steps
are on record.  On a later attempt all recorded results are there at once.  So a recorded result is returned only after
all results recorded before it were returned, and their task has had time to ask for its next step.  A step that is not
on record begins after all of them.  Where no other asyncio task could ask for a step, nothing waits.
"""

import asyncio
import heapq
from collections.abc import Iterable
from typing import Final
from weakref import WeakSet

from chatturn.durable.records import StepRecord

__all__ = ["ReplayOrder"]

_TURNS_TO_ASK: Final = 8
"""Turns of the event loop that a task, once started or given a result, has to ask for its next step."""

_NOT_ON_RECORD: Final = "~"
"""Sorts behind every timestamp."""


class ReplayOrder:
    """The order of one attempt of a run."""

    def __init__(self) -> None:
        self._before: WeakSet[asyncio.Task[object]] | None = None
        self._left: dict[int, str] = {}
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._heap: list[tuple[str, int]] = []
        self._changes = 0

    def begin(self) -> None:
        """Note that the run's task begins: other asyncio tasks that already run will ask for no step of the run."""
        self._before = WeakSet(_tasks())

    def began(self, task: "asyncio.Task[object]") -> bool:
        """Say whether an asyncio task was started after `begin`, and so may ask for steps."""
        return self._before is None or task not in self._before

    def keep(self, steps: Iterable[StepRecord]) -> None:
        """Add steps whose results are on record."""
        self._left.update({step.step_index: step.completed_at or "" for step in steps})

    async def turn(self, position: int) -> None:
        """Wait until the step's recorded result may be returned; without a record, until the step may begin."""
        if not self.is_alone():
            if not self._left:
                await _turns()
            else:
                await self._in_order(position)
        self._left.pop(position, None)

    def is_alone(self) -> bool:
        """Say whether no asyncio task was started since `begin`, so that only the run's own task may ask for a step."""
        return not any(map(self.began, _tasks()))

    async def _in_order(self, position: int) -> None:
        place = (self._left.get(position, _NOT_ON_RECORD), position)
        heapq.heappush(self._heap, place)
        self._asked[position] = asyncio.get_running_loop().create_future()
        self._changes += 1
        try:
            quiet = 0
            while quiet < _TURNS_TO_ASK:
                if self._first() != place:
                    await self._asked[position]
                    self._asked[position] = asyncio.get_running_loop().create_future()
                changes = self._changes
                await asyncio.sleep(0)
                quiet = quiet + 1 if changes == self._changes and self._first() == place else 0
        finally:
            del self._asked[position]
            self._changes += 1
            if (first := self._first()) is not None and not self._asked[first[1]].done():
                self._asked[first[1]].set_result(None)

    def _first(self) -> tuple[str, int] | None:
        """Return the place of the waiting step whose turn comes first; None if no step waits."""
        while self._heap and self._heap[0][1] not in self._asked:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None


async def _turns() -> None:
    for _ in range(_TURNS_TO_ASK):
        await asyncio.sleep(0)


def _tasks() -> Iterable["asyncio.Task[object]"]:
    try:
        return asyncio.all_tasks()
    except RuntimeError:  # no event loop is running
        return ()
