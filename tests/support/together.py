"""Isolates beside each other on one local D1, in one wrangler; the header ``x-isolate`` says which answers."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dev import paths
from dev.bundle import Mounts, assemble
from dev.config import Config
from dev.server import Server
from tests.support.worker import DEFAULTS, Worker

__all__ = ["running_isolates", "running_pair"]

_SWITCH = Path(__file__).parents[1] / "worker" / "switch" / "worker.mjs"


class _SwitchedServer(Server):
    """A server whose Worker is a switch in front of others."""

    def __init__(self, isolates: Mapping[str, Config], **arguments: Any) -> None:
        super().__init__(config=next(iter(isolates.values())), **arguments)
        self.isolates = isolates

    def assemble(self) -> None:
        """Write the switch and all Workers."""
        for name, config in self.isolates.items():
            folder = self.folder / name
            assemble(folder, mounts=self.mounts, entry=self.entry, config=config)
            settings: dict[str, Any] = json.loads((folder / "wrangler.json").read_text())
            settings.pop("triggers", None)
            (folder / "wrangler.json").write_text(json.dumps({**settings, "name": _service(name)}))
        self.bundle.mkdir(parents=True, exist_ok=True)
        (self.bundle / "worker.mjs").write_text(_SWITCH.read_text())
        services = [{"binding": name, "service": _service(name)} for name in self.isolates]
        switch = {"name": "switch", "main": "worker.mjs", "compatibility_date": "2026-08-01", "no_bundle": True}
        first = {"vars": {"FIRST": next(iter(self.isolates))}}
        (self.bundle / "wrangler.json").write_text(json.dumps({**switch, **first, "services": services}))

    def configurations(self) -> list[Path]:
        """Return what wrangler is to run, the one that is asked first."""
        return [folder / "wrangler.json" for folder in (self.bundle, *(self.folder / name for name in self.isolates))]


def _service(name: str) -> str:
    return f"isolate-{name.lower()}"


@contextmanager
def running_isolates(
    variables: Mapping[str, Mapping[str, str]],
    *,
    entry: str = "entry",
    mounts: Mounts = MappingProxyType({}),
) -> Iterator[Worker]:
    """
    Run isolates for the length of a `with` block.

    Args:
        variables: For each, by the name that the header has for it, what it has in place of, or beside, the `[vars]`
            of the deployment configuration.  The first one answers where there is no header.
        entry: The entry module's name.
        mounts: More folders and files to mount below /session/metadata.
    """
    with tempfile.TemporaryDirectory(prefix="chatturn-", ignore_cleanup_errors=True) as temporary:
        server = _SwitchedServer(
            {name: Config.read(paths.DEPLOYMENT_CONFIG, variables=each) for name, each in variables.items()},
            folder=Path(temporary) / "worker",
            state=Path(temporary) / "state",
            mounts={"": paths.SOURCES, "python_modules": paths.VENDORED, **mounts},
            entry=entry,
            schema=paths.SCHEMA,
        )
        worker = Worker(server=server)
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()
        assert not worker.late_imports, worker.late_imports


@contextmanager
def running_pair(*, variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[Worker]:
    """Run two alike, ``A`` and ``B``."""
    with running_isolates({name: {**DEFAULTS, **variables} for name in "AB"}) as worker:
        yield worker
