"""
The Worker is killed in the middle of turns, and comes back on the same database.

SIGKILL to wrangler and workerd at chosen moments and at random ones: one answer, one message, one model call
an attempt, and no turn that stays stuck for longer than its lease.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final

import httpx
import pytest

from tests.support.client import Client, answer_of, lines_of
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker, running_worker

LEASE_MS = 4_000
WORDS = " ".join(f"word{number}" for number in range(20))
# What the model does of its answer before the Worker dies; how many lines of it the client has seen.
MOMENTS: Final = {
    "before the first word": (Script(before_headers_s=None), 0),
    "after one line": (Script(text=WORDS, stop_after=2, ending="hang"), 1),
    "mid-answer": (Script(text=WORDS, pause_s=0.05, stop_after=12, ending="hang"), 10),
}
FINISHED: Final = "finish before the kill."


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


@pytest.fixture(scope="module")
def killed(worker: Worker, upstream: Upstream) -> Worker:
    """The Worker, killed once a turn was finished and three others were at their moment, and started again."""
    client = Client(worker.url)
    upstream.on(FINISHED, Script(text=WORDS))
    client.post("finished", FINISHED)
    with ExitStack() as open_streams:
        for moment, (script, seen) in MOMENTS.items():
            session, message = turn_at(moment)
            upstream.on(message, script, Script(text=WORDS))
            coming = lines_of(open_streams.enter_context(client.stream(session, message)))
            for _ in range(seen):
                next(coming)
            assert upstream.wait_calls(1, 60, message)
        worker.kill()
    worker.restart()
    return worker


def turn_at(moment: str) -> tuple[str, str]:
    """Return the session and the message of the turn that is interrupted then."""
    return f"killed-{moment.replace(' ', '-')}", f"killed {moment}."


def wait_for_the_leases(worker: Worker) -> None:
    """Wait, by the clock of this machine, which is the database's, until every lease has run out."""
    query = "SELECT max(unixepoch(lease_expires_at, 'subsec')) AS moment FROM durable_runs"
    [row] = worker.sql(query)
    if row["moment"] is not None:
        time.sleep(max(0.0, row["moment"] - time.time()) + 0.01)


def assert_answered_once(worker: Worker, upstream: Upstream, session: str, message: str) -> None:
    """Check what is left behind by a turn: one of everything."""
    query = "SELECT content FROM chat_messages WHERE session_id = ? AND role = 'assistant'"
    keys = [call.key for call in upstream.calls(message)]
    [run] = worker.sql("SELECT status, epoch, lease_holder_id FROM durable_runs WHERE scenario_id = ?", (session,))

    assert [WORDS] == [row["content"] for row in worker.sql(query, (session,))]
    assert ("completed", None) == (run["status"], run["lease_holder_id"])
    assert len(set(keys)) == len(keys) <= run["epoch"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_worker_loses_nothing(killed: Worker, upstream: Upstream, moment: str) -> None:
    """It died while the turn streamed: once the lease has run out, the next request gets the answer, once."""
    session, message = turn_at(moment)
    wait_for_the_leases(killed)
    lines = Client(killed.url).post(session, message)

    assert WORDS == answer_of(lines)
    assert {2} == {line["attempt"] for line in lines if "attempt" in line}
    assert_answered_once(killed, upstream, session, message)


def test_a_turn_that_was_finished_when_the_worker_died_replays(killed: Worker, upstream: Upstream) -> None:
    """What was completed stays completed, and costs nothing again."""
    lines = Client(killed.url).post("finished", FINISHED)

    assert ["session.run.started", "result", "session.run.completed"] == [line["type"] for line in lines]
    assert 1 == len(upstream.calls(FINISHED))
    assert_answered_once(killed, upstream, "finished", FINISHED)


@pytest.mark.slow
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
