"""
`make test`: every rung, in groups beside each other.

A file of `tests/e2e` is a group of its own, `tests/contract` is one, and the files of `tests/unit` are dealt out to
two; a new file is found by itself. A group is a pytest of its own, so those that wait for a Worker or a lease leave
the processor to those that compute. The longest of last time start first, that the end waits for none of them.
With arguments it is pytest with those arguments.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final

from dev import paths

__all__ = ["main"]

_AT_ONCE: Final = 2 + (os.cpu_count() or 1)
_HANDS: Final = 2
"""What mostly computes fills so many processors."""
_SECONDS: Final = paths.BUILD / "test-seconds.json"
"""How long each group took the last time."""
_TESTS: Final = paths.ROOT / "tests"
_PYTEST: Final = (sys.executable, "-m", "pytest")
_OUTCOME: Final = re.compile(r"(\d+) (passed|failed|skipped|xfailed|xpassed|error|warning|deselected)s?\b")
# Of pytest's summary, which `-ra` in pyproject.toml asks for.
_REMARKABLE: Final = re.compile(r"^(?:SKIPPED|XFAIL|XPASS|ERROR|FAILED) .*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """What came of a group."""

    group: str
    status: int
    output: str
    seconds: float

    @property
    def outcomes(self) -> Counter[str]:
        """How many tests passed, failed and so on, by pytest's last line."""
        *_, last = self.output.splitlines() or [""]
        return Counter({word: int(number) for number, word in _OUTCOME.findall(last)})

    @property
    def remarks(self) -> list[str]:
        """What failed or was skipped, a line each."""
        lines = _REMARKABLE.findall(self.output)
        if self.status != 0 and not any(line.startswith(("FAILED", "ERROR")) for line in lines):
            lines.append(f"FAILED {self.group}: pytest ended with status {self.status}")
        return lines


def main(arguments: list[str]) -> int:
    """Run the tests; return an exit status, 0 if all is well."""
    if arguments:
        return subprocess.run([*_PYTEST, *arguments], cwd=paths.ROOT, env=_environment(), check=False).returncode
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    finished = []
    groups = _groups()
    for each in _run_all({name: groups[name] for name in _longest_first(groups)}):
        finished.append(each)
        print(f"\n{'-' * 20} {each.group}, {each.seconds:.0f} s\n{each.output}", flush=True)
    _remember(finished)
    _summarize(finished, time.monotonic() - began)
    return max(each.status for each in finished)


def _groups() -> dict[str, list[str]]:
    """Return the groups by name: what pytest is to run in each."""
    files = {rung: sorted(map(str, (_TESTS / rung).glob("test_*.py"))) for rung in ("unit", "contract", "e2e")}
    unit = {f"tests/unit, {hand + 1} of {_HANDS}": files["unit"][hand::_HANDS] for hand in range(_HANDS)}
    e2e = {os.path.relpath(file, paths.ROOT): [file] for file in files["e2e"]}
    return {**unit, "tests/contract": files["contract"], **e2e}


def _longest_first(groups: Iterable[str]) -> list[str]:
    """Sort them; one that has never run could be the longest."""
    known = _known_seconds()
    return sorted(groups, key=lambda group: (-known.get(group, float("inf")), group))


def _known_seconds() -> dict[str, float]:
    try:
        known: dict[str, float] = json.loads(_SECONDS.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known


def _remember(finished: Iterable[_Finished]) -> None:
    _SECONDS.parent.mkdir(parents=True, exist_ok=True)
    _SECONDS.write_text(json.dumps({each.group: round(each.seconds, 1) for each in finished}, indent=2), "utf-8")


def _run_all(groups: Mapping[str, list[str]]) -> Iterator[_Finished]:
    """Run the groups, some at once, in this order; yield each when it has finished."""
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(_run, group, files, running) for group, files in groups.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # Each takes its own Workers down when it is interrupted, and once: a second time would stop that.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
            raise


def _run(group: str, files: list[str], running: set[subprocess.Popen[str]]) -> _Finished:
    began = time.monotonic()
    with subprocess.Popen(
        [*_PYTEST, *files],
        cwd=paths.ROOT,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches it from here only.
    ) as process:
        running.add(process)
        output, _ = process.communicate()
        running.remove(process)
    return _Finished(group=group, status=process.returncode, output=output.rstrip(), seconds=time.monotonic() - began)


def _environment() -> dict[str, str]:
    """Keep byte code, in a folder of ours, whatever the machine thinks of it: each pytest would compile for seconds."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": str(paths.BUILD / "pycache")}


def _summarize(finished: list[_Finished], seconds: float) -> None:
    total: Counter[str] = sum((each.outcomes for each in finished), Counter())
    print("-" * 20)
    for each in finished:
        for line in each.remarks:
            print(line)
    counts = ", ".join(f"{total[word]} {word}" for word in sorted({*total, "passed", "failed", "skipped"}))
    print(f"{counts} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
