"""Runs a product's turns with the real engine on SQLite in virtual time, and returns their results as values."""

import asyncio
import atexit
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, wraps
from typing import Any, Final

from chatturn.agent_runtime.shown.attempt_runs import keep_runtime_runs
from chatturn.chat.deployment import Deployment
from chatturn.chat.hooks.hooks import ChatTurnHooks, FinishedTurn
from chatturn.chat.hooks.outbox import overrides
from chatturn.chat.hooks.tool import ToolContext
from chatturn.chat.requests import TurnRequest
from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import Sweep
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.turn.sinks import BufferSink
from chatturn.database.api import Database, Statement
from chatturn.database.schema import DURABLE_SCHEMA_SQL
from chatturn.database.sqlite import SqliteDatabase
from chatturn.settings import Settings
from chatturn_testing.law import text_of
from chatturn_testing.model import ScriptedModel
from chatturn_testing.virtual_time import run

__all__ = [
    "HookCall",
    "Scene",
    "ToolEffect",
    "Turn",
    "Witness",
    "Worker",
    "open_database",
    "run_turn",
    "virtual_moment",
]

_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_MOST_RESUMES: Final = 50
_HOOKS: Final = ("persist_assistant_message", "on_turn_complete")


@dataclass(frozen=True, kw_only=True)
class HookCall:
    """
    One call of a hook that runs after the answer is stored.

    Attributes:
        hook: Its name.
        key: Its idempotency key.
        text: The answer as it is stored.
    """

    hook: str
    key: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ToolEffect:
    """
    One try of a tool call.

    Attributes:
        tool: Its name.
        key: The step's key, the same for every try of the same call.
        arguments: As JSON text with sorted members, so that effects can be compared.
    """

    tool: str
    key: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """
    The result of one turn.

    Attributes:
        lines: The lines sent to a reader over all its connections, without pings.
        text: The answer that this reader has.
        status: ``completed``, ``failed``, ``cancelled`` or ``suspended``: how the last line ends.
        code: The stable code of its failure; None if it did not fail.
        stored: The assistant's message as it is stored; None if there is none.
        log: The lines of the stored log.
        hook_calls: The calls of hooks after the answer, in order.
        effects: The tries of the turn's tool calls, in order.
        logged: The records of the operator's log: names and particulars.
    """

    lines: Sequence[Mapping[str, Any]]
    text: str
    status: str
    code: str | None
    stored: str | None
    log: Sequence[Mapping[str, Any]]
    hook_calls: Sequence[HookCall]
    effects: Sequence[ToolEffect]
    logged: Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """
    The request to a product, and its surroundings.

    Attributes:
        message: What the user says.
        history: The turns before, as pairs of a user's message and its answer.
        metadata: The request's.
        settings: Of the deployment, by their names, in place of the defaults.
        approve: What is answered to each tool call that needs approval.
        user_id: Who speaks.
    """

    message: str
    history: Sequence[tuple[str, str]] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    approve: bool = True
    user_id: str = "ann"

    def identity(self, turn_index: int | None = None) -> ChatTurnIdentity:
        """Return the turn's place; the last one's by default."""
        index = len(self.history) if turn_index is None else turn_index
        return ChatTurnIdentity(tenant_id="test", session_id="session-1", user_id=self.user_id, turn_index=index)


@dataclass
class Witness:
    """What outlives a worker: the calls of hooks and the tries of tools."""

    hook_calls: list[HookCall] = field(default_factory=list)
    effects: list[ToolEffect] = field(default_factory=list)
    logged: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def watch(self, hooks: ChatTurnHooks, alive: Callable[[], None] = lambda: None) -> ChatTurnHooks:
        """
        Record the calls of *hooks* from now on.

        Args:
            hooks: The hooks of one worker.
            alive: Raises if this worker is dead.
        """
        for name in _HOOKS:
            if overrides(hooks, name):
                setattr(hooks, name, self._watched_hook(name, getattr(hooks, name), alive))
        hooks.tools = tuple(
            tool if tool.run is None else replace(tool, run=self._watched_run(tool.name, tool.run, alive))
            for tool in hooks.tools
        )
        return hooks

    def _watched_hook(self, name: str, call: Callable[[FinishedTurn], Any], alive: Callable[[], None]) -> Any:
        @wraps(call)
        async def watched(turn: FinishedTurn) -> None:
            alive()
            self.hook_calls.append(HookCall(hook=name, key=turn.idempotency_key, text=turn.final_text))
            await call(turn)

        return watched

    def _watched_run(self, name: str, run: Callable[..., Any], alive: Callable[[], None]) -> Any:
        @wraps(run)
        async def watched(args: Mapping[str, Any], call: ToolContext) -> Any:
            alive()
            arguments = json.dumps(dict(args), sort_keys=True)
            self.effects.append(ToolEffect(tool=name, key=call.step_key, arguments=arguments))
            return await run(args, call)

        return watched


class Worker:
    """
    One worker of a deployment: it has hooks, a model and a way to the database of its own.

    Args:
        scene: What it is asked.
        hooks: The product's, watched already.
        model: Answers.
        database: The database, as this worker reaches it.
        witness: Records the worker's log.
    """

    def __init__(
        self, scene: Scene, hooks: ChatTurnHooks, model: ScriptedModel, database: Database, witness: Witness
    ) -> None:
        self._scene = scene
        self.service = DurableChatService(
            deployment=Deployment(
                settings=Settings.from_env(dict(scene.settings)),
                hooks=hooks,
                backend=model.backend(),
                database=database,
                log=lambda event, particulars: witness.logged.append((event, particulars)),
                attempt_listeners={"runtime_runs": keep_runtime_runs},
            )
        )

    async def ask(self) -> list[dict[str, Any]]:
        """
        Send the turn's request until it ends otherwise than in a wait; return the lines of all responses.

        Raises:
            ChatTurnError: The turn cannot be had.
        """
        lines: list[dict[str, Any]] = []
        request = TurnRequest(message=self._scene.message, metadata=dict(self._scene.metadata))
        for _ in range(_MOST_RESUMES):
            turn = await self.service.open(self._scene.identity(), request)
            sink = BufferSink()
            await turn.run(sink)
            lines += lines_of(sink.text())
            if lines[-1]["type"] != "session.run.suspended":
                break
            await self._end_the_wait(turn.run_id, lines)
        return lines

    async def _end_the_wait(self, run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        data = lines[-1]["data"]
        asked = {line["data"]["key"] for line in lines if line["type"] == "tool.approval"}
        if data["key"] in asked:
            identity = self._scene.identity()
            await self.service.emit(
                identity.tenant_id, identity.user_id, run_id, data["key"], {"approved": self._scene.approve}
            )
        else:
            now, wakes = datetime.fromisoformat(virtual_moment()), datetime.fromisoformat(data["wakeAt"])
            await asyncio.sleep(max(0.0, (wakes - now).total_seconds()))

    async def sweep(self) -> None:
        """Run the cron 600 s later."""
        await asyncio.sleep(600)
        await Sweep(service=self.service).run()

    async def log(self) -> list[dict[str, Any]]:
        """Return the lines of the stored log."""
        followed = await self.service.follow(self._scene.identity(), None, may_take_over=False)
        assert followed is not None, "the turn is not on record"
        sink = BufferSink()
        await followed.run(sink)
        return lines_of(sink.text())


def run_turn(
    hooks: ChatTurnHooks,
    message: str,
    *,
    model: ScriptedModel,
    history: Sequence[tuple[str, str]] = (),
    metadata: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
    approve: bool = True,
) -> Turn:
    """
    Run one turn of *hooks* to its end, and return its result.

    Must not be called from a coroutine: it runs an event loop of its own, on which waiting takes no time.

    Args:
        hooks: The product's hooks; their calls and their tools' calls are recorded from then on.
        message: What the user says.
        model: Answers.
        history: The session's turns before, as pairs of a user's message and its answer.
        metadata: The request's.
        settings: Of the deployment, by their names, in place of the defaults.
        approve: What is answered to each tool call that needs approval.

    Raises:
        Deadlock: The turn waits for something that can no longer happen.
        ChatTurnError: The turn cannot begin, for example because a setting is wrong.
    """
    scene = Scene(message=message, history=history, metadata=metadata or {}, settings=settings or {}, approve=approve)
    witness = Witness()
    with open_database() as database:
        run(tell_history(scene, database))
        worker = Worker(scene, witness.watch(hooks), model, database, witness)
        return run(_run(worker, witness, database, scene))


async def _run(worker: Worker, witness: Witness, database: SqliteDatabase, scene: Scene) -> Turn:
    lines = await worker.ask()
    return await turn_of(lines, worker, witness, database, scene)


async def turn_of(
    lines: Sequence[Mapping[str, Any]], worker: Worker, witness: Witness, database: SqliteDatabase, scene: Scene
) -> Turn:
    """Collect the result of a turn that is over."""
    last = lines[-1]
    return Turn(
        lines=lines,
        text=text_of(lines),
        status=last["type"].removeprefix("session.run."),
        code=last["data"].get("code"),
        stored=await stored_answer(database, scene),
        log=await worker.log(),
        hook_calls=tuple(witness.hook_calls),
        effects=tuple(witness.effects),
        logged=tuple(witness.logged),
    )


async def tell_history(scene: Scene, database: Database) -> None:
    """Run the turns before *scene*'s, each answered as it has them."""
    from chatturn.product import StreamProducer, TurnContext, answer  # noqa: PLC0415

    class Told(ChatTurnHooks):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(answer(context))

    for index, (question, answered) in enumerate(scene.history):
        asked = replace(scene, message=question, history=scene.history[:index], metadata={})
        await Worker(asked, Told(), ScriptedModel(answered), database, Witness()).ask()


async def stored_answer(database: Database, scene: Scene) -> str | None:
    """
    Return the assistant's message of the turn, None if there is none.

    Raises:
        AssertionError: There is more than one.
    """
    sql = "SELECT content FROM chat_messages WHERE run_id = ?1 AND role = 'assistant'"
    [found] = await database.batch([Statement(sql, (turn_run_id(scene.identity()),))])
    assert len(found.rows) <= 1, f"{len(found.rows)} answers are stored"
    return str(found.rows[0]["content"]) if found.rows else None


@contextmanager
def open_database() -> Iterator[SqliteDatabase]:
    """Yield an empty database in memory, with the schema."""
    with SqliteDatabase(":memory:", moment=virtual_moment) as database:
        database.copy_from(_with_schema())
        yield database


@cache
def _with_schema() -> SqliteDatabase:
    database = SqliteDatabase(":memory:")
    atexit.register(database.close)
    database.apply_schema(DURABLE_SCHEMA_SQL)
    return database


def virtual_moment() -> str:
    """Return the running loop's time as the database's, from 1 January 2026."""
    moment = _EPOCH + timedelta(seconds=asyncio.get_running_loop().time())
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def lines_of(text: str) -> list[dict[str, Any]]:
    """Parse whole lines, pings left out."""
    assert text.endswith("\n"), "a stream ended in the middle of a line"
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in lines if line["type"] != "ping"]
