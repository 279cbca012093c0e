"""What Python holds at module level can be stored in the memory snapshot that the upload of a Worker takes."""

from pathlib import Path

import pytest

from dev import paths
from dev.server import StartError
from dev.snapshot import check_snapshot

UNSTORABLE = Path(__file__).resolve().parent.parent / "worker" / "unstorable"


def test_every_module_of_the_worker_can_be_stored() -> None:
    """The entry point, every product, and every module that is imported by name or later."""
    held = check_snapshot()
    sources = {path.stem for path in paths.SOURCES.rglob("*.py")} - {"__init__", "sqlite", "local_stores"}

    assert () == held.faults
    assert {name.rpartition(".")[2] for name in held.modules} >= sources


def test_what_cannot_be_stored_is_named() -> None:
    """Module and attribute, whatever holds it and however deep; what has a path is let through."""
    held = check_snapshot(source=UNSTORABLE)

    # A method holds what it is a method of.
    assert 1 == sum(fault.holder is None for fault in held.faults)
    assert [
        "entry.Default.fetch.defaults.0",
        "entry.Default.options",
        "entry.Keeper.call.__func__.defaults.0",
        "entry.asked_at_import",
        "entry.bound.args.0",
        "entry.closure.kept",
        "entry.fresh.0",
        "entry.generator",
        "entry.in_a_deque.0",
        "entry.method.self._Keeper__kept",
        "entry.of_a_prototype",
        "entry.proxied.callback",
        "late.kept",
    ] == sorted(fault.holder for fault in held.faults if fault.holder is not None)
    assert "entry.of_a_prototype holds a JavaScript function call that has no path from globalThis" in " ".join(
        map(str, held.faults)
    )


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    """With the line at which it stops."""
    (tmp_path / "entry.py").write_text("import js\njs.nothing.of_the_kind\n", "utf-8")

    with pytest.raises(StartError, match=r"entry\.py"):
        check_snapshot(source=tmp_path)
