"""What all tests on CPython have in common: ``async def`` tests run in virtual time, and no example has a deadline."""

import inspect

import hypothesis
import pytest

from tests.support.in_workerd import pytest_collection_modifyitems
from tests.support.virtual_time import run

# A busy machine takes its time; what must not take long is measured by the benchmark.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

__all__ = ["pytest_collection_modifyitems", "pytest_pyfunc_call"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test on a loop of its own; leave the others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}))
    return True
