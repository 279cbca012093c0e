"""
The real Worker, of an earlier version and of this one in turns, on one database: each goes on with what one leaves.

Each switch kills the Worker (SIGKILL) while one turn is being answered and others wait for an approval, and starts the
other version on the same D1.  An approval, a cancel, a retry and a replay then go to a version that has not begun the
turn.
"""

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from dev import paths
from dev.config import Config
from dev.server import Server
from tests.rolling.rig import Figures, Version
from tests.support.client import Client, answer_of, lines_of, parsed
from tests.support.http import http
from tests.support.worker import DEFAULTS

__all__ = ["run_switches"]

_LEASE_MS: Final = 2_000
_PATIENCE_S: Final = 120.0
_VARIABLES: Final = {
    **DEFAULTS,
    "PRODUCT": "agent",
    "PROJECT_ID": "agent",
    "DOMAIN": "agent",
    "LEASE_MS": str(_LEASE_MS),
    "THREADS": "off",
    "COMPACT_LOGS": "off",
}
_LINES_BEFORE_THE_KILL: Final = 10
_LONG: Final = " ".join(f"word{number}" for number in range(80))


def run_switches(folder: Path, versions: tuple[Version, Version], switches: int, figures: Figures) -> None:
    """Switch so often between the two versions, and add up."""
    servers = [_server(folder, version, number) for number, version in enumerate(versions)]
    started: list[str] = []
    for switch in range(switches + 1):
        server, version = servers[switch % 2], versions[switch % 2]
        server.start()
        try:
            client = Client(server.url)
            for session in started:
                _go_on(client, server.url, session, figures)
            started = (
                [f"s{switch}-{what}" for what in ("approve", "cancel", "done", "cut")] if switch < switches else []
            )
            for session in started:
                _begin(client, session, figures)
            if started:
                figures.counts[f"switches from {version.name}"] += 1
        finally:
            server.kill()
            server.schema = None  # the database is there


def _server(folder: Path, version: Version, number: int) -> Server:
    return Server(
        folder=folder / f"worker{number}",
        state=folder / "state",
        config=Config.read(version.folder / "wrangler.toml", variables=_VARIABLES),
        mounts={"": version.folder / "src", "python_modules": paths.VENDORED},
        entry="entry",
        schema=paths.SCHEMA if number == 0 else None,
    )


def _message(session: str) -> str:
    if session.endswith(("approve", "cancel")):
        return f'use add_note {{"text":"{session}"}}\nuse send_note {{"to":"bob","text":"{session}"}}'
    return f"{session} {_LONG}" if session.endswith("cut") else f"hello from {session}"


def _begin(client: Client, session: str, figures: Figures) -> None:
    """Begin a turn of this version: to its end, to its wait, or in its middle."""
    if session.endswith("cut"):
        with client.stream(session, _message(session)) as response:
            for _ in zip(range(_LINES_BEFORE_THE_KILL), lines_of(response), strict=False):
                pass  # its reader leaves it then, and it goes on, until the Worker is killed
        return
    kind = client.post(session, _message(session))[-1]["type"]
    expected = "completed" if session.endswith("done") else "suspended"
    if kind != f"session.run.{expected}":
        figures.faults.append(f"{session}: it begins with {kind}")


def _go_on(client: Client, url: str, session: str, figures: Figures) -> None:
    """Go on with what the other version has left."""
    figures.counts[f"turns that the other version goes on with: {session.partition('-')[2]}"] += 1
    match session.partition("-")[2]:
        case "cut":
            said = answer_of(_settled(client, session))
            wanted, status = _message(session)[:40], "completed"
        case "approve":
            key = http.get(f"{client.address(session)}/stream", headers=client.headers, timeout=60)
            waits = [line["data"]["key"] for line in parsed(key) if line["type"] == "tool.approval"]
            _emit(client, url, session, waits[-1])
            client.wait_for(session, "completed")
            said, wanted, status = answer_of(_settled(client, session)), "The tools said", "completed"
        case "cancel":
            reply = http.post(f"{client.address(session)}/cancel", headers=client.headers)
            if reply.status_code != 202:
                figures.faults.append(f"{session}: its cancel is answered with {reply.status_code}")
            client.wait_for(session, "cancelled")
            said, wanted, status = "", "", "cancelled"
        case _:
            lines = client.post(session, _message(session))
            if lines[-1]["data"]["replayed"] is not True:
                figures.faults.append(f"{session}: it is answered again")
            said, wanted, status = answer_of(lines), _message(session), "completed"
    shown = client.show(session).json()
    if session.endswith("cut") and shown["attempts"] != 2:
        figures.faults.append(f"{session}: it took {shown['attempts']} attempts")
    if wanted not in said or shown["status"] != status:
        figures.faults.append(f"{session}: it ends as {shown['status']} with {said[:80]!r}")


def _settled(client: Client, session: str) -> list[dict[str, Any]]:
    return client.settle(session, _message(session), seconds=_PATIENCE_S)


def _emit(client: Client, url: str, session: str, key: str) -> None:
    run_id = quote(f"chat:acme:{session}:0", safe="")
    address = f"{url}/v1/runs/{run_id}/events/{quote(key, safe='')}"
    http.post(address, json={"payload": {"approved": True}}, headers=client.headers).raise_for_status()
