"""
The ledger: every model call of every attempt is on record, once, with all that is known of it, whoever dies.

The models here are scripted transports and functions, in virtual time; `tests/turns/test_billing.py` adds up what a
real server has billed.
"""

import asyncio
import gc
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.backends.iterable import create_iterable_backend
from chatturn.chat.hooks.hooks import ChatTurnHooks, TurnContext
from chatturn.chat.log.query_budget import Pace
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.chat.turn.turn import run_turn
from chatturn.chat.usage.calls import Budgets
from chatturn.database.api import Database, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import BackendError, BackendTransportError
from chatturn.events import ChatStreamEvent, EventBatch, text_delta, usage_event
from chatturn.product import answer
from chatturn.usage.prices import Price, PriceTable, parse_ceiling
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from products.assistant import Hooks as Assistant
from tests.support.faults import FaultyDatabase
from tests.support.isolates import TURN, Isolate
from tests.support.transport import HANG, BodyPart, Reply, ScriptedTransport
from tests.support.turns import UNHURRIED, Desk, Product, Step, open_sqlite
from tests.turns import test_agent as agents
from tests.turns.test_crashes import LEASE_MS
from tests.unit.backends.openai.test_backend import DONE, OK, UNREACHABLE, USAGE, backend, frame


def micro_dollar_a_token() -> PriceTable:
    """Return a table of its own, in which sums of micro-dollars are sums of tokens."""
    return PriceTable({"m": Price(10**6, 10**6), "m-2024": Price(10**6, 10**6)})


CUT = Reply(body=[frame("Hello"), frame(" there")])
COUNTED = Reply(body=[frame("Hello") + frame(finish="stop") + USAGE + DONE])
COUNTS = {"prompt_tokens": 7, "completion_tokens": 2}


def reporting(usage: Any, **members: Any) -> Reply:
    """Return an answer whose model says that of itself."""
    return Reply(
        body=[frame("Hello", **members), frame(finish="stop", **members), frame(choices=[], usage=usage) + DONE]
    )


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def isolate(database: Database, *script: Any, settings: dict[str, str] | None = None, **options: Any) -> Isolate:
    """Return an isolate of the default product, whose model's API follows a script."""
    return Isolate(
        database,
        Assistant(),
        backend(ScriptedTransport(script), **options),
        {"LEASE_MS": "3000", **(settings or {})},
        prices=micro_dollar_a_token(),
    )


async def ledger(database: Database, columns: str) -> list[tuple[Any, ...]]:
    """Read some columns of all calls, in the order of attempts and calls."""
    [outcome] = await database.batch(
        [Statement(f"SELECT {columns} FROM chat_usage ORDER BY run_id, attempt, call_index")]  # noqa: S608
    )
    return [tuple(row.values()) for row in outcome.rows]


def told(isolate: Isolate | Desk) -> list[str]:
    """Return what was logged about usage."""
    return [event for event, _ in isolate.logged if event.startswith("usage.")]


# One call


async def test_all_that_is_known_of_a_call_is_on_record(database: SqliteDatabase) -> None:
    """Tokens, money, times, who answered and why it ended, and under which key it was asked."""
    usage = {
        "prompt_tokens": 70,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 50},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
    body: list[BodyPart] = [
        0.25,
        frame("Hello"),
        0.5,
        frame(" there"),
        frame(finish="stop"),
        frame(choices=[], usage=usage) + DONE,
    ]
    alone = isolate(database, Reply(after_s=0.5, body=body))
    alone.prices = PriceTable({"m-2024": Price(2_000_000, 8_000_000, 500_000)})
    await (await alone.post()).lines()
    [(request_id,)] = await ledger(database, "request_id")

    assert [(1, 0, "m-2024", "completed", 0)] == await ledger(database, "attempt, call_index, model, outcome, wasted")
    assert [(70, 20, 50, 6, None)] == await ledger(
        database, "tokens_in, tokens_out, tokens_cached, tokens_reasoning, estimated_tokens_out"
    )
    assert [(20 * 2 + 25 + 160,)] == await ledger(database, "cost_micro_usd")
    assert [(1, 500, 750, 1_250)] == await ledger(database, "tries, headers_ms, first_token_ms, duration_ms")
    assert [("stop", None, "acme", "thread-1")] == await ledger(
        database, "finish_reason, error_code, tenant_id, session_id"
    )
    assert request_id == alone.backend.connector.transport.exchanges[0].request.headers["idempotency-key"]  # type: ignore[attr-defined]
    assert [] == told(alone)


async def test_tries_are_one_call(database: SqliteDatabase) -> None:
    """The API knows their key, and bills them once; the times are of all of them."""
    busy = Reply(status=429, headers={"retry-after-ms": "2000"})
    await (await isolate(database, busy, UNREACHABLE, COUNTED).post()).lines()

    assert [("completed", 3, 7, 2, 9)] == await ledger(
        database, "outcome, tries, tokens_in, tokens_out, cost_micro_usd"
    )
    [(headers_ms, first_token_ms)] = await ledger(database, "headers_ms, first_token_ms")
    assert headers_ms == first_token_ms >= 2_000


@pytest.mark.parametrize(
    ("reply", "code", "pieces"),
    [
        (UNREACHABLE, "backend_unavailable", None),
        (Reply(status=400), "backend_rejected", None),
        (CUT, "backend_protocol", 2),
        (Reply(body=[frame("Hello"), BackendTransportError("reset", backend="x")]), "backend_protocol", 1),
        (Reply(body=[frame("Hello"), b'data: {"error":{"message":"busy"}}\n\n']), "backend_reported", 1),
        (Reply(body=[frame("Hello"), HANG]), "backend_timeout", 1),
        (Reply(body=[HANG]), "backend_timeout", None),
    ],
    ids=["unreachable", "rejected", "cut", "reset", "in-band error", "stalled", "silent"],
)
async def test_a_call_that_failed_was_paid_for(
    database: SqliteDatabase, reply: Any, code: str, pieces: int | None
) -> None:
    """What it consumed is unknown, never zero; what had come is an estimate, and stands apart; and all was in vain."""
    alone = isolate(database, reply, COUNTED, settings={"MAX_ATTEMPTS": "1"}, idle_timeout_ms=1_000)
    if reply is UNREACHABLE:
        alone = isolate(database, *[UNREACHABLE] * 5, COUNTED)
    await (await alone.post()).lines()
    unknown = await ledger(database, "tokens_in, tokens_out, cost_micro_usd, finish_reason")
    await (await alone.post()).lines()

    assert [(None, None, None, None)] == unknown
    assert [(1, "failed", code, pieces, 1), (2, "completed", None, None, 0)] == await ledger(
        database, "attempt, outcome, error_code, estimated_tokens_out, wasted"
    )
    assert [] == told(alone)


async def test_the_tokens_of_a_cut_answer_are_known_where_the_model_says_them_all_along(
    database: SqliteDatabase,
) -> None:
    """As vLLM does with `continuous_usage_stats`: the last word before the cut counts, as measured."""
    body = [frame(f"w{n} ", usage={"prompt_tokens": 7, "completion_tokens": n}) for n in range(1, 4)]
    alone = isolate(database, Reply(body=body), reporting(COUNTS))
    await (await alone.post()).lines()
    await (await alone.post()).lines()

    assert [("failed", 7, 3, None, 10, 1), ("completed", 7, 2, None, 9, 0)] == await ledger(
        database, "outcome, tokens_in, tokens_out, estimated_tokens_out, cost_micro_usd, wasted"
    )


@pytest.mark.parametrize(
    ("wait_s", "expected"),
    [(0.6, ("cancelled", 0, 1, 0)), (0.1, ("cancelled", 1, None, None))],
    ids=["kept", "nothing"],
)
async def test_a_cancelled_call_is_delivered_if_anything_of_it_was_kept(
    database: SqliteDatabase, wait_s: float, expected: tuple[Any, ...]
) -> None:
    """Else it was in vain."""
    alone = isolate(database, Reply(body=[0.3, frame("Hello"), HANG]))
    posted = await alone.post()
    await asyncio.sleep(wait_s)
    await alone.ask("POST", f"{TURN}/cancel")
    await posted.lines()

    assert [expected[:3]] == await ledger(database, "outcome, wasted, estimated_tokens_out")
    assert [(None, None, None)] == await ledger(database, "tokens_in, tokens_out, error_code")


async def test_a_disconnect_that_ends_the_turn_ends_the_call(database: SqliteDatabase) -> None:
    """What had been said is kept, and so is what is known of the call."""
    alone = isolate(database, Reply(body=[frame("Hello"), HANG]), settings={"ON_DISCONNECT": "cancel"})
    posted = await alone.post()
    await asyncio.sleep(1)
    posted.reader.leave()
    await posted.lines()

    assert [("cancelled", 0, 1, 1)] == await ledger(database, "outcome, wasted, estimated_tokens_out, tries")


async def test_an_answer_that_was_refused_in_the_end_was_in_vain(database: SqliteDatabase) -> None:
    """The call went well, and nobody had it."""

    class Refusing(Assistant):
        async def transform_final_text(self, text: str) -> str:
            raise RuntimeError(text)

    alone = isolate(database, COUNTED)
    alone.hooks = Refusing()
    await (await alone.post()).lines()

    assert [("completed", 1, 9)] == await ledger(database, "outcome, wasted, cost_micro_usd")


# What models say of themselves


@pytest.mark.parametrize("usage", [None, {}, "many", [1], {"prompt_tokens": None}, {"tokens": 3}])
async def test_a_model_that_never_reports_is_reported(database: SqliteDatabase, usage: Any) -> None:
    """Once; the ledger has each of its calls, with what it does not know as null."""
    alone = isolate(database, *[reporting(usage)] * 2)
    await (await alone.post()).lines()
    await (await alone.post(message="again", on_mismatch="supersede")).lines()

    assert [("completed", None, None, None, 1, 0)] * 2 == await ledger(
        database, "outcome, tokens_in, tokens_out, cost_micro_usd, estimated_tokens_out, wasted"
    )
    assert ["usage.unreported"] == told(alone)


@pytest.mark.parametrize("count", [-1, -(10**30), 1.5, 10**9 + 1, 10**400, "7", True, [], {}])
async def test_a_count_that_is_none_is_not_known(database: SqliteDatabase, count: Any) -> None:
    """Nor is the cost that would follow from it; the reason is told once, and the other counts stay."""
    alone = isolate(database, *[reporting({"prompt_tokens": 7, "completion_tokens": count})] * 2)
    lines = await (await alone.post()).lines()
    await (await alone.post(message="again", on_mismatch="supersede")).lines()

    assert "session.run.completed" == lines[-1]["type"]
    assert [(7, None, None, 1)] * 2 == await ledger(
        database, "tokens_in, tokens_out, cost_micro_usd, estimated_tokens_out"
    )
    assert ["usage.unusable"] == told(alone)
    [(_, particulars)] = [each for each in alone.logged if each[0] == "usage.unusable"]
    assert ("m-2024", ["tokensOut"]) == (particulars["model"], particulars["counts"])


@pytest.mark.parametrize("count", [math.nan, math.inf, -math.inf])
async def test_a_count_that_is_no_json_is_not_reported(database: SqliteDatabase, count: float) -> None:
    """It is read as null, so nothing is known of it, which is told once."""
    alone = isolate(database, *[reporting({"prompt_tokens": count, "completion_tokens": 2})] * 2)
    await (await alone.post()).lines()
    await (await alone.post(message="again", on_mismatch="supersede")).lines()

    assert [(None, 2, None)] * 2 == await ledger(database, "tokens_in, tokens_out, cost_micro_usd")
    assert ["usage.unreported"] == told(alone)


async def test_usage_that_is_reported_twice_counts_once(database: SqliteDatabase) -> None:
    """The last word is the whole of it."""
    first = frame(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 1})
    alone = isolate(database, Reply(body=[frame("Hello"), first, frame(finish="stop") + USAGE, USAGE + DONE]))
    await (await alone.post()).lines()

    assert [(7, 2, 9)] == await ledger(database, "tokens_in, tokens_out, cost_micro_usd")


async def test_a_model_without_a_price_is_reported_not_guessed(database: SqliteDatabase) -> None:
    """Once, however many calls; a reported zero is known all the same."""
    alone = isolate(database, *[reporting({"prompt_tokens": 0, "completion_tokens": 0}, model="m-2")] * 2)
    await (await alone.post()).lines()
    await (await alone.post(message="again", on_mismatch="supersede")).lines()

    assert [(0, 0, None)] * 2 == await ledger(database, "tokens_in, tokens_out, cost_micro_usd")
    assert [("usage.unpriced", "m-2")] == [(event, what["model"]) for event, what in alone.logged]


async def test_the_price_is_of_who_answered(database: SqliteDatabase) -> None:
    """Not of who was asked: the API may have routed it to another."""
    elsewhere = frame("Hello", model="other") + frame(finish="stop", model="other") + USAGE + DONE
    alone = isolate(database, Reply(body=[elsewhere]))
    alone.prices = PriceTable({"m": Price(10**6, 10**6), "other": Price(5 * 10**6, 10**6)})
    await (await alone.post()).lines()

    assert [("other", 37)] == await ledger(database, "model, cost_micro_usd")


@pytest.mark.parametrize(
    ("cost", "micro"),
    [
        (0, 0),
        (0.000123, 123),
        (0.0000005, 0),
        (0.00000049, 0),
        (0.0000025, 2),
        (0.0000035, 4),
        (1, 1_000_000),
        (1e6, 10**12),
        (-0.5, 9),
        (math.nan, 9),
        (math.inf, 9),
        (1e7, 9),
        (10**400, 9),
        ("0.1", 9),
        (True, 9),
        ({"total": 1}, 9),
    ],
)
async def test_a_cost_that_the_api_says_is_the_cost(database: SqliteDatabase, cost: Any, micro: int) -> None:
    """OpenRouter's `usage.cost`, halves rounded to even; what is no amount of money is not taken for one: the table's is."""
    alone = isolate(database, reporting({**COUNTS, "cost": cost}))
    lines = await (await alone.post()).lines()
    [usage] = [line["data"] for line in lines if line["type"] == "usage"]

    assert [(micro,)] == await ledger(database, "cost_micro_usd")
    assert {"model", "tokensIn", "tokensOut", "finishReason", "call"} == set(usage), "money is the operator's business"


@pytest.mark.parametrize("name", ["x" * 10_000, "\ud800", "a\x00b", "'; DROP TABLE chat_usage; --"])
async def test_a_name_may_be_anything(database: SqliteDatabase, name: str) -> None:
    """It is text in a row of bounded length, and is read back."""
    alone = isolate(database, reporting(COUNTS, model=name))
    await (await alone.post()).lines()
    shown = await alone.ask("GET", "/v1/usage?by=model", x_scopes="operate")
    [(model,)] = await ledger(database, "model")

    assert len(model) <= 200
    assert [model] == [group["model"] for group in shown.body["usage"]]


# Several calls in one attempt


class Fallback(ChatTurnHooks):
    """A product that asks a second time where the first fails."""

    def produce(self, context: TurnContext) -> StreamProducer:
        return StreamProducer(self._ask(context))

    async def _ask(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        try:
            async for batch in answer(context):
                yield batch
        except BackendError:
            async for batch in answer(replace(context, request_id="second")):
                yield batch


async def test_a_call_that_failed_is_wasted_though_its_turn_went_well(database: SqliteDatabase) -> None:
    """The answer has nothing of it."""
    alone = isolate(database, Reply(status=400), COUNTED)
    alone.hooks = Fallback()
    lines = await (await alone.post()).lines()

    assert "session.run.completed" == lines[-1]["type"]
    assert [(1, 0, "failed", 1), (1, 1, "completed", 0)] == await ledger(
        database, "attempt, call_index, outcome, wasted"
    )


async def test_a_call_that_a_product_reports_is_on_record(database: SqliteDatabase) -> None:
    """Two that are the same are two; nothing is known of them beyond what was reported."""
    said = usage_event(model="own", tokensIn=1, tokensOut=2, finishReason="stop")
    desk = Desk(database, Product(text_delta("a"), said, said, usage_event(tokensIn=5)))
    await desk.run()

    assert [(0, "own", 1, 2), (1, "own", 1, 2), (2, None, 5, None)] == await ledger(
        database, "call_index, model, tokens_in, tokens_out"
    )
    assert {("completed", 0, None, None, None)} == set(
        await ledger(database, "outcome, wasted, tries, duration_ms, request_id")
    )


class Reporting(Assistant):
    """A product with calls of its own, beside the deployment's model."""

    def produce(self, context: TurnContext) -> StreamProducer:
        return StreamProducer(self._say(context))

    async def _say(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        embedded = context.report_call(model="embeddings", tokens_in=3, cost_usd=0.000002)
        yield usage_event(model="embeddings", tokensIn=3, call=embedded)
        async for batch in answer(context):
            yield batch
        context.report_call(model="m-2024", tokens_in=4, tokens_out=0)


async def test_calls_of_a_product_stand_beside_those_of_the_backend(database: SqliteDatabase) -> None:
    """Each is told under its index; a price is looked up where no cost is given."""
    alone = isolate(database, COUNTED)
    alone.hooks = Reporting()
    lines = await (await alone.post()).lines()

    assert [("embeddings", 0), ("m-2024", 1)] == [
        (line["data"]["model"], line["data"]["call"]) for line in lines if line["type"] == "usage"
    ]
    assert [(0, "embeddings", 3, 2), (1, "m-2024", 7, 9), (2, "m-2024", 4, 4)] == await ledger(
        database, "call_index, model, tokens_in, cost_micro_usd"
    )


class Rewriting(Assistant):
    """A product that changes what is said of its model's calls."""

    def __init__(self, rewrite: Callable[[ChatStreamEvent], list[ChatStreamEvent]]) -> None:
        super().__init__()
        self._rewrite = rewrite

    def produce(self, context: TurnContext) -> StreamProducer:
        return StreamProducer(self._say(context))

    async def _say(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        async for batch in answer(context):
            for event in [batch] if isinstance(batch, ChatStreamEvent) else batch:
                yield self._rewrite(event) if event.type == "usage" else event


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda usage: [ChatStreamEvent("usage", {**usage.data, "tokensIn": 15, "model": "renamed"})],
        lambda usage: [usage, usage],
        lambda usage: [ChatStreamEvent("usage", {**usage.data, "call": 7})],
        lambda _usage: [usage_event(model="m", tokensIn=15, tokensOut=2)],
        lambda _usage: [],
    ],
    ids=["edited", "doubled", "renumbered", "replaced", "hidden"],
)
async def test_what_a_product_says_of_its_models_calls_bills_nothing(
    database: SqliteDatabase, rewrite: Callable[[ChatStreamEvent], list[ChatStreamEvent]]
) -> None:
    """The call went through the deployment's backend, so it is billed from the meter, and once."""
    alone = isolate(database, COUNTED)
    alone.hooks = Rewriting(rewrite)
    await (await alone.post()).lines()
    total = (await alone.ask("GET", "/v1/usage?by=day", x_scopes="operate")).body["total"]

    assert [(0, "m-2024", 7, 2, 9)] == await ledger(
        database, "call_index, model, tokens_in, tokens_out, cost_micro_usd"
    )
    assert 7 == total["delivered"]["tokensIn"]


async def test_a_product_that_hides_usage_hides_it_from_its_readers_only(database: SqliteDatabase) -> None:
    """The ledger does not depend on what is said."""

    class Silent(Assistant):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(self._say(context))

        async def _say(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
            async for batch in answer(context):
                events = [batch] if isinstance(batch, ChatStreamEvent) else list(batch)
                yield [event for event in events if event.type != "usage"]

    alone = isolate(database, COUNTED)
    alone.hooks = Silent()
    lines = await (await alone.post()).lines()

    assert "usage" not in {line["type"] for line in lines}
    assert [(7, 2)] == await ledger(database, "tokens_in, tokens_out")


def scripted(*events: EventBatch) -> AgentExecutionBackend:
    """Return a backend that says *events*."""

    async def say(_request: AgentBackendInput, _context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        for event in events:
            yield event

    return create_iterable_backend("scripted", say)


async def test_a_function_that_reports_several_calls_has_made_several(database: SqliteDatabase) -> None:
    """Its sums are right, and only one of them has times."""
    first, second = usage_event(model="a", tokensIn=1), usage_event(model="b", tokensIn=2)
    desk = Desk(database, Assistant(), backend=scripted(text_delta("x"), first, text_delta("y"), second))
    await desk.run()

    assert [("b", 2, 1), ("a", 1, None)] == await ledger(database, "model, tokens_in, tries")


async def test_a_function_that_reports_without_end_costs_no_answer(database: SqliteDatabase) -> None:
    """What it reports is stored with the answer, so there is an end to it; that is logged, once."""
    reports = [usage_event(model="m", tokensOut=n) for n in range(20_000)]
    desk = Desk(database, Assistant(), backend=scripted(text_delta("x"), reports))
    lines = await desk.run()

    assert "session.run.completed" == lines[-1]["type"]
    assert 2_000 <= len(await ledger(database, "attempt")) <= 2_001
    assert ["usage.unrecorded"] == [event for event in told(desk) if event == "usage.unrecorded"]


async def test_a_backend_that_asks_another_is_one_call(database: SqliteDatabase) -> None:
    """What a router passes on is not paid twice."""
    inner = backend(ScriptedTransport([COUNTED]))

    def route(request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        return inner.stream(request, context)

    desk = Desk(database, Assistant(), backend=create_iterable_backend("router", route))
    await desk.run()

    assert [("m-2024", 7, 2, "completed")] == await ledger(database, "model, tokens_in, tokens_out, outcome")


async def test_calls_at_the_same_time_are_each_on_record(database: SqliteDatabase) -> None:
    """One that is left behind when the other has answered was cancelled, and was paid for."""

    class Racing(Assistant):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(self._race(context))

        async def _race(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
            slow, quick = (aiter(answer(replace(context, request_id=name))) for name in ("slow", "quick"))
            loser = asyncio.ensure_future(anext(slow))
            await asyncio.sleep(0.1)
            async for batch in quick:
                yield batch
            loser.cancel()
            await asyncio.gather(loser, return_exceptions=True)

    alone = isolate(database, Reply(body=[1.0, HANG]), Reply(body=[2.0, *COUNTED.body]))
    alone.hooks = Racing()
    await (await alone.post()).lines()

    assert {("slow", "cancelled"), ("quick", "completed")} == set(await ledger(database, "request_id, outcome"))


# Workers that die


def words(count: int, pause_s: float = 0.1) -> list[Any]:
    """Return the body of an answer that takes its time."""
    return [part for n in range(count) for part in (frame(f"w{n} "), pause_s)]


async def takeover(database: Database, dying: Isolate, after_s: float, *script: Any, **options: Any) -> Isolate:
    """Let *dying* live so long, and another take over whose model has another script."""
    await dying.post()
    await asyncio.sleep(after_s)
    await dying.kill()
    await asyncio.sleep(4)
    heir = isolate(database, *script, **options)
    await (await heir.post()).lines()
    return heir


@pytest.mark.parametrize(
    ("after_s", "known"),
    [(0.1, (None, None, None)), (0.4, ("m", "key", 3)), (2.0, ("m", "key", 20))],
    ids=["before anything is stored", "after a flush", "after many"],
)
async def test_the_call_of_a_worker_that_died_is_lost_not_forgotten(
    database: SqliteDatabase, after_s: float, known: tuple[Any, ...]
) -> None:
    """Its tokens are unknown; what was stored of it by then is an estimate."""
    await takeover(database, isolate(database, Reply(body=words(100))), after_s, COUNTED)
    (lost, done) = await ledger(database, "attempt, call_index, outcome, wasted, tokens_in, tokens_out, cost_micro_usd")
    [(model, request_id, pieces), _] = await ledger(database, "model, request_id, estimated_tokens_out")

    assert (1, 0, "lost", 1, None, None, None) == lost
    assert (2, 0, "completed", 0, 7, 2, 9) == done
    assert known == (model, request_id and "key", pieces)


async def test_what_a_lost_worker_said_is_delivered_by_whoever_goes_on_with_it(database: SqliteDatabase) -> None:
    """It is a part of the answer, so it was not in vain; its price stays unknown."""
    dying = isolate(database, Reply(body=words(100)), continue_models=("m",))
    await takeover(database, dying, 1.0, COUNTED, continue_models=("m",))

    assert [(1, "lost", 0, None), (2, "completed", 0, 9)] == await ledger(
        database, "attempt, outcome, wasted, cost_micro_usd"
    )


async def test_what_was_said_before_an_attempt_that_began_anew_is_not_delivered(database: SqliteDatabase) -> None:
    """Only the log that the answer is in counts: an attempt that ended began another one."""
    await takeover(database, isolate(database, Reply(body=words(100))), 1.0, Reply(status=400))
    dying = isolate(database, Reply(body=words(100)))
    await takeover(database, dying, 1.0, COUNTED, continue_models=("m",))

    assert [(1, "lost", 1), (2, "failed", 1), (3, "lost", 0), (4, "completed", 0)] == await ledger(
        database, "attempt, outcome, wasted"
    )


async def test_a_lost_turn_that_is_stopped_keeps_what_was_said(database: SqliteDatabase) -> None:
    """Nobody is called for it, and the lost call's part of the answer is delivered."""
    dying = isolate(database, Reply(body=words(100)))
    await dying.post()
    await asyncio.sleep(1)
    await dying.kill()
    heir = isolate(database)
    await heir.ask("POST", f"{TURN}/cancel")
    await asyncio.sleep(4)
    await heir.sweep()
    await asyncio.sleep(1)

    assert [(1, "lost", 0)] == await ledger(database, "attempt, outcome, wasted")


@pytest.mark.parametrize("deaths", [2, 5])
async def test_each_of_many_lost_attempts_has_its_call(database: SqliteDatabase, deaths: int) -> None:
    """Also of those that did not live to see to the ones before them."""
    for _ in range(deaths):
        dying = isolate(database, Reply(body=words(100)))
        await dying.post()
        await asyncio.sleep(0.1)
        await dying.kill()
        await asyncio.sleep(4)
    await (await isolate(database, COUNTED).post()).lines()

    assert [*((n + 1, 0, "lost") for n in range(deaths)), (deaths + 1, 0, "completed")] == await ledger(
        database, "attempt, call_index, outcome"
    )


@pytest.mark.parametrize("away", [False, True])
async def test_a_worker_of_a_deleted_turn_says_nothing_of_its_calls(database: SqliteDatabase, away: bool) -> None:
    """What it has called is not taken for a call of whoever has begun the session anew; nor if it learns that late."""
    slow = isolate(database, Reply(body=words(20 if away else 40)))
    await slow.post()
    await asyncio.sleep(1)
    slow.wire.down = away
    other = isolate(database, Reply(body=[frame("Hello"), 9.0, frame(" there")]))
    assert 200 == (await other.ask("DELETE", "/v1/sessions/thread-1")).status
    await asyncio.sleep(0.01)
    anew = await other.post(message="anew")
    await asyncio.sleep(2)
    slow.wire.down = False
    await anew.lines()
    await asyncio.sleep(10)

    assert [("", "lost", None), ("thread-1", "failed", 2)] == sorted(
        await ledger(database, "session_id, outcome, CASE session_id WHEN '' THEN NULL ELSE estimated_tokens_out END")
    )


@pytest.mark.parametrize("deaths", [0, 1, 2])
async def test_a_later_version_has_lost_no_call_of_another(database: SqliteDatabase, deaths: int) -> None:
    """The attempts before its first are other versions'; of its own, each that was lost has its call."""
    settings = {"THREADS": "on"}
    for version in range(1, 5):
        again: dict[str, Any] = {} if version == 1 else {"replace": {"kind": "regenerate", "version": version - 1}}
        for _ in range(deaths if version == 3 else 0):
            dying = isolate(database, Reply(body=words(100)), settings=settings)
            await dying.post(**again)
            await asyncio.sleep(0.1)
            await dying.kill()
            await asyncio.sleep(4)
        await (await isolate(database, COUNTED, settings=settings).post(**again)).lines()

    lost = [("3", attempt, "lost") for attempt in range(3, 3 + deaths)]
    done = [(str(version), version + deaths * (version > 2), "completed") for version in range(1, 5)]
    assert sorted([*lost, *done]) == [
        (run_id.rpartition("~")[2] if "~" in run_id else "1", attempt, outcome)
        for run_id, attempt, outcome in await ledger(database, "run_id, attempt, outcome")
    ]


async def test_a_lost_call_of_a_superseded_turn_is_on_record(database: SqliteDatabase) -> None:
    """Another message makes nobody pay it back."""
    dying = isolate(database, Reply(body=words(100)))
    await dying.post()
    await asyncio.sleep(1)
    await dying.kill()
    await asyncio.sleep(4)
    await (await isolate(database, COUNTED).post(message="other", on_mismatch="supersede")).lines()

    assert [(1, "lost", 1), (2, "completed", 0)] == await ledger(database, "attempt, outcome, wasted")


async def test_an_answer_that_is_superseded_was_delivered(database: SqliteDatabase) -> None:
    """Somebody had it."""
    alone = isolate(database, COUNTED, COUNTED)
    await (await alone.post()).lines()
    await (await alone.post(message="other", on_mismatch="supersede")).lines()

    assert [(1, 0), (2, 0)] == await ledger(database, "attempt, wasted")


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("wakes_s", [5.0, 30.0], ids=["before the takeover is done", "long after"])
async def test_a_worker_that_lost_its_turn_says_what_its_calls_cost(
    database: SqliteDatabase, flushed: bool, wakes_s: float
) -> None:
    """In vain, and once, in place of what had to be taken for lost."""
    body: list[BodyPart] = [frame("w" * 70_000 if flushed else "w"), wakes_s, frame(finish="stop") + USAGE + DONE]
    asleep = Desk(database, Assistant(), backend=backend(ScriptedTransport([Reply(body=body)])))
    # It renews nothing and stores what it says only where that is a lot, as one whose isolate is frozen.
    turn = asleep.input(
        lease_ms=3_000,
        renewals_per_term=0.001,
        log_pace=Pace(first_ms=10**9, queries=2),
        prices=micro_dollar_a_token(),
    )
    sleeper = asyncio.create_task(run_turn(turn, BufferSink()))
    await asyncio.sleep(4)
    before = await ledger(database, "attempt, outcome")
    slow = Reply(body=[frame("Hi"), 3.0, frame(finish="stop") + USAGE + DONE])
    successor = Desk(database, Assistant(), backend=backend(ScriptedTransport([slow])), prices=micro_dollar_a_token())
    running = asyncio.create_task(successor.run())
    await asyncio.sleep(0.5)
    taken_over = await ledger(database, "attempt, outcome")
    lines = await running
    await sleeper

    assert "session.run.completed" == lines[-1]["type"]
    assert ([(1, "running")] if flushed else []) == before
    assert [(1, "lost"), (2, "running")] == taken_over
    assert [(1, 0, "completed", 2, 9, None, 1), (2, 0, "completed", 2, 9, None, 0)] == await ledger(
        database, "attempt, call_index, outcome, tokens_out, cost_micro_usd, estimated_tokens_out, wasted"
    )


@pytest.mark.parametrize(
    ("calls", "wakes_s"),
    # Of one that has called nobody nothing is on record, by which its successor could know that it was back before.
    [(1, 3.5), (0, 5.0), (1, 5.0), (0, 30.0), (1, 30.0)],
)
async def test_a_worker_that_slept_between_its_calls_has_lost_none(
    database: SqliteDatabase, calls: int, wakes_s: float
) -> None:
    """What it says is all that it had called, whether the takeover has taken a call for lost by then or not."""

    class Sleepy(ChatTurnHooks):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(self._say(context))

        async def _say(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
            for _ in range(calls):
                async for batch in answer(context):
                    yield batch
            await asyncio.sleep(wakes_s)
            yield text_delta("x")

    asleep = Desk(database, Sleepy(), backend=backend(ScriptedTransport([COUNTED])))
    turn = asleep.input(
        lease_ms=3_000,
        renewals_per_term=0.001,
        log_pace=Pace(first_ms=10**9, queries=2),
        prices=micro_dollar_a_token(),
    )
    sleeper = asyncio.create_task(run_turn(turn, BufferSink()))
    await asyncio.sleep(3.2)
    slow = Reply(body=[frame("Hi"), 3.0, frame(finish="stop") + USAGE + DONE])
    successor = Desk(
        database, Assistant(), backend=backend(ScriptedTransport([slow])), log_pace=Pace(first_ms=1_000, queries=50)
    )
    await successor.run()
    await sleeper

    assert [*((1, n, "completed", 1, "lease_lost") for n in range(calls)), (2, 0, "completed", 0, None)] == (
        await ledger(database, "attempt, call_index, outcome, wasted, error_code")
    )


@pytest.mark.parametrize("wakes_s", [3.5, 3.9])
async def test_a_worker_may_say_what_it_called_before_its_successor_takes_that_for_lost(
    database: SqliteDatabase, wakes_s: float
) -> None:
    """Then nothing was lost."""
    body: list[BodyPart] = [frame("w"), wakes_s, frame(finish="stop") + USAGE + DONE]
    asleep = Desk(database, Assistant(), backend=backend(ScriptedTransport([Reply(body=body)])))
    turn = asleep.input(lease_ms=3_000, renewals_per_term=0.001, log_pace=Pace(first_ms=10**9, queries=2))
    sleeper = asyncio.create_task(run_turn(turn, BufferSink()))
    await asyncio.sleep(3.2)
    slow = Reply(body=[frame("Hi"), 3.0, frame(finish="stop") + USAGE + DONE])
    successor = Desk(
        database, Assistant(), backend=backend(ScriptedTransport([slow])), log_pace=Pace(first_ms=1_000, queries=50)
    )
    running = asyncio.create_task(successor.run())
    await sleeper
    first = await ledger(database, "attempt, call_index, outcome, tokens_out, wasted")
    await running

    assert [(1, 0, "completed", 2, 1)] == first
    assert [(1, 0, "completed", 2, 1), (2, 0, "completed", 2, 0)] == await ledger(
        database, "attempt, call_index, outcome, tokens_out, wasted"
    )


async def test_a_call_that_reported_while_it_ran_is_lost_with_its_worker(database: SqliteDatabase) -> None:
    """What it said by then is known; it does not run for ever."""

    async def say(_request: AgentBackendInput, _context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        yield text_delta("x")
        yield usage_event(model="m", tokensIn=3, tokensOut=1)
        await asyncio.sleep(100)

    dying = isolate(database)
    dying.backend = create_iterable_backend("scripted", say)
    await takeover(database, dying, 1.0, COUNTED)

    assert [(1, "lost", 3, 1, None, 1), (2, "completed", 7, 2, None, 0)] == await ledger(
        database, "attempt, outcome, tokens_in, tokens_out, estimated_tokens_out, wasted"
    )


async def test_a_call_that_failed_is_wasted_though_another_goes_on_with_its_attempt(database: SqliteDatabase) -> None:
    """What is gone on with is what the attempt's other call had said."""
    dying = isolate(database, Reply(status=400), Reply(body=words(100)), continue_models=("m",))
    dying.hooks = Fallback()
    await takeover(database, dying, 1.0, COUNTED, continue_models=("m",))

    assert [(1, 0, "failed", 1), (1, 1, "lost", 0), (2, 0, "completed", 0)] == await ledger(
        database, "attempt, call_index, outcome, wasted"
    )


async def test_a_turn_that_is_run_again_after_its_deletion_is_on_record_as_well(database: SqliteDatabase) -> None:
    """Its attempts count from 1 again, but what it had consumed before is not theirs."""
    alone = isolate(database, COUNTED, COUNTED, COUNTED, settings={"RETENTION_DAYS": "1"})
    for _ in range(3):
        await (await alone.post()).lines()
        shown = (await alone.ask("GET", TURN)).body["usage"]
        await asyncio.sleep(2 * 86_400)
        await alone.sweep()
    total = (await alone.ask("GET", "/v1/usage?by=session", x_scopes="operate")).body["total"]

    assert [(1, 0, "completed", 0, 7)] * 3 == await ledger(database, "attempt, call_index, outcome, wasted, tokens_in")
    assert 7 == shown["delivered"]["tokensIn"]
    assert (3, 21) == (total["turns"], total["delivered"]["tokensIn"])


# The last write


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("times", [1, 3, 5, 7])
async def test_a_lost_reply_to_the_last_write_counts_nothing_twice(
    database: SqliteDatabase, fault: Any, times: int
) -> None:
    """Whether or not it was applied, and though the worker may never learn of it."""
    faulty = FaultyDatabase(database)
    faulty.faults = dict.fromkeys(range(1, 1 + times), fault)
    desk = Desk(faulty, Assistant(), backend=backend(ScriptedTransport([COUNTED])), log_pace=UNHURRIED)
    await desk.run(prices=micro_dollar_a_token())
    await asyncio.sleep(120)

    assert [(1, 0, "completed", 7, 2, 9, 0)] == await ledger(
        database, "attempt, call_index, outcome, tokens_in, tokens_out, cost_micro_usd, wasted"
    )


async def test_a_database_that_stays_away_is_told_the_cost_in_the_log(database: SqliteDatabase) -> None:
    """All that is known of the calls; and the attempt that follows has a lost one in their place."""
    faulty = FaultyDatabase(database)
    faulty.faults = dict.fromkeys(range(1, 100), "before")
    desk = Desk(faulty, Assistant(), backend=backend(ScriptedTransport([COUNTED])), log_pace=UNHURRIED)
    await desk.run(prices=micro_dollar_a_token(), lease_ms=5_000)
    [particulars] = [what for event, what in desk.logged if event == "usage.unrecorded"]
    await asyncio.sleep(60)
    await Desk(database, Assistant(), backend=backend(ScriptedTransport([COUNTED]))).run()

    assert [(7, 2, 9)] == [
        (call["tokens_in"], call["tokens_out"], call["cost_micro_usd"]) for call in particulars["calls"]
    ]
    assert [(1, "lost"), (2, "completed")] == await ledger(database, "attempt, outcome")


# Agents


async def test_each_round_of_an_agent_is_a_call(database: SqliteDatabase) -> None:
    """Its key is in the step that keeps what it said."""
    shop = agents.Shop(database, agents.Model(("note", {"text": "a"}), "done"))
    await shop.desk.run()
    steps = await shop.desk.rows(
        "SELECT result_json ->> '$.requestId' FROM durable_steps WHERE intent LIKE 'model:%' ORDER BY step_index"
    )

    assert [(1, 0, "completed", 0, 1), (1, 1, "completed", 0, 2)] == await ledger(
        database, "attempt, call_index, outcome, wasted, tokens_out"
    )
    assert steps == await ledger(database, "request_id") == [(key,) for _, key in shop.model.calls]


async def test_a_suspended_turn_s_calls_are_delivered(database: SqliteDatabase) -> None:
    """It rests on them, and so does the attempt that goes on."""
    shop = agents.Shop(database, agents.Model(("note", {"text": "b"}), ("send", {"text": "a"}), "sent"))
    await shop.desk.run()
    suspended = await ledger(database, "attempt, call_index, wasted")
    await shop.decide("approve:1.2.0", approved=True)
    await shop.desk.run()

    assert [(1, 0, 0), (1, 1, 0)] == suspended
    assert [(1, 0, 0), (1, 1, 0), (2, 0, 0)] == await ledger(database, "attempt, call_index, wasted")


async def test_a_checkpoint_pays_off_when_its_turn_is_answered(database: SqliteDatabase) -> None:
    """Until then it was in vain; a round that was made again stays so, whatever the model reports or does not."""

    class Mute(agents.Model):
        async def _stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
            async for batch in super()._stream(request, context):
                if not (isinstance(batch, ChatStreamEvent) and batch.type == "usage" and len(self.calls) == 1):
                    yield batch

    shop = agents.Shop(database, Mute(("note", {"text": "a"}), ("note", {"text": "b"}), ""))
    await shop.desk.run()
    before = await ledger(database, "attempt, call_index, outcome, wasted, tokens_out")
    shop.model.replies = (*shop.model.replies[:2], "done")
    await shop.desk.run()

    assert [(1, 0, "completed", 1, None), (1, 1, "completed", 1, 2), (1, 2, "completed", 1, 3)] == before
    assert [(1, 0, 0, None), (1, 1, 0, 2), (1, 2, 1, 3), (2, 0, 0, 3)] == await ledger(
        database, "attempt, call_index, wasted, tokens_out"
    )


async def test_a_checkpoint_pays_off_when_its_lost_turn_is_stopped(database: SqliteDatabase) -> None:
    """What was said behind it is the answer, so it rests on it, whichever attempt paid for it."""

    class Slow(agents.Model):
        pause_s = 0.0

        async def _stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
            async for batch in super()._stream(request, context):
                yield batch
                await asyncio.sleep(self.pause_s)

    model = Slow(("note", {"text": "a"}), "")

    def agent() -> Isolate:
        return Isolate(database, agents.Agent(), model.backend(), {"LEASE_MS": "3000"})

    await (await agent().post()).lines()
    before = await ledger(database, "attempt, call_index, outcome, wasted")
    model.replies, model.pause_s = (model.replies[0], "half of"), 100.0
    dying = agent()
    await dying.post()
    await asyncio.sleep(1.5)
    await dying.kill()
    heir = agent()
    await heir.ask("POST", f"{TURN}/cancel")
    await asyncio.sleep(4)
    await heir.sweep()
    await asyncio.sleep(1)

    assert [(1, 0, "completed", 1), (1, 1, "completed", 1)] == before
    assert [(1, 0, "completed", 0), (1, 1, "completed", 1), (2, 0, "lost", 0)] == await ledger(
        database, "attempt, call_index, outcome, wasted"
    )


async def test_a_superseded_turn_s_checkpoints_stay_wasted(database: SqliteDatabase) -> None:
    """The answer to another message has nothing of them."""
    shop = agents.Shop(database, agents.Model(("note", {"text": "a"}), ""))
    await shop.desk.run()
    shop.model.replies = (shop.model.replies[0], "done")
    await shop.desk.run(message="something else", supersede=True)

    assert [(1, 0, 1), (1, 1, 1), (2, 0, 0), (2, 1, 0)] == await ledger(database, "attempt, call_index, wasted")


async def test_a_redacting_agent_s_calls_are_delivered(database: SqliteDatabase) -> None:
    """Though its steps are forgotten with the same write."""

    class Redacting(agents.Agent):
        async def transform_final_text(self, text: str) -> str:
            return text.upper()

    shop = agents.Shop(database, agents.Model(("send", {"text": "a"}), "done"), Redacting())
    await shop.desk.run()
    await shop.decide("approve:1.1.0", approved=True)
    await shop.desk.run()

    assert [(1, 0, 0), (2, 0, 0)] == await ledger(database, "attempt, call_index, wasted")


async def _assert_all_on_record(world: agents.World) -> None:
    """Each call that the model has had is one row; a further row is a lost one, which may not have been made."""
    rows = await ledger(world.database, "attempt, request_id, outcome, tokens_out, wasted")
    desk = Desk(world.database)
    named = [request_id for _, request_id, *_ in rows if request_id is not None]
    kept = {
        key for (key,) in await desk.rows("SELECT result_json ->> '$.requestId' FROM durable_steps WHERE kind = 'llm'")
    }
    [(epoch,)] = await desk.rows("SELECT epoch FROM durable_runs")
    ended = {attempt for (attempt,) in await desk.rows("SELECT attempt FROM chat_segments WHERE ended")}
    lost_attempts = set(range(1, epoch + 1)) - ended

    # No call twice; none that is neither on record nor among the lost, of which each lost attempt has one.
    assert len(set(named)) == len(named)
    assert set(named) <= set(world.calls)
    assert [("lost", None)] * len(lost_attempts) == [(row[2], row[3]) for row in rows if row[2] == "lost"]
    assert lost_attempts == {row[0] for row in rows if row[2] == "lost"}
    assert len(set(world.calls) - set(named)) <= sum(row[1] is None for row in rows)
    # What is in the answer is delivered, with its tokens, and nothing else is.
    assert kept - {None} == {row[1] for row in rows if not row[4]}
    assert all(row[2] == "completed" and row[3] is not None for row in rows if not row[4])


@pytest.mark.slow
@pytest.mark.parametrize("point", range(len(agents.BEFORE)))
async def test_an_agent_s_worker_may_die_anywhere_before_the_approval(database: SqliteDatabase, point: int) -> None:
    """Every call is on record once, what was kept as delivered, and what nobody knows of as lost."""
    world = agents.World(database)
    with pytest.raises(Crash):
        await world.worker(Fuse(point))
    gc.collect()
    await world.outlive()

    await _assert_all_on_record(world)


@pytest.mark.parametrize("point", range(len(agents.AFTER)))
async def test_an_agent_s_worker_may_die_anywhere_after_the_approval(database: SqliteDatabase, point: int) -> None:
    """The same of the worker that goes on with the turn."""
    world = agents.World(database)
    [approval] = agents.data(await world.worker(Fuse()), "tool.approval")
    await Desk(database).input().deployment.store.emit_event(agents.RUN, approval["key"], {"approved": True})
    with pytest.raises(Crash):
        await world.worker(Fuse(point))
    gc.collect()
    await world.outlive()

    await _assert_all_on_record(world)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, len(agents.BEFORE), 4))
@pytest.mark.parametrize("second", range(0, len(agents.AFTER), 4))
async def test_agents_workers_may_die_one_after_another(database: SqliteDatabase, first: int, second: int) -> None:
    """And of the one that takes over from it."""
    world = agents.World(database)
    for point in (first, second):
        try:
            await world.worker(Fuse(point))
        except Crash:
            await asyncio.sleep(LEASE_MS / 1000)
    await world.outlive()

    await _assert_all_on_record(world)


# A product that asks twice without a step in between


class Twice(ChatTurnHooks):
    """Asks, waits until that is on record, and asks again."""

    def __init__(self, fuse: Fuse, calls: list[tuple[int, str]]) -> None:
        super().__init__()
        self._fuse, self._calls = fuse, calls

    def produce(self, context: TurnContext) -> StreamProducer:
        return StreamProducer(self._ask(context))

    async def _ask(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        for name in ("first", "second"):
            request_id = f"{name} of {context.attempt}"
            self._fuse.pass_by("before a call")
            self._calls.append((context.attempt, request_id))
            async for batch in answer(replace(context, request_id=request_id)):
                self._fuse.pass_by("an event")
                yield batch
            await asyncio.sleep(1)
        self._fuse.pass_by("the end")


async def twice(database: Database, fuse: Fuse, calls: list[tuple[int, str]]) -> None:
    """Run a worker that dies at its fuse's point."""

    async def say(_request: AgentBackendInput, _context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        for n in range(4):
            yield text_delta(f"{n} ")
            await asyncio.sleep(0.2)
        yield usage_event(model="m-2024", tokensIn=7, tokensOut=4)

    desk = Desk(MortalDatabase(database, fuse), Twice(fuse, calls), backend=create_iterable_backend("s", say))
    await desk.run(lease_ms=3_000, prices=micro_dollar_a_token())


def _places() -> list[str]:
    async def live() -> list[str]:
        with open_sqlite() as database:
            fuse = Fuse()
            await twice(database, fuse, [])
            return fuse.places

    from chatturn_testing.virtual_time import run  # noqa: PLC0415

    return run(live())


PLACES = _places()


@pytest.mark.slow
@pytest.mark.parametrize("point", range(len(PLACES)), ids=lambda n: f"{n}-{PLACES[n].replace(' ', '-')}")
async def test_a_worker_of_two_calls_may_die_at_every_statement(database: SqliteDatabase, point: int) -> None:
    """After the takeover no call is missing, and none is counted twice."""
    calls: list[tuple[int, str]] = []
    with pytest.raises(Crash):
        await twice(database, Fuse(point), calls)
    gc.collect()
    await asyncio.sleep(4)
    await twice(database, Fuse(), calls)
    rows = await ledger(database, "attempt, call_index, request_id, outcome, tokens_out, cost_micro_usd, wasted")

    for attempt in (1, 2):
        made = [request_id for number, request_id in calls if number == attempt]
        found = [row for row in rows if row[0] == attempt]
        assert list(range(len(found))) == [row[1] for row in found]
        if attempt == 2 and not made:
            continue
        named = [row[2] for row in found if row[2] is not None]
        assert named == made[: len(named)]
        assert len(made) <= len(found) <= len(made) + 1
        # What the worker lived to write down is known, and the one call after that is lost.
        *known, last = found
        assert all((row[3], row[4], row[5]) == ("completed", 4, 11) for row in known)
        assert last[3] in {"completed", "lost"}
    assert [(0,)] * 2 == [row[6:] for row in rows if row[0] == max(row[0] for row in rows)]


# Budgets


def spending(database: Database, calls: int, **settings: int) -> Isolate:
    """Return an isolate each of whose calls costs 9 micro-dollars."""
    return isolate(database, *[COUNTED] * calls, settings={name: str(value) for name, value in settings.items()})


async def ask(alone: Isolate, session: str, turn: int = 0, tenant: str = "acme", **members: Any) -> str:
    """Post a turn; return "completed", or why not."""
    path = f"/v1/sessions/{session}/turns/{turn}"
    lines = await (await alone.ask("POST", path, {"message": "hi", **members}, x_tenant=tenant)).lines()
    return str(lines[-1]["data"].get("code", "completed"))


@pytest.mark.parametrize(("limit", "turns"), [(9, 1), (10, 2), (18, 2), (19, 3), (27, 3), (0, 4), (1, 1)])
async def test_a_session_s_budget_is_spent_when_it_is_spent(database: SqliteDatabase, limit: int, turns: int) -> None:
    """A call is made as long as less than the budget was spent: the one that exceeds it is finished, no other begun."""
    alone = spending(database, 5, BUDGET_SESSION_MICRO_USD=limit)
    said = [await ask(alone, "a", turn) for turn in range(4)]

    assert ["completed"] * turns + ["budget_exceeded"] * (4 - turns) == said
    assert turns == len(await ledger(database, "1"))
    assert "completed" == await ask(alone, "b")


async def test_a_turn_s_budget_counts_all_its_attempts(database: SqliteDatabase) -> None:
    """Failed ones, too, where it is known what they cost."""
    broken = reporting({**COUNTS, "cost": 0.00001})
    cut = Reply(body=[*broken.body[:1], frame(choices=[], usage={**COUNTS, "cost": 0.00001})])  # type: ignore[index]
    alone = isolate(database, cut, cut, settings={"BUDGET_TURN_MICRO_USD": "20"})
    said = [await ask(alone, "a"), await ask(alone, "a"), await ask(alone, "a")]

    assert ["backend_protocol", "backend_protocol", "budget_exceeded"] == said
    assert [(10,), (10,)] == await ledger(database, "cost_micro_usd")


async def test_a_tenant_s_budget_is_of_a_day(database: SqliteDatabase) -> None:
    """From midnight UTC, over all its sessions, and nobody else's."""
    alone = spending(database, 6, BUDGET_TENANT_DAY_MICRO_USD=18)
    said = [await ask(alone, "a"), await ask(alone, "b"), await ask(alone, "c"), await ask(alone, "a", tenant="other")]
    await asyncio.sleep(86_400 - asyncio.get_running_loop().time() - 1)
    late = await ask(alone, "d")
    await asyncio.sleep(1)

    assert ["completed", "completed", "budget_exceeded", "completed"] == said
    assert ["budget_exceeded", "completed"] == [late, await ask(alone, "e")]


@pytest.mark.parametrize("scope", ["TURN", "SESSION", "TENANT_DAY"])
async def test_what_is_unknown_is_estimated_for_budgets_and_in_no_sum(database: SqliteDatabase, scope: str) -> None:
    """A call that broke off, or was stopped, has said two words: for its budget that is what it costs at least."""
    alone = isolate(database, *[CUT] * 3, settings={f"BUDGET_{scope}_MICRO_USD": "1"})
    said = [await ask(alone, "a") for _ in range(2)]
    usage = (await alone.ask("GET", "/v1/usage", x_scopes="operate")).body["total"]

    assert ["backend_protocol", "budget_exceeded"] == said
    assert [(None, 2 + 1)] == await ledger(database, "cost_micro_usd, estimated_cost_micro_usd")
    assert (None, 1) == (usage["wasted"]["costMicroUsd"], usage["wasted"]["unpricedCalls"])


async def test_a_cancelled_call_spends_its_estimate(database: SqliteDatabase) -> None:
    """Who cancels each turn before the model says what it has cost does not go on for ever."""
    hanging = Reply(body=[frame("Hello"), HANG])
    alone = isolate(database, *[hanging] * 3, settings={"BUDGET_SESSION_MICRO_USD": "4"})
    said = []
    for turn in range(3):
        path = f"/v1/sessions/a/turns/{turn}"
        posted = await alone.ask("POST", path, {"message": "hi"})
        await asyncio.sleep(1)
        await alone.ask("POST", f"{path}/cancel")
        said.append((await posted.lines())[-1])

    assert ["session.run.cancelled"] * 2 == [line["type"] for line in said[:2]]
    assert "budget_exceeded" == said[2]["data"]["code"]


async def test_a_cancelled_call_is_estimated_by_its_text_where_pieces_are_long(database: SqliteDatabase) -> None:
    """Some APIs send hundreds of tokens at a time: who stops a turn behind the second piece has had a thousand."""
    alone = isolate(database, Reply(body=[frame("word " * 800), HANG]), settings={"BUDGET_SESSION_MICRO_USD": "900"})
    posted = await alone.post()
    await asyncio.sleep(1)
    await alone.ask("POST", f"{TURN}/cancel")
    await posted.lines()

    assert [("cancelled", 1, 1 + 1_000)] == await ledger(
        database, "outcome, estimated_tokens_out, estimated_cost_micro_usd"
    )


async def test_a_model_without_a_price_is_not_called_under_a_budget(database: SqliteDatabase) -> None:
    """Unless there is a ceiling: that is what it costs, for the budget."""
    refused = isolate(database, COUNTED, settings={"BUDGET_TENANT_DAY_MICRO_USD": "9"})
    refused.prices = PriceTable()
    said = [await ask(refused, "a"), await ask(refused, "b", model="unheard-of")]
    capped = isolate(database, COUNTED, COUNTED, settings={"BUDGET_TENANT_DAY_MICRO_USD": "9"})
    capped.prices = PriceTable(ceiling=parse_ceiling("1"))

    assert ["unpriced_model"] * 2 == said
    assert [] == await ledger(database, "1")
    assert ["completed", "budget_exceeded"] == [await ask(capped, "c"), await ask(capped, "d")]
    assert [(None, 9)] == await ledger(database, "cost_micro_usd, estimated_cost_micro_usd")


@pytest.mark.parametrize(("limit", "passed"), [(9, 1), (1_001, 1), (1_002, 2), (4_000, 4)])
@pytest.mark.parametrize("scope", ["SESSION", "TENANT_DAY"])
async def test_turns_at_once_see_what_the_others_have_reserved(
    database: SqliteDatabase, scope: str, limit: int, passed: int
) -> None:
    """Of twenty, as many are answered as there is left for; each reserves 1,001 tokens, and costs nine."""
    slow = Reply(body=[frame("Hello"), 1.0, frame(finish="stop") + USAGE + DONE])
    alone = isolate(database, *[slow] * 20, settings={"MODEL": "m", f"BUDGET_{scope}_MICRO_USD": str(limit)})
    said = await asyncio.gather(*(ask(alone, "a", turn) for turn in range(20)))

    assert passed == said.count("completed"), said
    assert 20 - passed == said.count("budget_exceeded")
    if 9 * passed < limit:
        assert "completed" == await ask(alone, "a", 30), "the reservations went with the turns"


async def test_a_reservation_goes_with_its_lease(database: SqliteDatabase) -> None:
    """A worker that died holds nothing up; its call is lost, and costs what was reserved once somebody settles it."""
    settings, fuse = {"MODEL": "m", "BUDGET_SESSION_MICRO_USD": "500"}, Fuse()
    dying = isolate(MortalDatabase(database, fuse), Reply(body=[frame("Hello"), HANG]), settings=settings)
    await dying.ask("POST", TURN, {"message": "hi"})
    await asyncio.sleep(1)
    fuse.dead = True
    alone = isolate(database, *[COUNTED] * 3, settings=settings)
    path = TURN.rpartition("/")[0]
    meanwhile = (await (await alone.ask("POST", f"{path}/7", {"message": "hi"})).lines())[-1]
    await asyncio.sleep(4)
    later = (await (await alone.ask("POST", f"{path}/8", {"message": "hi"})).lines())[-1]

    assert "budget_exceeded" == meanwhile["data"]["code"]
    assert "session.run.completed" == later["type"]


async def test_a_budget_stops_an_agent_between_its_calls(database: SqliteDatabase) -> None:
    """Not within one; what it has done stays done, and with a larger budget it goes on behind it."""
    model = agents.Model(("note", {"text": "a"}), "done")
    shop = agents.Shop(database, model, prices=PriceTable({"m": Price(0, 10**6)}))
    priced = create_iterable_backend("s", _priced(model))
    shop.desk = Desk(database, shop.agent, backend=priced, prices=PriceTable({"m": Price(0, 10**6)}))
    stopped = await shop.desk.run(budgets=Budgets(turn=1))
    again = await shop.desk.run(budgets=Budgets(turn=1))
    lines = await shop.desk.run(budgets=Budgets(turn=2))

    assert ["budget_exceeded", "budget_exceeded"] == [lines[-1]["data"]["code"] for lines in (stopped, again)]
    assert not stopped[-1]["data"]["retryable"]
    assert "session.run.completed" == lines[-1]["type"]
    assert [["a"]] == list(shop.agent.effects.values())
    assert [(1, 0, 0), (3, 0, 0)] == await ledger(database, "attempt, call_index, wasted")


def _priced(model: agents.Model) -> Any:
    """Let *model* say what a price needs."""

    async def say(request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        async for batch in model._stream(request, context):
            if isinstance(batch, ChatStreamEvent) and batch.type == "usage":
                yield usage_event(model="m", tokensIn=5, tokensOut=1)
            else:
                yield batch

    return say


async def test_budgets_cost_no_further_round_trip(database: SqliteDatabase) -> None:
    """What was spent is read with the claim."""
    faulty = FaultyDatabase(database)
    desk = Desk(faulty, Assistant(), backend=backend(ScriptedTransport([OK])), log_pace=UNHURRIED)
    await desk.run(budgets=Budgets(turn=9, session=9, tenant=9))

    assert 2 == faulty.batches


@pytest.mark.parametrize("scopes", [("turn",), ("session",), ("tenant",), ("turn", "tenant"), ("session", "tenant")])
async def test_budgets_of_any_scopes_are_read(database: SqliteDatabase, scopes: Sequence[str]) -> None:
    """Those that have no limit are not even asked for."""
    desk = Desk(database, Assistant(), backend=backend(ScriptedTransport([COUNTED, COUNTED])))
    budgets = Budgets(**dict.fromkeys(scopes, 9))
    first = await desk.run(budgets=budgets, prices=micro_dollar_a_token())
    second = await desk.run(budgets=budgets, prices=micro_dollar_a_token(), message="other", supersede=True)

    assert "session.run.completed" == first[-1]["type"]
    assert "budget_exceeded" == second[-1]["data"]["code"]


# What is shown


async def test_a_turn_shows_what_it_consumed(database: SqliteDatabase) -> None:
    """Delivered and wasted apart, while it runs too; what it costs only to who may know."""
    alone = isolate(database, CUT, Reply(body=[frame("Hello"), 1.0, frame(finish="stop") + USAGE + DONE]))
    await (await alone.post()).lines()
    posted = await alone.post()
    await asyncio.sleep(0.5)
    running = (await alone.ask("GET", TURN)).body["usage"]
    await posted.lines()
    mine = (await alone.ask("GET", TURN)).body["usage"]
    operators = (await alone.ask("GET", TURN, x_scopes="turns operate")).body["usage"]
    nothing = {"calls": 0, "tokensIn": None, "tokensOut": None, "tokensCached": None, "tokensReasoning": None}

    assert (1, 0) == (running["runningCalls"], mine["runningCalls"])
    assert {**nothing, "estimatedTokensOut": None, "unknownCalls": 0} == running["delivered"]
    assert {**nothing, "calls": 1, "estimatedTokensOut": 2, "unknownCalls": 1} == mine["wasted"]
    assert (1, 7, 2) == tuple(mine["delivered"][name] for name in ("calls", "tokensIn", "tokensOut"))
    assert {"costMicroUsd": 9, "unpricedCalls": 0} == {
        name: value for name, value in operators["delivered"].items() if name not in mine["delivered"]
    }


async def test_another_tenant_s_usage_is_not_shown(database: SqliteDatabase) -> None:
    """Not in a turn, and nowhere to who is no operator."""
    alone = isolate(database, COUNTED, COUNTED)
    await ask(alone, "a")
    await ask(alone, "a", tenant="rival")
    foreign = await alone.ask("GET", TURN, x_tenant="third")
    denied = [
        await alone.ask("GET", "/v1/usage", x_scopes=scopes) for scopes in ("turns", "turns:read", "turns turns:read")
    ]
    rival = (await alone.ask("GET", "/v1/usage?by=session&tenant=rival", x_scopes="operate")).body

    assert [404, 403, 403, 403] == [foreign.status, *(reply.status for reply in denied)]
    assert [("rival", "a")] == [(each["tenantId"], each["sessionId"]) for each in rival["usage"]]
    assert 1 == rival["total"]["delivered"]["calls"]


def test_every_step_of_the_walk_is_a_place_to_die() -> None:
    """The worker of two calls passes the database between them."""
    calls = [n for n, place in enumerate(PLACES) if place == "before a call"]

    assert 2 == len(calls)
    assert all("after a batch" in PLACES[first:second] for first, second in pairwise([*calls, len(PLACES)]))


_: Step = text_delta("")
