"""A message is typed while another one is answered, and the Worker is killed: both are answered, in their order."""

import json
import time
from contextlib import ExitStack
from typing import Final

from tests.e2e.conftest import StartWorker
from tests.support.client import Client, answer_of, lines_of
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker

WORDS: Final = " ".join(f"word{number}" for number in range(20))
OF_THE_SECOND: Final = "Then this."


def wait_for_the_leases(worker: Worker) -> None:
    """Wait until every lease has run out: who waits holds one as well."""
    [row] = worker.sql("SELECT max(unixepoch(lease_expires_at, 'subsec')) AS moment FROM durable_runs")
    if row["moment"] is not None:
        time.sleep(max(0.0, row["moment"] - time.time()) + 0.01)


def test_messages_typed_ahead_survive_the_worker(start_worker: StartWorker) -> None:
    """Whoever comes back, the client of the second or the cron: the first is taken over, then the second begins."""
    with Upstream() as upstream:
        worker = start_worker(
            variables={
                "BACKEND": "openai",
                "MODEL": "scripted-1",
                "OPENAI_BASE_URL": upstream.url,
                "OPENAI_API_KEY": "sk-of-the-tests",
                "LEASE_MS": "4000",
                "WHEN_BUSY": "queue",
            }
        )
        client = Client(worker.url)
        half = Script(text=WORDS, pause_s=0.05, stop_after=12, ending="hang")
        upstream.on("the first.", half, Script(text=WORDS, pause_s=0.05))
        upstream.on("the second.", Script(text=OF_THE_SECOND))
        with ExitStack() as streams:
            first = lines_of(streams.enter_context(client.stream("ahead", "the first.")))
            for _ in range(5):
                next(first)
            second = lines_of(streams.enter_context(client.stream("ahead", "the second.", 1)))
            waits = json.loads(next(second))
            assert ("session.run.queued", 1) == (waits["type"], waits["data"]["position"])
            assert "pending" == client.show("ahead", 1).json()["status"]
            worker.kill()
        worker.restart()
        wait_for_the_leases(worker)
        lines = Client(worker.url).settle("ahead", "the second.", 1)

        assert OF_THE_SECOND == answer_of(lines)
        assert "session.run.completed" == lines[-1]["type"]
        said = worker.sql("SELECT content FROM chat_messages ORDER BY turn_index, role DESC")
        assert ["the first.", WORDS, "the second.", OF_THE_SECOND] == [row["content"] for row in said]
        runs = worker.sql("SELECT status, epoch FROM durable_runs ORDER BY run_id")
        assert [("completed", 2), ("completed", 1)] == [(row["status"], row["epoch"]) for row in runs]
        [call] = upstream.calls("the second.")
        assert ["the first.", WORDS, "the second."] == [message["content"] for message in call.body["messages"]][-3:]


def test_a_waiting_turn_is_begun_at_once_when_the_one_before_it_ends(start_worker: StartWorker) -> None:
    """In one isolate: the model is asked within a fraction of a second, though both are different requests."""
    with Upstream() as upstream:
        worker = start_worker(
            variables={
                "BACKEND": "openai",
                "MODEL": "scripted-1",
                "OPENAI_BASE_URL": upstream.url,
                "OPENAI_API_KEY": "sk-of-the-tests",
                "WHEN_BUSY": "queue",
            }
        )
        client = Client(worker.url)
        upstream.on("one.", Script(text=WORDS, pause_s=0.1))
        upstream.on("two.", Script(text=OF_THE_SECOND))
        with client.stream("soon", "one.") as response:
            first = lines_of(response)
            next(first)
            lines = client.post("soon", "two.", 1)
        assert OF_THE_SECOND == answer_of(lines)
        [one], [two] = upstream.calls("one."), upstream.calls("two.")
        assert one.answered_at is not None
        assert 0 <= two.began_at - one.answered_at < 1
        upstream.on("one more.", Script(text=WORDS, pause_s=0.1))
        with client.stream("soon", "one more.", 2) as response:
            next(lines_of(response))
            status, problem = client.problem("soon", "and another.", 3, when_busy="reject")
        assert (409, "session_busy") == (status, problem["code"])
