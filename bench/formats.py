"""
`make bench-formats`: what a turn costs for the clients of other formats, and writes `bench/FORMATS.md`.

One Worker answers the same question by each route, each in its turn, so that every figure is one of a pair.  The order
of each round is drawn, so that no route always follows the same one.

CPU is measured with turns of many events.  The first byte comes before the model is asked, so short turns, and more of
them, tell as much about it.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

from bench.client import FORMATS, Request
from bench.measures import warm_up
from bench.upstream import Script
from bench.workers import Subject, running_with

__all__ = ["main"]

_RESULTS: Final = Path(__file__).parent / "FORMATS.md"
_EVENTS: Final = 2_000
_ROUNDS: Final = 36
_SHORT_EVENTS: Final = 20
_SHORT_ROUNDS: Final = 150
_WARMING_ROUNDS: Final = 6
_SETTLING_S: Final = 0.2
_MOST_CPU: Final = 1.15
_MOST_FIRST_BYTE: Final = 1.05

_Sample = dict[str, tuple[float, float]]
"""By format: CPU, and time to first byte, in milliseconds."""

_CPU, _FIRST_BYTE = range(2)


def main() -> int:
    """Measure; return 1 if another format is dearer than it may be."""
    began = time.monotonic()
    with running_with({"chatturn": {}}) as subjects:
        warm_up(subjects, 30)
        [subject] = subjects.values()
        rounds = [_rounds(subject, _EVENTS, _ROUNDS), _rounds(subject, _SHORT_EVENTS, _SHORT_ROUNDS)]
    text, reached = _report(rounds, time.monotonic() - began)
    print(text)
    _RESULTS.write_text(text, "utf-8")
    return 0 if reached else 1


def _rounds(subject: Subject, events: int, count: int) -> list[_Sample]:
    random = Random(events)  # noqa: S311 - an order, no secret
    rounds = [
        {name: _turn(subject, name, events, number) for name in random.sample(sorted(FORMATS), len(FORMATS))}
        for number in range(_WARMING_ROUNDS + count)
    ]
    return rounds[_WARMING_ROUNDS:]


def _turn(subject: Subject, name: str, events: int, number: int) -> tuple[float, float]:
    session = f"{name.replace(' ', '-')}-{events}-{number}"
    asked = Request(session=session, message="hi", model=str(Script(events)), format=name)
    used = subject.cpu_s()
    answer = subject.client.ask(asked)
    time.sleep(_SETTLING_S)
    return (subject.cpu_s() - used) * 1000, answer.first_byte_ms


def _report(rounds: Sequence[Sequence[_Sample]], seconds: float) -> tuple[str, bool]:
    lines = [
        "# What other formats cost",
        "",
        f"One turn of {_EVENTS:,} events at once, by each route of one Worker in its turn; for the first byte, one of",
        f"{_SHORT_EVENTS}. CPU is that of the workerd which runs it. A ratio is the median of those within a round.",
        "",
        f"`make bench-formats`, {_ROUNDS} and {_SHORT_ROUNDS} rounds, {seconds:.0f} s.",
        "",
        "| format | CPU, ms | to native | wanted | time to first byte, ms | to native | wanted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    reached = True
    for name in FORMATS:
        cpu, first = (statistics.median(each[name][at] for each in rounds[at]) for at in (_CPU, _FIRST_BYTE))
        cpu_ratio, first_ratio = (_ratio(rounds[at], name, at) for at in (_CPU, _FIRST_BYTE))
        lines.append(
            f"| {name} | {cpu:.1f} | {cpu_ratio:.2f} | ≤ {_MOST_CPU} | {first:.1f} | {first_ratio:.2f}"
            f" | ≤ {_MOST_FIRST_BYTE} |"
        )
        reached &= cpu_ratio <= _MOST_CPU and first_ratio <= _MOST_FIRST_BYTE
    return "\n".join(lines) + "\n", reached


def _ratio(rounds: Sequence[Mapping[str, tuple[float, float]]], name: str, at: int) -> float:
    return statistics.median(each[name][at] / each["native"][at] for each in rounds)


if __name__ == "__main__":
    sys.exit(main())
