"""
`make run`: the Worker at http://localhost:8787, on a local D1 that persists.

Edits in `src/` are picked up, the cron runs every minute, and a process that dies is started again; Ctrl-C ends all
that were started.
"""

import argparse
import http.client
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from dev import paths, secrets_file, terminal
from dev.bundle import SOURCES_ARCHIVE, Mounts, pack
from dev.config import Config
from dev.cron import Cron
from dev.server import Server, StartError, is_free
from dev.watch import Fingerprint, fingerprint

_POLL_SECONDS: Final = 0.3
_NOTICE_SECONDS: Final = 10.0  # Within this wrangler sees a changed file, unless it missed the change or is starved.
_RECOVERY_SECONDS: Final = 10.0  # wrangler replaces a workerd that died in 2 to 5, unless it was the one in front.
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupted(BaseException):
    """A signal asked for the end. Not an `Exception`: nothing on the way may swallow it."""


@dataclass(frozen=True, kw_only=True)
class _Project:
    """What is run, and where its local state and secrets are kept."""

    source: Path
    config_file: Path
    schema: Path
    product: str | None
    home: Path

    @property
    def mounts(self) -> Mounts:
        return {"": self.source, "python_modules": paths.VENDORED}

    @property
    def secrets(self) -> Path:
        return self.home / ".dev.vars"

    @property
    def settings(self) -> tuple[Path, Path]:
        """Files that are not sources, but whose edits count, too."""
        return self.secrets, self.config_file

    @property
    def state(self) -> Path:
        """Where `wrangler d1 execute --local`, called in the project, looks too."""
        return self.home / ".wrangler" / "state"

    @property
    def builds(self) -> Path:
        # Not below `.wrangler`: wrangler does not notice changes there.
        return self.home / "dev" / ".build"

    @property
    def backend(self) -> str:
        """What `.dev.vars` says, or has a key for; without one, the scripted answer."""
        values = secrets_file.read(self.secrets)
        return values.get("BACKEND") or ("openai" if values.get("OPENAI_API_KEY") else "echo")

    def config(self) -> Config:
        return Config.read(self.config_file, environment=self.product, variables={"BACKEND": self.backend})


def main(arguments: list[str]) -> int:
    """Run until a signal comes or wrangler ends; return the exit status."""
    options = _parser().parse_args(arguments)
    project = _Project(
        source=options.source,
        config_file=options.config,
        schema=options.schema,
        product=options.product,
        home=options.home,
    )
    if not is_free(options.port):
        print(f"port {options.port} is in use: stop what listens there, or choose another one:")
        print(f"    make run PORT={options.port + 1}")
        return 1
    for number in _ENDINGS:
        signal.signal(number, _interrupt)
    try:
        _run(project, options.port, options.cron_seconds)
    except _Interrupted:
        return 0
    except (StartError, ValueError) as error:
        print(error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.run", description="Run the Worker locally.")
    parser.add_argument("--port", type=int, default=8787)
    parser.add_argument("--product", help="use the settings of [env.PRODUCT] in wrangler.toml")
    parser.add_argument("--cron-seconds", type=float, default=60.0, help="between two calls of the cron triggers")
    parser.add_argument("--source", type=Path, default=paths.SOURCES, help="folder of entry.py")
    parser.add_argument("--config", type=Path, default=paths.DEPLOYMENT_CONFIG, help="wrangler.toml")
    parser.add_argument("--schema", type=Path, default=paths.SCHEMA, help="applied to the local D1")
    parser.add_argument("--home", type=Path, default=paths.ROOT, help="folder of local state and secrets")
    return parser


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupted


def _run(project: _Project, port: int, cron_seconds: float) -> None:
    secret = secrets_file.ensure_signing_secret(project.secrets)
    reading, writing = os.pipe()
    server = Server(
        folder=project.builds / str(port),
        state=project.state,
        config=project.config(),
        mounts=project.mounts,
        port=port,
        secrets=project.secrets,
        schema=project.schema,
        output=writing,
    )
    screen = terminal.Screen(os.fdopen(reading, "rb"), to=sys.stdout)
    try:
        print("starting Python in workerd …", flush=True)
        seen = _fingerprint(project)  # Before anything is read: an edit during the start is one.
        server.start()
        print(f"ready in {server.boot_seconds:.1f} s, BACKEND={project.backend}", flush=True)
        if not _is_broken(server):
            _show_how_to_try(server, secret)
        cron = Cron(server, server.config.crons(), every_s=cron_seconds)
        _keep_running(server, project, screen, seen, cron)
    finally:
        # A second Ctrl-C while the processes end must not leave any behind.
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        server.stop()


def _show_how_to_try(server: Server, secret: str) -> None:
    token = secrets_file.token(secret)
    print(
        f"Ctrl-C stops it. Try:\n\n"
        f"curl -N http://localhost:{server.port}/v1/sessions/demo/turns/0 "
        f"-H 'Authorization: Bearer {token}' "
        f"-H 'Content-Type: application/json' "
        f"""-d '{{"message":"hello"}}'\n""",
        flush=True,
    )


def _is_broken(server: Server) -> bool:
    """Tell the developer, whose traceback is on the screen, what happens next."""
    broken = server.status() != http.client.OK
    if broken:
        print("it answers 500 until the error above is mended, and reloads by itself", flush=True)
    return broken


def _fingerprint(project: _Project) -> Fingerprint:
    return fingerprint(project.mounts, project.settings)


def _keep_running(
    server: Server, project: _Project, screen: terminal.Screen, seen: Fingerprint, cron: Cron
) -> NoReturn:
    crashes = 0
    while server.process.poll() is None:
        time.sleep(_POLL_SECONDS)
        cron.tick()
        if screen.crashes > crashes or cron.found_nobody:
            print(f"{'workerd died' if screen.crashes > crashes else 'nobody answers'}, starting again …", flush=True)
            _recover(server)
            crashes, cron.found_nobody = screen.crashes, False
        now = _fingerprint(project)
        if now == seen:
            continue
        changed = {Path(name) for name, _, _ in now ^ seen}
        seen = now
        print(f"{', '.join(sorted(path.name for path in changed))} changed, reloading …", flush=True)
        began = time.monotonic()
        if changed & set(project.settings):
            server.stop()
            server.config = project.config()
            server.start()
        else:
            _reload(server, project, screen)
        if not _is_broken(server):
            print(f"reloaded in {time.monotonic() - began:.1f} s", flush=True)
    raise StartError("wrangler ended by itself")


def _recover(server: Server) -> None:
    """Wait for the workerd that wrangler starts in the place of a dead one; if it does not answer, start all again."""
    began = time.monotonic()
    if not server.answers(within_s=_RECOVERY_SECONDS):
        server.stop()
        server.start()
    print(f"it answers again after {time.monotonic() - began:.1f} s", flush=True)


def _reload(server: Server, project: _Project, screen: terminal.Screen) -> None:
    """Pack the sources and return when workerd has started with them; until then the old ones answer."""
    digest = pack(server.bundle, project.mounts)
    patience = _NOTICE_SECONDS
    while server.process.poll() is None and not screen.shows_start_of(digest, seconds=patience):
        # It watches nothing before it is ready, and a change in between is lost.
        (server.bundle / SOURCES_ARCHIVE).touch()
        patience *= 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
