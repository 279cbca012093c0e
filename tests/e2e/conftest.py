"""Workers in the real workerd for the tests over HTTP."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Final, TypeAlias

import pytest

from tests.support.worker import Worker, running_worker

StartWorker: TypeAlias = Callable[..., Worker]

_OWN: Final = pytest.StashKey[list[Worker]]()
_LOG_CHARACTERS: Final = 12_000


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """The project's Worker with the scripted answer, one for all tests that leave it running."""
    with running_worker() as started:
        yield started


@pytest.fixture
def start_worker(request: pytest.FixtureRequest) -> Iterator[StartWorker]:
    """Start a Worker of the test's own, with the arguments of `running_worker`."""
    own = request.node.stash.setdefault(_OWN, [])
    with ExitStack() as stack:

        def start(**arguments: Any) -> Worker:
            started = stack.enter_context(running_worker(**arguments))
            own.append(started)
            return started

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, under a failed test, what its Workers printed."""
    report = yield
    if report.failed:
        shared = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Worker)]
        for worker in [*shared, *item.stash.get(_OWN, [])]:
            report.sections.append(("output of the Worker", worker.log[-_LOG_CHARACTERS:]))
    return report
