"""A sweep that lets invocations of their own go on with parts of the turns, in the real workerd."""

import json
from pathlib import Path
from typing import Final

import pytest

from bench.filled import Volume, fill
from dev import paths
from dev.config import Config
from dev.database import apply_schema, database_file
from tests.support.client import Client
from tests.support.http import http
from tests.support.worker import running_worker

pytestmark = pytest.mark.slow

PARTS: Final = Path(__file__).parents[1] / "worker" / "parts" / "parts.py"
LOST: Final = 50


def deployment(folder: Path) -> Path:
    """Return `wrangler.toml` as an operator changes it who wants this."""
    text = paths.DEPLOYMENT_CONFIG.read_text()
    for line in ("[[services]]", 'binding = "SWEEP"', 'service = "chatturn"', 'entrypoint = "SweepPart"'):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    path = folder / "wrangler.toml"
    path.write_text(text)
    return path


def test_many_lost_turns_are_shared_out_and_nobody_outside_can_do_that(tmp_path: Path) -> None:
    """Each is run once; what the internet sends reaches the routes alone."""
    config = deployment(tmp_path)
    database_id = Config.read(config).database_ids()["DB"]
    apply_schema(tmp_path / "state", database_id, paths.SCHEMA)
    fill(database_file(tmp_path / "state", database_id), Volume(turns=100, due=LOST))
    with running_worker(deployment=config, folder=tmp_path, entry="parts", mounts={"parts.py": PARTS}) as worker:
        lost = [row["run_id"] for row in worker.sql("SELECT run_id FROM durable_runs WHERE status = 'running'")]
        for path in ("/", "/SweepPart", "/v1/sweep"):
            asked = http.post(f"{worker.url}{path}", content=json.dumps(lost), headers=Client(worker.url).headers)
            assert 404 == asked.status_code
        assert LOST == len(lost)
        assert "a part of" not in worker.log

        http.get(f"{worker.url}/cdn-cgi/local/scheduled?cron=*+*+*+*+*", timeout=120)

        worker.logged("a part of 25 turns")
        ran = worker.sql(f"SELECT status, epoch FROM durable_runs WHERE run_id IN {tuple(lost)}")  # noqa: S608
    assert [{"status": "completed", "epoch": 2}] * LOST == ran
