"""
Isolates that share one database: each serves requests by the real routes, and may be killed with all it holds.

What is killed writes nothing any more and says nothing: its database is dead, its tasks are gone, and its readers
see their streams end in the middle.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from chatturn.agent_runtime.shown.attempt_runs import keep_runtime_runs
from chatturn.backends.api import AgentExecutionBackend
from chatturn.backends.echo import create_echo_backend
from chatturn.chat.deployment import Deployment
from chatturn.chat.files import FileStore
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.log.live import LiveLogs
from chatturn.chat.log.room import reading_room, sending_room
from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import HandOut, Sweep
from chatturn.database.api import Database, Result, Statement
from chatturn.errors import StoreUnavailable
from chatturn.http.application import Application, SessionOwner
from chatturn.http.auth import Principal
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.rates import Rates
from chatturn.http.routes import handle
from chatturn.http.tickets import Tickets
from chatturn.settings import Settings
from chatturn.telemetry.otlp.setup import Telemetry
from chatturn.timestamps import epoch_ms
from chatturn.usage.prices import PriceTable
from tests.support.turns import virtual_moment

__all__ = ["TURN", "Deadly", "Isolate", "Reader", "Reply", "kill"]

TURN = "/v1/sessions/thread-1/turns/0"


class _Wire:
    """A database as one isolate reaches it, until the isolate dies."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dead = False
        self.down = False
        self.batches = 0

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        if self.dead:
            raise asyncio.CancelledError  # whoever asks is gone as well
        if self.down:
            raise StoreUnavailable("it is down")
        self.batches += 1
        return await self._database.batch(statements)


class Reader:
    """
    A client's end of a stream.

    Attributes:
        text: What has arrived.
        ended: Whether the stream has ended.
        broken_off: Whether it ended before its end.
    """

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self.broken_off = False
        self._lost: Any = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines that have arrived, pings left out."""
        lines = [json.loads(line) for line in self.text.split("\n")[:-1]]
        return [line for line in lines if line["type"] != "ping"]

    @property
    def last(self) -> int | None:
        """The seq of the last line that has one: where this client goes on."""
        return next((line["seq"] for line in reversed(self.lines) if "seq" in line), None)

    def leave(self) -> None:
        """Go away, so that the next write finds nobody."""
        if not self.ended:
            self.ended = True
            if self._lost is not None:
                self._lost()

    # The sink.

    held = 0

    def write(self, text: str) -> None:
        if not self.ended:
            self.text += text

    async def drain(self, _room: int | None = None) -> None:
        pass

    @property
    def closed(self) -> bool:
        return self.ended

    def when_lost(self, callback: Any) -> None:
        self._lost = callback

    async def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = self.broken_off = True


@dataclass
class Reply:
    """
    An answer to a request.

    Attributes:
        response: Status and headers.
        reader: Who reads its stream.
        task: What writes the stream.
    """

    response: HttpResponse
    reader: Reader
    task: "asyncio.Task[None] | None" = None

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def body(self) -> Any:
        """The body, JSON."""
        return json.loads(self.response.body)

    async def whole(self) -> Any:
        """Read a body that is streamed if it is long, JSON, to its end."""
        if self.task is None:
            return self.body
        await self.task
        return json.loads(self.reader.text)

    async def lines(self) -> list[dict[str, Any]]:
        """Read the stream to its end."""
        if self.task is not None:
            await self.task
        return self.reader.lines


@dataclass
class Scopes:
    scopes: str = "turns"
    tenant: str = "acme"

    def check(self) -> None:
        pass

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        tenant = headers.get("x-tenant", self.tenant)
        scopes = frozenset(headers.get("x-scopes", self.scopes).split())
        return Principal(tenant_id=tenant, user_id=headers.get("x-user", "ann"), scopes=scopes)


@dataclass
class Isolate:
    """
    One isolate.

    Args:
        database: Shared with others.
        hooks: The product's.
        backend: The model.
        settings: In place of the defaults.
        lease_ms: Shorter than a setting may be, for tests in real time.
        prices: What models cost.
        telemetry: Of the isolate.
        file_store: Where its files are.
        rates: How often its users may ask.
        owner: Who runs the turns of a session.

    Attributes:
        logged: What was logged.
    """

    database: Database
    hooks: ChatTurnHooks
    backend: AgentExecutionBackend = field(default_factory=create_echo_backend)
    settings: Mapping[str, str] = field(default_factory=dict)
    lease_ms: int | None = None
    prices: PriceTable = field(default_factory=PriceTable)
    telemetry: Telemetry | None = None
    file_store: FileStore | None = None
    rates: Rates | None = None
    owner: SessionOwner | None = None
    logged: list[tuple[str, Any]] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wire = _Wire(self.database)
        self._live = LiveLogs()
        self._reading, self._sending = reading_room(), sending_room()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def service(self) -> DurableChatService:
        """The chat, for one request."""
        return self._service(None)

    def _service(self, traceparent: str | None) -> DurableChatService:
        settings = Settings.from_env(dict(self.settings))
        deployment = Deployment(
            settings=settings if self.lease_ms is None else replace(settings, lease_ms=self.lease_ms),
            hooks=self.hooks,
            backend=self.backend,
            database=self.wire,
            log=lambda event, particulars: self.logged.append((event, particulars)),
            live=self._live,
            reading=self._reading,
            sending=self._sending,
            prices=self.prices,
            attempt_listeners={"runtime_runs": keep_runtime_runs},
            file_store=self.file_store,
        )
        tracing = None if self.telemetry is None else self.telemetry.request(traceparent)
        return DurableChatService(deployment=deployment, tracing=tracing)

    async def ask(
        self, method: str, path: str = TURN, body: Any = None, *, reader: Reader | None = None, **headers: str
    ) -> Reply:
        """Send a request; its stream is written in the background, as is what is to be done after it."""
        path, _, query = path.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def read(_most: int) -> bytes:
            return body if isinstance(body, bytes) else json.dumps(body).encode()

        request = HttpRequest(
            method=method, path=path, query=query, headers={"content-type": "application/json", **named}, read=read
        )
        app = Application(
            authenticator=Scopes(),
            service=self._service(named.get("traceparent")),
            log=lambda what, error: self.logged.append((what, error)),
            tickets=Tickets(["a secret of tests"], now=lambda: (epoch_ms(virtual_moment()) or 0) / 1000),
            rates=self.rates,
            owner=self.owner,
        )
        response = await handle(request, app)
        if response.late is not None:
            if response.background is not None:
                self._spawn(response.background())
            late: asyncio.Task[HttpResponse] = asyncio.ensure_future(response.late())
            self._tasks.add(late)
            response = await late
        reply = Reply(response, reader or Reader())
        if reply.response.stream is not None:
            self.readers.append(reply.reader)
            reply.task = self._spawn(reply.response.stream(reply.reader))
        if reply.response.background is not None:
            self._spawn(reply.response.background())
        return reply

    async def post(self, message: str = "hi", **members: Any) -> Reply:
        """Post the turn."""
        return await self.ask("POST", body={"message": message, **members})

    async def follow(self, after: int | None = None, **headers: str) -> Reply:
        """Get the turn's stream."""
        query = "" if after is None else f"?after={after}"
        return await self.ask("GET", f"{TURN}/stream{query}", reader=None, **headers)

    async def sweep(self, hand_out: HandOut | None = None) -> int:
        """Let the cron pass by; where *hand_out* is given, with other invocations."""
        task: asyncio.Task[int] = asyncio.ensure_future(Sweep(service=self.service, hand_out=hand_out).run())
        self._tasks.add(task)
        return await task

    async def run_part(self, run_ids: Sequence[str]) -> int:
        """Be an invocation that a sweep hands a part of its turns to."""
        task: asyncio.Task[int] = asyncio.ensure_future(Sweep(service=self.service).run_turns(run_ids))
        self._tasks.add(task)
        return await task

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        return task

    async def kill(self) -> None:
        """Die: nothing more is written or said, and every stream ends where it is."""
        self.wire.dead = True
        for reader in self.readers:
            reader.ended = True
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError):
                await task


class Deadly:
    """
    The database of a worker that dies before or after one of its batches, with all that it does.

    Args:
        database: Shared with others.
        point: Where it dies: twice the number of the batch, and one more for behind it; None for nowhere.

    Attributes:
        worker: Who dies.
        passed: How many places to die it has passed.
    """

    def __init__(self, database: Database, point: int | None) -> None:
        self.worker: Isolate | None = None
        self.passed = 0
        self._database = database
        self._point = point

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run statements, and die if it is time."""
        self._pass_by()
        outcomes = await self._database.batch(statements)
        self._pass_by()
        return outcomes

    def _pass_by(self) -> None:
        at, self.passed = self.passed, self.passed + 1
        if at == self._point and self.worker is not None:
            kill(self.worker)
            raise asyncio.CancelledError


def kill(worker: Isolate) -> None:
    """Let a worker die, also by its own hand: nothing more is written or said."""
    worker.wire.dead = True
    for reader in worker.readers:
        reader.ended = True
    for task in list(worker._tasks):
        if task is not asyncio.current_task():
            task.cancel()
