"""The earlier version's code, as git has it."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Final

__all__ = ["EARLIER", "ROOT", "unpack"]

ROOT: Final = Path(__file__).parents[2]

EARLIER: Final = (Path(__file__).parent / "EARLIER").read_text(encoding="utf-8").strip()
"""The commit of the version that is in use; it moves on with each release."""


def unpack(folder: Path, commit: str = EARLIER) -> None:
    """
    Put the files of *commit* into *folder*.

    Raises:
        SystemExit: This clone's history does not reach back to it.
    """
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"git has no commit {commit}: fetch the whole history (git fetch --unshallow)")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
