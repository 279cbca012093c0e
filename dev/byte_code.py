"""
Byte code for the sources of a Worker, compiled by the Python that runs them.

Without it workerd compiles some hundred modules at every boot. It is kept by the sources' content, so a module that
was edited has none and is compiled where it runs; starting the compiler is worth it only for many.
"""

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from dev import paths
from dev.interpreter import compile_zip, digest

__all__ = ["look_up", "prepare"]

_ROOT: Final = "/session/metadata"
"""Where the sources are mounted, as tracebacks show it."""

_KEPT: Final = paths.BUILD / "byte-code"
_WORTH_A_COMPILER: Final = 100_000
"""Bytes of sources that workerd compiles in the time that the compiler takes to start."""


def look_up(name: str, source: bytes) -> tuple[str, bytes] | None:
    """Return where Python looks for the byte code of the module *name*, and what belongs there, if that is known."""
    try:
        content = _kept(name, source).read_bytes()
    except FileNotFoundError:
        return None
    module = PurePosixPath(name)
    return str(module.parent / "__pycache__" / f"{module.stem}.cpython-313.pyc"), content


def prepare(sources: Mapping[str, bytes]) -> None:
    """Compile the modules among *sources* that are new, if they are many."""
    new = {
        name: content for name, content in sources.items() if name.endswith(".py") and not _kept(name, content).exists()
    }
    if sum(map(len, new.values())) < _WORTH_A_COMPILER:
        return
    _KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_KEPT) as folder:
        given, compiled = Path(folder, "sources.zip"), Path(folder, "compiled.zip")
        with zipfile.ZipFile(given, "w") as archive:
            for name, content in new.items():
                archive.writestr(name, content)
        compile_zip(given, compiled, _ROOT)
        with zipfile.ZipFile(compiled) as archive:
            for name in set(archive.namelist()) - set(new):
                fresh = Path(folder, "fresh")
                fresh.write_bytes(archive.read(name))
                fresh.replace(_kept(name.removesuffix("c"), new[name.removesuffix("c")]))


def _kept(name: str, source: bytes) -> Path:
    return _KEPT / f"{digest(name.encode(), source)}.pyc"
