"""
Python as a Worker boots it: the standard library with its byte code, and the memory of an interpreter that has started.

npm's Pyodide has sources only: it would compile some hundred modules at every boot, and run CPython's own start
besides. Both are made here once, by the same Pyodide in Node, and kept in `dev/.build`.
"""

import hashlib
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from dev import paths

__all__ = ["compile_zip", "compiled_stdlib", "digest", "memory_snapshot"]

_COMPILER: Final = paths.ROOT / "dev" / "compile.mjs"
_SNAPSHOT_MAKERS: Final = (paths.ROOT / "dev" / "snapshot.mjs", paths.HOST / "snapshot.mjs")
_VERSION: Final = paths.PYODIDE / "package.json"


def compiled_stdlib() -> Path:
    """Return the archive, making it (some seconds, once) when Pyodide or the compiler is new."""
    source = paths.PYODIDE / "python_stdlib.zip"
    return _made(f"python_stdlib-{digest()}.zip", lambda target: compile_zip(source, target, "/lib/python313.zip"))


def memory_snapshot() -> Path:
    """Return what an interpreter with that library has in its memory before it has seen a Worker."""
    stdlib = compiled_stdlib()
    makers = b"".join(script.read_bytes() for script in _SNAPSHOT_MAKERS)
    name = f"snapshot-{digest(stdlib.name.encode(), makers)}.bin"
    # The interpreter looks once whether it may be suspended, as it may in workerd.
    return _made(name, lambda target: _run("--experimental-wasm-jspi", _SNAPSHOT_MAKERS[0], stdlib, target))


def compile_zip(source: Path, target: Path, root: str) -> None:
    """
    Write to *target* the files of *source*, each module with its byte code beside it.

    Args:
        source: An archive of Python sources.
        target: Replaced if it exists.
        root: Where the sources will be when they run, as tracebacks show it.
    """
    _run(_COMPILER, source, target, root)


def digest(*contents: bytes) -> str:
    """Return a name for what this Pyodide and this compiler make of *contents*."""
    return _digest(_maker(), *contents)


@cache
def _maker() -> bytes:
    return _digest(_VERSION.read_bytes(), _COMPILER.read_bytes()).encode()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _made(name: str, make: Callable[[Path], None]) -> Path:
    finished = paths.BUILD / name
    if not finished.exists():
        finished.parent.mkdir(parents=True, exist_ok=True)
        fresh = finished.with_suffix(f".{os.getpid()}")  # Two tests may start at once.
        make(fresh)
        fresh.replace(finished)
    return finished


def _run(*arguments: Path | str) -> None:
    subprocess.run([paths.node(), *map(str, arguments)], check=True)
