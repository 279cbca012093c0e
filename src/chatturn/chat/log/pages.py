"""The stored log of a turn, read a page at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from chatturn.chat.log.attempt_place import MAX_AHEAD, unstored_attempts
from chatturn.chat.log.compact import expand
from chatturn.chat.log.sql import read_page
from chatturn.database.api import Database, Row
from chatturn.durable.records import RunStatus

__all__ = ["LogPage", "load_page"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """
    The state of a turn, and the lines of its log behind a cursor, both of the same moment.

    Attributes:
        status: The run's status.
        attempt: The latest attempt; 1 before the first.
        cancelled: Whether a completed run was stopped.
        lease_left_ms: Time until the lease lapses if nobody renews it, by the database's clock; 0 without a lease.
        begins: The seq with which this answer's log begins: lower seqs are history.
        ends: The seq of the last stored line; -1 for none.
        furthest: The highest seq that anybody can have seen.
        text: The lines, none of them cut.
        last: The seq of the last line in `text`; without lines the cursor, or `begins` - 1 if that is higher.
        closed: Whether the last stored line is the latest attempt's terminal one.
        created_at: When the turn was begun.
        outcome: The notes of the run's outcome, if it has one: for a failed run, the code of its error.
    """

    status: RunStatus
    attempt: int
    cancelled: bool
    lease_left_ms: int
    begins: int
    ends: int
    furthest: int
    text: str
    last: int
    closed: bool
    outcome: str | None
    created_at: str

    @property
    def more(self) -> bool:
        """Whether further lines are stored."""
        return bool(self.text) and self.last < self.ends

    @property
    def over(self) -> bool:
        """Whether nobody is going to say anything more, unless the turn is tried or claimed again."""
        return self.status not in {RunStatus.PENDING, RunStatus.RUNNING}

    @classmethod
    def of(cls, rows: Sequence[Row], after: int) -> Self:
        """Read the rows of `chatturn.chat.log.sql.read_page`, of which there is at least one."""
        state, begins = rows[0], int(rows[0]["log_from"] or 0)
        start = max(after + 1, begins)
        texts = [_from(start, row) for row in rows if row["lines"] is not None]
        text = "".join(texts)
        attempt = int(state["epoch"] or 0)
        ends = -1 if state["log_end"] is None else int(state["log_end"])
        return cls(
            status=RunStatus(str(state["status"])),
            attempt=max(attempt, 1),
            cancelled=state["cancelled_at"] is not None,
            lease_left_ms=max(0, int(state["lease_left_ms"] or 0)),
            begins=begins,
            ends=ends,
            furthest=max(ends, begins - 1) + MAX_AHEAD * unstored_attempts(state, attempt),
            text=text,
            last=int(rows[-1]["last_seq"] or 0) if texts else max(after, begins - 1),
            closed=bool(state["ended"]) and int(state["attempt"] or 0) == attempt,
            outcome=None if state["outcome"] is None else str(state["outcome"]),
            created_at=str(state["created_at"]),
        )


def _from(start: int, row: Row) -> str:
    """Return the lines of a segment from *start* on; consecutive lines have consecutive seqs."""
    return expand(str(row["lines"]), max(0, start - int(row["first_seq"] or 0)))


async def load_page(database: Database, run_id: str, after: int) -> LogPage | None:
    """
    Read a page, in one round trip; None if there is no such turn.

    Args:
        database: Where the chat tables are.
        run_id: The turn's run.
        after: The seq after which to read; -1 for all.
    """
    [outcome] = await database.batch([read_page(run_id, after)])
    return LogPage.of(outcome.rows, after) if outcome.rows else None
