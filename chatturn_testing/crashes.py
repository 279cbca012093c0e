"""
Kills a worker at every place of a product's turn, and checks what is left each time.

The turn is walked once to count its places: every line of the product's own modules that is run, every turn of the
event loop (so every ``await`` that waits), and before and after every write.  Then, for each place, a worker is killed
there; another worker takes over as soon as the lease allows it, the cron runs, and what is left is compared with the
walk.
"""

import asyncio
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final, TypeVar

from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import ChatTurnError, DurableRunLeaseHeldError
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from chatturn_testing.law import TERMINAL, assert_law
from chatturn_testing.model import ScriptedModel
from chatturn_testing.turns import Scene, Turn, Witness, Worker, open_database, tell_history, turn_of
from chatturn_testing.virtual_time import VirtualTimeLoop

__all__ = ["CrashReport", "crash_everywhere"]

T = TypeVar("T")
_MOST_TRIES: Final = 20


@dataclass(frozen=True, kw_only=True)
class CrashReport:
    """
    The result of `crash_everywhere`.

    Attributes:
        places: Where a worker was killed: ``orders.py:31``, ``a turn of the event loop``, ``before a batch`` …
        turn: The result of the undisturbed turn.
    """

    places: Sequence[str]
    turn: Turn


def crash_everywhere(
    make_hooks: Callable[[], ChatTurnHooks],
    message: str,
    *,
    model: ScriptedModel,
    history: Sequence[tuple[str, str]] = (),
    metadata: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
    approve: bool = True,
    modules: Sequence[ModuleType] = (),
) -> CrashReport:
    """
    Kill the worker at every place of a turn, let another take over, and check that nothing is lost or doubled.

    After each kill: the turn ends as the walk's did, with the same answer stored once; every effect of a tool is under
    a key, and the keys have the walk's effects, each once; every hook that runs after the answer was called under one
    key, with the stored answer; no model was asked twice under one key; the log keeps the law.

    A dead worker writes nothing, and calls of its hooks and tools are no longer recorded; its product's ``finally``
    blocks may still run.
    Line tracing (a debugger, coverage) is off meanwhile.  Must not be called from a coroutine.

    Args:
        make_hooks: Makes the hooks of one worker: a worker shares no memory with the one before it.
        message: What the user says.
        model: Answers; a copy for each kill.
        history: The session's turns before, as pairs of a user's message and its answer.
        metadata: The request's.
        settings: The deployment's settings by name, in place of the defaults.
        approve: The answer to each tool call that needs approval.
        modules: Further modules whose lines are places to die, besides the modules of the hooks' classes.

    Raises:
        AssertionError: Names the place and the difference.
    """
    scene = Scene(message=message, history=history, metadata=metadata or {}, settings=settings or {}, approve=approve)
    files = _files(make_hooks(), modules)
    walk = Fuse()
    reference = _World(scene, make_hooks, model.fresh(), files).live(walk)
    assert reference is not None, "the walk did not come to an end"
    for point, place in enumerate(walk.places):
        world = _World(scene, make_hooks, model.fresh(), files)
        try:
            world.live(Fuse(point))
            world.check(reference)
        except AssertionError as error:
            raise AssertionError(f"killed at place {point} of {len(walk.places)}, {place}: {error}") from error
    return CrashReport(places=tuple(walk.places), turn=reference)


class _World:
    """What outlives workers: the database, the model's account, the recorded hook and tool calls, and the time."""

    def __init__(
        self, scene: Scene, make_hooks: Callable[[], ChatTurnHooks], model: ScriptedModel, files: frozenset[str]
    ) -> None:
        self._scene, self._make_hooks, self._model, self._files = scene, make_hooks, model, files
        self._witness = Witness()
        self._time_s = 0.0
        self._turn: Turn | None = None

    def live(self, fuse: Fuse) -> Turn | None:
        """Run the turn in a worker that dies at *fuse*'s point, then in others until it is over; return its result."""
        with open_database() as database:
            self._run(Fuse(), tell_history(self._scene, database))
            with suppress(Crash), _places_in(self._files, fuse):
                self._run(fuse, self._first(database, fuse))
            self._turn = self._run(Fuse(), self._others(database))
            return self._turn

    async def _first(self, database: SqliteDatabase, fuse: Fuse) -> None:
        await self._worker(database, fuse).ask()

    async def _others(self, database: SqliteDatabase) -> Turn:
        worker = self._worker(database, Fuse())
        lines = await _until_over(worker)
        await worker.sweep()
        await worker.sweep()
        return await turn_of(lines, worker, self._witness, database, self._scene)

    def _worker(self, database: SqliteDatabase, fuse: Fuse) -> Worker:
        hooks = self._witness.watch(self._make_hooks(), fuse.require_alive)
        return Worker(self._scene, hooks, self._model, MortalDatabase(database, fuse), self._witness)

    def _run(self, fuse: Fuse, main: Coroutine[Any, Any, T]) -> T:
        """Run *main* on a loop that dies with *fuse*, with all its tasks; the next loop continues its time."""
        loop = _MortalLoop(fuse, self._time_s)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                return runner.run(loop.live(main))
        finally:
            self._time_s = loop.time()

    def check(self, reference: Turn) -> None:
        """Compare what is left with the result of the undisturbed turn."""
        turn = self._turn
        assert turn is not None
        assert turn.status == reference.status, f"it {turn.status}, but undisturbed it {reference.status}"
        assert turn.stored == reference.stored, f"{turn.stored!r} is stored instead of {reference.stored!r}"
        assert_law(turn.log)
        asked = Counter(self._model.request_ids)
        assert not [key for key, times in asked.items() if times > 1], "the model was asked twice under one key"
        _check_effects(turn, reference)
        _check_hooks(turn, reference)


def _check_effects(turn: Turn, reference: Turn) -> None:
    by_key = {effect.key: effect for effect in turn.effects}
    for effect in turn.effects:
        first = by_key[effect.key]
        assert effect == first, f"one key names two effects: {effect} and {first}"
    left = Counter((effect.tool, effect.arguments) for effect in by_key.values())
    wanted = Counter((effect.tool, effect.arguments) for effect in {e.key: e for e in reference.effects}.values())
    assert left == wanted, f"the effects by key are {dict(left)}, undisturbed {dict(wanted)}"


def _check_hooks(turn: Turn, reference: Turn) -> None:
    for hook in sorted({call.hook for call in reference.hook_calls}):
        calls = {(call.key, call.text) for call in turn.hook_calls if call.hook == hook}
        assert len(calls) == 1, f"{hook} was called as {sorted(calls)}"
        [(_, text)] = calls
        assert text == turn.stored, f"{hook} was given {text!r}, but {turn.stored!r} is stored"


async def _until_over(worker: Worker) -> list[dict[str, Any]]:
    """Ask as a client does that comes back: after the time it is told, until the turn is over."""
    for _ in range(_MOST_TRIES):
        try:
            lines = await worker.ask()
        except DurableRunLeaseHeldError as held:
            await asyncio.sleep(held.retry_after_ms / 1000 + 0.001)
            continue
        except ChatTurnError as error:
            raise AssertionError(f"it cannot be had any more: {error.code}") from error
        if lines[-1]["type"] in TERMINAL and not lines[-1]["data"].get("retryable"):
            return lines
        await asyncio.sleep(1)
    raise AssertionError(f"it is not over after {_MOST_TRIES} requests")


class _MortalLoop(VirtualTimeLoop):
    """A loop each of whose turns is a place to die; once its fuse is dead it stops for good."""

    def __init__(self, fuse: Fuse, start_s: float) -> None:
        super().__init__(start_s)
        self._fuse = fuse
        self._living = False
        # Errors in the clean-up of a dead worker are ignored.
        self.set_exception_handler(lambda loop, context: None if fuse.dead else loop.default_exception_handler(context))

    async def live(self, main: Coroutine[Any, Any, T]) -> T:
        """Run *main*, which may die at any turn of the loop from its first wait to its last."""
        self._living = True
        try:
            return await main
        finally:
            self._living = False

    def _run_once(self) -> None:
        if self._living:
            try:
                self._fuse.pass_by("a turn of the event loop")
            except Crash:
                self._living = False
                raise
        super()._run_once()  # type: ignore[misc]  # of asyncio's BaseEventLoop, which its stubs leave out


@contextmanager
def _places_in(files: frozenset[str], fuse: Fuse) -> Iterator[None]:
    """Make every executed line of *files* a place to die."""

    def in_product(frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            fuse.pass_by(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return in_product

    def anywhere(frame: FrameType, _event: str, _arg: Any) -> Any:
        return in_product if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(anywhere)
    try:
        yield
    finally:
        sys.settrace(before)


def _files(hooks: ChatTurnHooks, modules: Sequence[ModuleType]) -> frozenset[str]:
    classes = [cls for cls in type(hooks).__mro__ if not cls.__module__.startswith(("chatturn.", "builtins"))]
    return frozenset([*map(inspect.getfile, classes), *filter(None, (module.__file__ for module in modules))])
