"""
`make run`: the Worker at http://localhost:8787, on a local D1 that persists.

Edits in `src/` are picked up; Ctrl-C ends every process that was started.
"""

import argparse
import http.client
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from dev import paths, secrets_file, terminal
from dev.bundle import Mounts, pack
from dev.config import Config
from dev.server import Server, StartError, is_free, response_to
from dev.watch import fingerprint

_POLL_SECONDS: Final = 0.3
_NOTICE_SECONDS: Final = 1.0  # wrangler sees a changed file within this and holds requests from then on.


class _Interrupted(Exception):
    """A signal asked for the end."""


@dataclass(frozen=True, kw_only=True)
class _Places:
    """What is run, and where its local state and secrets are kept."""

    source: Path
    config: Path
    home: Path

    @property
    def mounts(self) -> Mounts:
        return {"": self.source, "python_modules": paths.VENDORED}

    @property
    def secrets(self) -> Path:
        return self.home / ".dev.vars"

    @property
    def state(self) -> Path:
        """Where `wrangler d1 execute --local`, run in the project, looks too."""
        return self.home / ".wrangler" / "state"

    @property
    def build(self) -> Path:
        # Not below `.wrangler`, where wrangler does not notice changes.
        return self.home / "dev" / ".build"


def main(arguments: list[str]) -> int:
    """Run until a signal comes or wrangler ends; return the exit status."""
    options = _parser().parse_args(arguments)
    if not is_free(options.port):
        print(f"port {options.port} is in use: stop what listens there, or choose another one:")
        print(f"    make run PORT={options.port + 1}")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)

    secret = secrets_file.ensure_signing_secret(paths.DEV_VARS)
    reading, writing = os.pipe()
    server = Server(
        folder=_FOLDER,
        state=paths.STATE,
        config=_config(options.product),
        mounts=_MOUNTS,
        port=options.port,
        secrets=paths.DEV_VARS,
        schema=paths.SCHEMA,
        output=writing,
    )
    terminal.relay(os.fdopen(reading, "rb"), to=sys.stdout)
    try:
        print("starting Python in workerd …", flush=True)
        server.start()
        _announce(server, secret)
        _serve(server, options.product)
    except _Interrupted:
        return 0
    except StartError as error:
        print(error)
        return 1
    finally:
        # A second Ctrl-C while the processes end must not leave any behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        server.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--port", type=int, default=8787)
    parser.add_argument("--product", help="run with the settings of [env.PRODUCT] in wrangler.toml")
    return parser


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupted


def _config(product: str | None) -> Config:
    """The deployment's settings, with the backend that `.dev.vars` has a key for."""
    keyed = "OPENAI_API_KEY" in secrets_file.read(paths.DEV_VARS)
    variables = {"BACKEND": "openai" if keyed else "echo"}
    return Config.read(paths.DEPLOYMENT_CONFIG, environment=product, variables=variables)


def _announce(server: Server, secret: str) -> None:
    print(f"ready in {server.boot_seconds:.1f} s, BACKEND={server.config.variables['BACKEND']}")
    if _is_broken(server):
        return
    token = secrets_file.local_token(secret)
    print(
        f"Ctrl-C to stop. Try it:\n\n"
        f"curl -N http://localhost:{server.port}/v1/sessions/demo/turns/0 "
        f"-H 'Authorization: Bearer {token}' "
        f"-H 'Content-Type: application/json' "
        f"""-d '{{"message":"hello"}}'\n""",
        flush=True,
    )


def _is_broken(server: Server) -> bool:
    """Tell the developer, whose traceback is on the screen, what happens next."""
    status, _ = response_to(server.port, server.health_path) or (0, "")
    broken = status != http.client.OK
    if broken:
        print("the Worker answers 500 until the error above is mended; it reloads by itself", flush=True)
    return broken


def _serve(server: Server, product: str | None) -> None:
    """Reload after every edit until wrangler ends."""
    settings = (paths.DEV_VARS, paths.DEPLOYMENT_CONFIG)
    seen = fingerprint(_MOUNTS, settings)
    while server.process.poll() is None:
        time.sleep(_POLL_SECONDS)
        now = fingerprint(_MOUNTS, settings)
        if now == seen:
            continue
        changed = {Path(name) for name, _, _ in now ^ seen}
        seen = now
        print(f"{', '.join(sorted(path.name for path in changed))} changed, reloading …", flush=True)
        began = time.monotonic()
        if changed & set(settings):
            server.stop()
            server.config = _config(product)
            server.start()
        else:
            pack(server.bundle, _MOUNTS)
            time.sleep(_NOTICE_SECONDS)
        if not _is_broken(server):
            print(f"reloaded in {time.monotonic() - began:.1f} s", flush=True)
    raise StartError("wrangler ended by itself")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
