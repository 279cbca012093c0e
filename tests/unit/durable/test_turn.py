"""`run_durable_turn`: a turn is answered once (T1 to T9 in docs/reference/agent-runtime.md), over SQLite, in virtual time."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from chatturn.agent_runtime.turns.durable_turn import DurableTurnHandle, RunDurableTurnOptions, run_durable_turn
from chatturn.database.api import Statement
from chatturn.durable.ends import End as TurnEnd
from chatturn.durable.records import DurableRunManifest, RunOutcome, RunStatus, StepStatus, TaskSpec
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import DurableRunLeaseHeldError, EmptyAnswer, LeaseLost, StoreError, StoreUnavailable
from tests.support.clock import AtMoment
from tests.support.faults import FaultyDatabase
from tests.support.turns import open_sqlite

MANIFEST = DurableRunManifest(
    project_id="p", task=TaskSpec(id="t", intent="test", domain="d"), input={"userMessage": "hi", "model": None}
)


class Producer:
    """A producer of words that counts its makings and closings."""

    made = 0
    closed = 0

    def __init__(self, words: list[Any], text: str | None | Exception) -> None:
        self._words, self._text = words, text
        self.stream = self._play()

    async def _play(self) -> AsyncGenerator[str, None]:
        try:
            for word in self._words:
                if isinstance(word, BaseException):
                    raise word
                if isinstance(word, float):
                    await asyncio.sleep(word)
                else:
                    yield word
        finally:
            type(self).closed += 1

    def final_text(self) -> str | None:
        if isinstance(self._text, Exception):
            raise self._text
        return self._text


class Bench:
    """One database, and turns of one run over it."""

    def __init__(self, database: FaultyDatabase) -> None:
        self.database = database
        self.store = SqlRunStore(database)
        self.made = 0
        self.logged: list[str] = []

    def turn(self, *words: Any, text: str | None | Exception = "the answer", **options: Any) -> DurableTurnHandle[str]:
        """Return a turn whose producer yields *words*: texts, waits in seconds, or errors."""

        def produce() -> Producer:
            self.made += 1
            return Producer(list(words), text)

        defaults = {
            "store": self.store,
            "run_id": "run-1",
            "manifest": MANIFEST,
            "produce": produce,
            "replay_event": lambda stored: f"replay:{stored}",
            "log": lambda event, _particulars: self.logged.append(event),
        }
        return run_durable_turn(RunDurableTurnOptions(**{**defaults, **options}))

    async def run(self, *words: Any, **options: Any) -> list[str]:
        """Run such a turn to its end and return its events."""
        handle = self.turn(*words, **options)
        return [event async for event in handle.stream]

    async def step(self) -> Any:
        """Read the turn's step."""
        return await self.store.load_step("run-1", 0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench over an empty database."""
    with open_sqlite() as database:
        yield Bench(FaultyDatabase(database))


async def test_a_fresh_turn_forwards_events_and_stores_the_text(bench: Bench) -> None:
    """Events come as they are; the final text is what is stored."""
    handle = bench.turn("a", "b")
    events = [event async for event in handle.stream]
    step = await bench.step()

    assert ["a", "b"] == events
    assert ("the answer", False) == (handle.final_text(), handle.replayed())
    assert (StepStatus.COMPLETED, {"finalText": "the answer"}) == (step.status, step.result)


async def test_a_replay_is_one_event_and_builds_no_producer(bench: Bench) -> None:
    """A finished turn is served from the store."""
    await bench.run("a")
    handle = bench.turn("never")
    events = [event async for event in handle.stream]

    assert ["replay:the answer"] == events
    assert (True, 1) == (handle.replayed(), bench.made)


async def test_two_round_trips_fresh_and_one_for_a_replay(bench: Bench) -> None:
    """The critical path of a turn is a claim and a finish; a replay's is a claim."""
    await bench.run("a")
    fresh, bench.database.batches = bench.database.batches, 0
    await bench.run()

    assert (2, 1) == (fresh, bench.database.batches)


async def test_a_failed_turn_runs_again_from_the_top(bench: Bench) -> None:
    """The producer's own error leaves, and the next request may claim at once."""
    with pytest.raises(RuntimeError, match="boom"):
        await bench.run("a", RuntimeError("boom"))
    events = await bench.run("b")

    assert ["b"] == events
    assert 2 == (await bench.step()).attempts


async def test_t1_a_lost_reply_to_the_finish_costs_no_second_call(bench: Bench) -> None:
    """When the finish is applied and its reply lost, it is tried again and recognised."""
    bench.database.faults = {1: "after"}
    assert await bench.run("a") == ["a"]

    assert await bench.run() == ["replay:the answer"]
    assert bench.made == 1


async def test_t1_an_unanswered_finish_is_tried_again(bench: Bench) -> None:
    """A hiccup of the database does not throw away an answer that was paid for."""
    bench.database.faults = {1: "before", 2: "before", 3: "after"}
    assert await bench.run("a") == ["a"]

    assert await bench.run() == ["replay:the answer"]
    assert bench.made == 1


async def test_t1_an_answer_that_could_not_be_stored_is_stored_late(bench: Bench) -> None:
    """The caller hears of the failure at once; the answer is stored when the database is back."""
    handle = bench.turn("a")
    with pytest.raises(StoreUnavailable):
        async for _ in handle.stream:
            bench.database.down = True
    settling = asyncio.create_task(handle.settle_late())
    await asyncio.sleep(10)
    bench.database.down = False

    assert await settling
    assert await bench.run() == ["replay:the answer"]
    assert bench.made == 1


async def test_t1_settling_late_ends_with_the_lease(bench: Bench) -> None:
    """A database that stays away is not asked for ever."""
    handle = bench.turn("a")
    with pytest.raises(StoreUnavailable):
        async for _ in handle.stream:
            bench.database.down = True

    assert await handle.settle_late() is False


async def test_t2_an_abandoned_turn_releases_its_run_at_once(bench: Bench) -> None:
    """A consumer that breaks off closes the producer and leaves no lease."""
    closed = Producer.closed
    handle = bench.turn("a", "b")
    async with aclosing(handle.stream) as stream:
        async for _ in stream:
            break

    assert Producer.closed == closed + 1
    assert "aborted" == (await bench.step()).error.code
    assert await bench.run("c") == ["c"]


async def test_t2_an_abandoned_replay_blocks_nobody(bench: Bench) -> None:
    """A replay holds nothing that could be left behind."""
    await bench.run("a")
    async with aclosing(bench.turn().stream) as stream:
        async for _ in stream:
            break

    assert await bench.run() == ["replay:the answer"]


async def test_t2_a_cancelled_turn_releases_its_run(bench: Bench) -> None:
    """Cancelling the task that runs a turn closes the producer and leaves no lease."""
    task = asyncio.create_task(bench.run("a", 1_000.0))
    await asyncio.sleep(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await bench.run("c") == ["c"]


async def test_t3_a_turn_of_ten_minutes_is_one_attempt(bench: Bench) -> None:
    """The lease is renewed while the producer is silent, so nobody takes over."""
    long = asyncio.create_task(bench.run("a", 600.0, "b", lease_ms=60_000))
    for _ in range(9):
        await asyncio.sleep(60)
        with pytest.raises(DurableRunLeaseHeldError):
            await bench.run("never")

    assert await long == ["a", "b"]
    assert bench.made == 1


async def test_t3_a_short_lease_is_renewed_in_time(bench: Bench) -> None:
    """R2: no floor under the renewal interval makes a short lease lapse."""
    assert await bench.run("a", 5.0, "b", lease_ms=200) == ["a", "b"]


async def test_t3_a_transient_renewal_failure_is_survived(bench: Bench) -> None:
    """R2: one failed renewal is tried again before the lease lapses."""
    bench.database.faults = {1: "before", 2: "before"}
    assert await bench.run("a", 50.0, "b", lease_ms=60_000) == ["a", "b"]

    assert "lease.renewal_failed" in bench.logged


async def test_a_lost_lease_stops_the_producer_and_writes_nothing(bench: Bench) -> None:
    """A worker that cannot renew for a whole term closes its producer; the successor's answer stands."""
    closed = Producer.closed
    stale = asyncio.create_task(bench.run("stale", 300.0, "never", text="stale", lease_ms=60_000))
    await asyncio.sleep(1)
    bench.database.down = True
    await asyncio.sleep(70)
    bench.database.down = False
    with pytest.raises(LeaseLost):
        await stale
    await bench.run("fresh", text="fresh")

    assert Producer.closed == closed + 2
    assert {"finalText": "fresh"} == (await bench.step()).result


async def test_a_zombie_that_finishes_late_changes_nothing(bench: Bench) -> None:
    """A worker that slept past its lease finds its finish refused; the successor's answer stands."""
    handle = bench.turn("a", text="zombie", lease_ms=1_000)
    stream = handle.stream
    await anext(stream)
    heartbeat_free = SqlRunStore(AtMoment(bench.database, lambda: "2027-01-01T00:00:00.000Z"))
    await bench.run("b", text="successor", store=heartbeat_free)
    with pytest.raises(LeaseLost):
        await anext(stream)

    assert {"finalText": "successor"} == (await bench.step()).result


async def test_t4_a_replay_keeps_outcome_and_completion_time(bench: Bench) -> None:
    """Replaying writes nothing at all."""
    await bench.run("a")
    before = await bench.store.load_run("run-1")
    await asyncio.sleep(60)
    await bench.run()

    assert before == await bench.store.load_run("run-1")


async def test_t5_replays_are_concurrent(bench: Bench) -> None:
    """Two clients that replay at once both get the answer."""
    await bench.run("a")
    first, second = bench.turn().stream, bench.turn().stream

    assert ["replay:the answer"] * 2 == [await anext(first), await anext(second)]


async def test_t6_a_database_that_fails_does_not_mask_the_producers_error(bench: Bench) -> None:
    """What went wrong first is what leaves; what went wrong after it is logged."""
    with pytest.raises(RuntimeError, match="the real reason"):
        async for _ in bench.turn("a", RuntimeError("the real reason")).stream:
            bench.database.down = True

    assert bench.logged == ["turn.unsettled"]


async def test_t6_an_unsettled_failure_blocks_for_one_term_at_most(bench: Bench) -> None:
    """If the failure could not be written, the lease lapses by itself."""
    with pytest.raises(RuntimeError):
        async for _ in bench.turn("a", RuntimeError("x"), lease_ms=60_000).stream:
            bench.database.down = True
    bench.database.down = False
    await asyncio.sleep(60)

    assert await bench.run("b") == ["b"]


async def test_t7_an_empty_answer_is_never_stored(bench: Bench) -> None:
    """It fails the attempt, and the next one asks again."""
    with pytest.raises(EmptyAnswer):
        await bench.run("a", text="")

    assert await bench.run("b") == ["b"]
    assert bench.made == 2


@pytest.mark.parametrize("text", ["", None])
async def test_t7_accumulated_text_stands_in(bench: Bench, text: str | None) -> None:
    """A producer that does not know its text leaves it to the accumulator, for the replay too."""
    await bench.run("a", "b", text=text, accumulate=lambda event, current: current + event)

    assert await bench.run() == ["replay:ab"]


async def test_t8_a_failing_accumulator_does_not_fail_a_producer_that_knows_its_text(bench: Bench) -> None:
    """Everything was delivered already, so one good source is enough."""
    await bench.run("a", accumulate=_raise)

    assert await bench.run() == ["replay:the answer"]


async def test_t8_a_failing_final_text_is_made_up_for_by_what_was_accumulated(bench: Bench) -> None:
    """The other way round, and the failure is logged."""
    await bench.run("a", "b", text=ValueError("x"), accumulate=lambda event, current: current + event)

    assert await bench.run() == ["replay:ab"]
    assert bench.logged == ["turn.final_text_failed"]


async def test_t8_without_any_good_source_the_error_leaves(bench: Bench) -> None:
    """Two failing sources are a failed turn."""
    with pytest.raises(ZeroDivisionError):
        await bench.run("a", text=None, accumulate=_raise)


async def test_t9_defaults_are_agent_runtimes(bench: Bench) -> None:
    """Worker id and lease are optional; the step is ``turn`` of kind ``llm``; chars count UTF-16."""
    handle = bench.turn("a", text="a🙂")
    _ = [event async for event in handle.stream]
    step, record = await bench.step(), handle.record()

    assert ("turn", "llm") == (step.intent, step.kind)
    assert record is not None
    assert (RunStatus.COMPLETED, RunOutcome(notes="turn", metadata={"chars": 3})) == (record.status, record.outcome)


async def test_the_text_is_transformed_before_it_is_stored(bench: Bench) -> None:
    """Nothing but the transformed text is ever in the database."""

    async def redact(text: str) -> str:
        return text.replace("answer", "[redacted]")

    await bench.run("a", transform=redact)

    assert {"finalText": "the [redacted]"} == (await bench.step()).result
    assert await bench.run() == ["replay:the [redacted]"]


async def test_a_failing_transform_fails_the_turn_and_stores_no_text(bench: Bench) -> None:
    """C3: a redaction that raises must not let the raw text through."""

    async def broken(_text: str) -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await bench.run("a", transform=broken)
    step = await bench.step()

    assert (StepStatus.FAILED, None) == (step.status, step.result)


async def test_a_producer_that_cannot_be_made_is_a_failed_attempt(bench: Bench) -> None:
    """The run is released at once."""

    def produce() -> Producer:
        raise ValueError("no producer")

    with pytest.raises(ValueError, match="no producer"):
        await bench.run(produce=produce)

    assert await bench.run("b") == ["b"]


def _raise(*_: object) -> str:
    raise ZeroDivisionError


async def test_the_own_heartbeat_does_not_cancel_a_finish_whose_reply_is_slow(bench: Bench) -> None:
    """Once the finish is applied a renewal is refused; the wait for the reply goes on, and the turn is completed."""
    bench.database.slow = {1: 45.0}

    assert await bench.run("a", lease_ms=60_000) == ["a"]
    assert await bench.run() == ["replay:the answer"]


async def test_one_stalled_renewal_costs_no_lease(bench: Bench) -> None:
    """A reply that never comes takes a part of the term, and the next try gets through."""
    bench.database.slow = {1: 10_000.0}

    assert await bench.run("a", 100.0, "b", lease_ms=60_000) == ["a", "b"]


async def test_a_renewal_that_breaks_otherwise_is_tried_again(bench: Bench) -> None:
    """Whatever is raised, renewing goes on and it is logged."""
    bench.database.errors = {1: ValueError("a bug")}

    assert await bench.run("a", 100.0, "b", lease_ms=60_000) == ["a", "b"]
    assert ["lease.renewal_failed"] == bench.logged


async def test_the_lease_counts_from_the_claim(bench: Bench) -> None:
    """A turn that is run long after it was claimed renews in time."""
    handle = bench.turn("a", 50.0, "b", lease_ms=60_000)
    await handle.claim()
    await asyncio.sleep(45)

    assert ["a", "b"] == [event async for event in handle.stream]


async def test_a_lapsed_claim_is_not_run(bench: Bench) -> None:
    """Nobody pays for a turn that is not theirs any more."""
    handle = bench.turn("a", 1.0, "b", lease_ms=60_000)
    await handle.claim()
    await asyncio.sleep(61)

    with pytest.raises(LeaseLost):
        _ = [event async for event in handle.stream]


async def test_details_that_are_refused_do_not_hold_the_lease(bench: Bench) -> None:
    """A last write with a bad companion fails the attempt without its details, and the next may claim at once."""
    bad = [Statement("INSERT INTO nowhere (x) VALUES (?1 || ?2 || ?3)")]

    with pytest.raises(StoreError):
        await bench.run("a", end_with=lambda _end: bad)

    assert await bench.run("b") == ["b"]


async def test_a_last_write_that_cannot_be_made_does_not_mask_the_error(bench: Bench) -> None:
    """What the producer raised is what leaves."""

    def broken(_end: TurnEnd) -> list[Statement]:
        raise KeyError("a bug in the statements")

    with pytest.raises(RuntimeError, match="the real reason"):
        await bench.run("a", RuntimeError("the real reason"), end_with=broken)

    assert await bench.run("b") == ["b"]


async def test_a_producers_own_lost_lease_is_a_failure_like_others(bench: Bench) -> None:
    """It is of another run, so this one is released at once."""
    with pytest.raises(LeaseLost):
        await bench.run("a", LeaseLost("nested", run_id="another"))

    assert await bench.run("b") == ["b"]


async def test_an_answer_that_is_refused_late_is_logged(bench: Bench) -> None:
    """`settle_late` never raises, and a paid answer does not vanish silently."""
    handle = bench.turn("a", lease_ms=2_000)
    with pytest.raises(StoreUnavailable):
        async for _ in handle.stream:
            bench.database.down = True

    assert await handle.settle_late() is False
    assert "turn.answer_lost" in bench.logged


async def test_an_answer_redacted_to_nothing_is_empty(bench: Bench) -> None:
    """T7 holds after the transform, too."""

    async def erase(_text: str) -> str:
        return ""

    with pytest.raises(EmptyAnswer):
        await bench.run("a", transform=erase)


async def test_a_stored_answer_of_an_unfinished_run_is_replayed(bench: Bench) -> None:
    """What agent-runtime leaves when it dies between its step and its end is finished, not paid for again."""
    claim = await bench.turn().claim()
    assert claim.lease is not None
    await bench.store.complete_step(claim.lease, 0, {"finalText": "stored"})
    await asyncio.sleep(60)

    assert ["replay:stored"] == await bench.run()
    record = await bench.store.load_run("run-1")
    assert record is not None
    assert RunStatus.COMPLETED is record.status
