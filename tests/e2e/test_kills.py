"""
The Worker is killed in the middle of turns, and comes back on the same database.

SIGKILL to wrangler and workerd at chosen moments and at random ones: one answer, one message, one model call
an attempt, and no turn that stays stuck for longer than its lease.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.support.client import Client, answer_of, lines_of
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker, running_worker

LEASE_MS = 4_000
WORDS = " ".join(f"word{number}" for number in range(20))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The scripted model."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def worker(upstream: Upstream) -> Iterator[Worker]:
    """A Worker whose model it is, with a short lease."""
    with running_worker(
        variables={
            "BACKEND": "openai",
            "MODEL": "scripted-1",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "sk-of-the-tests",
            "LEASE_MS": str(LEASE_MS),
        }
    ) as worker:
        yield worker


def assert_answered_once(worker: Worker, upstream: Upstream, session: str, message: str) -> None:
    """Check what is left behind by a turn: one of everything."""
    query = "SELECT content FROM chat_messages WHERE session_id = ? AND role = 'assistant'"
    keys = [call.key for call in upstream.calls(message)]
    [run] = worker.sql("SELECT status, epoch, lease_holder_id FROM durable_runs WHERE scenario_id = ?", (session,))

    assert [WORDS] == [row["content"] for row in worker.sql(query, (session,))]
    assert ("completed", None) == (run["status"], run["lease_holder_id"])
    assert len(set(keys)) == len(keys) <= run["epoch"]


@pytest.mark.parametrize("seen", [0, 1, 10], ids=["before the first word", "after one line", "mid-answer"])
def test_a_killed_worker_loses_nothing(worker: Worker, upstream: Upstream, seen: int) -> None:
    """Kill it while it streams, start it again, retry: the answer, once."""
    session, message = f"kill-{seen}", f"kill after {seen} lines."
    upstream.on(message, Script(text=WORDS, pause_s=0.1))
    client = Client(worker.url)
    with suppress(httpx.HTTPError), client.stream(session, message) as response:
        coming = lines_of(response)
        for _ in range(seen):
            next(coming)
        worker.kill()
    upstream.on(message, Script(text=WORDS))
    killed_at = time.monotonic()
    worker.restart()
    lines = client.settle(session, message, seconds=LEASE_MS / 1000 + 30)

    assert WORDS == answer_of(lines)
    assert {2} == {line["attempt"] for line in lines if "attempt" in line}
    assert time.monotonic() - killed_at < LEASE_MS / 1000 + worker.boot_seconds + 5
    assert_answered_once(worker, upstream, session, message)


def test_a_turn_that_was_finished_when_the_worker_died_replays(worker: Worker, upstream: Upstream) -> None:
    """What was completed stays completed, and costs nothing again."""
    message = "finish before the kill."
    upstream.on(message, Script(text=WORDS))
    client = Client(worker.url)
    client.post("finished", message)
    worker.kill()
    worker.restart()
    lines = client.post("finished", message)

    assert ["session.run.started", "result", "session.run.completed"] == [line["type"] for line in lines]
    assert 1 == len(upstream.calls(message))
    assert_answered_once(worker, upstream, "finished", message)


def test_kills_at_random_moments_of_many_turns(worker: Worker, upstream: Upstream) -> None:
    """Eight users keep retrying while the Worker is killed four times: eight answers, none doubled."""
    chance = random.Random(20261122)
    upstream.on("storm", Script(text=WORDS, pause_s=0.05))
    done = threading.Event()
    answers: dict[str, str] = {}

    def user(name: str) -> None:
        client, turn = Client(worker.url, sub=name), 0
        while not done.is_set():
            with suppress(httpx.HTTPError, AssertionError, KeyError):
                lines = client.settle(f"storm-{name}", f"storm of {name}.", turn, seconds=120)
                if lines[-1]["type"] == "session.run.completed":
                    answers[name] = answer_of(lines)
                    return
            time.sleep(0.2)

    users = [threading.Thread(target=user, args=(f"u{number}",)) for number in range(8)]
    for thread in users:
        thread.start()
    for _ in range(4):
        time.sleep(chance.uniform(0.05, 1.2))
        worker.kill()
        worker.restart()
    for thread in users:
        thread.join(timeout=90)
    done.set()

    assert {f"u{number}": WORDS for number in range(8)} == answers
    for number in range(8):
        assert_answered_once(worker, upstream, f"storm-u{number}", f"storm of u{number}.")
