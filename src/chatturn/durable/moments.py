"""Timestamps as text: ``YYYY-MM-DDTHH:MM:SS.mmmZ``, always 24 characters, so that text order is time order.  Pure."""

from datetime import UTC, datetime, timedelta

__all__ = ["moment_after", "timestamp"]


def timestamp(moment: datetime) -> str:
    """Return *moment*, which knows its zone, as a timestamp."""
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}Z"


def moment_after(moment: str, milliseconds: int) -> str:
    """Return the timestamp that many milliseconds after another."""
    return timestamp(datetime.fromisoformat(moment) + timedelta(milliseconds=milliseconds))
