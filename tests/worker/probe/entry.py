"""A Worker that shows what the local runtime gives it: one path for each thing to see."""

import asyncio
import inspect
import json
import os
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import js
from pyodide.ffi import can_run_sync, create_proxy, run_sync, to_js
from workers import (
    DurableObject,
    Request,
    Response,
    WorkerEntrypoint,
    WorkflowEntrypoint,
    import_from_javascript,
)

__all__ = ["Counter", "Default", "Doubling", "Sums"]

_DATA = Path("/session/metadata/data.txt")

raw_env = import_from_javascript("cloudflare:workers").env


def _outcome(call: Any) -> str:
    try:
        return f"gave {call()}"
    except Exception as error:  # noqa: BLE001  # Whatever it raises is what the test asks about.
        return f"raised {type(error).__name__}"


AT_IMPORT: dict[str, Any] = {
    "random": _outcome(random.random),
    "seeded": _outcome(lambda: random.Random(7).randrange(100)),
    "unseeded": _outcome(random.Random),
    "timer": _outcome(lambda: js.setTimeout(js.Object, 10)),
    "entropy": _outcome(lambda: js.crypto.getRandomValues(to_js(b"1"))),
    "uuid4": _outcome(uuid.uuid4),
    "time": time.time(),
    "run_sync": can_run_sync(),
}


def _see_refusal(promise: Any) -> None:
    AT_IMPORT["fetch"] = _outcome(promise.result)


js.fetch("http://127.0.0.1").add_done_callback(_see_refusal)


def _origin(name: str) -> dict[str, Any]:
    """Show what a module was loaded from, and what its functions say they were compiled from."""
    module = sys.modules[name]
    functions = [value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == name]
    sources = {inspect.unwrap(function).__code__.co_filename for function in functions}
    return {"byte_code": Path(str(module.__cached__)).exists(), "file": module.__file__, "sources": list(sources)}


class Default(WorkerEntrypoint):
    instances: ClassVar[int] = 0

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        Default.instances += 1

    async def fetch(self, request: Request) -> Response:
        name, _, argument = js.URL.new(request.url).pathname[1:].partition("/")
        if name == "healthz":
            return Response("ok")
        response: Response = await getattr(_Probes(self), name)(request, argument)
        return response

    async def scheduled(self, controller: Any, _env: Any, _ctx: Any) -> None:
        await _note(f"scheduled {controller.cron}")


class _Probes:
    """One method for each path; not on the entrypoint, whose public methods can be called by RPC."""

    def __init__(self, worker: Default) -> None:
        self.env = worker.env
        self.ctx = worker.ctx

    async def at_import(self, _request: Request, _argument: str) -> Response:
        return _json(AT_IMPORT)

    async def now(self, _request: Request, _argument: str) -> Response:
        number = random.random()
        return _json({"random": number, "uuid4": str(uuid.uuid4()), "time": time.time()})

    async def instances(self, _request: Request, _argument: str) -> Response:
        return _json(Default.instances)

    async def path(self, _request: Request, _argument: str) -> Response:
        return _json({"path": sys.path, "hash": hash("a"), "version": sys.version})

    async def process(self, _request: Request, _argument: str) -> Response:
        return _json({"environ": dict(os.environ), "cwd": str(Path.cwd()), "argv": [sys.executable, *sys.orig_argv]})

    async def modules(self, _request: Request, argument: str) -> Response:
        return _json(_origin(argument))

    async def files(self, _request: Request, _argument: str) -> Response:
        return _json({"content": _outcome(_DATA.read_text), "write": _outcome(lambda: _DATA.write_text("more"))})

    async def waiting(self, request: Request, _argument: str) -> Response:
        """Suspend Python twice without `await`: for a timer, and for a fetch of the body's URL."""
        possible = can_run_sync()
        slept = run_sync(asyncio.sleep(0.01, "slept"))
        response = run_sync(js.fetch(await request.text()))
        return _json({"can_run_sync": possible, "slept": slept, "fetched": run_sync(response.text())})

    async def timers(self, _request: Request, _argument: str) -> Response:
        """Set timers with more arguments than two, and try to take one of 0 ms back."""
        heard: list[list[Any]] = []
        hear = create_proxy(lambda *given: heard.append(list(given)))
        set_timeout: Any = js.setTimeout
        ids = [set_timeout(hear, 5, "more"), set_timeout(hear, 0, "now"), set_timeout(hear)]
        js.clearTimeout(ids[1])
        cancelled = set_timeout(hear, 5, "cancelled")
        js.clearTimeout(cancelled)
        await asyncio.sleep(0.05)
        return _json({"heard": heard, "ids": [bool(each) for each in ids], "parameters": set_timeout.length})

    async def settings(self, _request: Request, _argument: str) -> Response:
        rows = (await self.env.DB.prepare("SELECT 1 AS one").all())["results"]
        raw_row = await raw_env.DB.prepare("SELECT 2 AS two").first()
        return _json(
            {
                "wrapped": [self.env.GREETING, self.env.SECRET, rows[0]["one"]],
                "raw": [raw_env.GREETING, raw_env.SECRET, raw_row.two],
                "missing": _outcome(lambda: self.env.MISSING),
            }
        )

    async def note(self, _request: Request, argument: str) -> Response:
        await _note(argument)
        return Response("noted")

    async def noted(self, _request: Request, argument: str) -> Response:
        return _json(await _is_noted(unquote(argument)))

    async def background(self, _request: Request, argument: str) -> Response:
        """Answer at once; write a note when somebody else has written one."""

        async def later() -> None:
            # An event of asyncio would be of no use: whoever writes it is another request.
            while not await _is_noted(argument):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await _note(f"{argument}, and the response was long gone")

        self.ctx.waitUntil(later())
        return Response("accepted")

    async def stream(self, request: Request, argument: str) -> Response:
        """Count, a line every 50 ms; note whether the client left."""
        pipe = js.IdentityTransformStream.new()
        writer = pipe.writable.getWriter()
        signal = request.js_object.signal
        left = create_proxy(lambda *_: self.ctx.waitUntil(_note("abort signal")))
        signal.addEventListener("abort", left)

        async def pump() -> None:
            try:
                for number in range(int(argument)):
                    await writer.write(to_js(f"{number}\n".encode()))
                    await asyncio.sleep(0.05)
                await writer.close()
            except Exception:  # noqa: BLE001  # A JsException: nobody reads any more.
                await _note("write refused")

        self.ctx.waitUntil(pump())
        return Response(pipe.readable)

    async def count(self, _request: Request, argument: str) -> Response:
        return _json(await self.env.COUNTER.getByName(argument).increment(2))

    async def add(self, _request: Request, _argument: str) -> Response:
        return _json(await self.env.SELF.add(1, [2, 3]))

    async def double(self, _request: Request, argument: str) -> Response:
        options = {"params": {"number": int(argument)}}
        instance = await self.env.DOUBLING.create(options)
        for _ in range(100):
            status = await instance.status()
            if status["status"] in {"complete", "errored"}:
                break
            await asyncio.sleep(0.05)
        return _json(dict(status))

    async def fail(self, _request: Request, _argument: str) -> Response:
        raise LookupError("a mistake in a handler")


class Counter(DurableObject):  # type: ignore[no-untyped-call]  # The SDK's `__init_subclass__`.
    async def increment(self, by: int) -> int:
        value = (await self.ctx.storage.get("value") or 0) + by
        await self.ctx.storage.put("value", value)
        return int(value)


class Sums(WorkerEntrypoint):
    async def add(self, first: int, others: list[int]) -> dict[str, Any]:
        return {"sum": first + sum(others), "of": [first, *others]}


class Doubling(WorkflowEntrypoint):
    async def run(self, event: Any, step: Any) -> int:
        @step.do("double")  # type: ignore[untyped-decorator]  # A step is untyped in the SDK.
        async def double() -> int:
            return int(event["payload"]["number"]) * 2

        return int(await double())


def _json(value: Any) -> Response:
    return Response(json.dumps(value), headers={"content-type": "application/json"})


async def _note(text: str) -> None:
    await raw_env.DB.prepare("INSERT INTO notes (text) VALUES (?)").bind(text).run()


async def _is_noted(text: str) -> bool:
    rows = await raw_env.DB.prepare("SELECT id FROM notes WHERE text = ?").bind(text).all()
    return bool(rows.results.length)
