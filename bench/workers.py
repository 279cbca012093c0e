"""The Workers that are compared, each in a workerd of its own under the same wrangler, and their model."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import jwt

from bench.client import Client
from bench.servers import AwayJavaScriptServer, AwayServer, CountingServer, JavaScriptServer
from dev import paths
from dev.config import Config
from dev.server import Server
from tests.support.together import running_pair
from tests.support.worker import SECRET, Worker, running_worker

__all__ = [
    "NAMES",
    "VARIABLES",
    "Subject",
    "counted_worker",
    "least_worker",
    "running_pair_subject",
    "running_peers",
    "running_subjects",
    "running_upstream",
    "running_with",
    "stepped_worker",
    "subject",
    "traced_workers",
]

NAMES: Final = ("pass", "floor", "chatturn")

_HERE: Final = Path(__file__).parent
VARIABLES: Final = {"BACKEND": "openai", "OPENAI_API_KEY": "bench", "MODEL": "bench", "HISTORY_TURNS": "20"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One Worker that is measured, warm."""

    name: str
    worker: Worker
    client: Client
    token: str
    pid: int

    def cpu_s(self) -> float:
        """Return the CPU time that the runtime's process has used so far."""
        # Linux's clock id for the CPU time of another process: clock_getcpuclockid(3).
        return time.clock_gettime(~self.pid << 3 | 2)

    def memory_mb(self) -> float:
        """Return the resident memory of the runtime's process."""
        resident_pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return resident_pages * 4096 / 1e6


@contextmanager
def running_subjects() -> Iterator[dict[str, Subject]]:
    """Run all three Workers and their model."""
    with ExitStack() as stack:
        variables = {**VARIABLES, "OPENAI_BASE_URL": stack.enter_context(running_upstream())}
        workers = {
            "pass": stack.enter_context(_javascript_worker(_HERE / "pass" / "worker.mjs", variables)),
            "floor": stack.enter_context(_javascript_worker(_HERE / "floor" / "worker.mjs", variables)),
            "chatturn": stack.enter_context(running_worker(variables=variables)),
        }
        yield {name: subject(name, worker) for name, worker in workers.items()}


@contextmanager
def running_peers(away_ms: int = 0) -> Iterator[dict[str, Subject]]:
    """Run *peer* and our Worker on databases that are so much further away, and their model."""
    with ExitStack() as stack:
        away = {"BENCH_AWAY_MS": str(away_ms)}
        variables = {**VARIABLES, **away, "OPENAI_BASE_URL": stack.enter_context(running_upstream())}
        workers = {
            "peer": stack.enter_context(
                _javascript_worker(_HERE / "peer" / "worker.mjs", variables, AwayJavaScriptServer)
            ),
            "chatturn": stack.enter_context(running_worker(variables=variables, kind=AwayServer)),
        }
        yield {name: subject(name, worker) for name, worker in workers.items()}


@contextmanager
def running_with(settings: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Subject]]:
    """Run the Worker once with each of some settings, and their model."""
    with ExitStack() as stack:
        variables = {**VARIABLES, "OPENAI_BASE_URL": stack.enter_context(running_upstream())}
        yield {
            name: subject(name, stack.enter_context(running_worker(variables={**variables, **each})))
            for name, each in settings.items()
        }


@contextmanager
def running_pair_subject() -> Iterator[Subject]:
    """Run two isolates of the Worker on one database, and their model."""
    with ExitStack() as stack:
        variables = {**VARIABLES, "OPENAI_BASE_URL": stack.enter_context(running_upstream())}
        yield subject("pair", stack.enter_context(running_pair(variables=variables)))


@contextmanager
def counted_worker(
    variables: Mapping[str, str] = MappingProxyType({}), *, folder: Path | None = None
) -> Iterator[Subject]:
    """
    Run the Worker with some settings on a database and behind a border that count, and its model.

    Args:
        variables: The settings.
        folder: May hold a state to begin with.
    """
    with _other_entry("counted", kind=CountingServer, settings=variables, folder=folder) as counted:
        yield counted


@contextmanager
def stepped_worker() -> Iterator[Subject]:
    """Run the Worker that runs steps, on a database that counts."""
    with _other_entry("stepped", "counted") as stepped:
        yield stepped


@contextmanager
def least_worker() -> Iterator[Subject]:
    """Run the Python Worker that does nothing, and its model."""
    with _other_entry("least") as least:
        yield least


@contextmanager
def traced_workers() -> Iterator[dict[str, Subject]]:
    """Run the Worker without telemetry and with all of it, their model, and a collector that takes everything."""
    with (
        _running("bench.collector") as endpoint,
        running_with({"off": {}, "on": {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}}) as subjects,
    ):
        yield subjects


@contextmanager
def _other_entry(
    name: str,
    *others: str,
    kind: type[Server] = Server,
    settings: Mapping[str, str] = MappingProxyType({}),
    folder: Path | None = None,
) -> Iterator[Subject]:
    """Run the entry module *name* of this folder, beside the real one, *others* that it needs, and its model."""
    with ExitStack() as stack:
        variables = {**VARIABLES, **settings, "OPENAI_BASE_URL": stack.enter_context(running_upstream())}
        mounts = {f"{name}.py": _HERE / f"{name}.py", **{f"bench/{each}.py": _HERE / f"{each}.py" for each in others}}
        worker = running_worker(variables=variables, entry=name, mounts=mounts, kind=kind, folder=folder)
        yield subject(name, stack.enter_context(worker))


@contextmanager
def running_upstream() -> Iterator[str]:
    """Run the model; yield the address of its API."""
    with _running("bench.upstream") as address:
        yield f"{address}/v1"


@contextmanager
def _running(module: str) -> Iterator[str]:
    """Run a server that prints its port; yield its address."""
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, cwd=paths.ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline()) if process.stdout is not None else 0
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@contextmanager
def _javascript_worker(
    module: Path, variables: Mapping[str, str], kind: type[JavaScriptServer] = JavaScriptServer
) -> Iterator[Worker]:
    config = Config.read(paths.DEPLOYMENT_CONFIG, variables=variables)
    with tempfile.TemporaryDirectory(prefix="chatturn-bench-", ignore_cleanup_errors=True) as folder:
        server = kind(
            folder=Path(folder) / "worker",
            state=Path(folder) / "state",
            config=replace(config, deployment={**config.deployment, "triggers": {}}),
            mounts={"": module},
            schema=paths.SCHEMA,
        )
        worker = Worker(server=server)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()


def subject(name: str, worker: Worker) -> Subject:
    """Make what is measured of a running Worker."""
    claims = {"tenant": "bench", "sub": "bench", "scope": "turns", "exp": int(time.time()) + 86_400}
    token = jwt.encode(claims, SECRET, algorithm="HS256")
    client = Client(worker.server.port, token)
    return Subject(name=name, worker=worker, client=client, token=token, pid=_runtime_pid(worker))


def _runtime_pid(worker: Worker) -> int:
    """Return the workerd that runs the Worker's code; wrangler has another one as a proxy in front."""
    [pid] = [pid for pid in worker.pids("workerd") if b"--debug-port" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid
