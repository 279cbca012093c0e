"""
A thousand turns, and the bill: what the ledger adds up is what the model's API has counted, to the token.

The turns are tried again, broken off, cancelled, killed at any moment and at any batch, taken over, continued, and use
tools.  The API keeps count of its own, by the key of each request, and knows nothing of the ledger.
"""

import asyncio
import csv
import io
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.hooks.tool import Tool, ToolContext
from chatturn.database.api import Database, Result, Statement
from chatturn.transport import TransportRequest
from chatturn.usage.prices import Price, PriceTable
from products.assistant import Hooks as Assistant
from tests.support.isolates import Isolate
from tests.support.ledger import require_sums
from tests.support.telemetry import Collected, fixed_telemetry
from tests.support.turns import open_sqlite
from tests.unit.backends.openai.test_backend import DONE, backend, frame

TURNS: Final = 1_000
LIVES: Final = 6
"""Requests for a turn, at most; nothing befalls the worker of the last."""

COUNTS: Final = ("tokensIn", "tokensOut", "tokensCached", "tokensReasoning")
MODELS: Final = ("m-large", "m-small")

TRACED: Final = """
SELECT session_id, turn_index, traceparent, traced_by, attempt,
  (SELECT group_concat(attempt) FROM chat_segments AS s WHERE s.run_id = t.run_id AND ended) AS ends
FROM chat_turns AS t
"""


@dataclass
class Billed:
    """
    One call, as the API knows it.

    Attributes:
        told: What it has said of its tokens; None until it has.
        turn: Which turn's it is.
        words: What marks its answer; no other has them.
        ended: Whether it has said its last.
        unheard: Whether its worker died before it could write down what it was told, if it was told anything.
    """

    turn: int
    words: str
    model: str
    told: tuple[int, int, int, int] | None = None
    ended: bool = False
    tries: int = 0
    unheard: bool = False


class Api:
    """The model's API."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls: dict[str, Billed] = {}
        self.statuses: Counter[int] = Counter()
        self.broken = self.continued = 0


@dataclass
class Line:
    """The `Transport` of one worker."""

    api: Api
    turn: int = 0
    made: list[Billed] = field(default_factory=list)

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator["Answer"]:
        """Answer, or refuse, as chance has it for this call."""
        key, api = request.headers["idempotency-key"], self.api
        chance = random.Random(f"{api.seed}/{key}")
        call = api.calls.setdefault(key, Billed(self.turn, words=f"<{key[:16]}>", model=chance.choice(MODELS)))
        call.tries += 1
        if call.tries == 1:
            self.made.append(call)
        refusals = chance.choice([[], [], [], [429], [500], [429, 500], [400]])
        status = (refusals + [200] * call.tries)[call.tries - 1]
        api.statuses[status] += 1
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        call.ended = status == 400
        yield Answer(api, call, chance, status, json.loads(request.body))


@dataclass
class Answer:
    """The `TransportResponse` of one request."""

    api: Api
    call: Billed
    chance: random.Random
    status: int
    asked: Mapping[str, Any]

    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})

    async def chunks(self) -> AsyncIterator[bytes]:
        """Say some words, or ask for a tool; count, and say so all along or at the end; or break off before."""
        if self.status != 200:
            return
        call, chance, last = self.call, self.chance, self.asked["messages"][-1]
        self.api.continued += last["role"] == "assistant"
        pieces, breaks, all_along = chance.randint(1, 12), chance.random() < 0.12, chance.random() < 0.5
        counts = (chance.randint(1, 5_000), 0, chance.randint(0, 900), chance.randint(0, 90))
        if last["role"] == "user" and "tools" in self.asked and chance.random() < 0.8:
            call.ended = True
            call.told = (counts[0], 7, *counts[2:])
            wanted = {"name": "note", "arguments": json.dumps({"words": call.words})}
            asks = {"index": 0, "id": "c", "type": "function", "function": wanted}
            choice = {"index": 0, "delta": {"tool_calls": [asks]}, "finish_reason": "tool_calls"}
            yield frame(choices=[choice], model=call.model) + self._usage() + DONE
            return
        for said in range(1, pieces + 1):
            if all_along:
                call.told = (counts[0], said, *counts[2:])
            yield frame(f"{call.words} ", model=call.model) + (self._usage() if all_along else b"")
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            if breaks and said == pieces // 2 + 1:
                self.api.broken += 1
                call.ended = True
                return
        call.told = (counts[0], pieces, *counts[2:])
        call.ended = True
        yield frame(finish="stop", model=call.model) + self._usage() + DONE

    def _usage(self) -> bytes:
        assert self.call.told is not None
        tokens_in, tokens_out, cached, reasoning = self.call.told
        details = {
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, **details}
        return frame(choices=[], model=self.call.model, usage=usage)


class Doomed:
    """The database of one worker, which may not live to see the answer to a batch, or to have it applied."""

    def __init__(self, database: Database, line: Line, at: int | None, *, applied: bool) -> None:
        self._database, self._line, self._at, self._applied = database, line, at, applied
        self._batches = 0
        self.died, self.buried = asyncio.Event(), asyncio.Event()
        self.heard = 0

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*, and take note of how many calls were over before a write of the turn."""
        dies = self._batches == self._at
        self._batches += 1
        over = len([call for call in self._line.made if call.ended])
        outcomes = await self._database.batch(statements) if self._applied or not dies else []
        if outcomes and any("chat_segments (" in each.sql or "INTO durable_steps" in each.sql for each in statements):
            self.heard = over
        if dies:
            self.died.set()
            await self.buried.wait()
            raise asyncio.CancelledError  # as whoever asked is gone
        return outcomes


class Noting(ChatTurnHooks):
    """A product whose model takes notes."""

    def __init__(self, notes: set[str]) -> None:
        super().__init__()
        self._notes = notes
        self.tools = [Tool(name="note", description="Notes.", parameters={"type": "object"}, run=self._note)]

    async def _note(self, args: Mapping[str, Any], _context: ToolContext) -> str:
        await asyncio.sleep(0.1)
        self._notes.add(str(args["words"]))
        return "noted"


class World:
    """
    What outlives the workers.

    Attributes:
        fates: What befell workers, and how often.
        never_made: Attempts that died before their call, or after it was on record: who follows cannot know.
        collector: Where the telemetry of all workers goes.
        unsent: By turn, the attempts whose end is on record, but whose worker died before it had sent their spans.
    """

    def __init__(self, database: Database, seed: int) -> None:
        self.database = database
        self.api = Api(seed)
        self.notes: set[str] = set()
        self.chance = random.Random(seed)
        self.fates: Counter[str] = Counter()
        self.never_made = 0
        self.collector = Collected()
        self.unsent: dict[int, set[int]] = {}

    def isolate(self, line: Line, database: Database, number: int = 0) -> Isolate:
        """Return a worker."""
        return Isolate(
            database,
            Noting(self.notes) if number % 3 == 0 else Assistant(),
            backend(line, continue_models=("*",)),  # type: ignore[arg-type]  # as good as a `ScriptedTransport`
            {"LEASE_MS": "3000"},
            prices=PriceTable({model: Price(10**6, 10**6) for model in MODELS}),
            telemetry=fixed_telemetry(self.collector),
        )

    async def turn(self, number: int) -> None:
        """Ask for a turn until it is answered."""
        for life in range(LIVES):
            fate = self.chance.choice(["none", "none", "cancel", "killed", "dies"]) if life + 1 < LIVES else "none"
            if await self._live(number, fate):
                return

    async def _live(self, number: int, fate: str) -> bool:
        path = f"/v1/sessions/s{number % 37}/turns/{number // 37}"
        line, chance = Line(self.api, number), self.chance
        at = chance.randint(0, 6) if fate == "dies" else None
        database = Doomed(self.database, line, at, applied=chance.random() < 0.5)
        worker, before = self.isolate(line, database, number), await self._attempt(number)
        asked = asyncio.ensure_future(self._ask(worker, path, number))
        dead = asyncio.ensure_future(database.died.wait())
        if fate in {"cancel", "killed"}:
            await asyncio.wait([asked], timeout=chance.uniform(0.0, 3.0))
        if fate == "cancel" and not asked.done():
            self.fates["cancelled"] += 1
            await worker.ask("POST", f"{path}/cancel", x_tenant=f"t{number % 37 % 3}")
        if fate != "killed":
            await asyncio.wait([asked, dead], return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        if asked.done():
            await worker.kill()
            return asked.result() in {"session.run.completed", "session.run.cancelled"}
        self.fates[fate] += 1
        database.buried.set()
        await worker.kill()
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked
        await self._mourn(number, before, line, database)
        await asyncio.sleep(4)
        return False

    async def _ask(self, worker: Isolate, path: str, number: int) -> str:
        reply = await worker.ask("POST", path, {"message": f"question {number}"}, x_tenant=f"t{number % 37 % 3}")
        return str((await reply.lines())[-1]["type"])

    async def _mourn(self, number: int, before: int, line: Line, database: Doomed) -> None:
        """Take note of what died with a worker: a call of which nobody can tell any more, or not even a call."""
        attempt = await self._attempt(number)
        ended = await rows(
            self.database,
            "SELECT 1 FROM chat_segments JOIN chat_turns USING (run_id) WHERE session_id = ?1 AND turn_index = ?2"
            " AND chat_segments.attempt = ?3 AND ended",
            f"s{number % 37}",
            number // 37,
            attempt,
        )
        if ended and attempt != before:
            self.unsent.setdefault(number, set()).add(attempt)
        if attempt == before or ended:
            return
        unheard = line.made[database.heard :]
        for call in unheard:
            call.unheard = True
        assert len(unheard) <= 1
        self.never_made += not unheard

    async def _attempt(self, number: int) -> int:
        found = await rows(
            self.database,
            "SELECT epoch FROM durable_runs JOIN chat_turns USING (run_id) WHERE session_id = ?1 AND turn_index = ?2",
            f"s{number % 37}",
            number // 37,
        )
        return int(found[0][0]) if found else 0

    async def delivered(self) -> set[str]:
        """Return the keys of the calls that users have something of: words, or what a tool did for their answer."""
        found = await rows(
            self.database,
            "SELECT session_id, turn_index, content FROM chat_messages WHERE role = 'assistant' AND content <> ''",
        )
        answers = {int(session[1:]) + 37 * turn: str(content) for session, turn, content in found}
        return {
            key
            for key, call in self.api.calls.items()
            if call.turn in answers and (call.words in answers[call.turn] or call.words in self.notes)
        }


async def rows(database: Database, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    [outcome] = await database.batch([Statement(sql, params)])
    return [tuple(row.values()) for row in outcome.rows]


async def shown(alone: Isolate, by: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read all pages of the usage by something; return the groups, and the total, which every page tells the same."""
    groups: list[dict[str, Any]] = []
    totals, query = [], f"/v1/usage?by={by}&limit=7"
    after: str | None = ""
    while after is not None:
        body = (await alone.ask("GET", query + after, x_scopes="operate")).body
        groups += body["usage"]
        totals.append(body["total"])
        after = None if body["next"] is None else f"&after={body['next']}"
    assert all(total == totals[0] for total in totals)
    return groups, totals[0]


@pytest.mark.slow
async def test_a_thousand_turns_add_up_and_are_traced_whole() -> None:
    """By call, in all, delivered and wasted apart; what nobody lived to hear is lost, and is counted."""
    with open_sqlite() as database:
        world = World(database, seed=5)
        for number in range(TURNS):
            await world.turn(number)
            await asyncio.sleep(300)
        api, delivered = world.api, await world.delivered()
        heard = {key: call for key, call in api.calls.items() if not call.unheard}
        columns = "request_id, tokens_in, tokens_out, tokens_cached, tokens_reasoning, cost_micro_usd, wasted"
        ledger = await rows(database, f"SELECT {columns} FROM chat_usage WHERE outcome <> 'lost'")  # noqa: S608
        [(lost,)] = await rows(database, "SELECT count(*) FROM chat_usage WHERE outcome = 'lost'")
        traced = await rows(database, TRACED)
        [(first, last)] = await rows(database, "SELECT min(recorded_at), max(recorded_at) FROM chat_usage")
        await require_sums(database, (first[:10], last[:10]))
        await require_sums(database, (last[:10], last[:10]))
        alone = world.isolate(Line(api), database)
        usages = {by: await shown(alone, by) for by in ("tenant", "session", "model", "day")}
        tables = {
            by: (await alone.ask("GET", f"/v1/usage?by={by}&limit=200", x_scopes="operate", accept="text/csv")).response
            for by in usages
        }

    # Every kind of misfortune has happened, and often.
    assert min(api.statuses[429], api.statuses[500], api.broken, api.continued, *world.fates.values()) > 30
    # Call by call.
    assert len(ledger) == len(heard)
    for key, *counts, cost, wasted in ledger:
        told = heard[key].told
        assert list(told or [None] * 4) == counts
        assert cost == (None if told is None else told[0] + told[1])
        assert wasted == (key not in delivered), (key, heard[key])
    assert lost == sum(call.unheard for call in api.calls.values()) + world.never_made
    # In all, under every grouping, as JSON and as CSV.
    for by, (groups, total) in usages.items():
        assert total == usages["tenant"][1]
        table = list(csv.DictReader(io.StringIO(tables[by].body.decode())))
        assert len(table) == len(groups)
        for kind in ("delivered", "wasted"):
            chosen = [call.told for key, call in heard.items() if (key in delivered) == (kind == "delivered")]
            sums = [sum(each) for each in zip(*filter(None, chosen), strict=True)]
            assert sums == [total[kind][name] for name in COUNTS]
            for name in (*COUNTS, "calls", "costMicroUsd", "unknownCalls"):
                assert total[kind][name] == sum(group[kind][name] or 0 for group in groups)
                assert total[kind][name] == sum(int(line[f"{kind}.{name}"] or 0) for line in table)
    assert_whole(world, traced)


def assert_whole(world: World, turns: Sequence[tuple[Any, ...]]) -> None:
    """Every turn is one trace, with a span for each attempt, however it ended; but for what died with its worker."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for span in world.collector.spans:
        traces.setdefault(span["traceId"], []).append(span)
    assert TURNS == len(turns) == len(traces)
    for session, index, traceparent, traced_by, attempts, ends in turns:
        unsent = world.unsent.get(int(session[1:]) + 37 * index, set())
        _, trace_id, turn_id, _ = traceparent.split("-")
        spans = traces[trace_id]
        ids = {span["spanId"] for span in spans}
        assert len(ids) == len(spans), "a span was sent twice"
        assert (traced_by not in unsent) == (turn_id in ids)
        assert {span.get("parentSpanId") for span in spans} <= ids | {turn_id, None}
        assert all((span["spanId"] == turn_id) == ("parentSpanId" not in span) for span in spans)
        sent = {int(span["name"].split()[1]) for span in spans if span["name"].startswith("attempt ")}
        # Who is lost is told of by the next whose end is on record, unless that one died before it could.
        tellers = {int(attempt) for attempt in ends.split(",")}
        told = {attempt for attempt in range(1, attempts + 1) if min(tellers - set(range(attempt))) not in unsent}
        assert told == sent
