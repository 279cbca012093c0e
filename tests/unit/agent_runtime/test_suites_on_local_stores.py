"""
agent-runtime's own suites over the local stores, each store by its name.

The contract's own run has them on the platform's store: in memory here, and `D1DurableRunStore` inside workerd.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatturn.agent_runtime import (
    FileSystemDurableRunStore,
    InMemoryDurableRunStore,
    InMemoryRuntimeSessionStore,
    RuntimeSessionStore,
    SqlRuntimeSessionStore,
)
from chatturn.database.api import Database
from tests.contract import test_agent_runtime_chat, test_agent_runtime_suite, test_agent_tasks, test_sessions
from tests.support.clock import Clock

LocalStore = FileSystemDurableRunStore | InMemoryDurableRunStore

for _module in (test_agent_runtime_chat, test_agent_runtime_suite, test_agent_tasks, test_sessions):
    _name = _module.__name__.rpartition(".")[2]
    globals().update({f"{each}__{_name}": vars(_module)[each] for each in vars(_module) if each.startswith("test_")})


@pytest.fixture
def clock() -> Clock:
    """The database's clock, in the test's hands."""
    return Clock()


@pytest.fixture(params=["InMemoryDurableRunStore", "FileSystemDurableRunStore"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[LocalStore]:
    """An empty store of each name."""
    made: LocalStore = (
        InMemoryDurableRunStore(moment=clock.moment)
        if request.param == "InMemoryDurableRunStore"
        else FileSystemDurableRunStore(tmp_path / "runs.sqlite3", moment=clock.moment)
    )
    with made.sqlite:
        yield made


@pytest.fixture
def database(store: LocalStore) -> Database:
    """Where its tables are."""
    return store.database


@pytest.fixture(params=["InMemoryRuntimeSessionStore", "SqlRuntimeSessionStore"])
def sessions(request: pytest.FixtureRequest, store: LocalStore) -> RuntimeSessionStore:
    """An empty store of sessions of each name; the second one in memory, and in a file."""
    if request.param == "InMemoryRuntimeSessionStore":
        return InMemoryRuntimeSessionStore()
    return SqlRuntimeSessionStore(store.database)
