"""
`make bench-formats`: what a turn costs for the clients of other formats, and writes `bench/FORMATS.md`.

One Worker answers the same question by each route, each in its turn, so that every figure is one of a pair.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Final

from bench.client import FORMATS, Request
from bench.measures import warm_up
from bench.upstream import Script
from bench.workers import Subject, running_with

__all__ = ["main"]

_RESULTS: Final = Path(__file__).parent / "FORMATS.md"
_EVENTS: Final = 2_000
_ROUNDS: Final = 36
_SETTLING_S: Final = 0.2
_MOST_CPU: Final = 1.15
_MOST_FIRST_BYTE: Final = 1.05

_Sample = dict[str, tuple[float, float]]
"""By format: CPU, and time to first byte, in milliseconds."""


def main() -> int:
    """Measure; return 1 if another format is dearer than it may be."""
    began = time.monotonic()
    with running_with({"chatturn": {}}) as subjects:
        warm_up(subjects, 30)
        [subject] = subjects.values()
        rounds = [_round(subject, number) for number in range(_ROUNDS + 6)][6:]  # the first warm the routes up
    text, reached = _report(rounds, time.monotonic() - began)
    print(text)
    _RESULTS.write_text(text, "utf-8")
    return 0 if reached else 1


def _round(subject: Subject, number: int) -> _Sample:
    orders = list(permutations(FORMATS))  # each comes behind each other one equally often
    return {name: _turn(subject, name, number) for name in orders[number % len(orders)]}


def _turn(subject: Subject, name: str, number: int) -> tuple[float, float]:
    model = str(Script(_EVENTS))
    asked = Request(session=f"{name.replace(' ', '-')}-{number}", message="hi", model=model, format=name)
    used = subject.cpu_s()
    answer = subject.client.ask(asked)
    time.sleep(_SETTLING_S)
    return (subject.cpu_s() - used) * 1000, answer.first_byte_ms


def _report(rounds: Sequence[_Sample], seconds: float) -> tuple[str, bool]:
    lines = [
        "# What other formats cost",
        "",
        f"One turn of {_EVENTS:,} events at once, by each route of one Worker in its turn. CPU is that of the workerd",
        "which runs it. A ratio is the median of those within a round.",
        "",
        f"`make bench-formats`, {_ROUNDS} rounds, {seconds:.0f} s.",
        "",
        "| format | CPU, ms | to native | wanted | time to first byte, ms | to native | wanted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    reached = True
    for name in FORMATS:
        cpu, first = (statistics.median(each[name][at] for each in rounds) for at in (0, 1))
        cpu_ratio, first_ratio = (_ratio(rounds, name, at) for at in (0, 1))
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
