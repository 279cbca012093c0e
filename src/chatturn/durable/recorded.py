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
    The steps of one attempt that are on record; read page by page, as far as they are asked for.

    Attributes:
        store: Where they are.
        run_id: The run.
        first_position: Of the first step.
        is_completed: Whether the run is: then its failures are final, or it would not be.
        order: Takes those that are given out again.
    """

    store: DurableRunStore
    run_id: str
    first_position: int
    is_completed: bool
    order: ReplayOrder
    _steps: dict[int, StepRecord] = field(default_factory=dict)
    _pages_end: int = 0

    def keep(self, page: Sequence[StepRecord]) -> None:
        """Take a page."""
        steps = [step for step in page if step.step_index >= self.first_position]
        self._steps.update({step.step_index: step for step in steps})
        self.order.keep(step for step in steps if self.is_over(step))
        goes_on = len(page) > STEPS_PER_PAGE
        self._pages_end = page[-1].step_index if goes_on else -1

    def put(self, step: StepRecord) -> None:
        """Take a step that has just been recorded."""
        self._steps[step.step_index] = step

    def all(self) -> list[StepRecord]:
        """Return the steps that were seen, by their positions."""
        return [self._steps[position] for position in sorted(self._steps)]

    async def at(self, position: int) -> StepRecord | None:
        """Return what is on record at a position, whatever it is."""
        while 0 <= self._pages_end <= position:
            self.keep(await self.store.load_steps(self.run_id, self._pages_end))
        return self._steps.get(position)

    async def find(self, begin: Begin) -> StepRecord | None:
        """
        Return what is on record at a position, after checking that it is the same step.

        Raises:
            DurableRunDivergenceError: It is another one, or (`StepInputMismatch`) has another input.
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
        Refuse a task that ended before it came to all the steps on record: its code was shortened.

        Raises:
            DurableRunDivergenceError: Names the first step from *position* on, which was left over.
        """
        left = [step for step in self.all() if step.step_index >= position]
        if left:
            message = f"the task ended after {position} steps, but step {left[0].step_index} is {left[0].intent!r}"
            raise DurableRunDivergenceError(message, run_id=self.run_id)

    def is_final(self, step: StepRecord) -> bool:
        """Say whether a failure stays one."""
        return step.status is StepStatus.FAILED and (self.is_completed or (step.error is not None and step.error.final))

    def is_over(self, step: StepRecord) -> bool:
        """Say whether a step is given out again from its record."""
        return step.status is StepStatus.COMPLETED or (self.is_final(step) and not was_cancelled(step))


def was_cancelled(step: StepRecord) -> bool:
    """Say whether the task has cut the step off."""
    return step.error is not None and step.error.code == CANCELLED.code and step.error.exception is None
