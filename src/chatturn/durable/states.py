"""
Where a run may stand, what moves it, and the line that ends the log of an attempt which moves it there: one table.

The SQL of `chatturn.durable.sql.runs` is what moves runs; a test tries every move on every status and compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from chatturn.durable.ends import Cancelled, Completed, End, Failed, Suspended
from chatturn.durable.records import RunStatus
from chatturn.events import LIFECYCLE_PREFIX

__all__ = ["ENDS", "MOVES", "EndState", "Move", "State"]

State: TypeAlias = RunStatus | None
"""A status, or None for a run that does not exist."""


@dataclass(frozen=True, slots=True)
class Move:
    """
    What a write does to a run.

    Attributes:
        before: Where the run may stand; anywhere else it is left as it is.
        after: Where it stands then.
        leased: Whether the write needs the run's live lease; the others need that there is none.
    """

    before: frozenset[State]
    after: RunStatus
    leased: bool


_RUNNING: Final = frozenset[State]({RunStatus.RUNNING})

MOVES: Final[Mapping[str, Move]] = {
    "claim": Move(frozenset({None, *RunStatus}) - {RunStatus.COMPLETED}, RunStatus.RUNNING, leased=False),
    "supersede": Move(frozenset({None, *RunStatus}), RunStatus.RUNNING, leased=False),
    "complete": Move(_RUNNING, RunStatus.COMPLETED, leased=True),
    "fail": Move(_RUNNING, RunStatus.FAILED, leased=True),
    "suspend": Move(_RUNNING, RunStatus.SUSPENDED, leased=True),
    "queue": Move(frozenset({None, RunStatus.PENDING, RunStatus.FAILED}), RunStatus.PENDING, leased=False),
    "give up": Move(
        frozenset({RunStatus.PENDING, RunStatus.RUNNING, RunStatus.SUSPENDED}), RunStatus.FAILED, leased=False
    ),
}


@dataclass(frozen=True, slots=True)
class EndState:
    """
    What an attempt's end leaves behind.

    Attributes:
        move: Of `MOVES`.
        line: The type of the last line of its log.
    """

    move: str
    line: str


ENDS: Final[Mapping[type[End], EndState]] = {
    Completed: EndState("complete", LIFECYCLE_PREFIX + "completed"),
    Cancelled: EndState("complete", LIFECYCLE_PREFIX + "cancelled"),
    Suspended: EndState("suspend", LIFECYCLE_PREFIX + "suspended"),
    Failed: EndState("fail", LIFECYCLE_PREFIX + "failed"),
}
