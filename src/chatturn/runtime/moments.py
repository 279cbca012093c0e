"""Timestamps of runtime events: ``YYYY-MM-DDTHH:MM:SS.mmmZ``, and the milliseconds since the epoch that they are."""

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["epoch_ms", "iso_timestamp"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def iso_timestamp(moment_ms: int) -> str:
    """
    Return the moment so many milliseconds after the epoch, as JavaScript's `toISOString` writes it.

    Raises:
        OverflowError: It is before the year 1 or after 9999.
    """
    return (_EPOCH + timedelta(milliseconds=moment_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(timestamp: str) -> int | None:
    """Return the milliseconds since the epoch, rounded down; UTC where no zone is named, None for no timestamp."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
