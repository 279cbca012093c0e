"""The ledger of a run: its states, its sums, what it does not know, and its row."""

import json
import math
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatturn.agent_runtime.shown.run_ledger import (
    RuntimeRunCompleteInput,
    RuntimeRunCost,
    RuntimeRunHandle,
    RuntimeRunOptions,
    RuntimeRunPersistenceAdapter,
    RuntimeRunRow,
    RuntimeRunStateError,
    RuntimeRunStatus,
    start_runtime_run,
)
from chatturn.agent_runtime.shown.runs import TRANSITIONS
from chatturn.agent_runtime.values.events import LlmCallEvent, RuntimeStreamEvent, TextDeltaEvent
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.usage.money import MAX_MICRO_USD, micro_usd, usd
from tests.support.runtime_values import events

TASK = AgentTaskSpec(id="task", intent="Answer.", domain="legal")
START_MS = 1_767_225_600_000


class Clock:
    """Milliseconds since the epoch, as the test sets them."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class Rows(RuntimeRunPersistenceAdapter):
    """An adapter that remembers, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.rows: list[RuntimeRunRow] = []
        self._failure = failure

    async def upsert(self, row: RuntimeRunRow) -> None:
        if self._failure is not None:
            raise self._failure
        self.rows.append(row)


def run(clock: Clock | None = None, **other: Any) -> RuntimeRunHandle:
    members = {"workspace_id": "acme", "task_spec": TASK, "now_ms": clock or Clock(), "id": "run", **other}
    return start_runtime_run(RuntimeRunOptions(**members))


def call(tokens_in: Any = None, tokens_out: Any = None, cost_usd: Any = None, **other: Any) -> LlmCallEvent:
    return LlmCallEvent(model="m", tokens_in=tokens_in, tokens_out=tokens_out, cost_usd=cost_usd, **other)


def cost_of(*calls: RuntimeStreamEvent, **other: Any) -> RuntimeRunCost:
    handle = run(**other)
    for each in calls:
        handle.observe(each)
    return handle.cost()


def end(status: str = "completed", **other: Any) -> RuntimeRunCompleteInput:
    return RuntimeRunCompleteInput(status=RuntimeRunStatus(status), **other)


# Money


@pytest.mark.parametrize(
    ("dollars", "expected"),
    [
        (0, 0),
        (0.0, 0),
        (-0.0, 0),
        (0.1, 100_000),
        (1, 1_000_000),
        (0.000001, 1),
        (1e-7, 0),
        (0.0000005, 0),
        (0.0000015, 2),
        (1.0000005, 1_000_000),
        (0.1234565, 123_456),
        (1_000_000_000, 10**15),
    ],
)
def test_dollars_are_rounded_once_half_to_even(dollars: object, expected: int) -> None:
    """To a millionth; a float is the decimal that was written."""
    assert expected == micro_usd(dollars)


@pytest.mark.parametrize("dollars", [None, True, "0.1", -0.01, -1, math.nan, math.inf, -math.inf, 1e300, 10**400, 1e10])
def test_what_is_no_amount_is_not_known(dollars: object) -> None:
    """Negative, not finite, or more than anybody has spent."""
    assert micro_usd(dollars) is None


@given(st.integers(0, MAX_MICRO_USD))
def test_an_amount_is_the_same_after_the_border(amount: int) -> None:
    """Out as dollars, and in again."""
    assert amount == micro_usd(usd(amount))


# States


def test_a_run_moves_as_the_table_says_and_nowhere_else() -> None:
    """Every pair of states is tried: a legal move is made, the same end again is nothing, any other is an error."""
    ends = [status for status in RuntimeRunStatus if not TRANSITIONS[status]]
    for first, second in product(ends, ends):
        handle = run()
        handle.complete(end(first, result_summary="first"))
        assert handle.status == first
        if first == second:
            handle.complete(end(second, result_summary="second"))
        else:
            with pytest.raises(RuntimeRunStateError, match=f"ended as {first}, so it cannot end as {second}"):
                handle.complete(end(second))

        assert (first, "first") == (handle.status, handle.to_row().result_summary)


def test_a_run_does_not_end_as_running() -> None:
    """Before its end and after it, the status is refused and nothing changes."""
    handle = run()
    for expected in (RuntimeRunStatus.RUNNING, RuntimeRunStatus.FAILED):
        with pytest.raises(ValueError, match="does not end as running"):
            handle.complete(end("running"))

        assert expected == handle.status
        handle.complete(end("failed"))


@pytest.mark.parametrize(
    "wrong", [{"workspace_id": ""}, {"task_spec": AgentTaskSpec(id="", intent="i")}, {"id": None}, {"id": ""}]
)
def test_a_run_of_nobody_is_refused(wrong: dict[str, Any]) -> None:
    """It has a workspace, a task, and an id of its own."""
    with pytest.raises(ValueError, match="needs"):
        run(**wrong)


def test_a_run_s_id_is_the_task_s_with_a_token() -> None:
    """Unless it is given."""
    assert "run" == run().id
    assert "task:k3v9x0ab" == run(id=None, token=lambda: "k3v9x0ab").id


# What it costs


def test_calls_are_added_up() -> None:
    """Tokens, dollars and calls; of a run without calls all are 0, and known."""
    nothing = RuntimeRunCost(tokens_in=0, tokens_out=0, cost_micro_usd=0, wall_ms=0, llm_calls=0)
    assert nothing == cost_of()

    total = RuntimeRunCost(tokens_in=5, tokens_out=7, cost_micro_usd=300_000, wall_ms=0, llm_calls=2)
    assert total == cost_of(call(2, 3, 0.1), call(3, 4, 0.2))


def test_only_model_calls_count() -> None:
    """Whatever else a stream says."""
    assert cost_of() == cost_of(TextDeltaEvent(text="a"))


@given(st.lists(st.floats(0, 1_000), max_size=30))
def test_sums_of_money_are_exact(dollars: list[float]) -> None:
    """Each call is rounded once; no sum drifts, in whatever order."""
    parts = [micro_usd(each) or 0 for each in dollars]

    for each in (dollars, dollars[::-1]):
        assert sum(parts) == cost_of(*(call(1, 1, cost) for cost in each)).cost_micro_usd


def test_a_tenth_ten_times_is_one() -> None:
    """As floats it is not."""
    assert 1_000_000 == cost_of(*(call(1, 1, 0.1) for _ in range(10))).cost_micro_usd
    assert 1.0 == cost_of(*(call(1, 1, 0.1) for _ in range(10))).to_json()["costUsd"]


def test_unknown_is_never_zero() -> None:
    """A sum of which nothing is known is none; one of which a part is not known says so."""
    nothing, part = cost_of(call()), cost_of(call(2, 3, 0.1), call(2))

    assert (None, None, None, 1) == (nothing.tokens_in, nothing.tokens_out, nothing.cost_micro_usd, nothing.llm_calls)
    assert (False, False) == (nothing.tokens_known, nothing.usd_known)
    assert (4, 3, 100_000) == (part.tokens_in, part.tokens_out, part.cost_micro_usd)
    assert (False, False) == (part.tokens_known, part.usd_known)


def test_a_reported_zero_is_known() -> None:
    """A free call cost nothing, and that is known."""
    free = cost_of(call(0, 0, 0.0))

    assert (0, 0, 0, True, True) == (
        free.tokens_in,
        free.tokens_out,
        free.cost_micro_usd,
        free.tokens_known,
        free.usd_known,
    )


@pytest.mark.parametrize("wrong", [-1, -0.5, math.nan, math.inf, -math.inf, 1.5, 2**60, 1e300, True, "7"])
def test_a_count_that_is_none_subtracts_nothing(wrong: Any) -> None:
    """A negative or a broken count is not known; agent-runtime's ledger subtracts it."""
    cost = cost_of(call(2, 2, 0.1), call(wrong, 3, 0.1))

    assert (2, 5, 200_000) == (cost.tokens_in, cost.tokens_out, cost.cost_micro_usd)
    assert (False, True) == (cost.tokens_known, cost.usd_known)


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, 1e300])
def test_a_cost_that_is_none_subtracts_nothing(wrong: float) -> None:
    """Likewise for money."""
    cost = cost_of(call(1, 1, 0.1), call(1, 1, wrong))

    assert (100_000, False, True) == (cost.cost_micro_usd, cost.usd_known, cost.tokens_known)


@given(st.lists(events(lambda _: st.text("ab")), max_size=4))
@settings(max_examples=40)
def test_whatever_a_stream_says_the_ledger_takes_it(seen: list[RuntimeStreamEvent]) -> None:
    """Nothing raises, nothing is negative, and what is said to be known is."""
    cost = cost_of(*seen)

    assert sum(isinstance(event, LlmCallEvent) for event in seen) == cost.llm_calls
    assert all(value >= 0 for value in (cost.tokens_in, cost.tokens_out, cost.cost_micro_usd) if value is not None)
    assert not cost.tokens_known or None not in {cost.tokens_in, cost.tokens_out}
    assert not cost.usd_known or cost.cost_micro_usd is not None


def test_estimates_are_kept_apart() -> None:
    """They are made for calls whose cost was not measured, and make nothing known."""
    prices = {5: 10, 7: 20}
    cost = cost_of(
        call(1, 1, 0.1),
        call(5, 1),
        call(7, 1),
        call(9, 1),
        estimate=lambda each: prices.get(int(each.tokens_in or 0)),
    )

    assert (100_000, False, 30) == (cost.cost_micro_usd, cost.usd_known, cost.estimated_micro_usd)
    assert 0.00003 == cost.to_json()["estimatedCostUsd"]


def test_without_a_price_there_is_no_estimate() -> None:
    """An unknown model is not guessed; a free one costs 0."""
    assert cost_of(call(1), estimate=lambda _: None).estimated_micro_usd is None
    assert "estimatedCostUsd" not in cost_of(call(1), estimate=lambda _: None).to_json()
    assert 0 == cost_of(call(1), estimate=lambda _: 0).estimated_micro_usd


def test_the_wall_clock_runs_until_the_end() -> None:
    """And never backwards."""
    clock = Clock()
    handle = run(clock)
    clock.now_ms += 1_500
    assert 1_500 == handle.cost().wall_ms

    handle.complete(end())
    clock.now_ms += 1_000
    assert 1_500 == handle.cost().wall_ms

    set_back = run(clock)
    clock.now_ms -= 1
    assert 0 == set_back.cost().wall_ms


def test_the_end_may_know_better() -> None:
    """What it gives takes the sums' place and is known; the wall clock's is not to give."""
    handle = run()
    handle.observe(call())
    handle.complete(end(cost=RuntimeRunCost(tokens_in=10, tokens_out=0, cost_micro_usd=5, wall_ms=99, llm_calls=1)))

    assert RuntimeRunCost(tokens_in=10, tokens_out=0, cost_micro_usd=5, wall_ms=0, llm_calls=1) == handle.cost()


def test_what_the_end_does_not_give_stays() -> None:
    """A part may be given; if there were other calls than was told, the other sums lack them."""
    handle = run()
    handle.observe(call(2, 3, 0.1))
    handle.complete(end(cost=RuntimeRunCost(cost_micro_usd=7)))
    assert (2, 3, 7, 1, True) == (*sums(handle.cost()), handle.cost().tokens_known)

    other = run()
    other.observe(call(2, 3, 0.1))
    other.complete(end(cost=RuntimeRunCost(tokens_in=9, llm_calls=4)))
    assert (9, 3, 100_000, 4) == sums(other.cost())
    assert (False, False) == (other.cost().tokens_known, other.cost().usd_known)


def sums(cost: RuntimeRunCost) -> tuple[int | None, ...]:
    return cost.tokens_in, cost.tokens_out, cost.cost_micro_usd, cost.llm_calls


def test_a_second_end_gives_nothing() -> None:
    """The first one's cost stays, as its summary does."""
    handle = run()
    handle.complete(end(cost=RuntimeRunCost(tokens_in=1)))
    handle.complete(end(cost=RuntimeRunCost(tokens_in=2)))

    assert 1 == handle.cost().tokens_in


def test_a_call_that_is_told_late_was_paid_for() -> None:
    """It counts after the end, too."""
    handle = run()
    handle.complete(end("cancelled"))
    handle.observe(call(1, 2, 0.1))

    assert (1, 2, 100_000, 1) == sums(handle.cost())


@pytest.mark.parametrize(
    "wrong", [{"tokens_in": -1}, {"cost_micro_usd": 0.5}, {"llm_calls": math.nan}, {"estimated_micro_usd": True}]
)
def test_a_cost_that_is_none_cannot_be_made(wrong: dict[str, Any]) -> None:
    """Negative, broken or not whole: it is refused where it is said."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RuntimeRunCost(**wrong)


# The row


def test_a_row_is_agent_runtimes() -> None:
    """Their names, money in dollars, times as text; what is unknown is null, and flagged."""
    clock = Clock()
    handle = run(clock, session_id="s", agent_id="a", scenario_id="s")
    handle.observe(call(2, 3, 0.1))
    handle.observe(call(2, None, 0.1))
    clock.now_ms += 250
    handle.complete(end("failed", error="backend_timeout", result_summary="no answer", metadata={"attempt": 1}))

    assert {
        "id": "run",
        "workspaceId": "acme",
        "sessionId": "s",
        "agentId": "a",
        "domain": "legal",
        "taskId": "task",
        "scenarioId": "s",
        "status": "failed",
        "resultSummary": "no answer",
        "error": "backend_timeout",
        "cost": {
            "tokensIn": 4,
            "tokensOut": 3,
            "costUsd": 0.2,
            "wallMs": 250,
            "llmCalls": 2,
            "tokensKnown": False,
        },
        "startedAt": "2026-01-01T00:00:00.000Z",
        "completedAt": "2026-01-01T00:00:00.250Z",
        "metadata": {"attempt": 1},
    } == handle.to_row().to_json()
    assert json.dumps(handle.to_row().to_json())


def test_a_running_row_has_no_end() -> None:
    """It may be looked at, and is as the run is now."""
    row = run().to_row()

    assert (RuntimeRunStatus.RUNNING, None, None) == (row.status, row.completed_at, row.metadata)
    assert {"tokensIn": 0, "tokensOut": 0, "costUsd": 0.0, "wallMs": 0, "llmCalls": 0} == row.cost.to_json()


def test_unknown_sums_are_null_in_json() -> None:
    """And not left out: agent-runtime's reader expects the members."""
    assert {"tokensIn": None, "tokensOut": None, "costUsd": None, "tokensKnown": False, "usdKnown": False} == {
        name: value for name, value in cost_of(call()).to_json().items() if name not in {"wallMs", "llmCalls"}
    }


async def test_a_row_is_stored_with_its_metadata_merged() -> None:
    """The call's over the end's; again with others, the same row otherwise."""
    adapter = Rows()
    handle = run(adapter=adapter)
    handle.complete(end(metadata={"a": 1, "b": 1}))
    await handle.persist({"b": 2})
    await handle.persist()

    first, second = adapter.rows
    assert ({"a": 1, "b": 2}, {"a": 1, "b": 1}) == (first.metadata, second.metadata)
    assert (first.id, first.cost, first.completed_at) == (second.id, second.cost, second.completed_at)


async def test_a_run_that_goes_on_is_not_stored() -> None:
    """The adapter is not called."""
    adapter = Rows()
    with pytest.raises(RuntimeRunStateError, match="not ended"):
        await run(adapter=adapter).persist()

    assert [] == adapter.rows


async def test_without_an_adapter_nothing_is_stored() -> None:
    """And nothing fails."""
    handle = run()
    handle.complete(end())
    await handle.persist()


async def test_what_the_adapter_raises_leaves() -> None:
    """Whoever asked decides; the run stays as it is, and may be stored later."""
    handle = run(adapter=Rows(OSError("full")))
    handle.complete(end())
    with pytest.raises(OSError, match="full"):
        await handle.persist()

    assert RuntimeRunStatus.COMPLETED == handle.status
