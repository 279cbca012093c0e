"""Two isolates of the Worker on one local D1, in one wrangler; the header ``x-isolate`` says which answers, A or B."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dev import paths
from dev.bundle import assemble
from dev.config import Config
from dev.server import Server
from tests.support.worker import DEFAULTS, Worker

__all__ = ["running_pair"]

_SWITCH = Path(__file__).parents[1] / "worker" / "switch" / "worker.mjs"


class _PairServer(Server):
    """A server whose Worker is a switch in front of two others."""

    def assemble(self) -> None:
        """Write the switch and both Workers."""
        for name in ("a", "b"):
            folder = self.folder / name
            assemble(folder, mounts=self.mounts, entry=self.entry, config=self.config)
            settings: dict[str, Any] = json.loads((folder / "wrangler.json").read_text())
            settings.pop("triggers", None)
            (folder / "wrangler.json").write_text(json.dumps({**settings, "name": f"isolate-{name}"}))
        self.bundle.mkdir(parents=True, exist_ok=True)
        (self.bundle / "worker.mjs").write_text(_SWITCH.read_text())
        services = [{"binding": name.upper(), "service": f"isolate-{name}"} for name in ("a", "b")]
        switch = {"name": "switch", "main": "worker.mjs", "compatibility_date": "2026-08-01", "no_bundle": True}
        (self.bundle / "wrangler.json").write_text(json.dumps({**switch, "services": services}))

    def configurations(self) -> list[Path]:
        """Return what wrangler is to run, the one that is asked first."""
        return [folder / "wrangler.json" for folder in (self.bundle, self.folder / "a", self.folder / "b")]


@contextmanager
def running_pair(*, variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[Worker]:
    """Run both for the length of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="chatturn-", ignore_cleanup_errors=True) as temporary:
        server = _PairServer(
            folder=Path(temporary) / "worker",
            state=Path(temporary) / "state",
            config=Config.read(paths.DEPLOYMENT_CONFIG, variables={**DEFAULTS, **variables}),
            mounts={"": paths.SOURCES, "python_modules": paths.VENDORED},
            schema=paths.SCHEMA,
        )
        worker = Worker(server=server)
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()
