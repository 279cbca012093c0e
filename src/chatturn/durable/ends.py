"""The four ends of an attempt.  An attempt whose worker died, or lost its lease, has no end."""

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

from chatturn.durable.records import Wait
from chatturn.errors import ChatTurnError, TurnAborted

__all__ = ["Cancelled", "Completed", "End", "Failed", "Suspended", "answer_of", "code_of"]


@dataclass(frozen=True, slots=True)
class Completed:
    """
    The work is done.

    Attributes:
        text: The answer as it is stored; "" for a run of steps, whose results are in its steps.
    """

    text: str = ""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """
    The turn was stopped for good.

    Attributes:
        text: The answer up to the stop, as it is stored.
        reason: Why it was stopped.
    """

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Suspended:
    """
    The run waits: it has no answer yet, and no error.

    Attributes:
        wait: What the run waits for.
    """

    wait: Wait


@dataclass(frozen=True, slots=True)
class Failed:
    """
    The attempt failed; the next one begins anew, or after the last recorded step.

    Attributes:
        error: The cause.
    """

    error: BaseException


End: TypeAlias = Completed | Cancelled | Suspended | Failed


def answer_of(end: End | None) -> str | None:
    """Return the answer that an end leaves, whole or cut off; None if it leaves none."""
    return end.text if isinstance(end, Completed | Cancelled) else None


def code_of(error: BaseException) -> str:
    """Return the stable code of whatever ended an attempt."""
    if isinstance(error, ChatTurnError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return TurnAborted.code
    return ChatTurnError.code
