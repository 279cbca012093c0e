"""
Python's standard library with its byte code, which halves the time Python takes to boot.

npm's Pyodide has it as sources only, and would compile some hundred modules at every start.
"""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Final

from dev import paths

_COMPILER: Final = paths.ROOT / "dev" / "compile.mjs"
_SOURCES: Final = paths.PYODIDE / "python_stdlib.zip"


def compiled_stdlib() -> Path:
    """Return the archive, making it (some seconds, once) when Pyodide or the compiler is new."""
    digest = hashlib.sha256(_SOURCES.read_bytes() + _COMPILER.read_bytes()).hexdigest()[:16]
    archive = paths.BUILD / f"python_stdlib-{digest}.zip"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        fresh = archive.with_suffix(f".{os.getpid()}")  # Two tests may start at once.
        subprocess.run([paths.node(), str(_COMPILER), str(_SOURCES), str(fresh)], check=True)
        fresh.replace(archive)
    return archive


if __name__ == "__main__":
    compiled_stdlib()
