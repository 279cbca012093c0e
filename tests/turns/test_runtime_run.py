"""agent-runtime's run ledger, fed by chat turns: a row for each attempt, and the sums of `chat_usage`."""

import asyncio
from collections.abc import Iterator

import pytest

from chatturn.agent_runtime.shown.runs import RuntimeRunRow, RuntimeRunStatus
from chatturn.database.sqlite import SqliteDatabase
from products.assistant import Hooks as Assistant
from tests.support.telemetry import Collected, Logged, fixed_telemetry
from tests.support.turns import open_sqlite
from tests.turns.test_account import COUNTED, CUT, isolate, ledger


class Rows:
    """An adapter that keeps what it is given, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rows: list[RuntimeRunRow] = []
        self._error = error

    async def upsert(self, row: RuntimeRunRow) -> None:
        """Keep it."""
        self.rows.append(row)
        if self._error is not None:
            raise self._error


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


@pytest.fixture
def collector() -> Collected:
    """Whoever gets the telemetry."""
    return Collected()


async def test_each_attempt_is_a_run_that_costs_what_its_calls_cost(database: SqliteDatabase) -> None:
    """Of its own calls only; unknown is unknown in both; and a replay is no attempt."""
    alone, kept = isolate(database, CUT, COUNTED), Rows()
    alone.hooks = Assistant()
    alone.hooks.runtime_runs = kept
    for _ in range(3):
        await (await alone.post()).lines()
    failed, done = kept.rows

    assert ("acme", "thread-1", "chat:acme:thread-1:0/1", RuntimeRunStatus.FAILED, "backend_protocol") == (
        failed.workspace_id,
        failed.session_id,
        failed.id,
        failed.status,
        failed.error,
    )
    assert ("chat:acme:thread-1:0/2", RuntimeRunStatus.COMPLETED, None) == (done.id, done.status, done.error)
    assert [(1, None, None, None), (1, 7, 2, 9)] == [
        (row.cost.llm_calls, row.cost.tokens_in, row.cost.tokens_out, row.cost.cost_micro_usd) for row in kept.rows
    ]
    assert not failed.cost.tokens_known
    assert [(None, None, None), (7, 2, 9)] == await ledger(database, "tokens_in, tokens_out, cost_micro_usd")


async def test_an_adapter_that_fails_fails_no_turn(database: SqliteDatabase) -> None:
    """It is logged."""
    alone = isolate(database, COUNTED)
    alone.hooks = Assistant()
    alone.hooks.runtime_runs = Rows(RuntimeError("away"))
    lines = await (await alone.post()).lines()

    assert "session.run.completed" == lines[-1]["type"]
    assert ["runtime_runs"] == [what["hook"] for event, what in alone.logged if event == "hook.failed"]


async def test_an_adapter_that_hangs_holds_up_no_turn(database: SqliteDatabase, collector: Collected) -> None:
    """It is left after as long as a hook may take, and what is to be done behind it is done."""

    class Hanging(Rows):
        async def upsert(self, row: RuntimeRunRow) -> None:
            await super().upsert(row)
            await asyncio.Event().wait()

    alone, log = isolate(database, COUNTED), Logged()
    alone.hooks, alone.telemetry = Assistant(), fixed_telemetry(collector, log)
    alone.hooks.runtime_runs = kept = Hanging()
    lines = await (await alone.post()).lines()

    assert "session.run.completed" == lines[-1]["type"]
    assert 1 == len(kept.rows)
    assert ["runtime_runs"] == [what["hook"] for event, what in log if event == "hook.failed"]
    assert collector.spans


async def test_an_adapter_that_cancels_itself_has_failed(database: SqliteDatabase, collector: Collected) -> None:
    """As any other code of a product's: what is to be done behind it is done."""

    class Cancelling(Rows):
        async def upsert(self, row: RuntimeRunRow) -> None:
            await super().upsert(row)
            raise asyncio.CancelledError

    alone, log = isolate(database, COUNTED), Logged()
    alone.hooks, alone.telemetry = Assistant(), fixed_telemetry(collector, log)
    alone.hooks.runtime_runs = Cancelling()
    lines = await (await alone.post()).lines()

    assert "session.run.completed" == lines[-1]["type"]
    assert ["runtime_runs"] == [what["hook"] for event, what in log if event == "hook.failed"]
    assert collector.spans
