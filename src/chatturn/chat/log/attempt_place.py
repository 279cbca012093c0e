"""Where in a turn's log an attempt begins, and what the attempts before it left there.  Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from chatturn.database.api import Row

__all__ = ["MAX_AHEAD", "Place", "unstored_attempts"]

MAX_AHEAD: Final = 10_000
"""The most lines that an attempt has sent to readers and not yet stored."""


def unstored_attempts(row: Row, epoch: int) -> int:
    """
    Return how many attempts up to the latest may have sent lines that are not stored.

    Args:
        row: The last stored segment's ``attempt`` and ``ended``, both null if there is none.
        epoch: The latest attempt.
    """
    if row["attempt"] is None:
        return epoch
    return epoch - int(row["attempt"]) + (0 if row["ended"] else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    The place in a turn's log where an attempt begins.

    Attributes:
        first_seq: The seq of the attempt's first line.
        follows: The seq of the last stored line before it; -1 for none.
        log_begins: Whether its lines are the first of this answer's log.
        interrupted: Whether the previous attempt at the same answer broke off, so that a reader may have seen a part.
        idle_attempts: How many attempts in a row have come no further, this one included; attempts that ended in a wait
            are not counted.
        attempts: How many attempts there were at the answer, this one included; attempts that ended in a wait are not
            counted.
        cancel_requested: Whether the turn is to be stopped, and no attempt knows it yet.
        broken_off: How many attempts directly before this one broke off, attempts at another question included.
        replaces: The version of the turn that this version replaces; None for none.
    """

    first_seq: int = 0
    follows: int = -1
    log_begins: bool = True
    interrupted: bool = False
    idle_attempts: int = 1
    attempts: int = 1
    cancel_requested: bool = False
    broken_off: int = 0
    replaces: int | None = None

    @classmethod
    def of(cls, rows: Sequence[Row], *, epoch: int) -> Self:
        """
        Read the row of `chatturn.chat.turn.sql.read_place`, as it is after the claim.

        `MAX_AHEAD` numbers are skipped for each attempt that may have sent lines that were not stored: no reader sees
        two lines with the same number.
        """
        if not rows:
            return cls()
        [row] = rows
        follows = -1 if row["last_seq"] is None else int(row["last_seq"])
        broken_off = unstored_attempts(row, epoch) - 1  # this attempt has sent nothing yet
        return cls(
            first_seq=max(follows + 1, int(row["log_from"] or 0)) + MAX_AHEAD * broken_off,
            follows=follows,
            log_begins=follows < int(row["log_from"] or 0),
            interrupted=broken_off > 0 and int(row["first_attempt"] or 0) < epoch,
            idle_attempts=int(row["idle_attempts"] or 0),
            attempts=int(row["attempts"] or 0),
            cancel_requested=row["cancel_requested_at"] is not None,
            broken_off=broken_off,
            replaces=None if row["replaces"] is None else int(row["replaces"]),
        )
