"""
The statuses of a run, the writes that change them, and the last log line of an attempt for each end: one table.

The SQL in `chatturn.durable.sql.runs` changes the status; a test tries every move on every status and compares.
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
    The effect of a write on a run's status.

    Attributes:
        before: Statuses in which the write applies; a run in any other status is left as it is.
        after: The status after the write.
        leased: True if the write needs the run's live lease; False if it needs that there is none.
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
    The move and the log line of one end of an attempt.

    Attributes:
        move: Of `MOVES`.
        line: The type of the last line of the attempt's log.
    """

    move: str
    line: str


ENDS: Final[Mapping[type[End], EndState]] = {
    Completed: EndState("complete", LIFECYCLE_PREFIX + "completed"),
    Cancelled: EndState("complete", LIFECYCLE_PREFIX + "cancelled"),
    Suspended: EndState("suspend", LIFECYCLE_PREFIX + "suspended"),
    Failed: EndState("fail", LIFECYCLE_PREFIX + "failed"),
}
