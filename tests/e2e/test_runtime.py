"""
The embedded local runtime gives Python what Cloudflare gives it.

The Worker is the probe in `tests/worker/probe`: one path for each thing to see.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import pytest

from dev import paths
from tests.support.http import http
from tests.support.processes import descendants, listening_addresses, waited_for_a_processor
from tests.support.worker import Worker, running_worker

PROBE: Final = Path(__file__).resolve().parent.parent / "worker" / "probe"
WAIT_SECONDS: Final = 60.0


@pytest.fixture(scope="module")
def probe() -> Iterator[Worker]:
    with running_worker(
        source=PROBE,
        deployment=PROBE / "wrangler.toml",
        schema=PROBE / "schema.sql",
        variables={"SECRET": "a secret"},
    ) as worker:
        yield worker


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a test saw of the probe before it was killed."""

    pids: Sequence[int]
    moments: Sequence[dict[str, Any]]
    count: int


@pytest.fixture(scope="module")
def first_life(probe: Worker) -> Life:
    """The probe before a SIGKILL in the middle of things; since then it runs again, on the same state."""
    life = Life(pids=probe.pids(), moments=[get(probe, "now"), get(probe, "now")], count=get(probe, "count/kept"))
    http.get(f"{probe.url}/note/before-the-kill")
    probe.kill()
    probe.restart()
    return life


def get(worker: Worker, path: str) -> Any:
    response = http.get(f"{worker.url}/{path}")
    assert response.status_code == HTTPStatus.OK, response.text
    return response.json()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def notes(worker: Worker) -> list[str]:
    return [row["text"] for row in worker.sql("SELECT text FROM notes ORDER BY id")]


def test_it_boots_well_within_fifteen_seconds(probe: Worker) -> None:
    """More would be a defect: a developer starts it many times a day.  Waiting for a processor does not count."""
    waited = sum(waited_for_a_processor(pid) for pid in [*probe.pids("node"), *probe.pids()])

    assert probe.boot_seconds - waited < 15


def test_every_socket_is_on_the_loopback_address(probe: Worker) -> None:
    """Nobody else on the network can reach the Worker, its inspector or its database."""
    leader = probe.server.process.pid

    assert {"127.0.0.1"} == listening_addresses(descendants(leader))


def test_the_search_path_is_in_the_order_of_the_platform(probe: Worker) -> None:
    """A module of ours named like one of the standard library, or like a vendored one, is hidden here, too."""
    path = get(probe, "path")["path"]

    order = ["/lib/python313.zip", "/lib/python3.13", "/session/metadata/python_modules", "/session/metadata"]
    assert order == [name for name in path if name in order]
    assert path[-2].endswith("site-packages")
    assert path[-1] == "/session/metadata"


def test_nothing_of_the_machine_that_made_the_snapshot_is_in_it(probe: Worker) -> None:
    """Python takes workerd for the process that it started in."""
    process = get(probe, "process")

    assert ["/session/this.program", "./this.program"] == process["argv"]
    assert "/session" == process["cwd"] == process["environ"]["HOME"]
    assert {"web_user"} == {process["environ"][name] for name in ("USER", "LOGNAME")}
    assert str(paths.ROOT) not in json.dumps(process)


def test_modules_come_with_byte_code_that_names_their_sources(probe: Worker) -> None:
    """It saves half the time of a boot, and a traceback shows the same lines."""
    seen = get(probe, "modules/workers.utils")

    assert seen["byte_code"]
    assert "/session/metadata/python_modules/workers/utils.py" == seen["file"]
    assert [seen["file"]] == seen["sources"]


def test_files_beside_the_code_can_be_read_and_none_written(probe: Worker) -> None:
    """The bundle is mounted read-only."""
    assert {"content": "gave mounted beside the code\n", "write": "raised PermissionError"} == get(probe, "files")


def test_entropy_and_the_clock_do_not_exist_at_import(probe: Worker) -> None:
    """What would fail when deployed fails here already."""
    seen = get(probe, "at_import")

    assert ("raised RuntimeError", "raised OSError", 0) == (seen["random"], seen["uuid4"], seen["time"])
    assert ("raised OSError", "gave 41") == (seen["unseeded"], seen["seeded"])


def test_timers_entropy_and_fetch_are_refused_at_import(probe: Worker) -> None:
    """What JavaScript offers is refused by workerd itself."""
    seen = get(probe, "at_import")

    assert {"raised JsException"} == {seen["timer"], seen["entropy"], seen["fetch"]}


def test_a_timer_passes_nothing_on_and_one_without_a_time_cannot_be_taken_back(probe: Worker) -> None:
    """`setTimeout` has the two parameters of the platform's, and is the same in requests."""
    seen = get(probe, "timers")

    assert {"heard": [[], [], []], "ids": [True, False, False], "parameters": 2} == seen


def test_entropy_and_the_clock_are_real_in_a_request(probe: Worker, first_life: Life) -> None:
    """Nothing that the boot made predictable stays so."""
    seen = [*first_life.moments, get(probe, "now")]

    for name in ("random", "uuid4"):
        assert len({moment[name] for moment in seen}) == 3
    assert abs(seen[-1]["time"] - time.time()) < 60


def test_python_can_be_suspended_without_await(probe: Worker) -> None:
    """`run_sync` works in a handler, for a timer and for a fetch."""
    answer = http.post(f"{probe.url}/waiting", content=f"{probe.url}/healthz").json()

    assert {"can_run_sync": True, "slept": "slept", "fetched": "ok"} == answer


def test_vars_secrets_and_databases_are_there_raw_and_wrapped(probe: Worker) -> None:
    """Both generations of the SDK's bindings see the same values."""
    expected = {
        "wrapped": ["hello", "a secret", 1],
        "raw": ["hello", "a secret", 2],
        "missing": "raised AttributeError",
    }
    assert expected == get(probe, "settings")


def test_every_request_has_an_instance_of_its_own(probe: Worker) -> None:
    """State on `self` does not travel from one request to the next."""
    before = get(probe, "instances")

    assert before + 1 == get(probe, "instances")


def test_a_coroutine_given_to_wait_until_outlives_the_response(probe: Worker) -> None:
    """The proxy of the Python future is kept until the future is done."""
    http.get(f"{probe.url}/background/go-on")
    http.get(f"{probe.url}/note/go-on")

    eventually(lambda: "go-on, and the response was long gone" in notes(probe))


def test_a_stream_arrives_line_by_line(probe: Worker) -> None:
    """Nothing between Python and the client holds a line back."""
    began = time.monotonic()
    headers = {"accept-encoding": "identity"}  # A body without a type would be compressed as a whole.
    with http.stream("GET", f"{probe.url}/stream/60", headers=headers) as response:
        arrivals = [(line, time.monotonic() - began) for line in response.iter_lines()]

    assert [str(number) for number in range(60)] == [line for line, _ in arrivals]
    assert arrivals[-1][1] - arrivals[0][1] > 0.3


def test_a_disconnect_is_seen_as_a_signal_and_as_a_refused_write(probe: Worker) -> None:
    """`enable_request_signal` holds here as it does when deployed."""
    with http.stream("GET", f"{probe.url}/stream/400", headers={"accept-encoding": "identity"}) as response:
        next(response.iter_lines())

    eventually(lambda: {"abort signal", "write refused"} <= set(notes(probe)))


def test_a_cron_tick_reaches_the_scheduled_handler(probe: Worker) -> None:
    """It is called with `(controller, env, ctx)`."""
    response = http.get(f"{probe.url}/cdn-cgi/local/scheduled", params={"cron": "* * * * *"})

    assert response.status_code == HTTPStatus.OK
    eventually(lambda: "scheduled * * * * *" in notes(probe))


def test_a_durable_object_in_python_keeps_its_state(probe: Worker) -> None:
    """Its methods are called by RPC, its storage is real."""
    assert [2, 4, 2] == [get(probe, "count/a"), get(probe, "count/a"), get(probe, "count/b")]


def test_a_workflow_in_python_runs_its_steps(probe: Worker) -> None:
    """Payload in, output of the last step out."""
    status = get(probe, "double/21")

    assert ("complete", 42) == (status["status"], status["output"])


def test_a_named_entrypoint_is_called_by_rpc(probe: Worker) -> None:
    """Values are converted both ways."""
    assert {"sum": 6, "of": [1, 2, 3]} == get(probe, "add")


def test_a_mistake_in_a_handler_shows_its_traceback(probe: Worker) -> None:
    """To the developer, in the terminal."""
    response = http.get(f"{probe.url}/fail")

    assert response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    probe.logged("LookupError: a mistake in a handler")


def test_many_requests_at_once_do_not_meet(probe: Worker) -> None:
    """Each has a context of its own, though they share one interpreter."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: get(probe, "settings")["raw"][2], range(64)))

    assert [2] * 64 == answers


def test_what_was_stored_survives_a_kill(probe: Worker, first_life: Life) -> None:
    """In D1 and in a Durable Object; none of the processes does."""
    assert "before-the-kill" in notes(probe)
    assert not set(first_life.pids) & set(probe.pids())
    assert first_life.count + 2 == get(probe, "count/kept")
