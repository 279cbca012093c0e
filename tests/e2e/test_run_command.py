"""`make run`: what it prints, what it opens, and that it leaves nothing behind."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from dev import paths
from dev.bundle import SOURCES_ARCHIVE
from dev.secrets_file import ensure_signing_secret
from dev.server import free_port, is_free
from tests.support.http import http
from tests.support.processes import descendants, exists

PROBE: Final = Path(__file__).resolve().parent.parent / "worker" / "probe"
WAIT_SECONDS: Final = 120.0
"""How long something may take on a busy machine."""


@dataclass
class Command:
    """A running `make run`, with local state of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    def eventually(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        """Send it a signal; check that nothing of it is left."""
        running = descendants(self.process.pid)
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in running}
        self.process.send_signal(number)
        status = self.process.wait(WAIT_SECONDS)

        assert "workerd" in names
        assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)
        self.eventually(lambda: not any(exists(pid) for pid in running))
        self.eventually(lambda: is_free(self.port))


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def run(*arguments: str, wait: bool = True) -> Command:
        port = free_port()
        log = tmp_path / f"{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dev.run", "--port", str(port), "--home", str(tmp_path), *arguments],
                cwd=paths.ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        command = Command(process, port, log)
        started.append(command)
        if wait:
            command.eventually(lambda: "reloads by itself" in command.output or "curl -N" in command.output)
        return command

    yield run
    for command in started:
        if command.process.poll() is None:  # The test has failed before it ended it.
            command.process.terminate()
            command.process.wait(WAIT_SECONDS)


def of_the_probe(source: Path = PROBE) -> tuple[str, ...]:
    return (
        *("--source", str(source)),
        *("--config", str(PROBE / "wrangler.toml")),
        *("--schema", str(PROBE / "schema.sql")),
    )


# However it ends, no process is left behind: each of the tests below ends its command in another way.


def test_an_edit_during_the_start_is_not_lost(make_run: Callable[..., Command], tmp_path: Path) -> None:
    """It is noticed once the Worker answers.  The end is a kill that cannot be caught."""
    source = tmp_path / "source"
    source.mkdir()
    entry = source / "entry.py"
    entry.write_text((PROBE / "entry.py").read_text())
    command = make_run(*of_the_probe(source), wait=False)
    packed = tmp_path / "dev" / ".build" / str(command.port) / "worker" / SOURCES_ARCHIVE
    command.eventually(packed.exists)
    entry.write_text(entry.read_text().replace('"ok"', '"edited"'))
    command.eventually(lambda: "reloaded in" in command.output)
    answer = http.get(f"http://127.0.0.1:{command.port}/healthz").text
    command.end(signal.SIGKILL)

    assert "entry.py changed, reloading" in command.output
    assert "edited" == answer


def test_a_port_in_use_is_said_at_once(tmp_path: Path) -> None:
    """And another one is proposed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = subprocess.run(
            [sys.executable, "-m", "dev.run", "--port", str(port), "--home", str(tmp_path)],
            cwd=paths.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    assert finished.returncode == 1
    assert f"port {port} is in use" in finished.stdout
    assert f"make run PORT={port + 1}" in finished.stdout


def test_the_printed_command_works_when_pasted(make_run: Callable[..., Command]) -> None:
    """It is the last thing printed, and it streams a turn of the real Worker; then comes Ctrl-C."""
    command = make_run()
    *_, pasted = command.output.strip().splitlines()
    assert pasted.startswith("curl -N ")
    # Without curl, which a fresh machine may not have.
    [url] = re.findall(r"http://\S+", pasted)
    headers = dict(pair.split(": ", 1) for pair in re.findall(r"-H '([^']+)'", pasted))
    [body] = re.findall(r"-d '([^']+)'", pasted)
    response = http.post(url.replace("localhost", "127.0.0.1"), headers=headers, content=body)
    command.end(signal.SIGINT)

    assert re.search(r"ready in \d+\.\d s, BACKEND=echo", command.output)
    assert response.status_code == 200
    assert response.text.endswith("}\n")


def test_an_edit_reloads_and_a_mistake_is_shown(make_run: Callable[..., Command], tmp_path: Path) -> None:
    """The traceback is on the screen and in the answer; mending the file is all it takes; then comes `kill`."""
    source = tmp_path / "source"
    source.mkdir()
    sound = (PROBE / "entry.py").read_text()
    entry = source / "entry.py"
    entry.write_text(sound + "\n\ndef oops():\n    raise LookupError('not yet')\n\n\noops()\n")
    command = make_run(*of_the_probe(source))
    broken = http.get(f"http://127.0.0.1:{command.port}/healthz")
    shown = command.output
    entry.write_text(sound)
    command.eventually(lambda: "reloaded in" in command.output)
    mended = http.get(f"http://127.0.0.1:{command.port}/healthz")
    command.end(signal.SIGTERM)

    assert "curl -N" not in shown
    for text in (shown, broken.text):
        assert re.search(r'entry\.py", line \d+, in oops\n', text)
        assert "LookupError: not yet\n" in text + "\n"
        assert "importlib" not in text
    assert 500 == broken.status_code
    assert "ok" == mended.text


def test_dev_vars_reach_the_worker_and_gain_a_secret_of_their_own(
    make_run: Callable[..., Command], tmp_path: Path
) -> None:
    """A key for a model there is enough to use it; the tokens' secret is made once and kept.  The terminal closes."""
    secrets = tmp_path / ".dev.vars"
    secrets.write_text("OPENAI_API_KEY=a-key\nSECRET=from .dev.vars")
    command = make_run(*of_the_probe())
    seen = http.get(f"http://127.0.0.1:{command.port}/settings").json()
    kept = secrets.read_text()
    command.end(signal.SIGHUP)

    assert "BACKEND=openai" in command.output
    assert seen["wrapped"][1] == "from .dev.vars"
    assert re.search(r"^AUTH_JWT_SECRET=[\w-]{43}$", kept, re.MULTILINE)
    assert ensure_signing_secret(secrets) in kept
    assert secrets.read_text() == kept


def test_a_new_file_of_secrets_is_for_its_owner_only(tmp_path: Path) -> None:
    """Nobody else on the machine can sign tokens."""
    ensure_signing_secret(tmp_path / ".dev.vars")

    assert (tmp_path / ".dev.vars").stat().st_mode & 0o077 == 0
