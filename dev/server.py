"""One running Worker: wrangler and workerd, in a process group of their own."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from dev import paths, wrangler
from dev.bundle import Mounts, assemble
from dev.config import Config
from dev.database import apply_schema
from dev.processes import has_ended

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 120.0
"""How long a Worker may take to answer; it takes about four on two idle cores, and many times that on busy ones."""
STOP_SECONDS: Final = 5.0
_NOBODY_BEHIND_THE_PROXY: Final = b"Error: Network connection lost.\n    at async Object.fetch (file:"
"""How wrangler's proxy answers for a workerd that is ending and takes no connections; wrangler does not tell of it."""


class StartError(Exception):
    """A Worker did not come up; the message ends with what it printed."""


@dataclass(kw_only=True)
class Server:
    """
    A Worker from a folder of Python sources.

    `start` returns once it answers. `stop` ends the process group with SIGTERM, `kill` with
    SIGKILL; both return when it is gone. The state folder survives either, and a second `start`
    goes on with it.
    """

    folder: Path
    """Holds the assembled Worker and wrangler's own files; made when missing."""
    state: Path
    """Holds the local D1 databases."""
    config: Config
    mounts: Mounts
    entry: str = "entry"
    port: int = 0
    """0 takes a free one at the first start, and keeps it."""
    secrets: Path | None = None
    """A `.dev.vars` file; its values take precedence over `[vars]`."""
    schema: Path | None = None
    health_path: str = "/healthz"
    checks_snapshot: bool = False
    """Whether it answers with what an upload could not store, instead of as itself."""
    output: IO[bytes] | int | None = None
    """Where wrangler prints; default: `folder / "log.txt"`."""
    boot_seconds: float = field(default=0.0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """The Worker's address, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    @property
    def log_file(self) -> Path:
        """What wrangler and the Worker printed, unless `output` is set."""
        return self.folder / "log.txt"

    @property
    def bundle(self) -> Path:
        """The assembled Worker, which wrangler watches."""
        return self.folder / "worker"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The leader of the process group."""
        if self._process is None:
            raise RuntimeError("the Worker has not been started")
        return self._process

    def start(self) -> None:
        """
        Start the Worker and wait until it answers, whatever the status.

        Raises:
            StartError: It ended, or did not answer within START_SECONDS; nothing is left running.
        """
        began = time.monotonic()
        for folder in (self.folder, self.state):  # Conversations and secrets: nobody else's on this machine.
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        self.assemble()
        self._write_secrets()
        if self.schema is not None:
            for database_id in set(self.config.database_ids().values()):
                apply_schema(self.state, database_id, self.schema)
        self.port = self.port or free_port()
        self._process = self._spawn()
        try:
            self.status()
        except BaseException:
            self.kill()
            raise
        self.boot_seconds = time.monotonic() - began

    def assemble(self) -> None:
        """Write what wrangler is to run to `bundle`."""
        assemble(
            self.bundle, mounts=self.mounts, entry=self.entry, config=self.config, checks_snapshot=self.checks_snapshot
        )

    def configurations(self) -> list[Path]:
        """Return what wrangler is to run."""
        return [self.bundle / "wrangler.json"]

    def stop(self) -> None:
        """End the Worker as a deployment would: politely, then for certain."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the Worker as a power cut would."""
        self._end(signal.SIGKILL)

    def status(self) -> int:
        """
        Return what `health_path` answers, as soon as it does.

        Raises:
            StartError: It ended, or did not answer within START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while (status := _status_of(self.port, self.health_path)) is None:
            if self.process.poll() is not None:
                raise StartError(f"wrangler ended before the Worker answered\n{self.log()}")
            if time.monotonic() > deadline:
                raise StartError(f"no answer within {START_SECONDS:.0f} s\n{self.log()}")
            time.sleep(0.05)
        return status

    def answers(self, *, within_s: float) -> bool:
        """Return whether `health_path` is answered in that time, with whatever status."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            if _status_of(self.port, self.health_path, left) is not None:
                return True
            time.sleep(0.05)
        return False

    def log(self) -> str:
        """Return what the Worker has printed so far; nothing if it went to `output`."""
        if self.output is not None or not self.log_file.exists():
            return ""
        return self.log_file.read_text("utf-8", "replace")

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "dev.leash"),
            *wrangler.command("dev"),
            *(part for path in self.configurations() for part in ("--config", str(path))),
            *("--ip", HOST, "--port", str(self.port)),
            *("--inspector-ip", HOST, "--inspector-port", str(free_port())),
            *("--persist-to", str(self.state)),
            *("--show-interactive-dev-session", "false"),
            *("--log-level", "log"),
            "--test-scheduled",  # Changes nothing for a module that is not bundled; without it crons are explained.
        ]
        with contextlib.ExitStack() as opened:
            output = self.output
            if output is None:
                output = opened.enter_context(self.log_file.open("ab"))
            return subprocess.Popen(
                command,
                cwd=paths.ROOT,
                env=wrangler.environment(self.folder),
                stdin=subprocess.PIPE,  # The leash: it closes when this process ends.
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _write_secrets(self) -> None:
        target = self.bundle / ".dev.vars"
        target.write_text(self.secrets.read_text("utf-8") if self.secrets else "", "utf-8")
        target.chmod(0o600)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        _wait_for_group(process.pid)


def _status_of(port: int, path: str, seconds: float = START_SECONDS) -> int | None:
    """Return the status of a GET of *path* on *port*, or None when nobody answers in time, or only wrangler's proxy."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return None if response.read().startswith(_NOBODY_BEHIND_THE_PROXY) else response.status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Return whether *port* of the loopback address can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _wait_for_group(group: int) -> None:
    """Wait until no process of *group* is left, so that a port and a database are free again."""
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and not has_ended(group):
        time.sleep(0.01)
