"""
pytest inside workerd.

Coroutine tests and fixtures are driven by `run_sync`: there is one event loop here, the Worker's,
and it cannot be entered twice.
"""

import contextlib
import functools
import inspect
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from pyodide.ffi import run_sync

_ROOT = "/session/metadata"
_OPTIONS = (
    f"--rootdir={_ROOT}",
    f"--config-file={_ROOT}/suite.ini",
    "--import-mode=importlib",
    "--capture=sys",  # There are no file descriptors to capture.
    "-pno:cacheprovider",  # The sources are mounted read-only.
    "-pno:faulthandler",
)


def run(tests: Sequence[str]) -> dict[str, Any]:
    """Run *tests*; return a report for each, and what pytest itself had to say."""
    reports = _Reports()
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        pytest.main([*_OPTIONS, *(f"{_ROOT}/{test}" for test in tests)], plugins=[reports, _Coroutines()])
    return {"tests": reports.tests, "output": output.getvalue()}


class _Reports:
    """Gathers the outcome of every test as plain data."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "text": "", "seconds": 0.0})
        test["seconds"] += report.duration
        if report.failed:
            test["outcome"] = "failed"
            output = [f"--- {title} ---\n{text}" for title, text in report.sections]
            test["text"] += "\n".join([f"in {report.when}:", report.longreprtext, *output])
        elif report.skipped and test["outcome"] == "passed":
            test["outcome"] = "skipped"
            test["text"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


class _Coroutines:
    """Lets a test or a fixture be `async`, without an event loop of its own."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        names = pyfuncitem._fixtureinfo.argnames
        run_sync(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        function: Callable[..., Any] = fixturedef.func
        if inspect.iscoroutinefunction(function):
            fixturedef.func = _waiting(function)  # type: ignore[misc]  # Final to its users, not to plugins.
        elif inspect.isasyncgenfunction(function):
            fixturedef.func = _draining(function)  # type: ignore[misc]


def _waiting(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def fixture(*args: Any, **kwargs: Any) -> Any:
        return run_sync(function(*args, **kwargs))

    return fixture


def _draining(function: Callable[..., AsyncIterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(function)
    def fixture(*args: Any, **kwargs: Any) -> Iterator[Any]:
        generator = function(*args, **kwargs)
        yield run_sync(anext(generator))
        run_sync(anext(generator, None))

    return fixture
