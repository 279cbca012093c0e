"""`make run`: what it prints, what it opens, and that it leaves nothing behind."""

import fcntl
import io
import os
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

import jwt
import pytest

from dev import paths
from dev.bundle import SOURCES_ARCHIVE
from dev.config import Config
from dev.secrets_file import ensure_signing_secret
from dev.server import free_port, is_free
from dev.terminal import Screen
from tests.support.http import http
from tests.support.processes import descendants, exists

pytestmark = pytest.mark.slow

PRODUCTS_AND_NEW: Final = ("assistant", "legal", "gtm", "agent", "contracts")
PROBE: Final = Path(__file__).resolve().parent.parent / "worker" / "probe"
WAIT_SECONDS: Final = 120.0
"""How long something may take on a busy machine."""


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


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
        names = {comm(pid) for pid in running}
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


def test_the_cron_runs_and_a_process_that_dies_is_started_again(make_run: Callable[..., Command]) -> None:
    """Also the one in front, whose successor knows of no Worker, and one that only takes no connections any more."""
    command = make_run(*of_the_probe(), "--cron-seconds", "2")
    url = f"http://127.0.0.1:{command.port}"
    command.eventually(lambda: http.get(f"{url}/noted/scheduled%20*%20*%20*%20*%20*").json() is True)
    workerds = [pid for pid in descendants(command.process.pid) if "workerd" in comm(pid)]
    for pid in workerds:
        os.kill(pid, signal.SIGKILL)
    command.eventually(lambda: "it answers again" in command.output)
    answer = http.get(f"{url}/healthz").text
    largest = max((pid for pid in descendants(command.process.pid) if "workerd" in comm(pid)), key=resident_pages)
    os.kill(largest, signal.SIGTERM)
    command.eventually(lambda: "it answers again" in command.output.partition("nobody answers, starting again")[2])
    answer_then = http.get(f"{url}/healthz").text
    command.end(signal.SIGTERM)

    assert 2 == len(workerds)
    assert "workerd died, starting again" in command.output
    assert ("ok", "ok") == (answer, answer_then)


def test_only_wrangler_says_that_a_process_has_died() -> None:
    """A line of the Worker, a user's message in its log, may quote it."""
    said = "The Workers runtime crashed unexpectedly and is being restarted (crash #1)."
    lines = [
        said,
        f'{{"message":"[x] {said}"}}',
        f"\x1b[33m▲ \x1b[43;33m[\x1b[43;30mWARNING\x1b[43;33m]\x1b[0m {said}",
        f"[wrangler:warn] {said}",
    ]
    screen = Screen(io.BytesIO("\n".join(lines).encode()), to=io.StringIO())
    deadline = time.monotonic() + WAIT_SECONDS
    while screen.crashes < 2:
        assert time.monotonic() < deadline

    assert 2 == screen.crashes


def test_a_product_without_an_environment_is_told_what_to_write(tmp_path: Path) -> None:
    """What is printed can be pasted into `wrangler.toml`, and then it is one."""
    arguments = ["--product", "contracts", "--home", str(tmp_path), "--port", str(free_port())]
    finished = subprocess.run(
        [sys.executable, "-m", "dev.run", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False
    )
    said, _, to_paste = finished.stdout.partition("\n")
    edited = tmp_path / "wrangler.toml"
    edited.write_text(paths.DEPLOYMENT_CONFIG.read_text() + to_paste)

    assert (1, "wrangler.toml has no [env.contracts]. Add to it:") == (finished.returncode, said)
    assert "contracts" == Config.read(edited, environment="contracts").deployment["vars"]["PRODUCT"]
    assert 5 == len({Config.read(edited, environment=name).database_ids()["DB"] for name in PRODUCTS_AND_NEW})


def test_the_product_at_the_top_of_the_file_needs_no_environment() -> None:
    """Its settings are the ones that stand there."""
    assert Config.read(paths.DEPLOYMENT_CONFIG, environment="assistant") == Config.read(paths.DEPLOYMENT_CONFIG)


def test_a_database_without_an_id_is_named_like_its_binding() -> None:
    """As wrangler does; so `make run` needs none."""
    databases = [{"binding": "DB"}, {"binding": "B", "database_id": "b"}]

    assert {"DB": "DB", "B": "b"} == Config(deployment={"d1_databases": databases}).database_ids()


def test_two_set_ups_wait_for_each_other(tmp_path: Path) -> None:
    """The second says so, where it is in nobody's way (`TOKEN=$(make token)`), and runs once the first has ended."""
    lock, order = tmp_path / "made" / "lock", tmp_path / "order"
    order.touch()
    locked = [sys.executable, str(paths.ROOT / "dev" / "locked.py"), str(lock)]
    first = subprocess.Popen(
        [*locked, "sh", "-c", f"read word; echo $word >> {order}"], stdin=subprocess.PIPE, text=True
    )
    while not lock.exists() or is_lockable(lock):
        assert first.poll() is None
    second = subprocess.Popen([*locked, "sh", "-c", f"echo second >> {order}"], stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = second.stderr.readline()
    first.communicate("first\n")
    second.communicate()

    assert "another set-up runs in this folder; waiting for its end …\n" == said
    assert ["first", "second"] == order.read_text().split()


def is_lockable(file: Path) -> bool:
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_token_says_what_it_was_asked_to_say() -> None:
    """For a Worker that is deployed, signed with its own secret."""
    secret = "a secret of a deployment, thirty-two bytes or more"
    arguments = ["--scope", "operate turns:read", "--tenant", "acme", "--sub", "ann", "--days", "2"]
    printed = subprocess.run(
        [sys.executable, "-m", "dev.local_token", *arguments],
        cwd=paths.ROOT,
        env={**os.environ, "AUTH_JWT_SECRET": secret},
        capture_output=True,
        text=True,
        check=True,
    )
    claims = jwt.decode(printed.stdout.strip(), secret, algorithms=["HS256"])

    assert ("operate turns:read", "acme", "ann") == (claims["scope"], claims["tenant"], claims["sub"])
    assert abs(claims["exp"] - time.time() - 2 * 24 * 3600) < 60


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scope", "everything"], "no such scope: everything; there are operate, turns, turns:read\n"),
        *((["--days", days], "DAYS must be a number above 0, and at most 36500\n") for days in ("nan", "0", "inf")),
        (["--days=-1"], "DAYS must be a number above 0, and at most 36500\n"),
    ],
)
def test_a_token_that_cannot_be_is_refused(arguments: list[str], told: str) -> None:
    """With what there is."""
    refused = subprocess.run(
        [sys.executable, "-m", "dev.local_token", *arguments],
        cwd=paths.ROOT,
        env={**os.environ, "AUTH_JWT_SECRET": "a secret of a deployment, thirty-two bytes or more"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (1, "") == (refused.returncode, refused.stdout)
    assert told == refused.stderr


def test_a_new_file_of_secrets_is_for_its_owner_only(tmp_path: Path) -> None:
    """Nobody else on the machine can sign tokens."""
    ensure_signing_secret(tmp_path / ".dev.vars")

    assert (tmp_path / ".dev.vars").stat().st_mode & 0o077 == 0
