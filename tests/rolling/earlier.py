"""The earlier version's code, as git has it, and workers that run it."""

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Final

__all__ = ["EARLIER", "ROOT", "EarlierWorker", "unpack"]

ROOT: Final = Path(__file__).parents[2]

EARLIER: Final = (Path(__file__).parent / "EARLIER").read_text(encoding="utf-8").strip()
"""The commit of the version that is in use; it moves on with each release."""

_WORK: Final = """
import pathlib, sys
from tests.chaos.worker import work

class Serving:
    def send_bytes(self, _bytes):
        pathlib.Path(sys.argv[6]).touch()

work(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), (int(sys.argv[4]), int(sys.argv[5])), Serving())
"""
_PATIENCE_S: Final = 60.0


def unpack(folder: Path) -> None:
    """
    Put the earlier version's files into *folder*.

    Raises:
        SystemExit: This clone's history does not reach back to it.
    """
    done = subprocess.run(["git", "-C", str(ROOT), "archive", EARLIER], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"git has no commit {EARLIER}: fetch the whole history (git fetch --unshallow)")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


class EarlierWorker:
    """
    A process that serves users by the earlier version's code until it is killed; as the rig sees a process.

    Attributes:
        pid: Its id.
    """

    def __init__(self, code: Path, folder: Path, upstream: str, seed: int, turns: tuple[int, int]) -> None:
        marker = folder / f"serving.{seed}"
        arguments = [str(folder), upstream, str(seed), *map(str, turns), str(marker)]
        path = os.pathsep.join([str(code / "src"), str(code)])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORK, *arguments], cwd=code, env={**os.environ, "PYTHONPATH": path}
        )
        self.pid = self._process.pid
        until = time.monotonic() + _PATIENCE_S
        while not marker.exists():
            assert self._process.poll() is None, "the earlier version's worker does not start"
            assert time.monotonic() < until, "the earlier version's worker does not begin to serve"
            time.sleep(0.005)

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(_PATIENCE_S)

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._process.wait(timeout_s)
