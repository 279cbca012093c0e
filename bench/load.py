"""
Turns beside *peer*: how many a second, so many at once; how late a delta is; what a paced stream costs.

And what a turn does, counted, so that a regression is seen without a clock: see `turn_counts`.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.client import Request
from bench.measures import Figures, Subjects, fresh, lags, read_counts
from bench.upstream import Script
from bench.workers import Subject, counted_worker

__all__ = ["COUNTED", "Lag", "paced_cpu", "paced_lag", "throughput", "turn_counts"]

Counts = Mapping[str, float]
"""How often each of `COUNTED` was done."""

COUNTED: Final = {
    "round_trips": "batches that D1 was asked to run",
    "statements": "statements in them",
    "into": "calls from JavaScript into Python",
    "calls": "calls from Python into JavaScript",
    "members": "members of JavaScript's objects looked up",
    "bytes": "texts and bytes copied",
    "functions": "Python functions made JavaScript's",
    "clock": "looks at the clock",
    "timers": "timers set",
    "byte_codes": "instructions of Python",
}

_SETTLED_S: Final = 0.3
"""After an answer, until what the Worker does after it is done."""

_FEW, _MANY = Script(10, 1, 40), Script(40, 1, 40)
"""Chunks that come alone, however slow the machine is, which counts byte codes besides."""


@dataclass(frozen=True, kw_only=True)
class Lag:
    """From the model's sending of a delta to the client's reading, in milliseconds."""

    median: float
    high: float


def throughput(subjects: Subjects, at_once: int, turns: int, rounds: int) -> tuple[Figures, Figures]:
    """Return turns of 20 chunks per second, so many at once, and the CPU of each in milliseconds: medians."""
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    costs: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            requests = [fresh(Script(20)) for _ in range(turns)]
            used, began = subject.cpu_s(), time.monotonic()
            subject.client.ask_all(requests, concurrency=at_once)
            rates[name].append(turns / (time.monotonic() - began))
            costs[name].append((subject.cpu_s() - used) * 1000 / turns)
            subject.client.close()
    return _medians(rates), _medians(costs)


def paced_lag(subjects: Subjects, streams: int, rounds: int) -> dict[str, Lag]:
    """Return median and 90th percentile of the lag of deltas, one each 20 ms in each of so many streams."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            requests = [fresh(Script(100, 1, 20)) for _ in range(streams)]
            for answer in subject.client.ask_all(requests, concurrency=streams):
                found[name] += lags(answer)
            subject.client.close()
    return {
        name: Lag(median=statistics.median(each), high=statistics.quantiles(each, n=10)[-1])
        for name, each in found.items()
    }


def paced_cpu(subjects: Subjects, rounds: int) -> tuple[Figures, Figures]:
    """Return the CPU of a stream of 120 chunks, one each 20 ms, and of one chunk more, in milliseconds: medians."""
    whole: dict[str, list[float]] = {name: [] for name in subjects}
    each: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            few, many = (_cpu_ms(subject, Script(chunks, 1, 20)) for chunks in (20, 120))
            whole[name].append(many)
            each[name].append((many - few) / 100)
    return _medians(whole), _medians(each)


def turn_counts() -> dict[str, Counts]:
    """
    Count what our Worker does; its log is stored with the end, so that no count depends on how long a turn takes.

    Returns:
        Of a turn of one chunk; of its replay; of a chunk more, where each comes alone; and of a turn of 20 chunks where
        32 are running, without byte codes, since counting those makes everything slower.
    """
    with counted_worker({"LOG_EVERY_MS": "0"}) as subject:
        for script in (Script(1), _FEW):
            subject.client.ask(fresh(script))
        empty = _empty(subject)
        turn, chunk = _counted(subject, empty, [fresh(Script(1))]), _of_a_chunk(subject, empty)
        replay = _of_a_replay(subject, empty)
        crowded = _counted(subject, empty, [fresh(Script(20)) for _ in range(64)], at_once=32)
        read_counts(subject, "?byte_codes")
        empty = _empty(subject)
        codes = {
            "turn": _counted(subject, empty, [fresh(Script(1))]),
            "replay": _of_a_replay(subject, empty),
            "chunk": _of_a_chunk(subject, empty),
        }
    names = [name for name in COUNTED if name != "byte_codes"]
    counted = {"turn": turn, "replay": replay, "chunk": chunk, "turn of 32": crowded}
    return {
        what: {
            **{name: counts[name] for name in names},
            **({"byte_codes": codes[what]["byte_codes"]} if what in codes else {}),
        }
        for what, counts in counted.items()
    }


def _empty(subject: Subject) -> Counts:
    """Return what reading the counts counts itself."""
    time.sleep(_SETTLED_S)
    read_counts(subject)
    return read_counts(subject)


def _of_a_chunk(subject: Subject, empty: Counts) -> Counts:
    few, many = (_counted(subject, empty, [fresh(script)]) for script in (_FEW, _MANY))
    return {name: (many[name] - few[name]) / (_MANY.events - _FEW.events) for name in COUNTED}


def _of_a_replay(subject: Subject, empty: Counts) -> Counts:
    request = fresh(Script(1))
    subject.client.ask(request)
    time.sleep(_SETTLED_S)
    return _counted(subject, empty, [request])


def _counted(subject: Subject, empty: Counts, requests: Sequence[Request], *, at_once: int = 1) -> Counts:
    read_counts(subject)
    subject.client.ask_all(requests, concurrency=at_once)
    subject.client.close()
    time.sleep(_SETTLED_S)
    counts = read_counts(subject)
    return {name: (counts[name] - empty[name]) / len(requests) for name in COUNTED}


def _cpu_ms(subject: Subject, script: Script) -> float:
    used = subject.cpu_s()
    subject.client.ask(fresh(script))
    time.sleep(0.05)
    return (subject.cpu_s() - used) * 1000


def _medians(figures: Mapping[str, list[float]]) -> Figures:
    return {name: statistics.median(values) for name, values in figures.items()}
