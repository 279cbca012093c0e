"""
`make bench-host`: what it costs to be as strict as the platform, and writes `bench/HOST.md`.

The local host replaces `setTimeout` as the platform does.  The same Worker runs once more without that, and both
answer turns, each in its turn, in one run.
"""

import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.measures import fresh_turns, turns_in_a_row, warm_up
from bench.upstream import Script
from bench.workers import VARIABLES, Subject, running_upstream, subject
from dev import paths
from dev.config import Config
from dev.server import Server
from tests.support.worker import DEFAULTS, Worker

__all__ = ["main"]

_RESULTS: Final = Path(__file__).parent / "HOST.md"
_MOST: Final = 1.05
_ROUNDS: Final = 30
_TURNS: Final = 20
_TIMER_ROUNDS: Final = 40
_REPLACED: Final = "globalThis.setTimeout = function setTimeout"


class _AsWorkerdIs(Server):
    """A host that leaves workerd's own timers."""

    def assemble(self) -> None:
        """Write what wrangler is to run to `bundle`."""
        super().assemble()
        boot = self.bundle / "boot.mjs"
        before = boot.read_text("utf-8")
        after = before.replace(_REPLACED, "globalThis.replacedSetTimeout = function setTimeout")
        if before == after:
            raise AssertionError("boot.mjs replaces its timers in another way now")
        boot.write_text(after, "utf-8")


def main() -> int:
    """Measure; return 1 if a turn is dearer than it may be."""
    began = time.monotonic()
    with ExitStack() as stack:
        address = stack.enter_context(running_upstream())
        subjects = {
            "as workerd is": stack.enter_context(_running(_AsWorkerdIs, address)),
            "as the platform": stack.enter_context(_running(Server, address)),
        }
        warm_up(subjects, 40)
        sample = fresh_turns(subjects, Script(20), _ROUNDS * 2)
        cpu = turns_in_a_row(subjects, Script(20), _ROUNDS, _TURNS, 0.05)
        timers = _timers(subjects)
    rows = {
        "turn of 20 chunks, time to first byte, ms": sample.first_byte,
        "turn of 20 chunks, total, ms": sample.total,
        f"turn of 20 chunks, CPU of one of {_TURNS} in a row, ms": cpu,
        "timer set and cancelled, us": timers["cancelled"],
        "timer set and fired, of 500 at once, us": timers["fired"],
    }
    text = _report(rows, time.monotonic() - began)
    print(text)
    _RESULTS.write_text(text, "utf-8")
    return 0 if _ratio(cpu) <= _MOST else 1


@contextmanager
def _running(kind: type[Server], address: str) -> Iterator[Subject]:
    variables = {**DEFAULTS, **VARIABLES, "OPENAI_BASE_URL": address}
    with tempfile.TemporaryDirectory(prefix="chatturn-bench-", ignore_cleanup_errors=True) as folder:
        server = kind(
            folder=Path(folder) / "worker",
            state=Path(folder) / "state",
            config=Config.read(paths.DEPLOYMENT_CONFIG, variables=variables),
            mounts={
                "": paths.SOURCES,
                "python_modules": paths.VENDORED,
                "timed.py": Path(__file__).parent / "timed.py",
            },
            entry="timed",
            schema=paths.SCHEMA,
        )
        worker = Worker(server=server)
        worker.start()
        try:
            yield subject(kind.__name__, worker)
        finally:
            worker.kill()


def _timers(subjects: Mapping[str, Subject]) -> dict[str, dict[str, float]]:
    """Return the medians, by what is measured and by the Worker's name."""
    found: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in subjects} for what in ("cancelled", "fired")
    }
    for _ in range(_TIMER_ROUNDS):
        for name, each in subjects.items():
            with urllib.request.urlopen(f"{each.worker.url}/timers", timeout=60) as response:
                for what, figure in json.load(response).items():
                    found[what][name].append(figure)
    return {what: {name: statistics.median(all_) for name, all_ in by.items()} for what, by in found.items()}


def _ratio(figures: Mapping[str, float]) -> float:
    before, after = figures.values()
    return after / before


def _report(rows: Mapping[str, Mapping[str, float]], seconds: float) -> str:
    lines = [
        "# The local host, as strict as the platform",
        "",
        f"Written by `make bench-host` in {seconds:.0f} s. Medians; both Workers in one run, each in its turn.",
        f"No turn may be dearer than {_MOST} times what it is with workerd's own timers.",
        "",
        "| | as workerd is | as the platform | ratio |",
        "|---|---|---|---|",
        *(
            f"| {what} | {' | '.join(f'{each:.2f}' for each in by.values())} | {_ratio(by):.3f} |"
            for what, by in rows.items()
        ),
        "",
        "Modules that the first requests import: 0, of every product and every route. `tests/e2e/test_isolates.py`",
        "fails otherwise, and so does every Worker of the tests (`late_imports`).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
