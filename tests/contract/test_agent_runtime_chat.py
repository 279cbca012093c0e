"""
agent-runtime's own tests of its chat engine and of how a turn is reconnected, each under its name, over every store.

Where it is another rule here, the test says which.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime import (
    ChatStreamEvent,
    ChatTurnHooks,
    ChatTurnIdentity,
    durable_chat_turn_engine,
    manifest_hash,
)
from chatturn.backends.echo import create_echo_backend
from chatturn.chat.deployment import Deployment
from chatturn.chat.hooks.hooks import FinishedTurn, TurnContext
from chatturn.chat.requests import TurnInput, TurnRequest
from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import Sweep
from chatturn.chat.thread.identity import turn_run_id
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Database, Statement
from chatturn.durable.records import DurableRunManifest, StepStatus, TaskSpec
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import BackendRejected
from chatturn.events import text_delta
from chatturn.settings import Settings
from tests.support.clock import Clock

IDENTITY = ChatTurnIdentity(tenant_id="acme", session_id="thread-1", user_id="ann", turn_index=0)
HELLO = (text_delta("hel"), text_delta("lo"))
Line = dict[str, Any]


class Product(ChatTurnHooks):
    """A product whose model says what it is told, and that notes what is done with it."""

    def __init__(self, *said: ChatStreamEvent | Exception, persist: Exception | None = None) -> None:
        self.said, self.persist = said or HELLO, persist
        self.done: list[str] = []
        self.observed: list[str] = []
        self.persisted: list[str] = []

    def produce(self, context: TurnContext) -> StreamProducer:
        del context
        self.done.append("produce")
        return StreamProducer(self._play())

    async def _play(self) -> AsyncGenerator[ChatStreamEvent, None]:
        for each in self.said:
            if isinstance(each, Exception):
                raise each
            yield each

    def on_event(self, identity: ChatTurnIdentity, event: ChatStreamEvent) -> None:
        del identity
        self.observed.append(event.type)

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        self.done.append("persist")
        if self.persist is not None:
            error, self.persist = self.persist, None
            raise error
        self.persisted.append(turn.final_text)

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        del turn
        self.done.append("post-process")


class Redacting(Product):
    """One that keeps names out of what is stored."""

    async def transform_final_text(self, text: str) -> str:
        return text.replace("lo", "[redacted]")


def given(database: Database, hooks: ChatTurnHooks) -> TurnInput:
    settings = Settings(project_id="legal-agent", domain="legal")
    deployment = Deployment(
        settings=settings, hooks=hooks, backend=create_echo_backend(), database=database, log=lambda *_: None
    )
    return TurnInput(deployment=deployment, identity=IDENTITY, request=TurnRequest(message="hi"))


async def turn(database: Database, hooks: ChatTurnHooks, **changes: Any) -> list[Line]:
    """Run a turn through agent-runtime's engine; return its lines, pings left out."""
    result = durable_chat_turn_engine.run_turn(replace(given(database, hooks), **changes))
    assert "application/x-ndjson" == result.content_type
    text = "".join([chunk async for chunk in result.body])
    return [line for line in map(json.loads, text.splitlines()) if line["type"] != "ping"]


def kinds(lines: Sequence[Line]) -> list[str]:
    return [line["type"] for line in lines]


STARTED, PART, RESULT = "session.run.started", "message.part.updated", "result"
COMPLETED, FAILED = "session.run.completed", "session.run.failed"


# Chat engine


async def test_the_envelope_is_first_and_last_and_persist_is_called(database: Database) -> None:
    product = Product()
    lines = await turn(database, product)

    assert [STARTED, PART, PART, COMPLETED] == kinds(lines)
    assert ["hello"] == product.persisted


async def test_hooks_run_in_order_persist_then_post_process(database: Database) -> None:
    product = Product()
    await turn(database, product)

    assert ["produce", "persist", "post-process"] == product.done


async def test_a_replay_skips_the_producer_and_the_hooks_and_says_so(database: Database) -> None:
    product = Product()
    await turn(database, product)
    lines = await turn(database, product)

    assert ["produce", "persist", "post-process"] == product.done
    assert ([STARTED, RESULT, COMPLETED], True) == (kinds(lines), lines[-1]["data"]["replayed"])


async def test_a_producer_that_fails_is_an_error_and_failed_and_the_stream_closes(database: Database) -> None:
    product = Product(text_delta("hel"), ValueError("the upstream said: Ms. Miller"))
    lines = await turn(database, product)

    assert [STARTED, PART, "error", FAILED] == kinds(lines)
    assert "Miller" not in repr(lines)
    assert ["produce"] == product.done


async def test_an_observer_sees_exactly_what_the_client_sees(database: Database) -> None:
    product = Product(text_delta("hel"), ChatStreamEvent("tool.x", {"n": 1}), text_delta("lo"))
    lines = await turn(database, product)

    assert kinds(lines) == product.observed


async def test_a_transform_changes_only_what_is_persisted(database: Database) -> None:
    """Live pieces are what the model said; what is stored, and so what a replay tells, is the redactor's."""
    product = Redacting()
    live, again = await turn(database, product), await turn(database, product)

    assert ["hel", "lo"] == [line["data"]["delta"] for line in live if line["type"] == PART]
    assert ["hel[redacted]"] == product.persisted
    assert "hel[redacted]" == again[1]["data"]["finalText"]


async def test_a_persist_that_throws_loses_no_message(database: Database, clock: Clock) -> None:
    """It swallows the error; a later version fails the turn.  Here the answer is stored, and the cron calls again."""
    product = Product(persist=RuntimeError("the product's database"))
    lines = await turn(database, product)
    [stored] = await database.batch([Statement("SELECT content FROM chat_messages WHERE role = 'assistant'")])

    assert COMPLETED == lines[-1]["type"]
    assert [{"content": "hello"}] == [dict(row) for row in stored.rows]
    assert ["produce", "persist"] == product.done

    clock.advance(600_000)
    await Sweep(service=DurableChatService(deployment=given(database, product).deployment)).run()
    assert (["produce", "persist", "persist", "post-process"], ["hello"]) == (product.done, product.persisted)


# Later chat engine: errors in band


async def test_in_band_1_an_error_event_is_a_failed_turn(database: Database) -> None:
    lines = await turn(database, Product(text_delta("hel"), ChatStreamEvent("error", {"message": "no"})))

    assert [STARTED, PART, "error", FAILED] == kinds(lines)


async def test_in_band_2_what_follows_an_error_is_not_told(database: Database) -> None:
    lines = await turn(database, Product(ChatStreamEvent("error", {"message": "no"}), text_delta("and yet")))

    assert [STARTED, "error", FAILED] == kinds(lines)


@pytest.mark.parametrize("kind", [FAILED, COMPLETED, "session.run.cancelled"])
async def test_in_band_3_a_producer_s_own_terminal_line_is_not_a_second_one(database: Database, kind: str) -> None:
    lines = await turn(database, Product(*HELLO, ChatStreamEvent(kind, {"by": "the producer"})))

    assert 1 == sum(line["type"] in {FAILED, COMPLETED, "session.run.cancelled"} for line in lines)
    assert lines[-1]["type"] in {FAILED, COMPLETED}
    assert "the producer" not in repr(lines[-1])


async def test_in_band_4_an_error_that_is_raised_behind_one_that_was_told_is_told_once(database: Database) -> None:
    lines = await turn(database, Product(ChatStreamEvent("error", {"message": "no"}), ValueError("no")))

    assert (1, FAILED) == (kinds(lines).count("error"), lines[-1]["type"])


async def test_a_tool_error_is_tolerated(database: Database) -> None:
    """The model is told, and goes on."""
    failed = ChatStreamEvent("tool.error", {"toolCallId": "c1", "toolName": "read", "message": "not found"})
    lines = await turn(database, Product(text_delta("hel"), failed, text_delta("lo")))

    assert ([STARTED, PART, "tool.error", PART, COMPLETED]) == kinds(lines)


async def test_what_is_thrown_of_the_one_tree_keeps_its_code_and_its_public_sentence(database: Database) -> None:
    """There a thrown Response keeps its status and a safe message."""
    error = BackendRejected("status 402", backend="openai", upstream_status=402, detail="Ms. Miller has no credit")
    [told] = [line for line in await turn(database, Product(error)) if line["type"] == "error"]

    assert (error.code, error.public) == (told["data"]["code"], told["data"]["message"])
    assert "Miller" not in repr(told)


# Turns that are reconnected: the run on record is the handle


async def test_a_fresh_turn_has_its_run_on_record_and_ends_completed(store: SqlRunStore) -> None:
    class Looking(Product):
        async def _play(self) -> AsyncGenerator[ChatStreamEvent, None]:
            seen.append(await store.load_run(turn_run_id(IDENTITY)))
            yield text_delta("hello")

    seen: list[Any] = []
    await turn(store.database, Looking())
    after = await store.load_run(turn_run_id(IDENTITY))

    assert after is not None
    assert ["running", "completed"] == [seen[0].status, after.status]


async def test_a_completed_turn_replays_its_text_and_nothing_of_the_product_runs(database: Database) -> None:
    await turn(database, Product())
    never = Product(ValueError("it ran"))
    lines = await turn(database, never)

    assert ([], "hello") == (never.done, lines[1]["data"]["finalText"])


async def test_a_running_turn_that_cannot_be_reconnected_runs_again(store: SqlRunStore, clock: Clock) -> None:
    """From its top, once the lease of the worker that was lost is over."""
    await store.start_or_resume(
        run_id=turn_run_id(IDENTITY), manifest=given(store.database, Product()).manifest, worker_id="lost"
    )
    product = Product()
    refused = await turn(store.database, product)
    assert ([], FAILED) == (product.done, refused[-1]["type"])

    clock.advance(600_000)
    lines = await turn(store.database, product)
    assert (["produce", "persist", "post-process"], COMPLETED) == (product.done, lines[-1]["type"])


async def test_a_turn_that_fails_is_failed_as_a_run_and_as_a_step(store: SqlRunStore) -> None:
    """As where reconnecting fails there."""
    await turn(store.database, Product(ValueError("no")))
    run, step = await store.load_run(turn_run_id(IDENTITY)), await store.load_step(turn_run_id(IDENTITY), 0)

    assert run is not None
    assert step is not None
    assert ("failed", StepStatus.FAILED) == (run.status, step.status)


# An execution's id


def test_an_execution_s_id_is_stable() -> None:
    assert turn_run_id(IDENTITY) == turn_run_id(replace(IDENTITY))


def test_an_execution_s_id_differs_by_turn() -> None:
    assert turn_run_id(IDENTITY) != turn_run_id(replace(IDENTITY, turn_index=1))


def test_an_execution_s_id_differs_by_session() -> None:
    assert turn_run_id(IDENTITY) != turn_run_id(replace(IDENTITY, session_id="thread-2"))


def test_an_execution_differs_by_project() -> None:
    """By its manifest here, which the run is compared with; its id has the tenant instead."""
    task = TaskSpec(id="t", intent="i", domain="d")
    ours, theirs = (DurableRunManifest(project_id=name, task=task, input=1) for name in ("ours", "theirs"))

    assert manifest_hash(ours) != manifest_hash(theirs)
    assert turn_run_id(IDENTITY) != turn_run_id(replace(IDENTITY, tenant_id="beta"))
