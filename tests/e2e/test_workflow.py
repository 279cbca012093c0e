"""
One task on Cloudflare Workflows and by `run_durable` over D1, both in workerd.

The Worker is in `tests/worker/workflow`: its tasks know neither of the two engines.  Everything that a step
really does leaves a row; a kill in the middle makes the platform replay the instance.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from dev import paths
from tests.support.http import http
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

SOURCE: Final = Path(__file__).resolve().parent.parent / "worker" / "workflow"
WAIT_SECONDS: Final = 90.0

APPROVED: Final = "approved: by a human"
"""No event type of the platform's, as it is."""

RESULT: Final = {
    "plan": json.dumps(
        {"topic": "tax", "float": 1.0, "int": 2**60, "text": "naïve\u2028\U0001f980", "none": [None, {"x": None}]}
    ),
    "prices": [1, 2],
    "both": ["l", "r"],
    "approval": [{"by": "ann"}, {"by": "ann"}],
    "told": [True, False, {"n": 1}],
    "drawn": ["str", "str", "float", "str"],
}


class Site:
    """The Worker's routes."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Ask the Worker."""
        return http.request(method, self.worker.url + path, json=body)

    def post(self, path: str, body: Any) -> Any:
        """Post JSON, get JSON."""
        response = self.request("POST", path, body)
        assert response.is_success, response.text
        return response.json()

    def status(self, instance: str) -> dict[str, Any]:
        """Return an instance's status, and locally also what its steps came to."""
        status: dict[str, Any] = self.request("GET", f"/instances/{instance}").json()
        return status

    def recorded(self, instance: str) -> list[str]:
        """Return what an instance's steps came to."""
        outputs: list[str] = self.status(instance)["__LOCAL_DEV_STEP_OUTPUTS"]
        return outputs

    def output(self, instance: str) -> Any:
        """Wait for an instance to end; return its output."""
        eventually(lambda: self.status(instance)["status"] in {"complete", "errored"})
        status = self.status(instance)
        assert "complete" == status["status"], status
        return status["output"]

    def effects(self, run: str) -> list[str]:
        """Return what the steps of a run really did."""
        return [row["name"] for row in self.worker.sql("SELECT name FROM effects WHERE run = ? ORDER BY ended", [run])]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    mounts = {"chatturn": paths.SOURCES / "chatturn"}
    with running_worker(source=SOURCE, deployment=SOURCE / "wrangler.toml", mounts=mounts) as worker:
        yield Site(worker)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class FirstLife:
    """What was on record, and done, when the Worker was killed."""

    drawn: list[Any]
    """The time, the id and the chance that the first instance drew."""
    effects: list[str]
    tried: list[str]


@pytest.fixture(scope="module")
def first_life(site: Site) -> FirstLife:
    """Two instances, killed while they waited for an event; since then the Worker runs again."""
    site.post("/instances/i-1", {"task": "research", "topic": "tax"})
    site.post("/instances/i-2", {"task": "misfortune", "topic": ""})
    eventually(lambda: len(site.recorded("i-1")) == 7 and len(site.recorded("i-2")) == 3)
    life = FirstLife(
        drawn=[json.loads(text)["value"] for text in site.recorded("i-1")[2:5]],
        effects=site.effects("i-1"),
        tried=site.effects("i-2"),
    )
    site.worker.kill()
    site.worker.restart()
    return life


def test_an_instance_survives_a_kill_and_runs_no_step_twice(site: Site, first_life: FirstLife) -> None:
    """A failed try is tried again, parallel steps overlap, and after a kill only what is not on record is done."""
    site.post(f"/instances/i-1/{APPROVED}", {"by": "ann"})

    assert RESULT == site.output("i-1")
    assert ["plan", "prices", "prices", "right", "left"] == first_life.effects
    [*after, last] = site.effects("i-1")
    assert first_life.effects == after
    assert first_life.drawn == json.loads(last)[:3], "time, id and chance are those of the first life"
    [left, right] = site.worker.sql(
        "SELECT * FROM effects WHERE run = 'i-1' AND name IN ('left', 'right') ORDER BY name"
    )
    assert left["began"] < right["ended"] < left["ended"]


def test_the_same_task_gives_the_same_result_over_d1(site: Site) -> None:
    """It is the same function; suspended for its sleep and its event, it goes on when it is called again."""
    answers: list[dict[str, Any]] = []

    def run_on() -> bool:
        answers.append(site.post("/runs/r-1", {"task": "research", "topic": "tax"}))
        return bool(answers[-1]["suspended"])

    assert run_on()
    site.post(f"/runs/r-1/{APPROVED}", {"by": "ann"})
    eventually(lambda: not run_on())

    assert RESULT == answers[-1]["result"]
    assert ["plan", "prices", "prices", "right", "left"] == site.effects("r-1")[:-1]


def test_what_failed_stays_failed_after_a_kill(site: Site, first_life: FirstLife) -> None:
    """Every life of an instance hears the same errors, and no try is made again."""
    site.post("/instances/i-2/go-on", None)

    first, second = site.output("i-2")
    expected = ["AttemptsExhausted", "AttemptsExhausted", "StepTimeout", "TypeError", "DurableAwaitEventTimeoutError"]
    assert (expected, expected) == (first, second)
    assert ["twice", "twice", "hopeless", "no json"] == first_life.tried == site.effects("i-2")


def test_an_event_for_an_instance_that_is_not_there_is_refused(site: Site) -> None:
    """As `RunNotFound`, which answers 404."""
    response = site.request("POST", "/instances/nobody/go-on")

    assert (404, "RunNotFound") == (response.status_code, response.json()["error"])
