"""Five hundred kills in the middle of concurrent turns; `make chaos` does five thousand."""

from pathlib import Path

import pytest

from tests.chaos.rig import run

KILLS = 500


@pytest.mark.timeout(480)
def test_no_answer_is_lost_or_doubled_whatever_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None lost, none doubled, no model call beyond one per attempt, each log one log."""
    report = run(tmp_path, kills=KILLS, seed=20261127)
    with capsys.disabled():
        print(f"\n{report.table()}\n")

    assert report.clean, report
    assert report.faults["SIGKILL"] == KILLS
    assert report.attempts > report.turns
