"""A Worker in the real workerd, for tests and benches."""

import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dev import paths
from dev.bundle import Mounts
from dev.config import Config
from dev.database import database_file
from dev.processes import members
from dev.server import Server

SECRET: Final = "a-secret-of-the-tests-and-of-nothing-else"
"""AUTH_JWT_SECRET of every Worker started here; a developer's `.dev.vars` is never read."""

DEFAULTS: Final = {
    "BACKEND": "echo",
    "AUTH_JWT_SECRET": SECRET,
    # Tests and benches ask faster than any user; those of the limits set their own.
    "RATE_SUBJECT_PER_MINUTE": "0",
    "RATE_TENANT_PER_MINUTE": "0",
}


@dataclass(kw_only=True)
class Worker:
    """
    A running Worker, its local D1 and its processes.

    It can be killed and started again on the same database: `kill`, then `restart`.
    """

    server: Server

    @property
    def url(self) -> str:
        """The address, without a slash at the end."""
        return self.server.url

    @property
    def boot_seconds(self) -> float:
        """From the start of wrangler to the first answer."""
        return self.server.boot_seconds

    @property
    def log(self) -> str:
        """Everything wrangler and the Worker printed so far."""
        return self.server.log()

    def logged(self, *texts: str, seconds: float = 60.0) -> str:
        """Return the first whole line of the log that has *texts*; it is printed a little after it was said."""
        deadline = time.monotonic() + seconds
        while True:
            for line in self.log.split("\n")[:-1]:
                if all(text in line for text in texts):
                    return line
            assert time.monotonic() < deadline, f"the log has no line with {texts}"
            time.sleep(0.02)

    @property
    def late_imports(self) -> list[str]:
        """Modules that requests have imported, and where; the host tells it, whatever they were imported by."""
        return [line for line in self.log.splitlines() if "chatturn: late import" in line]

    def start(self) -> None:
        """Start the Worker; return when it answers."""
        self.server.start()

    def stop(self) -> None:
        """End the Worker with SIGTERM."""
        self.server.stop()

    def kill(self) -> None:
        """End the Worker with SIGKILL, wrangler and workerd in the middle of what they do."""
        self.server.kill()

    def restart(self) -> None:
        """Start again on the same port and the same state, after ending what still runs."""
        self.server.stop()
        self.server.start()

    def d1_path(self, binding: str = "DB") -> Path:
        """Return the SQLite file behind the D1 binding."""
        return database_file(self.server.state, self.server.config.database_ids()[binding])

    def sql(self, query: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Return the rows of a read-only *query* on the database of the running Worker."""
        # Not `immutable`: that would leave out what is still in the write-ahead log.
        with closing(sqlite3.connect(f"file:{self.d1_path()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, parameters)]

    def pids(self, command: str = "workerd") -> list[int]:
        """
        Return the processes of this Worker that run *command*, the largest first.

        wrangler runs two workerd: the small one is a proxy in front of the one that holds Python.
        """
        found = []
        for pid in members(self.server.process.pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                if Path(program.decode()).name == command:
                    found.append((pages, pid))
        return [pid for _, pid in sorted(found, reverse=True)]


def _with_products(products: Mapping[str, Path], folder: Path) -> Mounts:
    """Mount *products*, and a registry that has them beside those of the project."""
    if not products:
        return {}
    registry = folder / "registry.py"
    imported = "".join(f"from products import {name}\nPRODUCTS[{name!r}] = {name}.Hooks\n" for name in products)
    folder.mkdir(parents=True, exist_ok=True)
    registry.write_text((paths.SOURCES / "products" / "__init__.py").read_text("utf-8") + imported, "utf-8")
    return {"products/__init__.py": registry, **{f"products/{name}.py": path for name, path in products.items()}}


@contextmanager
def running_worker(
    *,
    source: Path = paths.SOURCES,
    entry: str = "entry",
    variables: Mapping[str, str] = MappingProxyType({}),
    mounts: Mounts = MappingProxyType({}),
    products: Mapping[str, Path] = MappingProxyType({}),
    environment: str | None = None,
    deployment: Path = paths.DEPLOYMENT_CONFIG,
    schema: Path | None = paths.SCHEMA,
    folder: Path | None = None,
    health_path: str = "/healthz",
    imports_late: bool = False,
    kind: type[Server] = Server,
) -> Iterator[Worker]:
    """
    Run the Worker in *source* for the length of a `with` block.

    Args:
        source: Folder of the entry module; the import root.
        entry: The entry module's name.
        variables: In place of, or beside, the `[vars]` of the deployment configuration.
        mounts: More folders to mount below /session/metadata, by their place there.
        products: More products, by their names.
        environment: `[env.<environment>]` of the deployment configuration, if any.
        deployment: A `wrangler.toml`.
        schema: Applied to every D1 database before the start; None to leave them as they are.
        folder: For state, logs and the assembled Worker; default: a temporary one.
        health_path: What to GET to see whether the Worker answers.
        imports_late: Whether it may import modules in requests, for which the first one waits at the edge.
        kind: Who assembles it.
    """
    with tempfile.TemporaryDirectory(prefix="chatturn-", ignore_cleanup_errors=True) as temporary:
        folder = folder or Path(temporary)
        server = kind(
            folder=folder / "worker",
            state=folder / "state",
            config=Config.read(deployment, environment=environment, variables={**DEFAULTS, **variables}),
            mounts={"": source, "python_modules": paths.VENDORED, **mounts, **_with_products(products, folder)},
            entry=entry,
            schema=schema,
            health_path=health_path,
        )
        worker = Worker(server=server)
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()  # Its state goes with the folder; a polite end would take a second more.
        if not imports_late:
            assert not worker.late_imports, worker.late_imports
