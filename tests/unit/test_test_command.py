"""`make test` runs all groups, says what came of each, and is not content if one of them is not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev import paths
from dev.test import run_groups

PASSES = "def test_passes() -> None:\n    pass\n"
FAILS = "def test_fails() -> None:\n    assert 'this' == 'that'\n"
SKIPS = "import pytest\n\n\ndef test_skips() -> None:\n    pytest.skip('no tool')\n"
SLOW = "import pytest\n\n\n@pytest.mark.slow\ndef test_slow() -> None:\n    pass\n"
ALL_SLOW = "import pytest\n\npytestmark = pytest.mark.slow\n\n\ndef test_all_slow() -> None:\n    pass\n"
DIES = "import os\n\n\ndef test_dies() -> None:\n    os._exit(0)\n"


@pytest.fixture
def seconds(tmp_path: Path) -> Path:
    """Where it is remembered how long each group took."""
    return tmp_path / "build" / "seconds.json"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.slow
def test_every_group_is_shown_and_counted(tmp_path: Path, seconds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its rung; what was skipped stands at the end, with its reason."""
    files = {"unit/test_a.py": PASSES, "unit/test_b.py": PASSES, "contract/test_c.py": PASSES, "e2e/test_d.py": SKIPS}
    others = {"clients/test_e.py": FAILS, "unit/.venv/lib/test_f.py": FAILS, "e2e/node_modules/x/test_g.py": FAILS}
    write(tmp_path / "some", others)  # what has a target of its own, and what was installed
    status = run_groups(write(tmp_path / "some", files), seconds)
    *_, skipped, counts = capsys.readouterr().out.splitlines()

    assert 0 == status
    assert skipped.startswith("SKIPPED [1] ")
    assert skipped.endswith(": no tool")
    assert counts.startswith("0 failed, 3 passed, 1 skipped in ")
    assert {"some/unit, 1 of 2", "some/unit, 2 of 2", "some/contract", "some/e2e/test_d.py"} == {
        *json.loads(seconds.read_text())
    }


def test_one_failure_is_the_failure_of_all(tmp_path: Path, seconds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named at the end, and its output is there."""
    status = run_groups(write(tmp_path / "some", {"unit/test_a.py": PASSES, "unit/test_b.py": FAILS}), seconds)
    output = capsys.readouterr().out

    assert 1 == status
    assert "AssertionError: assert 'this' == 'that'" in output
    assert "test_b.py::test_fails" in output.splitlines()[-2]
    assert output.splitlines()[-1].startswith("1 failed, 1 passed, 0 skipped in ")


@pytest.mark.slow
def test_each_test_is_slow_or_not(tmp_path: Path, seconds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is run by one of the two commands; a file that has nothing for one of them fails neither."""
    files = {"e2e/test_a.py": SLOW, "e2e/test_b.py": ALL_SLOW, "e2e/test_c.py": PASSES, "e2e/test_d.py": PASSES + SLOW}
    write(tmp_path / "some", files)
    statuses = [run_groups(tmp_path / "some", seconds, slow=slow) for slow in (False, True)]
    counts = [line for line in capsys.readouterr().out.splitlines() if " skipped" in line]

    assert [0, 0] == statuses
    assert [["2 passed"], ["3 passed"]] == [re.findall(r"\d+ passed", line) for line in counts if line[0] != "="]


def test_a_pytest_that_dies_is_a_failure(tmp_path: Path, seconds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that dies with the status of success: it has not said how many tests have passed."""
    status = run_groups(write(tmp_path / "some", {"e2e/test_a.py": PASSES, "e2e/test_b.py": DIES}), seconds)
    output = capsys.readouterr().out

    assert 1 == status
    assert "FAILED some/e2e/test_b.py: pytest ended with status 0" in output.splitlines()


def test_with_arguments_it_is_pytest(tmp_path: Path) -> None:
    """With pytest's own status: 5 says that nothing was found."""
    write(tmp_path, {"test_a.py": PASSES})
    statuses = [
        subprocess.run(
            [sys.executable, "-m", "dev.test", str(tmp_path), "-k", name], cwd=paths.ROOT, check=False, timeout=120
        ).returncode
        for name in ("passes", "nothing")
    ]

    assert [0, 5] == statuses
