"""
The Python half of the host: what Cloudflare's bootstrap does around the entry module.

Runs inside workerd, in a module of its own that Worker code cannot import.
Mirrors `introspection.py` and `setup_python_search_path.py` of workerd.
"""

import _random
import functools
import gc
import importlib
import inspect
import os
import random
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from inspect import ismemberdescriptor
from pathlib import Path
from site import addsitedir
from types import FrameType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any, Final

from pyodide.ffi import JsProxy, to_js

SOURCES: Final = "/session/metadata"
VENDORED: Final = f"{SOURCES}/python_modules"

_guarded: list[tuple[ModuleType | type, str, Callable[..., Any]]] = []
"""What is replaced until the first request: the module or class, the name there, and what belongs there."""


def set_up_search_path() -> None:
    """Put the vendored packages between the stdlib and site-packages, and our sources behind them all."""
    at = next(i for i, path in enumerate(sys.path) if "site-packages" in path)
    sys.path.insert(at, VENDORED)
    sys.path.append(SOURCES)
    sys.dont_write_bytecode = True
    addsitedir(VENDORED)


def forbid_early_randomness() -> None:
    """
    Make `random.random()`, `os.urandom()` and what stands on them raise until the first request.

    As on Cloudflare, where a value drawn at import would be the same in every isolate.
    """
    kept = {"seed", "getstate", "setstate"}
    names = [n for n in random.__all__ if n not in kept and not inspect.isclass(getattr(random, n))]
    for name in names:
        _guard(random, name, RuntimeError(f"Cannot use random.{name}() outside of request context"))
    refused = OSError("Randomness is not allowed before the first request: not at import")
    _guard(os, "urandom", refused)
    _guard(random, "_urandom", refused)
    # A generator of one's own is allowed with a seed, and only without asks for entropy.
    _guard(_random.Random, "seed", refused, unless=lambda _generator, seed=None: seed is not None)


def _guard(
    owner: ModuleType | type, name: str, error: Exception, *, unless: Callable[..., bool] = lambda *_, **__: False
) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        # `from random import choice` at import keeps this function for good.
        if _guarded and not unless(*args, **kwargs):
            raise error
        return function(*args, **kwargs)

    setattr(owner, name, guarded)
    _guarded.append((owner, name, function))


def before_first_request() -> None:
    """Seed `random` from real entropy, which exists only now, and lift the guards."""
    if not _guarded:
        return
    while _guarded:
        setattr(*_guarded.pop())
    random.seed()
    sys.meta_path.insert(0, _LateImports())


class _LateImports:
    """
    Tells of each module that is imported after the start, however that is done: the statement, a function, `exec`.

    On Cloudflare what is imported with the entry module is in the snapshot, and free; here each cold isolate compiles
    it while a request waits.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Find nothing, and tell who looks."""
        del path, target
        where = _importing_line()
        if where is not None and name not in self._told:
            self._told.add(name)
            print(f"chatturn: late import of {name} by {where}: import it at the top of a module")


def _importing_line() -> str | None:
    """Return the file and the line of ours that import just now; None inside a module that is being imported."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 -- who calls is what is asked
    first = "nobody's"
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<"):  # The import system, and what `exec` runs.
            if frame.f_code.co_name == "<module>":
                return None
            first = f"{name.removeprefix(SOURCES + '/')}:{frame.f_lineno}" if first == "nobody's" else first
            if name.startswith(SOURCES) and not name.startswith(VENDORED):
                return f"{name.removeprefix(SOURCES + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return first


def load(entry: str) -> Any:
    """Import the entry module; return its entrypoint classes and their public methods."""
    try:
        module = importlib.import_module(entry)
    except BaseException as error:  # noqa: BLE001 -- raised again, without what explains nothing
        raise error.with_traceback(_below_the_import(error.__traceback__)) from error.__cause__
    # Not at the top: the SDK is found only once the search path is set up.
    from js import Object  # noqa: PLC0415
    from workers import DurableObject, WorkerEntrypoint, WorkflowEntrypoint  # noqa: PLC0415

    kinds = {
        "WorkerEntrypoint": WorkerEntrypoint,
        "DurableObject": DurableObject,
        "WorkflowEntrypoint": WorkflowEntrypoint,
    }
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    exported = {name: getattr(module, name) for name in names}
    found = {
        name: {"kind": kind, "methods": _public_methods(value), "construct": value}
        for name, value in exported.items()
        for kind, base in kinds.items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }
    return to_js(found, dict_converter=Object.fromEntries)


def _below_the_import(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this file and of the import system, which explain nothing."""
    frame = traceback
    while frame is not None and not frame.tb_frame.f_code.co_filename.startswith(SOURCES):
        frame = frame.tb_next
    return frame


def _public_methods(cls: type) -> list[str]:
    return [
        name for name in dir(cls) if not name.startswith("_") and inspect.isfunction(inspect.getattr_static(cls, name))
    ]


@functools.cache
def _most_arguments(cls: type, name: str) -> int | None:
    """Return how many arguments the method takes, None for any number; as `relaxed_call`, which asks every time."""
    parameters = list(inspect.signature(getattr(cls, name)).parameters.values())[1:]
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    return sum(each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD} for each in parameters)


async def call_method(relaxed: bool, instance: object, name: str, *args: Any) -> Any:
    """Call an entrypoint's method with Python arguments; return its result as JavaScript."""
    from workers import python_from_rpc, python_to_rpc  # noqa: PLC0415 -- as in `load`

    method = getattr(instance, name)
    converted = [python_from_rpc(arg) for arg in args]
    if relaxed:
        converted = converted[: _most_arguments(instance.__class__, name)]  # type: ignore[arg-type]  # classes hash
    result = method(*converted)
    return python_to_rpc(await result if inspect.isawaitable(result) else result)


def import_everything(entry: str) -> list[str]:
    """
    Import the entry module and whatever of its sources can be imported at all; return the names of the modules.

    What needs a module that the Worker lacks, SQLite's for example, is never part of one.
    """
    importlib.import_module(entry)
    for path in sorted(Path(SOURCES).rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        if parts[0] == "python_modules":
            continue
        try:
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in sys.stdlib_module_names:
                raise
    return [name for name, module in list(sys.modules.items()) if _is_ours(module)]


def _is_ours(module: ModuleType) -> bool:
    return (getattr(module, "__file__", None) or "").startswith(SOURCES)


def holders(number_of: Callable[[object], int], wanted: int) -> dict[int, str]:
    """
    Find out who holds JavaScript objects: return a place, like ``module.name``, for each that is found.

    Whatever the garbage collector can follow is followed, the modules of the Worker first.

    Args:
        number_of: Returns the number of an object that is looked for, -1 for any other.
        wanted: How many are looked for.
    """
    modules = [(name, module) for name, module in list(sys.modules.items()) if type(module) is ModuleType]
    # What was looked at, kept so that no other object gets its id; a module's dict is looked at as the module.
    seen: dict[int, object] = {id(known): known for known in (globals(), *(vars(module) for _, module in modules))}
    found: dict[int, str] = {}
    for ours in (True, False):
        places = deque(
            (f"{name}.{attribute}", value)
            for name, module in modules
            if _is_ours(module) is ours
            for attribute, value in list(vars(module).items())
        )
        while places and len(found) < wanted:
            place, value = places.popleft()
            if id(value) in seen:
                continue
            seen[id(value)] = value
            if issubclass(type(value), JsProxy):
                if (number := number_of(value)) >= 0:
                    found[number] = place
            else:
                with suppress(Exception):  # An object may refuse to be looked at; the collector does not ask it.
                    places += [(f"{place}.{name}", part) for name, part in _named_parts(value)]
                places += ((place, part) for part in gc.get_referents(value))
    return found


def _named_parts(value: Any) -> list[tuple[str, Any]]:
    """Return what *value* is made of, as far as that has a name or a number."""
    match value:
        case dict():
            return [(str(name), part) for name, part in list(value.items()) if isinstance(name, str | int)]
        case list() | tuple() | set() | frozenset() | deque():
            return [(str(number), part) for number, part in enumerate(value)]
        case functools.partial():
            return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        case FunctionType():
            closure = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            return [("defaults", value.__defaults__), ("kwdefaults", value.__kwdefaults__), *closure]
        case MethodType():
            return [("self", value.__self__)]
        case _:
            return _attributes(value)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, type):
        return [*vars(value).items()]
    slots = {name: slot for cls in type(value).__mro__ for name, slot in vars(cls).items() if ismemberdescriptor(slot)}
    members = [(name, slot.__get__(value)) for name, slot in slots.items() if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).items(), *members]
