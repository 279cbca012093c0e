"""The tutorials' programs, run: each example of a page is a program that does what the text around it says."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.tasks import TaskContext
from tests.support.runs import manifest
from tests.support.turns import open_sqlite
from tests.unit.test_docs import sample


@pytest.mark.slow
def test_the_agent_in_the_manual_survives_a_kill_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test that stands beside it passes, and kills it in its own lines, too."""
    path = tmp_path / "refunds.py"
    path.write_text(sample("tools = ("))
    spec = spec_from_file_location("products.refunds", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "products.refunds", module)
    spec.loader.exec_module(module)
    scope: dict[str, Any] = {}
    exec(compile(sample("from products.refunds"), "docs", "exec"), scope)  # noqa: S102 - that is the test
    reports: list[Any] = []
    kill = scope["crash_everywhere"]

    def kept(*said: Any, **named: Any) -> Any:
        reports.append(kill(*said, **named))
        return reports[-1]

    scope["crash_everywhere"] = kept
    scope["test_a_refund_is_paid_once_wherever_a_worker_dies"]()

    assert [place for place in reports[0].places if place.startswith("refunds.py:")]


class CarrierDown(Exception):
    """What the manual's carrier raises."""


@pytest.mark.parametrize(
    ("mark", "name", "result", "effects"),
    [
        ("async def ship(", "ship", "slow", ["fast", "slow", "hand over slow"]),
        ("async def order(", "order", "yes", ["reserve", "prepare", "free"]),
        ("async def cheapest(", "cheapest", ["note b", "note a"], ["note b", "note a"]),
    ],
)
async def test_the_tasks_in_the_manual_work(mark: str, name: str, result: Any, effects: list[str]) -> None:
    """Also when they are called again, as the text around them says."""
    done: list[str] = []

    async def fast() -> str:
        done.append("fast")
        raise CarrierDown("it rains")

    async def slow() -> str:
        done.append("slow")
        return "slow"

    async def hand_over(carrier: str) -> str:
        done.append(f"hand over {carrier}")
        return carrier

    async def ask(shop: str) -> str:
        await asyncio.sleep({"a": 0.05, "b": 0.01}[shop])
        return shop

    def doing(what: str) -> Callable[[], Awaitable[str]]:
        async def do() -> str:
            done.append(what)
            return what

        return do

    scope = {
        "asyncio": asyncio, "TaskContext": TaskContext, "CarrierDown": CarrierDown, "ask_the_fast_carrier": fast,
        "ask_the_slow_carrier": slow, "hand_over": hand_over, "ask": ask, "note": lambda offer: doing(f"note {offer}")(),
        "reserve": doing("reserve"), "prepare": doing("prepare"), "free": doing("free"),
    }  # fmt: skip
    exec(compile(sample(mark), "docs", "exec"), scope)  # noqa: S102 - that is the test
    task: Any = scope[name]
    with open_sqlite() as database:
        store = SqlRunStore(database)
        given = (lambda context: task(context, ["a", "b"])) if name == "cheapest" else task
        what = RunDurableInput(run_id="run-1", manifest=manifest(), store=store, task_fn=given, inline_wait_ms=0)
        first = await run_durable(what)
        if first.suspended:
            await store.emit_event("run-1", "customer says yes", "yes")
        told = [(await run_durable(what)).result for _ in range(2)]

    assert [result, result] == told
    assert effects == done
