"""Chat turns as tests need them: a scripted product over a real SQLite database, in virtual time."""

import asyncio
import atexit
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from chatturn.backends.echo import create_echo_backend
from chatturn.chat.deployment import Deployment
from chatturn.chat.hooks.hooks import ChatTurnHooks, FinishedTurn, TurnContext
from chatturn.chat.log.query_budget import Pace
from chatturn.chat.requests import TurnInput, TurnRequest
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.chat.turn.turn import run_turn
from chatturn.database.api import Database, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.sql_store import SqlRunStore
from chatturn.events import ChatStreamEvent, EventBatch, text_delta
from chatturn.settings import Settings

__all__ = [
    "IDENTITY",
    "UNHURRIED",
    "Desk",
    "Product",
    "Recorded",
    "Step",
    "events_of",
    "open_sqlite",
    "virtual_moment",
    "without_pings",
]

_SCHEMA = Path(__file__).parent.parent.parent / "schema.sql"
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

IDENTITY = ChatTurnIdentity(tenant_id="acme", session_id="thread-1", user_id="ann", turn_index=0)

UNHURRIED = Pace(first_ms=10**9, queries=1)
"""Stores the log at its end only, for tests that count batches."""

Step = ChatStreamEvent | list[ChatStreamEvent] | float | BaseException
"""What a scripted producer does next: yield, wait so many seconds, or raise."""


@contextmanager
def open_sqlite(path: str | Path = ":memory:") -> Iterator[SqliteDatabase]:
    """Yield a database with the schema applied, whose clock is the running loop's."""
    with SqliteDatabase(path, moment=virtual_moment) as database:
        if path == ":memory:":
            database.copy_from(_with_schema())
        else:
            database.apply_schema(_SCHEMA.read_text())
        yield database


@cache
def _with_schema() -> SqliteDatabase:
    database = SqliteDatabase(":memory:")
    atexit.register(database.close)
    database.apply_schema(_SCHEMA.read_text())
    return database


def virtual_moment() -> str:
    """Return the time of the running loop as the database's."""
    moment = _EPOCH + timedelta(seconds=asyncio.get_running_loop().time())
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


class Product(ChatTurnHooks):
    """
    A product whose model does what the test says.

    Attributes:
        script: What the model does, step by step; one script for every call, or a list of them by call.
        calls: The contexts of its model calls, in order.
        closed: How many of its streams were closed or ended.
    """

    def __init__(self, *script: Step, final_text: Callable[[], str | None] | None = None) -> None:
        self.script: Sequence[Step] = script or (text_delta("Hello, "), text_delta("world."))
        self.calls: list[TurnContext] = []
        self.closed = 0
        self._final_text = final_text

    def produce(self, context: TurnContext) -> StreamProducer:
        """Play the script."""
        self.calls.append(context)
        producer = StreamProducer(self._play(context))
        if self._final_text is not None:
            producer.final_text = self._final_text  # type: ignore[method-assign]  # a scripted product's own
        return producer

    async def _play(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        try:
            for step in self.script:
                for event in _usages(step):
                    context.meter.report(event)
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, float | int):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.closed += 1


def _usages(step: Step) -> list[dict[str, Any]]:
    """Return what a scripted producer says of model calls of its own."""
    events = step if isinstance(step, list) else [step] if isinstance(step, ChatStreamEvent) else []
    return [event.data for event in events if event.type == "usage" and event.data is not None]


class Recorded(Product):
    """A product that also notes its hook calls."""

    def __init__(self, *script: Step) -> None:
        super().__init__(*script)
        self.persisted: list[FinishedTurn] = []
        self.completed: list[FinishedTurn] = []
        self.order: list[str] = []
        self.persist_fails = 0

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        """Note the call, or fail as often as told."""
        self.order.append("persist")
        if self.persist_fails:
            self.persist_fails -= 1
            raise RuntimeError("the product's database says: secret-host:5432 refused")
        self.persisted.append(turn)

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """Note the call."""
        self.order.append("complete")
        self.completed.append(turn)


def _taken(options: dict[str, Any], of: type[Any]) -> dict[str, Any]:
    """Take the fields of a class out of *options*."""
    return {each.name: options.pop(each.name) for each in fields(of) if each.name in options}


@dataclass(frozen=True, kw_only=True)
class _Tuned(Deployment):
    """A deployment with properties that no setting gives one."""

    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> SqlRunStore:
        store: SqlRunStore | None = self.tuning.get("store")
        return super().store if store is None else store

    @property
    def log_pace(self) -> Pace:
        pace: Pace | None = self.tuning.get("log_pace")
        return super().log_pace if pace is None else pace

    @property
    def renewals_per_term(self) -> float:
        renewals: float | None = self.tuning.get("renewals_per_term")
        return super().renewals_per_term if renewals is None else renewals


class Desk:
    """
    A deployment of one product over one database.

    Attributes:
        logged: What was logged: the event's name and its particulars.
    """

    def __init__(self, database: Database, hooks: ChatTurnHooks | None = None, **options: Any) -> None:
        self.database = database
        self.hooks = hooks or Product()
        self.logged: list[tuple[str, Any]] = []
        self._options = options

    def input(self, **changes: Any) -> TurnInput:
        """
        Return a turn to run.

        What is changed is a member of the request, a setting, a part of the deployment, or the identity; or
        one of the deployment's properties.
        """
        options: dict[str, Any] = {**self._options, **changes}
        if (budgets := options.pop("budgets", None)) is not None:
            options |= {
                "budget_turn_micro_usd": budgets.turn,
                "budget_session_micro_usd": budgets.session,
                "budget_tenant_day_micro_usd": budgets.tenant,
            }
        request = replace(TurnRequest(message="hi"), **_taken(options, TurnRequest))
        if (default := options.pop("default_model", None)) is not None:
            options["model"] = default
        parts = _taken(options, Deployment)  # first: its backend and prices are settings by name as well
        settings = replace(Settings(project_id="legal-agent", domain="legal"), **_taken(options, Settings))
        base = _Tuned(
            settings=settings,
            hooks=self.hooks,
            backend=create_echo_backend(),
            database=self.database,
            log=lambda event, particulars: self.logged.append((event, particulars)),
        )
        deployment = replace(base, **parts)
        turn = replace(
            TurnInput(deployment=deployment, identity=IDENTITY, request=request), **_taken(options, TurnInput)
        )
        return replace(turn, deployment=replace(deployment, tuning=options))

    async def run(self, sink: BufferSink | None = None, **changes: Any) -> list[dict[str, Any]]:
        """Run a turn and return its lines, parsed; pings are in the sink."""
        sink = sink or BufferSink()
        await run_turn(self.input(**changes), sink)
        return events_of(sink.text())

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Read rows as tuples."""
        [outcome] = await self.database.batch([Statement(sql)])
        return [tuple(row.values()) for row in outcome.rows]


def without_pings(text: str) -> str:
    """Return lines as they are in the log."""
    return "".join(f"{line}\n" for line in text.split("\n")[:-1] if not line.startswith('{"type":"ping"'))


def events_of(text: str) -> list[dict[str, Any]]:
    """Parse lines, each of which must end with LF; pings left out."""
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text[:-1].split("\n")]
    return [line for line in lines if line["type"] != "ping"]
