"""Turns that run in their session's Durable Object, in the real workerd."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from dev import paths
from tests.support.client import Client, answer_of, lines_of, parsed
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

WORDS = " ".join(f"word{number}" for number in range(30))
LEASE_MS = 2_000


def with_owners(folder: Path) -> Path:
    """Write `wrangler.toml` as an operator changes it who wants owners: every line that is for them, uncommented."""
    text = paths.DEPLOYMENT_CONFIG.read_text()
    parts = (
        '"durable_object',
        "[[durable_objects",
        'name = "SESSIONS',
        "class_name",
        "[[migrations",
        "tag",
        "new_sqlite",
    )
    for part in parts:
        assert f"# {part}" in text
        text = text.replace(f"# {part}", part)
    path = folder / "wrangler.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment with owners."""
    return with_owners(tmp_path_factory.mktemp("owner"))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The scripted model."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def worker(upstream: Upstream, deployment: Path) -> Iterator[Worker]:
    """A Worker with owners."""
    variables = {
        "BACKEND": "openai", "MODEL": "scripted-1", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-tests",
        "LEASE_MS": str(LEASE_MS),
    }  # fmt: skip
    with running_worker(variables=variables, deployment=deployment) as worker:
        yield worker


def test_a_turn_runs_in_its_sessions_object(worker: Worker, upstream: Upstream) -> None:
    """It streams, is followed, replays and is refused as anywhere else."""
    upstream.on("owned", Script(text=WORDS, pause_s=0.03))
    client = Client(worker.url)
    with client.stream("owned", "owned") as response:
        coming = lines_of(response)
        next(coming)
        with client.stream("owned", "owned") as second:
            refused = second.status_code
        with httpx.stream("GET", f"{client.address('owned')}/stream", headers=client.headers) as following:
            followed = parsed(following)
        rest = list(coming)
    replay = client.post("owned", "owned")

    assert 409 == refused
    assert WORDS == answer_of(followed) == answer_of(replay)
    assert len(followed) == len(rest) + 1
    assert 1 == len(upstream.calls("owned"))
    assert 401 == httpx.get(f"{client.address('owned')}/stream").status_code


def test_a_lost_turn_is_finished_with_nobody_asking(worker: Worker, upstream: Upstream) -> None:
    """Worker and object are killed in the middle of an answer; the alarm takes the turn over."""
    upstream.on("lost", Script(text=WORDS, pause_s=0.05))
    client = Client(worker.url)
    with suppress(httpx.HTTPError), client.stream("lost", "lost") as response:
        coming = lines_of(response)
        for _ in range(8):
            next(coming)
        time.sleep(0.5)
        worker.kill()
    worker.restart()
    query = "SELECT status, epoch FROM durable_runs WHERE scenario_id = 'lost'"
    deadline = time.monotonic() + 20
    while (run := worker.sql(query)[0])["status"] != "completed":
        assert time.monotonic() < deadline, run
        time.sleep(0.1)

    assert 2 == run["epoch"]
    assert 2 == len(upstream.calls("lost"))
    assert WORDS == answer_of(client.post("lost", "lost"))


def test_turns_of_other_clients_run_there_too(worker: Worker, upstream: Upstream) -> None:
    """Their session is in the body or follows from a key; it runs once, where its followers find it in memory."""
    upstream.on("others", Script(text=WORDS, pause_s=0.02))
    client = Client(worker.url)
    question = {"role": "user", "content": "others", "parts": [{"type": "text", "text": "others"}]}
    requests: tuple[tuple[str, dict[str, object], dict[str, str]], ...] = (
        ("/v1/ai-sdk/chat", {"id": "others", "messages": [question]}, {}),
        ("/v1/chat/completions", {"model": "default", "messages": [question]}, {"idempotency-key": "others"}),
    )
    for path, body, headers in requests:
        reply = httpx.post(worker.url + path, json=body, headers={**client.headers, **headers}, timeout=60)
        assert reply.status_code == 200, reply.text
        assert "word29" in reply.text
    refused = httpx.post(worker.url + "/v1/chat/completions", content=b"{", headers=client.headers, timeout=60)

    assert 2 == len(upstream.calls("others"))
    assert {"completed"} == {row["status"] for row in worker.sql("SELECT status FROM durable_runs WHERE epoch = 1")}
    assert (415, "unsupported_media_type") == (refused.status_code, refused.json()["error"]["code"])
