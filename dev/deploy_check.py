"""
`make deploy-check`: what wrangler would upload, for every product, without uploading it.

Works offline. Fails when wrangler refuses the configuration, when something that does not belong in
a Worker would be uploaded, or when a module holds what the upload's memory snapshot cannot store.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dev import paths, wrangler
from dev.server import StartError
from dev.snapshot import check_snapshot

_COMPILED: Final = {".so", ".pyc", ".pyd", ".dylib"}


def main() -> int:
    """Check every environment; return the exit status."""
    problems = [*_misplaced_files(), *_unstorable()]
    for environment in ["", *tomllib.loads(paths.DEPLOYMENT_CONFIG.read_text("utf-8")).get("env", {})]:
        name = environment or "default"
        with tempfile.TemporaryDirectory(prefix="chatturn-") as folder:
            finished = _dry_run(environment, Path(folder))
        if finished.returncode:
            problems.append(f"wrangler refuses the environment {name}:\n{finished.stdout}")
        else:
            [size] = [line for line in finished.stdout.splitlines() if line.startswith("Total Upload")]
            print(f"{name}: {size}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _dry_run(environment: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *wrangler.command("deploy", "--dry-run"),
            *("--config", str(paths.DEPLOYMENT_CONFIG), f"--env={environment}"),
            *("--outdir", str(folder / "out")),
        ],
        cwd=paths.ROOT,
        env=wrangler.environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _unstorable() -> Iterator[str]:
    """Yield what would end the upload, which takes a snapshot of Python's memory."""
    try:
        yield from map(str, check_snapshot().faults)
    except StartError as error:
        yield f"the Worker cannot be imported:\n{error}"


def _misplaced_files() -> Iterator[str]:
    """Yield what would be uploaded by mistake, or would break the Worker there."""
    for path in paths.SOURCES.rglob("*"):
        if path.suffix == ".py" and (path.name.startswith("test_") or path.name == "conftest.py"):
            yield f"{path.relative_to(paths.ROOT)}: tests do not belong in src/, all of it is uploaded"
    for path in paths.SOURCES.iterdir():
        if path.stem in sys.stdlib_module_names:
            yield f"{path.relative_to(paths.ROOT)}: named like a module of the standard library, which wins"
    for path in paths.VENDORED.rglob("*"):
        if path.suffix in _COMPILED:
            yield f"{path.relative_to(paths.ROOT)}: compiled; only pure Python runs in a Worker"


if __name__ == "__main__":
    sys.exit(main())
