"""
A worker that serves users until it is killed; run as a script, by this version's code or by an earlier one's.

Which code it is decides ``PYTHONPATH``.  So it imports only what both have under one name, and `tests.chaos.worker`,
in which each version makes an isolate of its own.

Three products are served from one database, each with a project of its own: a plain one, an agent that asks before it
sends something, and one of durable steps that waits for an event.  Users ask, come back, cancel, approve and replay.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from chatturn.errors import StoreUnavailable
from chatturn.events import ChatStreamEvent, text_delta
from products.agent import Hooks as Agent
from products.assistant import Hooks as Assistant
from tests.chaos import worker as chaos
from tests.support.isolates import Isolate, Reader, Reply

__all__ = ["KINDS", "is_cancelled", "kind_of", "message_of", "session_of", "steps_text", "tenant_of"]

KINDS: Final = ("plain", "agent", "steps")
_TENANTS: Final = ("acme", "beta")
_USERS: Final = 6
_CANCELLED: Final = 5

# While both versions serve: what this one would leave in a form that the earlier one cannot read.  One that does not
# know a setting takes it for the product's own.
_TOGETHER: Final = {"COMPACT_LOGS": "off", "THREADS": "off"}
_OVER: Final = ("session.run.completed", "session.run.cancelled")


# What turns there are


def kind_of(turn: int) -> str:
    """Return which product answers a turn."""
    return KINDS[turn % len(KINDS)]


def tenant_of(turn: int) -> str:
    """Return whose it is."""
    return _TENANTS[turn // len(KINDS) % len(_TENANTS)]


def session_of(turn: int) -> str:
    """Return its session; two tenants have sessions of the same name."""
    return f"{kind_of(turn)}{turn // len(KINDS) // len(_TENANTS)}"


def message_of(turn: int) -> str:
    """Return what is asked."""
    return f"{kind_of(turn)} question {turn}."


def is_cancelled(turn: int) -> bool:
    """Say whether users may stop it."""
    return turn % _CANCELLED == _CANCELLED - 1


def steps_text(turn: int) -> str:
    """Return what the product of durable steps answers."""
    return f"{turn} reserved. {turn} charged. {turn} shipped."


# The products


def _note(path: Path, *words: object) -> None:
    with path.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class _Notes(Agent):
    """The demo's agent, whose effects are noted."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _post(self, tool: str, args: Mapping[str, Any], call: Any) -> None:
        _note(self._folder / "effects", f"{tool}:{args['text']}", call.step_key)

    async def persist_assistant_message(self, turn: Any) -> None:
        _told(self._folder, turn)


def _named(name: str) -> Any:
    """Return what chatturn calls so, in whichever of its modules this version has it."""
    modules = [module for key, module in sys.modules.items() if key.startswith("chatturn.")]
    return next(vars(module)[name] for module in modules if name in vars(module))


class _Steps(Assistant):
    """Durable steps around a wait for somebody."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def produce(self, context: Any) -> Any:
        return _named("StreamProducer")(self._work(context))

    async def _work(self, context: Any) -> AsyncGenerator[list[ChatStreamEvent], None]:
        durable, turn = context.durable, int(context.user_message.split()[-1].rstrip("."))

        def effect(name: str) -> Any:
            key = durable.step_key(name)

            async def do() -> str:
                await asyncio.sleep(0.01)
                _note(self._folder / "effects", f"{name}:{turn}", key)
                return name

            return do

        await durable.step("reserve", effect("reserve"))
        yield [text_delta(f"{turn} reserved.")]
        await durable.await_event("go", timeout_ms=3_600_000)
        charged = await durable.step("charge", effect("charge"))
        yield [text_delta(f" {turn} {charged}d.")]
        moment = await durable.now()
        await durable.sleep(30)
        await durable.step("ship", effect("ship"), input={"at": moment})
        yield [text_delta(f" {turn} shipped.")]

    async def persist_assistant_message(self, turn: Any) -> None:
        _told(self._folder, turn)


def _told(folder: Path, turn: Any) -> None:
    digest = hashlib.sha256(turn.final_text.encode()).hexdigest()
    _note(folder / "journal", turn.idempotency_key, digest)


class _World:
    """One process's isolates, by the kind of turns that they answer."""

    def __init__(self, folder: Path, upstream: str, chance: random.Random, *, failures: float) -> None:
        for module in list(sys.modules.values()):  # leases are short here, and so are waits that a worker stays for
            if getattr(module, "__name__", "").startswith("chatturn.") and hasattr(module, "_INLINE_WAIT_MS"):
                vars(module)["_INLINE_WAIT_MS"] = 40
        self.folder, self.chance = folder, chance
        self.isolates: dict[str, Isolate] = {}
        for kind in KINDS:
            isolate = chaos._isolate(folder, upstream, chance, failures=failures)
            isolate.settings = {**isolate.settings, **_TOGETHER, "PROJECT_ID": kind}
            self.isolates[kind] = isolate
        self.isolates["agent"].hooks = _Notes(folder)
        self.isolates["steps"].hooks = _Steps(folder)

    async def ask(self, turn: int, method: str, path: str = "", body: Any = None, **more: Any) -> Reply:
        """Send a request about a turn."""
        address = f"/v1/sessions/{session_of(turn)}/turns/0{path}"
        return await self.isolates[kind_of(turn)].ask(method, address, body, x_tenant=tenant_of(turn), **more)

    async def post(self, turn: int, reader: Reader, *, follow: bool) -> Reply:
        """Ask for a turn."""
        return await self.ask(turn, "POST", body={"message": message_of(turn), "follow": follow}, reader=reader)

    async def emit(self, turn: int, key: str, payload: Any) -> Reply:
        """Say what a turn waits for."""
        run_id = quote(f"chat:{tenant_of(turn)}:{session_of(turn)}:0", safe="")
        path = f"/v1/runs/{run_id}/events/{quote(key, safe='')}"
        return await self.isolates[kind_of(turn)].ask("POST", path, {"payload": payload}, x_tenant=tenant_of(turn))

    async def answer_wait(self, turn: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Approve, or say go, where the turn says that it waits."""
        if lines and lines[-1]["type"] == "session.run.suspended" and (key := lines[-1]["data"]["key"]):
            payload = {"approved": True} if key.startswith("approve:") else {"turn": turn}
            await self.emit(turn, key, payload)

    def keep(self, turn: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Note what a reader was told, and how a replay answered."""
        for line in lines:
            if "seq" in line:
                digest = hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]
                _note(self.folder / "said", turn, line["seq"], digest)
        if lines and lines[-1]["type"] in _OVER and lines[-1]["data"]["replayed"] and "seq" not in lines[-1]:
            text = next((line["data"]["finalText"] for line in lines if line["type"] == "result"), "")
            _note(self.folder / "replays", turn, lines[-1]["type"], hashlib.sha256(text.encode()).hexdigest())


class _Slow(Reader):
    async def drain(self, _room: int | None = None) -> None:
        await asyncio.sleep(0.03)


async def _user(world: _World, turns: range) -> None:
    chance = world.chance
    while True:
        turn = chance.choice(turns)
        reader = _Slow() if chance.random() < 0.2 else Reader()
        if is_cancelled(turn) and chance.random() < 0.3:
            reply = await world.ask(turn, "POST", "/cancel")
            if reply.status == 202:
                _note(world.folder / "cancels", turn)
        elif chance.random() < 0.3:
            reply = await world.ask(turn, "GET", "/stream", reader=reader)
        else:
            reply = await world.post(turn, reader, follow=chance.random() < 0.7)
        if reply.task is not None:
            await asyncio.wait([reply.task], timeout=chance.choice([None, None, chance.uniform(0, 0.1)]))
            reader.leave()
            world.keep(turn, reader.lines)
            with suppress(StoreUnavailable):
                await world.answer_wait(turn, reader.lines)
        await asyncio.sleep(chance.uniform(0, 0.05))


async def _cron(world: _World) -> None:
    while True:
        await asyncio.sleep(world.chance.uniform(0.05, 0.5))
        for isolate in world.isolates.values():
            with suppress(StoreUnavailable):
                await isolate.sweep()


async def _serve(folder: Path, upstream: str, seed: int, turns: range) -> None:
    world = _World(folder, upstream, random.Random(seed), failures=0.02)
    (folder / f"serving.{seed}").touch()
    await asyncio.gather(_cron(world), *(_user(world, turns) for _ in range(_USERS)))


async def _finish(folder: Path, upstream: str, turns: range) -> None:
    """Ask for every turn until each has its answer, with nothing failing any more; then tell what was consumed."""
    world, queue = _World(folder, upstream, random.Random(0), failures=0.0), list(turns)

    async def settle() -> None:
        while queue:
            turn = queue.pop()
            while True:
                lines = await (await world.post(turn, Reader(), follow=True)).lines()
                world.keep(turn, lines)
                if lines and lines[-1]["type"] in _OVER:
                    break
                await world.answer_wait(turn, lines)
                await asyncio.sleep(chaos.LEASE_MS / 4000)

    await asyncio.gather(*(settle() for _ in range(8)))
    for isolate in world.isolates.values():
        for _ in range(50):
            if not await isolate.sweep():
                break


async def _tell(folder: Path, upstream: str, turns: range) -> None:
    """Print what this version says of each turn, and of what each tenant has consumed."""
    world = _World(folder, upstream, random.Random(0), failures=0.0)
    told: dict[str, Any] = {"usage": {}, "turns": {}}
    for tenant in _TENANTS:
        query = f"/v1/usage?by=session&tenant={tenant}&from=2020-01-01&to=2040-01-01"
        reply = await world.isolates["plain"].ask("GET", query, x_tenant=tenant, x_scopes="operate")
        told["usage"][tenant] = reply.body
    for turn in turns:
        replay = await (await world.post(turn, Reader(), follow=False)).lines()
        log = await (await world.ask(turn, "GET", "/stream")).lines()
        told["turns"][turn] = {"show": (await world.ask(turn, "GET")).body, "log": log, "replay": replay}
    print(json.dumps(told, sort_keys=True))


def main() -> None:
    """Do what the arguments say: ``serve FOLDER UPSTREAM FIRST LAST SEED``, or ``finish``, or ``tell``."""
    what, folder, upstream, first, last, *seed = sys.argv[1:]
    turns = range(int(first), int(last))
    if what == "tell":
        asyncio.run(_tell(Path(folder), upstream, turns))
        return
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
    work = _serve(Path(folder), upstream, int(seed[0]), turns) if seed else _finish(Path(folder), upstream, turns)
    asyncio.run(work)


if __name__ == "__main__":
    main()
