"""Steps that a task has asked for and must await: a forgotten ``await`` becomes an error, not a lost step."""

import inspect
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from chatturn.errors import DurableRunDivergenceError

__all__ = ["Asked"]

T = TypeVar("T")
_KEPT: Final = 64


class Asked:
    """The coroutines that one attempt's task was given and has perhaps not begun."""

    def __init__(self) -> None:
        self._given: list[tuple[str, Coroutine[Any, Any, Any]]] = []
        self._look_at = _KEPT

    def awaited(self, what: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return *coroutine*, after noting that the task must await it; *what* names it in the error."""
        self._given.append((what, coroutine))
        if len(self._given) > self._look_at:
            self._given = self._left()
            self._look_at = _KEPT + 2 * len(self._given)
        return coroutine

    def require_awaited(self, run_id: str) -> None:
        """
        Refuse a task that has ended without awaiting a step it asked for.

        A step that was cancelled before it could begin counts as awaited.

        Raises:
            DurableRunDivergenceError: Names the first step that the task never awaited.
        """
        left = self._left()
        if left:
            message = f"the task has ended without awaiting {left[0][0]!r}: it was asked for, and has not been done; "
            raise DurableRunDivergenceError(message + "write await before it", run_id=run_id)

    def close(self) -> None:
        """Close the coroutines that never began, so that Python does not warn "never awaited"."""
        for _, coroutine in self._left():
            coroutine.close()
        self._given = []

    def _left(self) -> list[tuple[str, Coroutine[Any, Any, Any]]]:
        return [each for each in self._given if inspect.getcoroutinestate(each[1]) == inspect.CORO_CREATED]
