"""Workers in the real workerd for the tests over HTTP."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest

from tests.support.worker import Worker, running_worker

StartWorker: TypeAlias = Callable[..., Worker]


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """The project's Worker with the scripted answer, one for all tests that leave it running."""
    with running_worker() as started:
        yield started


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Start a Worker of the test's own, with the arguments of `running_worker`."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(running_worker(**arguments))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, under a failed test, what its Workers printed."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Worker):
                report.sections.append(("output of the Worker", value.log[-12_000:]))
    return report
