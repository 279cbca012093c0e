"""Kills in the middle of concurrent turns, and of threads that several people edit; `make chaos` does thousands."""

from pathlib import Path

import pytest

from tests.chaos import threads
from tests.chaos.rig import run

pytestmark = pytest.mark.slow

KILLS = 500
THREAD_KILLS = 60


@pytest.mark.timeout(480)
def test_no_answer_is_lost_or_doubled_whatever_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None lost, none doubled, no model call beyond one per attempt, each log one log."""
    report = run(tmp_path, kills=KILLS, seed=20261127)
    with capsys.disabled():
        print(f"\n{report.table()}\n")

    assert report.clean, report
    assert report.faults["SIGKILL"] == KILLS
    assert report.attempts > report.turns


@pytest.mark.timeout(480)
def test_no_version_is_lost_and_every_thread_reads_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor was a model ever shown what nobody had said."""
    report = threads.run(tmp_path, kills=THREAD_KILLS, seed=20261129)
    with capsys.disabled():
        print(f"\n{report.table()}\n")

    assert [] == report.faults
    assert report.counted["faults: SIGKILL"] == THREAD_KILLS
    assert report.counted["versions"] > report.counted["turns"] > report.counted["threads"]
