"""How a task that waits for long leaves its worker."""

from collections.abc import Iterator
from contextlib import contextmanager

from chatturn.durable.records import Wait

__all__ = ["Suspended", "ungrouped_waits"]


class Suspended(BaseException):
    """
    The task waits for longer than a worker should; not an Exception, so that no task's handler swallows it.

    Attributes:
        wait: For what.
    """

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait)
        self.wait = wait


@contextmanager
def ungrouped_waits() -> Iterator[None]:
    """
    Let a wait inside an `asyncio.TaskGroup` suspend the run as any other does.

    Of several, the one that is over first.  What failed beside a wait leaves without it, and fails the run.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        waits, others = group.split(Suspended)
        if waits is None:
            raise
        raise (others or min(_leaves(waits), key=lambda suspended: suspended.wait.wake_at)) from group


def _leaves(waits: BaseExceptionGroup[Suspended]) -> list[Suspended]:
    leaves: list[Suspended] = []
    for wait in waits.exceptions:
        leaves += _leaves(wait) if isinstance(wait, BaseExceptionGroup) else [wait]
    return leaves
