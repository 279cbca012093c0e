"""
`make bench-beside`: what a turn and a start cost, beside an earlier commit's code, in one run on one host.

Both Workers answer the same turns of the same model, one after the other.  Prints a table and writes nothing.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.measures import Figures, Subjects, delta_lag, fresh_turns, replays, turns_in_a_row, warm_up
from bench.upstream import Script
from bench.workers import VARIABLES, Subject, running_upstream, subject
from dev import paths
from tests.rolling.earlier import EARLIER, unpack
from tests.support.worker import running_worker

__all__ = ["main"]

_NAMES: Final = ("earlier", "now")
_TURNS: Final = 20
"""In a row, for the CPU of one: what a turn does after its answer is in it."""


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where the code is that runs, and the schema of its database."""

    folder: Path
    schema: Path


def main(arguments: list[str]) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    parser.add_argument("--commit", default=EARLIER, help="the earlier one; default: that of tests/rolling/EARLIER")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--starts", type=int, default=5)
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatturn-bench-")))
        unpack(folder, chosen.commit)
        sources = {
            "earlier": _Sources(folder=folder / "src", schema=folder / "schema.sql"),
            "now": _Sources(folder=paths.SOURCES, schema=paths.SCHEMA),
        }
        address = stack.enter_context(running_upstream())
        rows = {"start to the first answer, CPU ms": _starts(sources, address, chosen.starts)}
        subjects = {name: stack.enter_context(_running(name, each, address)) for name, each in sources.items()}
        warm_up(subjects, 60)
        rows.update(_turns(subjects, chosen.rounds))
    print(f"| | {' | '.join(_NAMES)} | ratio |\n|---|---|---|---|")
    for what, figures in rows.items():
        earlier, now = (figures[name] for name in _NAMES)
        print(f"| {what} | {earlier:.2f} | {now:.2f} | {now / earlier:.3f} |")
    return 0


def _turns(subjects: Subjects, rounds: int) -> Iterator[tuple[str, Figures]]:
    for script, what in (
        (Script(1), "1 chunk"),
        (Script(20), "20 chunks"),
        (Script(200), "200 chunks"),
        (Script(2_000), "2,000 chunks"),
        (Script(2_000, 10), "2,000 events, ten per chunk"),
    ):
        sample = fresh_turns(subjects, script, rounds)
        yield f"{what}, first byte ms", sample.first_byte
        yield f"{what}, total ms", sample.total
        yield f"{what}, CPU ms", sample.cpu
    yield f"20 chunks, CPU ms of one of {_TURNS} in a row", turns_in_a_row(subjects, Script(20), rounds, _TURNS, 0.1)
    sample = replays(subjects, rounds * 2)
    yield "replay, total ms", sample.total
    yield "replay, CPU ms", sample.cpu
    yield "lag of a delta at 20 ms between events, median ms", delta_lag(subjects, 100, 20, 2)[0]


def _starts(sources: Mapping[str, _Sources], address: str, starts: int) -> Figures:
    """Return the medians of the CPU that a process has used when its Worker has answered for the first time."""
    used: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(starts):
        for name, each in sources.items():
            with _running(name, each, address) as started:
                used[name].append(started.cpu_s() * 1000)
    return {name: statistics.median(each) for name, each in used.items()}


@contextmanager
def _running(name: str, sources: _Sources, address: str) -> Iterator[Subject]:
    with running_worker(
        source=sources.folder,
        schema=sources.schema,
        variables={**VARIABLES, "OPENAI_BASE_URL": address},
        imports_late=name == "earlier",
    ) as worker:
        yield subject(name, worker)


if __name__ == "__main__":
    began = time.monotonic()
    status = main(sys.argv[1:])
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(status)
