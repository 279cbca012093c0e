"""
Runs the contract tests a second time, inside workerd on real D1.

A `conftest.py` that imports `pytest_collection_modifyitems` from here gives each of its tests a
twin, `test_x[d1]`. Nothing starts until the first twin runs; then one Worker with pytest in it
runs the twins file by file, and each twin reports what happened to its test in there.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from dev import paths
from tests.support.http import http
from tests.support.worker import Worker, running_worker

__all__ = ["pytest_collection_modifyitems"]

_TESTS: Final = Path(__file__).resolve().parent.parent
_SUITE: Final = _TESTS / "worker" / "suite"
_RUN_SECONDS: Final = 500.0  # Less than what pytest gives a test: the answer says more than its time-out.
# What pytest is made of, from this environment: pure Python, so it runs anywhere.
_PYTEST: Final = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")


@pytest.hookimpl(tryfirst=True)  # Before `-k` and `-m` choose: they can then choose twins as well.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the twins; the marker `sqlite_only` keeps a test from having one."""
    runs = _Runs()
    contract = [
        item
        for item in items
        if item.path.is_relative_to(_TESTS / "contract")
        and isinstance(item, pytest.Function)
        and item.get_closest_marker("sqlite_only") is None
    ]
    for item in contract:
        assert item.parent is not None  # A test function always belongs to a module or a class.
        twin = Twin.from_parent(item.parent, name=f"{item.name}[d1]")
        twin.test = item.nodeid
        twin.runs = runs
        twin.own_markers.extend(item.own_markers)
        items.append(twin)


class Twin(pytest.Item):
    """A contract test inside workerd."""

    test: str
    """Its node id there."""
    runs: "_Runs"

    def runtest(self) -> None:
        """Report what happened to the test inside workerd."""
        report = self.runs.report(self)
        if report["outcome"] == "skipped":
            pytest.skip(report["text"])
        if report["outcome"] == "failed":
            raise FailedInWorkerd(report["text"])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the traceback from inside workerd, not the one of this file."""
        if isinstance(excinfo.value, FailedInWorkerd):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Say where the test is."""
        return self.path, None, self.name


class FailedInWorkerd(Exception):
    """A test failed there; the message is its traceback."""


class _Runs:
    """The reports from inside workerd, a file's worth fetched at a time."""

    def __init__(self) -> None:
        self.reports: dict[str, dict[str, Any]] = {}

    def report(self, twin: Twin) -> dict[str, Any]:
        if twin.test not in self.reports:
            neighbours = [
                other.test for other in twin.session.items if isinstance(other, Twin) and other.path == twin.path
            ]
            self._run(_worker_of(twin.session), neighbours)
        return self.reports[twin.test]

    def _run(self, worker: Worker, tests: Sequence[str]) -> None:
        try:
            response = http.post(worker.url, json=tests, timeout=_RUN_SECONDS)
        except httpx.HTTPError as error:
            self._fail(tests, f"workerd gave no answer: {error!r}\n{worker.log[-8000:]}")
            return
        if response.is_error:
            self._fail(tests, response.text)
            return
        answer = response.json()
        # What did not run has no report: a file that cannot be imported, an id that does not exist.
        self._fail(tests, f"the test did not run inside workerd\n{answer['output']}")
        self.reports.update(answer["tests"])

    def _fail(self, tests: Sequence[str], text: str) -> None:
        self.reports.update({test: {"outcome": "failed", "text": text} for test in tests})


_WORKER: Final = pytest.StashKey[Worker]()


def _worker_of(session: pytest.Session) -> Worker:
    """Return the session's Worker with pytest inside, started when first asked for."""
    if _WORKER not in session.stash:
        stack = ExitStack()
        session.stash[_WORKER] = stack.enter_context(pytest_worker())
        session.config.add_cleanup(stack.close)
    return session.stash[_WORKER]


def pytest_worker() -> Any:
    """Run the Worker in `tests/worker/suite`, with pytest and the contract tests mounted in it."""
    return running_worker(
        source=_SUITE,
        imports_late=True,  # Importing tests is what it is for.
        mounts={
            **{folder.name: folder for folder in _packages(paths.SOURCES)},
            "tests/worker/suite": _SUITE,
            "tests/contract": _TESTS / "contract",
            "tests/support": _TESTS / "support",
            "migrations": _TESTS.parent / "migrations",
            "tests/contract_database.py": _SUITE / "contract_database.py",
            **{f"python_modules/{path.name}": path for name in _PYTEST for path in _installed(name)},
        },
    )


def _packages(folder: Path) -> Iterator[Path]:
    """Yield the packages of `src/`; its `entry` would hide the one of the tests."""
    return (path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__")


def _installed(distribution: str) -> Iterator[Path]:
    """Yield the packages, modules and metadata that pip installed for *distribution*."""
    installed = metadata.distribution(distribution)
    for name in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
        yield Path(str(installed.locate_file(name)))
