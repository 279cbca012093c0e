"""What is measured: each function runs one experiment, alternating between the Workers."""

import http.client
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.client import Answer, Request
from bench.upstream import Script
from bench.workers import Subject, counted_worker, stepped_worker

__all__ = [
    "Figures",
    "Sample",
    "Subjects",
    "concurrency",
    "counts",
    "counts_of",
    "delta_lag",
    "empty_requests",
    "fresh",
    "fresh_turns",
    "lags",
    "memory",
    "read_counts",
    "replays",
    "steps",
    "turns_in_a_row",
    "warm_up",
]

Subjects = Mapping[str, Subject]
Figures = dict[str, float]
"""One figure for each Worker, by its name."""

_MESSAGE: Final = "How many tokens does it take to change a light bulb?"
_SETTLING_S: Final = 0.015
"""After an answer, until what the Worker does after it is done and counted."""

_STAMP: Final = re.compile(rb'"(?:content|delta)":"(\d{6,}) "')
_sessions = (f"bench-{number}" for number in itertools.count())


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Medians over all rounds of one experiment, in milliseconds."""

    first_byte: Figures
    total: Figures
    cpu: Figures


def fresh_turns(subjects: Subjects, script: Script, rounds: int, settling_s: float = _SETTLING_S) -> Sample:
    """Run one fresh turn after the other, each Worker in its turn; what it does within *settling_s* is counted."""
    return _alternate(subjects, rounds, lambda: fresh(script), settling_s)


def turns_in_a_row(subjects: Subjects, script: Script, rounds: int, turns: int, settling_s: float) -> Figures:
    """Return the median CPU of a turn, in milliseconds, of so many one after the other and what is done after them."""
    measured: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            used = subject.cpu_s()
            for _ in range(turns):
                subject.client.ask(fresh(script))
            time.sleep(settling_s)
            measured[name].append((subject.cpu_s() - used) * 1000 / turns)
    return {name: statistics.median(values) for name, values in measured.items()}


def replays(subjects: Subjects, rounds: int) -> Sample:
    """Ask again for a turn of 20 chunks that has finished."""
    request = fresh(Script(20))
    for subject in subjects.values():
        subject.client.ask(request)
    return _alternate(subjects, rounds, lambda: request)


def empty_requests(subjects: Subjects, rounds: int) -> Sample:
    """Ask for an answer of a few bytes that needs neither database nor model: what a request costs at least."""
    connections = {
        name: http.client.HTTPConnection("127.0.0.1", subject.worker.server.port, timeout=10)
        for name, subject in subjects.items()
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, connection in connections.items():
            used, began = subjects[name].cpu_s(), time.monotonic()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            total_ms = (time.monotonic() - began) * 1000
            time.sleep(_SETTLING_S)
            measured[name].append((total_ms, (subjects[name].cpu_s() - used) * 1000))
    for connection in connections.values():
        connection.close()
    columns = {name: list(zip(*rows, strict=True)) for name, rows in measured.items()}
    total = _medians(columns, 0)
    return Sample(first_byte=total, total=total, cpu=_medians(columns, 1))


def warm_up(subjects: Subjects, turns: int) -> None:
    """Let the just-in-time compilers see what is coming."""
    for subject in subjects.values():
        request = fresh(Script(20))
        for _ in range(turns):
            subject.client.ask(fresh(Script(20)))
            subject.client.ask(request)
        for script in (Script(500), Script(500, 10)):
            for _ in range(max(1, turns // 10)):
                subject.client.ask(fresh(script))


def concurrency(subjects: Subjects, at_once: int, turns: int) -> Figures:
    """Return the turns of 20 chunks per second, so many at once."""
    rates: Figures = {}
    for name, subject in subjects.items():
        requests = [fresh(Script(20)) for _ in range(turns)]
        began = time.monotonic()
        subject.client.ask_all(requests, concurrency=at_once)
        rates[name] = turns / (time.monotonic() - began)
        subject.client.close()
    return rates


def memory(subject: Subject, turns: int, steps: int) -> list[float]:
    """Return the runtime's resident megabytes before and after each of *steps* parts of *turns* turns."""
    sizes = [subject.memory_mb()]
    for _ in range(steps):
        requests = [fresh(Script(20)) for _ in range(turns // steps)]
        subject.client.ask_all(requests, concurrency=8)
        sizes.append(subject.memory_mb())
    subject.client.close()
    return sizes


def delta_lag(subjects: Subjects, events: int, pause_ms: int, rounds: int) -> tuple[Figures, Figures]:
    """Return median and 95th percentile of the milliseconds from the model's sending to the client's reading."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            found[name] += lags(subject.client.ask(fresh(Script(events, 1, pause_ms))))
    return (
        {name: statistics.median(values) for name, values in found.items()},
        {name: statistics.quantiles(values, n=20)[-1] for name, values in found.items()},
    )


def counts() -> dict[str, dict[str, int]]:
    """Return D1's round trips, statements and rows of a fresh turn, one with history, and a replay."""
    with counted_worker() as subject:
        session = next(_sessions)
        found = {}
        for what, turn_index in (("fresh", 0), ("fresh, second of its session", 1), ("replay", 0)):
            read_counts(subject)
            subject.client.ask(_request(Script(20), session, turn_index))
            time.sleep(0.3)
            found[what] = read_counts(subject)
    return found


def counts_of(script: Script) -> dict[str, int]:
    """Return D1's round trips, statements and rows of one fresh turn."""
    with counted_worker() as subject:
        read_counts(subject)
        subject.client.ask(fresh(script))
        time.sleep(0.3)
        return read_counts(subject)


def steps(number: int) -> dict[str, tuple[float, dict[str, int]]]:
    """Run so many durable steps, and as many of a naive loop; then replay both.  Return milliseconds and counts."""
    with stepped_worker() as subject:
        for how in ("durable", "naive"):
            _timed_steps(subject, how, "warm-up", number)
        found = {}
        for what in ("fresh", "replay"):
            for how in ("durable", "naive"):
                read_counts(subject)
                found[f"{how}, {what}"] = (_timed_steps(subject, how, "measured", number), read_counts(subject))
        return found


def _timed_steps(subject: Subject, how: str, run_id: str, number: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", subject.worker.server.port, timeout=300)
    try:
        began = time.monotonic()
        connection.request("POST", f"/bench/steps/{how}/{run_id}?steps={number}")
        said = connection.getresponse().read()
        if said != str(number).encode():
            raise RuntimeError(f"not {number} steps: {said[:200]!r}")
        return (time.monotonic() - began) * 1000
    finally:
        connection.close()


def read_counts(subject: Subject, query: str = "") -> dict[str, int]:
    """Read what was counted since the last time."""
    connection = http.client.HTTPConnection("127.0.0.1", subject.worker.server.port, timeout=10)
    try:
        connection.request("GET", f"/bench/counts{query}")
        found: dict[str, int] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return found


def _alternate(
    subjects: Subjects, rounds: int, request_of: Callable[[], Request], settling_s: float = _SETTLING_S
) -> Sample:
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in subjects}
    order = list(subjects.items())
    for _ in range(rounds):
        order.reverse()  # none is always the one that finds the machine as another has left it
        for name, subject in order:
            request, used = request_of(), subject.cpu_s()
            answer = subject.client.ask(request)
            time.sleep(settling_s)
            cpu_ms = (subject.cpu_s() - used) * 1000
            measured[name].append((answer.first_byte_ms, answer.total_ms, cpu_ms))
    columns = {name: list(zip(*rows, strict=True)) for name, rows in measured.items()}
    return Sample(**{field: _medians(columns, at) for at, field in enumerate(("first_byte", "total", "cpu"))})


def _medians(columns: Mapping[str, Sequence[Sequence[float]]], at: int) -> Figures:
    return {name: statistics.median(column[at]) for name, column in columns.items()}


def lags(answer: Answer) -> list[float]:
    """Return for each delta how many milliseconds after the model's sending it was read."""
    return [(at * 1e9 - int(stamp)) / 1e6 for at, piece in answer.reads for stamp in _STAMP.findall(piece)]


def fresh(script: Script) -> Request:
    """Ask for a turn of a session of its own."""
    return _request(script, next(_sessions), 0)


def _request(script: Script, session: str, turn_index: int) -> Request:
    return Request(session=session, turn_index=turn_index, message=_MESSAGE, model=str(script))
