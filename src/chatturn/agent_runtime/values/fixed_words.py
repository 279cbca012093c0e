"""
chatturn's own words for why a task ended or failed.

They are fixed, so they hold nobody's data, and are shown where the words of others are masked.
"""

from typing import Final

from chatturn.errors import error_classes

__all__ = ["BACKEND_COMPLETED", "SUSPENDED", "WORKER_LOST", "is_fixed"]

BACKEND_COMPLETED: Final = "backend completed"
"""agent-runtime's reason for the end of a task that succeeded."""

SUSPENDED: Final = "suspended"
WORKER_LOST: Final = "The worker was lost, and another goes on."

_REASONS: Final = frozenset({BACKEND_COMPLETED, SUSPENDED, WORKER_LOST, "requested", "disconnected"})


def is_fixed(words: str) -> bool:
    """Say whether *words* are one of this package's own reasons and messages."""
    return words in _REASONS or any(words in {cls.code, cls.public} for cls in error_classes())
