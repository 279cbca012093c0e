"""The cron triggers of a Worker that runs locally: wrangler never calls them by itself."""

import http.client
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dev.server import Server

__all__ = ["Cron"]

_PATH: Final = "/cdn-cgi/local/scheduled"
_ANSWER_SECONDS: Final = 900.0
"""As long as the platform lets a cron run."""
_PATIENCE: Final = 0.5
"""How long nobody may answer, as a part of the time between two ticks."""


class Cron:
    """
    Calls the Worker's `scheduled` handler, every cron at every tick, whatever its pattern says.

    Args:
        server: The Worker.
        crons: The patterns, as `[triggers]` has them.
        every_s: Seconds between two ticks.

    Attributes:
        found_nobody: Whether nobody answered at the last tick.
    """

    def __init__(self, server: Server, crons: Sequence[str], *, every_s: float) -> None:
        self._server = server
        self._crons = crons
        self._every_s = every_s
        self._due = time.monotonic() + every_s
        self._running: threading.Thread | None = None
        self.found_nobody = False

    def tick(self) -> None:
        """Begin the calls if it is time and those of the last tick are over."""
        if time.monotonic() < self._due or (self._running is not None and self._running.is_alive()):
            return
        self._due = time.monotonic() + self._every_s
        self._running = threading.Thread(target=self._call, daemon=True)
        self._running.start()

    def _call(self) -> None:
        self.found_nobody = not self._server.answers(within_s=self._every_s * _PATIENCE)
        if self.found_nobody:
            return
        # One that does not start has shown why; what a call raises, wrangler shows.
        with suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(self._server.url + self._server.health_path, timeout=_ANSWER_SECONDS).close()
            for cron in self._crons:
                asked = f"{self._server.url}{_PATH}?{urllib.parse.urlencode({'cron': cron})}"
                urllib.request.urlopen(asked, timeout=_ANSWER_SECONDS).close()
