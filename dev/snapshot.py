"""
Whether Cloudflare could take the snapshot of a Worker that its upload takes.

Everything is imported in the real workerd, with the globals as the platform shows them meanwhile; then every JavaScript
object that Python holds must have a path from `globalThis`.
"""

import json
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from dev import paths
from dev.bundle import Mounts
from dev.config import Config
from dev.server import Server, StartError

__all__ = ["Fault", "Held", "check_snapshot"]

_ANSWER_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    A JavaScript object that cannot be stored.

    Attributes:
        holder: Module and name of who holds it; None if none of the Worker's modules is seen to.
        kind: What it is, as JavaScript says.
    """

    holder: str | None
    kind: str

    def __str__(self) -> str:
        return (
            f"{self.holder or 'something'} holds a JavaScript {self.kind} that has no path from globalThis, so the "
            "upload's snapshot cannot store it: make it in the first request that needs it"
        )


@dataclass(frozen=True, kw_only=True)
class Held:
    """
    What came of a check.

    Attributes:
        modules: The Worker's modules, all of them imported.
        faults: What cannot be stored.
    """

    modules: tuple[str, ...]
    faults: tuple[Fault, ...]


def check_snapshot(*, source: Path = paths.SOURCES, entry: str = "entry", mounts: Mounts | None = None) -> Held:
    """
    Import all modules of a Worker as its upload does, and look at what they hold.

    Args:
        source: The folder of the entry module.
        entry: That module's name.
        mounts: More folders and files, as for `dev.bundle.assemble`.

    Raises:
        StartError: The Worker did not come up; a module that cannot be imported is named.
    """
    with tempfile.TemporaryDirectory(prefix="chatturn-") as folder:
        server = Server(
            folder=Path(folder, "worker"),
            state=Path(folder, "state"),
            config=Config.read(paths.DEPLOYMENT_CONFIG, variables={"BACKEND": "echo"}),
            mounts={"": source, "python_modules": paths.VENDORED, **(mounts or {})},
            entry=entry,
            checks_snapshot=True,
        )
        server.start()
        try:
            with urllib.request.urlopen(server.url, timeout=_ANSWER_SECONDS) as response:
                report = json.load(response)
        except urllib.error.HTTPError as error:
            raise StartError(error.read().decode("utf-8", "replace")) from error
        finally:
            server.kill()
    return Held(modules=tuple(report["modules"]), faults=tuple(Fault(**fault) for fault in report["faults"]))
