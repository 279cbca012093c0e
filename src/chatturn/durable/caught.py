"""Which failures of steps a task has caught: those behind which it went on."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chatturn.database.api import Statement
from chatturn.durable.failures import CANCELLED, mark_final
from chatturn.durable.records import StepError
from chatturn.durable.store import Begin
from chatturn.durable.strands import Strand

__all__ = ["Failure", "Failures"]


class Failure(NamedTuple):
    """A step that has failed in this attempt, and is not known to be caught."""

    begin: Begin
    attempts: int
    elapsed_ms: int
    error: StepError
    strand: Strand

    def is_behind(self, strand: Strand) -> bool:
        """Say whether *strand* goes on behind it: it failed there, or in one that the strand started and is over."""
        return self.strand is strand or (self.strand.descends_from(strand) and not self.strand.alive)


@dataclass(slots=True, eq=False)
class Failures:
    """The failures of one attempt of a run."""

    _open: dict[int, Failure] = field(default_factory=dict)
    _caught: dict[int, Failure] = field(default_factory=dict)

    def note(self, failure: Failure) -> None:
        """Keep a failure in mind, behind those that were before it."""
        self._open.pop(failure.begin.step_index, None)
        self._open[failure.begin.step_index] = failure

    def catch(self, strand: Strand) -> None:
        """
        Take note that a strand goes on: what has failed in it, or in one that it started and that is over, is caught.

        What fails in one beside it may yet end them all.  But where the strand has been cancelled, and goes on, what
        had failed before may be why: without it no later attempt would be cancelled there.  So that is caught, too.
        """
        here = [failure for failure in self._open.values() if failure.is_behind(strand)]
        cancelled = [failure for failure in here if failure.error is CANCELLED]
        why = (
            itertools.takewhile(lambda failure: failure is not cancelled[-1], self._open.values()) if cancelled else ()
        )
        for failure in [*here, *why]:
            position = failure.begin.step_index
            self._caught[position] = self._open.pop(position, failure)

    def caught(self) -> tuple[list[int], list[Statement]]:
        """Return which are caught and not marked as final yet, and what a write marks them with."""
        return list(self._caught), [mark_final(*failure[:4]) for failure in self._caught.values()]

    def forget(self, marked: Sequence[int]) -> None:
        """Take note that these are marked."""
        for position in marked:
            self._caught.pop(position, None)
