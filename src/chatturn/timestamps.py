"""Timestamps as text: ``YYYY-MM-DDTHH:MM:SS.mmmZ``, always 24 characters, so that text order is time order.  Pure."""

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["epoch_ms", "iso_timestamp", "moment_after", "timestamp"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LAST: Final = "9999-12-31T23:59:59.999Z"


def timestamp(moment: datetime) -> str:
    """Return *moment*, a datetime with a time zone, as a timestamp."""
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}Z"


def moment_after(moment: str, milliseconds: int) -> str:
    """Return the timestamp some milliseconds after another one; at most the last timestamp of the year 9999."""
    try:
        return timestamp(datetime.fromisoformat(moment) + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return _LAST


def iso_timestamp(moment_ms: int) -> str:
    """
    Return the moment *moment_ms* milliseconds after the epoch, as JavaScript's `toISOString` writes it.

    Raises:
        OverflowError: The moment is before the year 1 or after the year 9999.
    """
    return (_EPOCH + timedelta(milliseconds=moment_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(timestamp: str) -> int | None:
    """Return the milliseconds since the epoch, rounded down; UTC if no zone is named; None for no timestamp."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
