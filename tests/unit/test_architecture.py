"""The rules that no type checker knows: who may import whom, what may run at import, how long a module is."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from products import PRODUCTS

SRC = Path(__file__).parents[2] / "src"
MODULES = sorted(path for path in SRC.rglob("*.py") if "__pycache__" not in path.parts)

# Dependencies point one way: a unit may import those on the lines above its own, and itself.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "chatturn.errors",
        "chatturn.gathering",
        "chatturn.jsontext",
        "chatturn.product_calls",
        "chatturn.timestamps",
        "chatturn.transport",
    ),
    ("chatturn.events", "chatturn.settings", "chatturn.sse_frames", "chatturn.usage"),
    ("chatturn.database", "chatturn.telemetry"),
    ("chatturn.backends", "chatturn.durable"),
    ("chatturn.telemetry.otlp",),  # it leaves over the backends' transport
    ("chatturn.chat",),
    ("chatturn.product",),
    ("chatturn.wire",),
    ("chatturn.http",),
    ("chatturn.agent_runtime.values",),
    tuple(f"chatturn.agent_runtime.{room}" for room in ("agents", "shown", "tasks", "turns")),
    ("chatturn.agent_runtime",),  # the TypeScript package's names: a wing on top
    ("chatturn",),  # the package itself: what harnesses import by name
    ("chatturn.isolate",),
    ("chatturn.workerd", "products"),
    ("entry",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}

# What is not in the standard library, or not in the Worker's, and the one place where it is imported.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "_pyodide": ("chatturn.workerd",),
    "js": ("chatturn.workerd", "entry"),
    "jwt": ("chatturn.http.pyjwt",),
    "pyodide": ("chatturn.workerd", "entry"),
    "pyodide_http": ("chatturn.workerd",),
    "requests": ("chatturn.workerd.sync_http",),  # a product's own dependency
    "sqlite3": ("chatturn.database.sqlite",),
    "workers": ("chatturn.workerd", "entry"),
}

# What only a running Worker has: the platform keeps a snapshot of what the modules are after their import.
CLOCKS_AND_CHANCE = {
    "datetime.date.today",
    "datetime.datetime.now",
    "datetime.datetime.today",
    "datetime.datetime.utcnow",
    "os.getrandom",
    "os.urandom",
    "random",
    "secrets",
    "time",
    "uuid",
}
# Where the core calls one of them itself: the defaults of its own `token` and `worker_id`.
DEFAULTS_THAT_CALL = {
    "chatturn.durable.identifiers": {"os.urandom"},
    "chatturn.durable.sql_store": {"os.urandom"},
    "chatturn.durable.runner": {"datetime.datetime.now", "random.SystemRandom", "uuid.uuid4"},
}

MAX_LINES = 600
# The entry point is wiring; the tree of errors is one thing, however many there are.
OTHER_MAX_LINES = {"entry": 80, "chatturn.errors": 850}


def name_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the full names of all modules, and of all names, that *tree* imports anywhere."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "(relative)"


def for_type_checkers(node: ast.AST) -> bool:
    """Say whether *node* is a block that never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def is_in(name: str, unit: str) -> bool:
    return name == unit or name.startswith(unit + ".")


def is_in_any(name: str, units: Iterable[str]) -> bool:
    return any(is_in(name, unit) for unit in units)


def unit_of(name: str) -> str | None:
    units = [unit for unit in RANK if is_in(name, unit) and (unit != "chatturn" or name == unit)]
    return max(units, key=len, default=None)


def imported_modules(name: str) -> set[str]:
    """Return our own modules that the module *name* imports when it runs, with the packages on the way."""
    running = [node for node in TREES[name].body if not for_type_checkers(node)]
    found = {each for each in imported(ast.Module(running, [])) if each in TREES}
    packages = {each.rpartition(".")[0] for each in found} & set(TREES)
    return found | packages


@pytest.mark.parametrize("name", TREES)
def test_every_module_has_its_place(name: str) -> None:
    """A new package is given a line in `LAYERS`, on purpose."""
    assert unit_of(name) is not None


@pytest.mark.parametrize("name", TREES)
def test_dependencies_point_one_way(name: str) -> None:
    """From the entry point down to the errors, never back and never sideways."""
    unit = unit_of(name)
    if name == "chatturn.agent_runtime":
        assert imported_modules(name) == set()  # it names what is anywhere, and imports it when it is asked for
        return
    # Importing a.b.c runs a and a.b: that is no dependency on what they re-export.
    used = {unit_of(each) for each in imported(TREES[name]) if each in TREES} - {unit, None}

    assert {other for other in used if RANK[str(other)] >= RANK[str(unit)]} == set()


@pytest.mark.parametrize("name", TREES)
def test_only_the_border_knows_the_platform(name: str) -> None:
    """JavaScript, third parties and sqlite3 each have one home."""
    roots = {each.partition(".")[0] for each in imported(TREES[name])}
    foreign = roots - sys.stdlib_module_names - {"chatturn", "products"}

    assert foreign <= set(ONLY_IN)
    assert {root for root in roots & set(ONLY_IN) if not is_in_any(name, ONLY_IN[root])} == set()


def test_whatever_a_deployment_may_use_is_imported_with_the_entry_point() -> None:
    """It is in the platform's snapshot then, and free; what a request imports is compiled in each cold isolate."""
    reached, found = set[str](), {"entry"}
    while found:
        reached |= found
        found = {each for name in found for each in imported_modules(name)} - reached

    assert {"chatturn.telemetry.otlp.setup", "chatturn.workerd.sync_http"} <= reached
    assert {name for name in TREES if is_in(name, "products")} <= reached


def test_every_product_is_in_the_registry() -> None:
    """Under its own name, and nothing else is."""
    assert sorted(PRODUCTS) == sorted(name.removeprefix("products.") for name in TREES if name.startswith("products."))


# Whoever takes a name of it does so at the top level: that is when the module is imported.
HANDS_NAMES_ON = {"chatturn.agent_runtime"}


@pytest.mark.parametrize("name", [name for name in TREES if name not in HANDS_NAMES_ON])
def test_nothing_is_imported_late(name: str) -> None:
    """
    No function imports a module, by statement or by name.

    This reads the source; what tests run is seen as it happens: `tests/e2e/test_isolates.py`.
    """
    assert [] == late_imports(TREES[name])


def test_what_the_standard_library_would_import_late_is_imported_with_the_worker() -> None:
    """A codec comes with the first text that it encodes, but for those that are built in; `strptime` has a module."""
    wanted = set[str]()
    for tree in TREES.values():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(attr="encode" | "decode"), args=[ast.Constant(value=str(codec)), *_]):
                    wanted |= {codec} - {"utf-8", "ascii", "latin-1"}
                case ast.Attribute(attr="strptime"):
                    wanted.add("_strptime")
    modules = {name if name == "_strptime" else "encodings." + name.replace("-", "_") for name in wanted}

    assert {"encodings.utf_16_le"} <= modules
    assert modules <= set(imported(TREES["chatturn.workerd.stdlib_imports"]))


IMPORTERS = {"__import__", "import_module", "exec", "eval", "runpy", "importlib"}


def late_imports(tree: ast.Module) -> list[str]:
    """Return what in the functions of *tree* imports a module, or can: whatever it is called there."""
    aliases = {name: name for name in IMPORTERS}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                aliases |= {alias.asname: alias.name for alias in names if alias.asname}
            case ast.ImportFrom(module=str(module), names=names):
                aliases |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in names}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=other)) if other in aliases:
                aliases[name] = aliases[other]
    functions = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    )
    return [ast.unparse(part) for body in functions for part in ast.walk(body) if is_import(part, aliases)]


def is_import(node: ast.AST, aliases: dict[str, str]) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Constant(value=str(text)):
            return text in {"__import__", "import_module"}
        case ast.Attribute():
            # A name of the module that imports others when it is asked for names.
            head, dot, rest = ast.unparse(node.value).partition(".")
            of = f"{aliases.get(head, head)}{dot}{rest}"
            return node.attr in IMPORTERS or is_in(of, "importlib") or of in HANDS_NAMES_ON
        case ast.Name(id=name):
            full = aliases.get(name, name)
            return full in IMPORTERS or is_in(full, "importlib") or (full in HANDS_NAMES_ON and name != full)
    return False


def test_the_worker_never_comes_across_sqlite3() -> None:
    """Pyodide lacks it: nothing that the entry point or a product reaches imports it."""
    reached, found = set[str](), {name for name in TREES if is_in(name, "products")} | {"entry"}
    while found:
        reached |= found
        found = set().union(*(imported_modules(name) for name in found)) - reached

    assert "chatturn.http.routes" in reached
    assert {name for name in reached if "sqlite3" in imported(TREES[name])} == set()


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what of *node* runs when the module is imported: all but the bodies of functions."""
    parts: list[ast.AST]
    match node:
        case ast.FunctionDef(args=arguments) | ast.AsyncFunctionDef(args=arguments):
            parts = [*node.decorator_list, *arguments.defaults, *filter(None, arguments.kw_defaults)]
        case ast.Lambda(args=arguments):
            parts = [*arguments.defaults, *filter(None, arguments.kw_defaults)]
        case _:
            parts = [*ast.iter_child_nodes(node)]
    for part in parts:
        yield part
        yield from at_import(part)


def calls(tree: ast.Module, nodes: Iterator[ast.AST]) -> set[str]:
    """Return the clocks and the chance that are called among *nodes*, by their full names."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                aliases |= {alias.asname or alias.name: alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names):
                aliases |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in names}
    called = set()
    for node in nodes:
        if isinstance(node, ast.Call):
            head, _, rest = ast.unparse(node.func).partition(".")
            full = aliases.get(head, head) + ("." + rest if rest else "")
            if is_in_any(full, CLOCKS_AND_CHANCE):
                called.add(full)
    return called


@pytest.mark.parametrize("name", TREES)
def test_nothing_at_import_asks_for_the_time_or_for_chance(name: str) -> None:
    """A module's state is a snapshot: what is drawn at import would be the same in every isolate."""
    assert calls(TREES[name], at_import(TREES[name])) == set()


@pytest.mark.parametrize("name", [name for name in TREES if not is_in(name, "chatturn.workerd")])
def test_the_core_is_given_its_clock_and_its_chance(name: str) -> None:
    """Time, randomness and ids are arguments, so that a test decides them."""
    assert calls(TREES[name], ast.walk(TREES[name])) == DEFAULTS_THAT_CALL.get(name, set())


@pytest.mark.parametrize("name", [name for name in TREES if is_in(name, "products") and name != "products"])
def test_a_product_imports_its_public_face_only(name: str) -> None:
    """What `chatturn.product` exports is all that a product's author has to know, and all that must not change."""
    assert not_its_business(TREES[name]) == set()


def not_its_business(tree: ast.Module) -> set[str]:
    return {each for each in imported(tree) if each in TREES and is_in(each, "chatturn")} - {
        "chatturn",
        "chatturn.product",
    }


def test_the_public_face_only_hands_on() -> None:
    """Each name has its docstring where it is defined, and the page's list has every name."""
    tree = TREES["chatturn.product"]
    page = ast.get_docstring(tree) or ""
    exported = ast.literal_eval(next(node.value for node in tree.body if isinstance(node, ast.Assign)))

    assert {ast.Expr, ast.ImportFrom, ast.Assign} == {type(node) for node in tree.body}
    assert set(exported) == set(re.findall(r"(?<!`)`(\w+)`", page))
    assert sorted(exported, key=str) == exported


def test_no_top_level_name_shadows_the_standard_library() -> None:
    """The Worker searches the standard library first, CPython `src/`: a shared name would mean two things."""
    names = {path.stem for path in SRC.iterdir() if path.name != "__pycache__"}

    assert names & sys.stdlib_module_names == set()


def test_no_vendored_package_has_a_name_of_ours() -> None:
    """The Worker searches what is vendored before `src/`: a vendored `products` would hide ours."""
    vendored = {path.stem for path in (SRC.parent / "python_modules").iterdir()}

    assert {"workers"} <= vendored
    assert {path.stem for path in SRC.iterdir() if path.name != "__pycache__"} & vendored == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_too_long(path: Path) -> None:
    """What does not fit on a few screens is two things."""
    lines = path.read_text(encoding="utf-8").count("\n")

    assert lines <= OTHER_MAX_LINES.get(name_of(path), MAX_LINES)


def test_only_code_is_uploaded() -> None:
    """Everything under `src/` goes to every edge."""
    files = {path for path in SRC.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    assert {path for path in files if path.suffix != ".py" or path.stem.startswith("test_")} == set()


# The rules above, tried on what breaks them


@pytest.mark.parametrize(
    "source",
    [
        "import time\nSTART = time.time()",
        "from time import time as now\nSTART = now()",
        "import random\nclass A:\n    x = random.random()",
        "import uuid\ndef f(x=uuid.uuid4()): pass",
        "from datetime import datetime\nX = [datetime.now() for _ in range(3)]",
        "import secrets\n@register(secrets.token_hex())\ndef f(): pass",
        "import os\nif os.urandom(1): pass",
    ],
)
def test_what_is_drawn_at_import_is_seen(source: str) -> None:
    """However it is imported and wherever it stands."""
    tree = ast.parse(source)

    assert calls(tree, at_import(tree)) != set()


@pytest.mark.parametrize(
    "source",
    [
        "def hook(self): import wave",
        "from importlib import import_module as load\ndef hook(self): load('wave')",
        "import importlib as il\ndef hook(self): il.import_module('wave')",
        "import importlib.util\ndef hook(self): importlib.util.find_spec('wave')",
        "lazy = lambda: __import__('decimal')",
        "get = __import__\nclass A:\n    def hook(self): get('wave')",
        "def hook(self): exec('import wave')",
        "def hook(self): __builtins__['__import__']('wave')",
        "import builtins\ndef hook(self): getattr(builtins, '__import__')('wave')",
        "import chatturn.agent_runtime as ar\ndef hook(self): ar.run_agent_task_stream",
        "from chatturn import agent_runtime\nasync def hook(self): agent_runtime.run_agent_task_stream",
        "import chatturn.agent_runtime\ndef hook(self): chatturn.agent_runtime.run_agent_task_stream",
    ],
)
def test_what_is_imported_late_is_seen(source: str) -> None:
    """Whatever it is called."""
    assert late_imports(ast.parse(source)) != []


@pytest.mark.parametrize(
    "source", ["import chatturn.agent_runtime as ar", "from chatturn import agent_runtime", "import chatturn.chat.turn"]
)
def test_what_is_no_products_business_is_seen(source: str) -> None:
    """However it is imported."""
    assert not_its_business(ast.parse(source)) != set()


def test_what_is_imported_at_the_top_is_let_through() -> None:
    """And so is what only has a name that sounds like it."""
    source = "import importlib\nfrom re import search as evaluate\ndef f(importer): return importer.imported, evaluate('a', 'a')"

    assert late_imports(ast.parse(source)) == []


def test_what_runs_later_is_no_import_time_call() -> None:
    """A function's body, and a function that is only handed on."""
    tree = ast.parse(
        "import time\n"
        "def f(now=time.time, then=lambda: time.time()):\n"
        "    return time.time()\n"
        "g = lambda: time.time()\n"
    )

    assert calls(tree, at_import(tree)) == set()
    assert calls(tree, ast.walk(tree)) == {"time.time"}
