"""Time in the test's hands, for whoever takes a moment as SQLite's time string."""

from datetime import UTC, datetime, timedelta

__all__ = ["Clock"]


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def moment(self) -> str:
        """Return the current moment."""
        return self.after(0)

    def after(self, milliseconds: int) -> str:
        """Return the moment that many milliseconds from now."""
        moment = self._now + timedelta(milliseconds=milliseconds)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self._now += timedelta(milliseconds=milliseconds)
