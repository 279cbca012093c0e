"""What all tests on CPython have in common: ``async def`` tests run in virtual time, and no example is too slow."""

import gc
import inspect
import os

import pytest
from hypothesis import HealthCheck, settings

from chatturn_testing.virtual_time import run
from tests.support.in_workerd import pytest_collection_modifyitems

__all__ = ["pytest_collection_finish", "pytest_collection_modifyitems", "pytest_pyfunc_call"]


# A busy machine takes its time: what must not take long is measured by the benchmark, and what hangs is ended by pytest.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


# V8 would optimize WebAssembly while Python boots: a second of CPU for each Worker, which few live long enough to regain.
os.environ.setdefault("MINIFLARE_WORKERD_V8_FLAGS", "--liftoff-only")


def pytest_collection_finish() -> None:
    """Spare the collector what is there by now and stays: some tests call it, a hundred times."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test on a loop of its own; leave the others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}))
    return True
