"""Who asks too often, in the real workerd: stored answers come again in every format, and readers lose nothing."""

from pathlib import Path
from typing import Any

import pytest

from dev import paths
from tests.e2e.conftest import StartWorker
from tests.e2e.test_owner import with_owners
from tests.support.client import Client, answer_of, lines_of, parsed
from tests.support.http import http
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker

pytestmark = pytest.mark.slow

WORDS = " ".join(f"word{number}" for number in range(30))


def use_up(worker: Worker, client: Client) -> None:
    """Ask until there is too much."""
    statuses = [http.get(client.address("none"), headers=client.headers).status_code for _ in range(12)]
    assert statuses[-1] == 429, worker.log


@pytest.mark.parametrize("owned", [False, True], ids=["alone", "with owners"])
def test_who_asks_too_often_gets_what_is_stored_and_loses_no_stream(
    start_worker: StartWorker, tmp_path: Path, owned: bool
) -> None:
    """Four formats again and again, a stream that was begun before, and nothing more is written."""
    with Upstream() as upstream:
        upstream.on("slowly", Script(text=WORDS, pause_s=0.1))
        variables = {
            "BACKEND": "openai", "MODEL": "scripted-1", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-tests",
            "RATE_SUBJECT_PER_MINUTE": "20",  # five at once, one more in 3 s
        }  # fmt: skip
        deployment = with_owners(tmp_path) if owned else paths.DEPLOYMENT_CONFIG
        worker = start_worker(variables=variables, deployment=deployment)
        ann = Client(worker.url)

        def requests(session: str) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
            messages = [{"role": "user", "content": "hello"}]
            completion = {"model": "default", "messages": messages, "stream": True}
            part = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
            return [
                (f"/v1/sessions/{session}/turns/0", {"message": "hello"}, {}),
                ("/v1/chat/completions", completion, {"idempotency-key": session}),
                ("/v1/chat/completions", {**completion, "metadata": {"session_id": f"{session}.2"}}, {}),
                ("/v1/ai-sdk/chat", {"id": f"{session}.3", "messages": [part]}, {}),
            ]

        def ask(path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str]:
            answer = http.post(f"{worker.url}{path}", json=body, headers={**ann.headers, **headers})
            return answer.status_code, answer.text

        first = [ask(*each) for each in requests("mine")]
        assert {status for status, _ in first} == {200}, first
        runs = worker.sql("SELECT count(*) AS n FROM durable_runs")
        use_up(worker, ann)
        told = [ask(*each)[0] for each in requests("new")]
        again = [[ask(*each) for each in requests("mine")] for _ in range(5)]

        assert told == [429] * 4
        assert {status for answers in again for status, _ in answers} == {200}
        assert [text for _, text in again[0][1:]] == [text for _, text in again[-1][1:]]
        assert worker.sql("SELECT count(*) AS n FROM durable_runs") == runs

        bob = Client(worker.url, sub="bob")
        with bob.stream("slow", "slowly") as response:
            coming = lines_of(response)
            next(coming)
            use_up(worker, bob)
            address, headers = f"{bob.address('slow')}/stream", {**bob.headers, "accept": "text/event-stream"}
            with http.stream("GET", address, headers=headers) as events:
                shown = [line for line in events.iter_lines() if line.startswith("data:")]
            with http.stream("GET", f"{address}?after=3", headers=bob.headers) as following:
                rest = parsed(following)
            with http.stream("GET", f"{worker.url}/v1/ai-sdk/chat/slow/stream", headers=bob.headers) as chat:
                assert chat.status_code == 200
                assert "word29" in chat.read().decode()
            list(coming)

        assert "session.run.completed" in shown[-1]
        assert rest[-1]["type"] == "session.run.completed"
        assert answer_of(bob.post("slow", "slowly")) == WORDS
        assert len(upstream.calls("slowly")) == 1
