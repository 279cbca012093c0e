"""The tutorial's chat window, in Node, against the real workerd: two windows, and all that people do in them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import token
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

NODE = Path(sys.executable).with_name("node")
SCENARIO = Path(__file__).with_name("chat_window.mjs")
QUESTIONS = ("one.", "slow two.", "three.", "four.", "five.", "slow six.", "uno.")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A Worker whose model repeats the question, some of them slowly."""
    with Upstream() as upstream:
        for question in QUESTIONS:
            pause_s = 0.8 if "slow" in question else 0.2
            upstream.on(question, Script(text=f"re: {question}", pause_s=pause_s))
        model = {"BACKEND": "openai", "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "k"}
        with running_worker(variables={"WHEN_BUSY": "queue", **model}) as started:
            yield started


@pytest.mark.timeout(180)
def test_two_windows_show_one_thread(worker: Worker) -> None:
    """Send, type ahead, say at the same moment, stop, regenerate, edit, come back, reload; and where that is refused."""
    command = [str(NODE), str(SCENARIO), worker.url, token(), "window"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)

    assert done.returncode == 0, done.stderr[-4_000:]
    told = json.loads(done.stdout)
    assert told == {
        "followed": "running",
        "position": 1,
        "both": ["five.|re: five.", "four.|re: four."],
        "stopped": True,
        "refused": ["five.|re: five.", "four.|re: four."],
        "versions": [[1, False, "one."], [2, True, "uno."]],
    }
    assert worker.sql("SELECT count(*) AS n FROM chat_turns WHERE session_id = 'window'") == [{"n": 8}]
