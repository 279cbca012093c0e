"""
Steps inside steps, which are refused.

An inner step takes a position while the outer one runs.  On a replay the outer step does not run, so nobody asks for
the inner one, and every step behind it would be taken for another.  So an inner step is refused at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from chatturn.errors import DurableRunDivergenceError

__all__ = ["inside_step", "require_outside_steps"]

_running: Final[ContextVar[tuple[object, str] | None]] = ContextVar("chatturn_step", default=None)


@contextmanager
def inside_step(context: object, intent: str) -> Iterator[None]:
    """Let a ``with`` block, and the tasks that it starts, count as the inside of one of *context*'s steps."""
    token = _running.set((context, intent))
    try:
        yield
    finally:
        _running.reset(token)


def require_outside_steps(context: object, run_id: str) -> None:
    """
    Refuse what is called inside one of *context*'s own steps; another run's steps are its own.

    Raises:
        DurableRunDivergenceError: Names the outer step.
    """
    running = _running.get()
    if running is not None and running[0] is context:
        message = f"a step was asked for inside step {running[1]!r}; it would not be asked for on a replay"
        raise DurableRunDivergenceError(message, run_id=run_id)
