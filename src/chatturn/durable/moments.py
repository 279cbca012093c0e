"""Timestamps as text: ``YYYY-MM-DDTHH:MM:SS.mmmZ``, always 24 characters, so that text order is time order.  Pure."""

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["moment_after", "timestamp"]

_LAST: Final = "9999-12-31T23:59:59.999Z"


def timestamp(moment: datetime) -> str:
    """Return *moment*, which knows its zone, as a timestamp."""
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}Z"


def moment_after(moment: str, milliseconds: int) -> str:
    """Return the timestamp that many milliseconds after another; the last one that there is, if it would be beyond."""
    try:
        return timestamp(datetime.fromisoformat(moment) + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return _LAST
