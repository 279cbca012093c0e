"""Which step failures a task has caught: a failure is caught when the task asks for another step after it."""

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
    """A step that has failed in this attempt; the task may or may not have caught the failure."""

    begin: Begin
    attempts: int
    elapsed_ms: int
    error: StepError
    strand: Strand

    def is_behind(self, strand: Strand) -> bool:
        """Say whether the step failed in *strand*, or in a finished strand that *strand* has started."""
        return self.strand is strand or (self.strand.descends_from(strand) and not self.strand.alive)


@dataclass(slots=True, eq=False)
class Failures:
    """The failures of one attempt of a run."""

    _open: dict[int, Failure] = field(default_factory=dict)
    _caught: dict[int, Failure] = field(default_factory=dict)

    def note(self, failure: Failure) -> None:
        """Keep *failure* as the latest one; an earlier failure of the same step is dropped."""
        self._open.pop(failure.begin.step_index, None)
        self._open[failure.begin.step_index] = failure

    def catch(self, strand: Strand) -> None:
        """
        Note that *strand* goes on: failures in it, and in finished strands that it started, are now caught.

        A failure in a parallel strand is not: it may yet end the whole task.  One exception: where a step of *strand*
        was cancelled, the failures before that cancellation are caught, too.  They may be its cause, and a later
        attempt needs them to be cancelled at the same place.
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
        """Return the positions of caught failures that are not yet marked final, and the statements that mark them."""
        return list(self._caught), [mark_final(*failure[:4]) for failure in self._caught.values()]

    def forget(self, marked: Sequence[int]) -> None:
        """Note that the failures at the positions *marked* are marked final."""
        for position in marked:
            self._caught.pop(position, None)
