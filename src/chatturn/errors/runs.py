"""The run is not this caller's to continue.  The tree is in `chatturn.errors`."""

from chatturn.errors.base import ChatTurnError
from chatturn.errors.requests import NotFound

__all__ = [
    "AttemptsExhausted",
    "BudgetExceeded",
    "DurableAwaitEventTimeoutError",
    "DurableRunDivergenceError",
    "DurableRunError",
    "DurableRunInputMismatchError",
    "DurableRunLeaseHeldError",
    "LeaseLost",
    "RunNotFound",
    "StepInputMismatch",
    "StepTimeout",
    "StepTooLarge",
    "TurnAborted",
    "TurnCancelled",
]


class DurableRunError(ChatTurnError):
    """
    The run is not this caller's to continue; it has been left as it was.

    Attributes:
        run_id: Which run.
    """

    code = "run_error"
    status = 409
    public = "The turn cannot be continued by this request."

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(f"run {run_id!r}: {message}")
        self.run_id = run_id


class DurableRunLeaseHeldError(DurableRunError):
    """
    Somebody else is running it.

    Attributes:
        retry_after_ms: Until its lease ends if nobody renews it, by the database's clock.
        same_input: Whether it is what was asked for, and not what that was to supersede.
    """

    code = "turn_in_flight"
    retryable = True
    public = "This turn is already being answered. Wait as Retry-After says, then send the same request again."

    def __init__(self, message: str, *, run_id: str, retry_after_ms: int, same_input: bool = True) -> None:
        super().__init__(message, run_id=run_id)
        self.retry_after_ms = retry_after_ms
        self.same_input = same_input


class DurableRunInputMismatchError(DurableRunError):
    """The same run id came with another manifest: another message or another model."""

    code = "input_mismatch"
    status = 422
    public = "This turn was started with another message or model. Use the next turn index for a new message."


class DurableRunDivergenceError(DurableRunError):
    """The code asks for another step than the one recorded at this position."""

    code = "step_divergence"
    public = "The service changed while this turn was running. Start a new turn."


class StepInputMismatch(DurableRunDivergenceError):
    """The step is recorded with another input than it is now given."""

    code = "step_input_mismatch"


class DurableAwaitEventTimeoutError(DurableRunError):
    """The event did not come within its time, which runs from the first wait, not from each attempt's."""

    code = "await_event_timeout"
    status = 408
    public = "What the turn waited for did not come in time. Start a new turn."


class StepTooLarge(DurableRunError):
    """A step's input or result is longer or deeper than can be stored; the run is as it was."""

    code = "step_too_large"
    status = 413
    public = "A step of the turn produced more than can be stored."


class StepTimeout(DurableRunError):
    """A step took longer than it was given."""

    code = "step_timeout"
    status = 504
    retryable = True
    public = "A step of the turn took too long. Send the same request again."


class AttemptsExhausted(DurableRunError):
    """The run, or a step of it, was tried as often as it may be; further claims end the same way."""

    code = "attempts_exhausted"
    status = 500
    public = "The turn failed too often and is not tried again. Start a new turn."


class BudgetExceeded(DurableRunError):
    """
    What may be spent is spent; no further model call is made.

    Attributes:
        scope: Whose budget: the ``turn``'s, the ``session``'s or the ``tenant``'s.
    """

    code = "budget_exceeded"
    status = 402
    public = "The budget for this conversation is used up. Contact the operator."

    def __init__(self, message: str, *, run_id: str, scope: str) -> None:
        super().__init__(message, run_id=run_id)
        self.scope = scope


class LeaseLost(DurableRunError):
    """The lease is another worker's by now; nothing was written."""

    code = "lease_lost"
    retryable = True
    public = "Another worker has taken over this turn. Send the same request again to get its answer."


class RunNotFound(DurableRunError):
    """There is no such run."""

    code = "not_found"
    status = 404
    public = NotFound.public


class TurnAborted(DurableRunError):
    """The turn was stopped on purpose before its answer was complete."""

    code = "aborted"
    status = 499
    retryable = True
    public = "The turn was stopped before its answer was complete. Send the same request again to restart it."


class TurnCancelled(DurableRunError):
    """
    Somebody stopped the turn for good: what it had said by then is its answer.

    Attributes:
        reason: Why, for clients.
    """

    code = "cancelled"
    public = "The turn was cancelled. What it had said by then is kept."

    def __init__(self, reason: str, *, run_id: str) -> None:
        super().__init__(f"it was cancelled: {reason}", run_id=run_id)
        self.reason = reason
