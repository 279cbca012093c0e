"""
Strands: which of a run's asyncio tasks asks for a step, and whether a replay would ask in the same order.

A step's position is its place in the order of asking.  Tasks that each ask once are started in a fixed order, and so
ask in this order.  If two tasks ask repeatedly at the same time, the durations of their steps decide the order; in a
replay recorded steps take no time, so the order would differ.  Such a step is refused before it has any effect.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from chatturn.errors import DurableRunDivergenceError

__all__ = ["Strand", "Strands"]

_path: Final[ContextVar[tuple["Strand", ...]]] = ContextVar("chatturn_strands", default=())


@dataclass(slots=True, eq=False)
class Strand:
    """
    One asyncio task that asks for a run's steps.

    Attributes:
        owner: The attempt's strands.
        task: The asyncio task; None outside all tasks.
        parent: The strand that started this one; None for the run's own task.
        asked: Steps that the task has asked for.
        working: Steps that the task itself is doing at the moment.
        passed: Whether a parallel strand has asked for a second or later step meanwhile.
    """

    owner: "Strands"
    task: "asyncio.Task[object] | None"
    parent: "Strand | None"
    asked: int = 0
    working: int = 0
    passed: bool = False

    @property
    def alive(self) -> bool:
        """Whether the task is not done, and may still ask for a step."""
        return self.task is not None and not self.task.done()

    def descends_from(self, other: "Strand") -> bool:
        """Say whether *other* has started this strand, directly or through other strands."""
        above = self.parent
        while above is not None and above is not other:
            above = above.parent
        return above is other


@dataclass(slots=True, eq=False)
class Strands:
    """
    All strands of one attempt of a run; make it in the run's own task.

    Attributes:
        run_id: The run.
        on_done: Called with each other task when it is done.
    """

    run_id: str
    on_done: "Callable[[asyncio.Task[object]], None]" = lambda _task: None
    _root: Strand = field(init=False)
    _by_task: "WeakKeyDictionary[asyncio.Task[object], Strand]" = field(init=False, default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        self._root = Strand(self, _current_task(), None)
        if self._root.task is not None:
            self._by_task[self._root.task] = self._root

    def begin(self) -> None:
        """Make the current task the run's own."""
        task = _current_task()
        if task is not None and task not in self._by_task:
            self._root.task, self._by_task[task] = task, self._root

    def alive(self) -> "list[asyncio.Task[object]]":
        """Return the tasks that have asked for steps and are not done, without the current task."""
        return [task for task, strand in self._by_task.items() if strand.alive and task is not _current_task()]

    def ask(self) -> Strand:
        """
        Note that the current task asks for a step, and return its strand.

        Raises:
            DurableRunDivergenceError: The order in which it and another task ask is not fixed.
        """
        strand = self.current()
        strand.asked += 1
        if strand.asked > 1:
            others = [other for other in self._by_task.values() if other is not strand and other.asked and other.alive]
            if strand.passed or any(other.asked > 1 and other.descends_from(strand) for other in others):
                raise DurableRunDivergenceError(
                    "two tasks ask for one step after another at the same time, in an order that a replay would not "
                    "keep; make each task one step, or await them one after the other (what a failed step has for a "
                    "fallback can stand inside it, or behind a gather(…, return_exceptions=True))",
                    run_id=self.run_id,
                )
            for other in others:
                other.passed |= bool(other.working) if strand.descends_from(other) else True
        return strand

    @contextmanager
    def work(self) -> Iterator[None]:
        """Let a ``with`` block be a step that the current task does."""
        strand = self.current()
        strand.working += 1
        try:
            yield
        finally:
            strand.working -= 1

    def current(self) -> Strand:
        """Return the current task's strand."""
        task = _current_task()
        if task is None:
            return self._root
        strand = self._by_task.get(task)
        if strand is None:
            parent = next((above for above in reversed(_path.get()) if above.owner is self), self._root)
            strand = self._by_task[task] = Strand(self, task, parent)
            _path.set((*_path.get(), strand))
            task.add_done_callback(self.on_done)
        return strand


def _current_task() -> "asyncio.Task[object] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop is running
        return None
