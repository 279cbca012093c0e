"""
The words of ours that say why a task ended or failed.

They are fixed, so they tell nobody's data, and are shown where the words of others are not.
"""

from typing import Final

from chatturn.errors import error_classes

__all__ = ["BACKEND_COMPLETED", "SUSPENDED", "WORKER_LOST", "is_fixed"]

BACKEND_COMPLETED: Final = "backend completed"
"""agent-runtime's reason of a task that succeeded."""

SUSPENDED: Final = "suspended"
WORKER_LOST: Final = "The worker was lost, and another goes on."

_REASONS: Final = frozenset({BACKEND_COMPLETED, SUSPENDED, WORKER_LOST, "requested", "disconnected"})


def is_fixed(words: str) -> bool:
    """Say whether *words* are of the closed set that this package itself gives as reasons and messages."""
    return words in _REASONS or any(words in {cls.code, cls.public} for cls in error_classes())
