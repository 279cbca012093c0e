"""
`make test` and `make slow`: every rung, in groups beside each other.

`make slow` runs the tests that are marked `slow`, and `make test` all others.

A file of `tests/e2e` is a group of its own, `tests/contract` is one, and the files of `tests/unit` and of
`tests/turns` are dealt out to two each; a new file is found by itself. A group is a pytest of its own, so those that
wait for a Worker or a lease leave the processor to those that compute. The longest of last time start first,
that the end waits for none of them.
With other arguments than ``--slow`` it is pytest with those arguments, and makes no difference between them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from dev import paths

__all__ = ["main", "run_groups"]

_AT_ONCE: Final = 2 + (os.cpu_count() or 1)
_APART: Final = {"clients"}
"""What has a target of its own, since it takes minutes and installs clients first: `make clients`."""
_HANDS: Final = 2
"""Processors that are filled by groups that mostly compute."""
_SLOW: Final = "--slow"
_MARK: Final = "pytest.mark.slow"
_NOTHING_CHOSEN: Final = 5  # pytest's status where no test is left
_SECONDS: Final = paths.BUILD / "test-seconds.json"
_TESTS: Final = paths.ROOT / "tests"
_PYTEST: Final = (sys.executable, "-m", "pytest", "-ra")
_OUTCOME: Final = re.compile(r"(\d+) (passed|failed|skipped|xfailed|xpassed|error|warning|deselected)s?\b")
# Of pytest's summary, which `-ra` asks for.
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
    def has_failed(self) -> bool:
        """Whether a test failed, or pytest itself: it may have died without a word about its tests."""
        return self.status not in {0, _NOTHING_CHOSEN} or not self.outcomes

    @property
    def remarks(self) -> list[str]:
        """What failed or was skipped, a line each."""
        lines = _REMARKABLE.findall(self.output)
        if self.has_failed and not any(line.startswith(("FAILED", "ERROR")) for line in lines):
            lines.append(f"FAILED {self.group}: pytest ended with status {self.status}")
        return lines


def main(arguments: list[str]) -> int:
    """Run the tests; return an exit status, 0 if all is well."""
    if arguments not in ([], [_SLOW]):
        return subprocess.run([*_PYTEST, *arguments], cwd=paths.ROOT, env=_environment(), check=False).returncode
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_groups(_TESTS, _SECONDS, slow=bool(arguments))


def run_groups(tests: Path, seconds: Path, *, slow: bool = False) -> int:
    """
    Run all of a folder that is slow, or all that is not; return an exit status.

    Args:
        tests: The folder of the rungs.
        seconds: The file that remembers how long each group took.
        slow: Which.
    """
    began = time.monotonic()
    finished = []
    known = _known(seconds)
    groups = _longest_first(_groups(tests, slow=slow), known)
    with closing(_run_all(groups, ("-m", "slow" if slow else "not slow"))) as results:
        for each in results:
            finished.append(each)
            print(f"\n{'-' * 20} {each.group}, {each.seconds:.0f} s\n{each.output}", flush=True)
    known |= {each.group: round(each.seconds, 1) for each in finished}
    seconds.parent.mkdir(parents=True, exist_ok=True)
    seconds.write_text(json.dumps(known, indent=2), "utf-8")
    _summarize(finished, time.monotonic() - began)
    return int(any(each.has_failed for each in finished))


def _groups(tests: Path, *, slow: bool) -> dict[str, list[Path]]:
    """Return the groups by name: what pytest is to run in each."""
    groups: dict[str, list[Path]] = {}
    for rung in sorted(path for path in tests.iterdir() if path.is_dir() and path.name not in _APART):
        files = sorted(file for file in rung.rglob("test_*.py") if _is_ours(file.relative_to(tests)))
        files = [file for file in files if _has(file, slow=slow)]
        name = f"{'slow ' if slow else ''}{tests.name}/{rung.name}"
        if rung.name == "e2e":
            groups |= {f"{name}/{file.name}": [file] for file in files}
        elif rung.name in {"unit", "turns"}:
            groups |= {f"{name}, {hand + 1} of {_HANDS}": files[hand::_HANDS] for hand in range(_HANDS)}
        else:
            groups[name] = files
    # Without files pytest would run everything.
    return {group: files for group, files in groups.items() if files}


def _has(file: Path, *, slow: bool) -> bool:
    """Say whether a file can have slow tests, or others."""
    text = file.read_text("utf-8")
    return _MARK in text if slow else f"pytestmark = {_MARK}" not in text


def _is_ours(file: Path) -> bool:
    """Say whether a file is no part of what was installed below the tests, in a `.venv` or in `node_modules`."""
    return not any(part.startswith(".") or part == "node_modules" for part in file.parts)


def _longest_first(groups: dict[str, list[Path]], known: dict[str, float]) -> dict[str, list[Path]]:
    """Sort them; one that has never run could be the longest, and the more there is to read the longer it takes."""

    def length(group: str) -> tuple[float, int]:
        return known.get(group, float("inf")), sum(file.stat().st_size for file in groups[group])

    return {group: groups[group] for group in sorted(groups, key=length, reverse=True)}


def _known(seconds: Path) -> dict[str, float]:
    try:
        known: dict[str, float] = json.loads(seconds.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known


def _run_all(groups: dict[str, list[Path]], chosen: tuple[str, ...]) -> Generator[_Finished, None, None]:
    """Run the groups, some at once, in this order; yield each when it has finished."""
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(_run, group, [*chosen, *map(str, files)], running) for group, files in groups.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # Each takes its own Workers down when it is interrupted, and once: a second time would stop that.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.send_signal(signal.SIGINT)
            raise


def _run(group: str, arguments: list[str], running: set[subprocess.Popen[str]]) -> _Finished:
    began = time.monotonic()
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [*_PYTEST, *arguments],
            cwd=paths.ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it from here only.
        )
        running.add(process)
        status = process.wait()
        running.remove(process)
        output.seek(0)
        return _Finished(group=group, status=status, output=output.read().rstrip(), seconds=time.monotonic() - began)


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
