"""
`make rolling`: workers of an earlier version and of this one take over each other's turns, killed at random.

The database is this version's, as in a deployment: its migrations come first.  Then the sums are those of `make
chaos`, and of the ledger: every call is settled, and has its tenant.  Ends with 1 if anything was lost.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from tests.chaos.rig import Report, run
from tests.rolling.earlier import EARLIER, EarlierWorker, unpack

# While both serve: what this version would leave in a form that the earlier one cannot read, and keys of its own.
TOGETHER = {"COMPACT_LOGS": "off", "THREADS": "off"}


def main() -> int:
    """Run the rig; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chatturn-rolling-", ignore_cleanup_errors=True) as name:
        code, folder = Path(name) / "earlier", Path(name) / "world"
        code.mkdir()
        folder.mkdir()
        unpack(code)

        started: list[EarlierWorker] = []

        def start_earlier(number: int, upstream: str, turns: tuple[int, int]) -> EarlierWorker | None:
            if number % 2 == 0:
                return None
            started.append(EarlierWorker(code, folder, upstream, options.seed + number, turns))
            return started[-1]

        try:
            report = run(folder, kills=options.kills, seed=options.seed, settings=TOGETHER, start_other=start_earlier)
        finally:
            for worker in started:
                worker.kill()
        add_up_the_ledger(folder, report)
    print(report.table())
    print(f"\nbeside {EARLIER[:12]}, seed {options.seed}, {report.seconds:.0f} s")
    for kind in ("lost", "doubled", "beyond", "broken"):
        for what in getattr(report, kind):
            print(f"{kind}: {what}")
    return 0 if report.clean else 1


def add_up_the_ledger(folder: Path, report: Report) -> None:
    """Find calls that nobody has settled, or that are nobody's, and runs that are not over."""
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        for what, query in LEFT_OVER.items():
            report.broken += [f"{what}: {row}" for row in connection.execute(query).fetchall()]


LEFT_OVER = {
    "a sum that is not what the rows say": (
        "SELECT s.tenant_id, s.day FROM chat_usage_sums AS s LEFT JOIN ("
        "  SELECT tenant_id, substr(recorded_at, 1, 10) AS day, count(*) AS calls, count(DISTINCT run_id) AS turns,"
        "    coalesce(sum(tokens_in) FILTER (WHERE wasted = 0), 0) AS tokens_in FROM chat_usage GROUP BY 1, 2) AS u"
        " ON u.tenant_id = s.tenant_id AND u.day = s.day WHERE s.kind = 'day' AND NOT coalesce("
        "  s.delivered_calls + s.wasted_calls = u.calls AND s.turns = u.turns"
        "  AND s.delivered_tokens_in = u.tokens_in, 0)"
    ),
    "a call that nobody has settled": "SELECT run_id, attempt, call_index FROM chat_usage WHERE outcome = 'running'",
    "a call that is nobody's": "SELECT run_id, attempt FROM chat_usage WHERE tenant_id = '' OR session_id = ''",
    "a run that is not over": "SELECT run_id, status FROM durable_runs WHERE status <> 'completed'",
    "an attempt that is not counted": (
        "SELECT r.run_id, r.epoch, t.attempt FROM durable_runs AS r JOIN chat_turns AS t ON t.run_id = r.run_id"
        " WHERE t.attempt <> r.epoch"
    ),
}


if __name__ == "__main__":
    sys.exit(main())
