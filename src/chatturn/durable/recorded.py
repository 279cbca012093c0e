"""The steps of a run that are on record when an attempt asks for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatturn.durable.failures import CANCELLED
from chatturn.durable.records import StepRecord, StepStatus
from chatturn.durable.replay_order import ReplayOrder
from chatturn.durable.sql.runs import STEPS_PER_PAGE
from chatturn.durable.store import Begin, DurableRunStore
from chatturn.errors import DurableRunDivergenceError, StepInputMismatch

__all__ = ["RecordedSteps", "was_cancelled"]


@dataclass(slots=True, eq=False)
class RecordedSteps:
    """
    The recorded steps of one attempt's run, read page by page when a step is asked for.

    Attributes:
        store: Holds the records.
        run_id: The run.
        first_position: The position of the first step.
        is_completed: Whether the run is completed: then every recorded failure was caught, and so is final.
        order: The order in which results are replayed.
    """

    store: DurableRunStore
    run_id: str
    first_position: int
    is_completed: bool
    order: ReplayOrder
    _steps: dict[int, StepRecord] = field(default_factory=dict)
    _pages_end: int = 0

    def keep(self, page: Sequence[StepRecord]) -> None:
        """Add a page of records as the store returns it: up to `STEPS_PER_PAGE`, and the first of the next page."""
        steps = [step for step in page if step.step_index >= self.first_position]
        self._steps.update({step.step_index: step for step in steps})
        self.order.keep(step for step in steps if self.is_over(step))
        goes_on = len(page) > STEPS_PER_PAGE
        self._pages_end = page[-1].step_index if goes_on else -1

    def put(self, step: StepRecord) -> None:
        """Add a step that has just been recorded."""
        self._steps[step.step_index] = step

    def all(self) -> list[StepRecord]:
        """Return the steps read so far, by position."""
        return [self._steps[position] for position in sorted(self._steps)]

    async def at(self, position: int) -> StepRecord | None:
        """Return the step on record at a position, unchecked; None if there is none."""
        while 0 <= self._pages_end <= position:
            self.keep(await self.store.load_steps(self.run_id, self._pages_end))
        return self._steps.get(position)

    async def find(self, begin: Begin) -> StepRecord | None:
        """
        Return the record of the step *begin*; None if there is none.

        Raises:
            DurableRunDivergenceError: The record has another intent, or (`StepInputMismatch`) another input.
        """
        step = await self.at(begin.step_index)
        if step is None:
            return None
        if step.intent != begin.intent:
            message = f"step {step.step_index} is {step.intent!r} on record, but {begin.intent!r} was asked for"
            raise DurableRunDivergenceError(message, run_id=self.run_id)
        if begin.input_hash and step.input_hash and begin.input_hash != step.input_hash:
            message = f"step {step.step_index} ({step.intent!r}) is on record with another input"
            raise StepInputMismatch(message, run_id=self.run_id)
        return step

    def require_no_more(self, position: int) -> None:
        """
        Refuse a task that ended before it reached all steps on record, because its code has become shorter.

        Raises:
            DurableRunDivergenceError: Names the first recorded step at or after *position*.
        """
        left = [step for step in self.all() if step.step_index >= position]
        if left:
            message = f"the task ended after {position} steps, but step {left[0].step_index} is {left[0].intent!r}"
            raise DurableRunDivergenceError(message, run_id=self.run_id)

    def is_final(self, step: StepRecord) -> bool:
        """Say whether a step has failed for good: every later attempt raises its error again."""
        return step.status is StepStatus.FAILED and (self.is_completed or (step.error is not None and step.error.final))

    def is_over(self, step: StepRecord) -> bool:
        """Say whether a step is replayed from its record: completed, or failed for good without being cancelled."""
        return step.status is StepStatus.COMPLETED or (self.is_final(step) and not was_cancelled(step))


def was_cancelled(step: StepRecord) -> bool:
    """Say whether the task itself cancelled the step."""
    return step.error is not None and step.error.code == CANCELLED.code and step.error.exception is None
