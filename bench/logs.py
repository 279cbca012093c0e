"""What storing a turn's log costs its stream, and how far followers are behind."""

import http.client
import json
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Final

from bench.measures import Sample, counts_of, fresh_turns, warm_up
from bench.upstream import Script
from bench.workers import Subject, running_pair_subject, running_with

__all__ = ["Behind", "followers", "log_cost", "rows_of_a_long_turn"]

_ISOLATES: Final = {"in the turn's isolate": "A", "in another, through D1": "B"}
_WARM_UP: Final = 40


@dataclass(frozen=True, kw_only=True)
class Behind:
    """How many milliseconds after the turn's own reader a follower gets a line."""

    median: float
    high: float


def log_cost(rounds: int) -> dict[str, Sample]:
    """Run turns whose log is stored every 250 ms, and turns whose log is stored with their end; by script."""
    settings = {"every 250 ms": {"LOG_EVERY_MS": "250"}, "with the end": {"LOG_EVERY_MS": "0"}}
    scripts = {"100 events, one each 10 ms": Script(100, 1, 10), "2,000 events at once": Script(2_000)}
    with running_with(settings) as subjects:
        warm_up(subjects, _WARM_UP)
        return {what: fresh_turns(subjects, script, rounds) for what, script in scripts.items()}


def rows_of_a_long_turn() -> dict[str, int]:
    """Return D1's counts for a turn of 2,000 events in at least 20 s."""
    return counts_of(Script(2_000, 1, 10))


def followers(turns: int) -> dict[str, Behind]:
    """Follow turns of 100 events, one each 20 ms, from both isolates of a pair; return the lag by where from."""
    behind: dict[str, list[float]] = {where: [] for where in _ISOLATES}
    with running_pair_subject() as subject:
        for number in range(turns + 1):
            found = _follow(subject, f"followed-{number}", Script(100, 1, 20))
            for where, lags in found.items() if number else ():  # the first is what warms both up
                behind[where] += lags
    return {
        where: Behind(median=statistics.median(lags), high=statistics.quantiles(lags, n=100)[-1])
        for where, lags in behind.items()
    }


def _follow(subject: Subject, session: str, script: Script) -> dict[str, list[float]]:
    address = f"/v1/sessions/{session}/turns/0"
    turn = _Reader(subject, "A", "POST", address, json.dumps({"message": "hello", "model": str(script)}))
    turn.begun.wait(60)
    readers = {where: _Reader(subject, isolate, "GET", f"{address}/stream") for where, isolate in _ISOLATES.items()}
    said, heard = turn.arrivals(), {where: reader.arrivals() for where, reader in readers.items()}
    # What had been said before somebody followed was not said late.
    return {
        where: [(at - said[seq]) * 1000 for seq, at in lines.items() if said[seq] > min(lines.values())]
        for where, lines in heard.items()
    }


class _Reader:
    """
    A stream that is read in the background.

    Attributes:
        begun: Set when two lines have come.
    """

    def __init__(self, subject: Subject, isolate: str, method: str, path: str, body: str | None = None) -> None:
        self.begun = threading.Event()
        self._arrived: dict[int, float] = {}
        headers = {"Authorization": f"Bearer {subject.token}", "Content-Type": "application/json", "x-isolate": isolate}
        self._connection = http.client.HTTPConnection("127.0.0.1", subject.worker.server.port, timeout=60)
        self._connection.request(method, path, body, headers)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def arrivals(self) -> dict[int, float]:
        """Read to the end; return when each line of the log came, by its seq."""
        self._thread.join(120)
        self._connection.close()
        return self._arrived

    def _read(self) -> None:
        for line in self._connection.getresponse():
            at, seq = time.monotonic(), json.loads(line).get("seq")
            if seq is not None:
                self._arrived[seq] = at
            if len(self._arrived) == 2:
                self.begun.set()
