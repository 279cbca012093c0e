"""
`make volume`: what each route, a claim and the sweep cost with many turns in the database, beside one of a hundred.

Each is asked of the real Worker on a local D1 in workerd, which says how many rows it has read.  That may be at most
twice as many as in the small database, or twice as many for each thing that is returned or added up.  Ends with 1 where
it is more.
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.filled import CALLS, Volume, fill
from bench.measures import read_counts
from bench.upstream import Script
from bench.workers import Subject, counted_worker
from dev import paths
from dev.config import Config
from dev.database import apply_schema, database_file
from tests.support.client import token
from tests.support.worker import DEFAULTS

__all__ = ["Cost", "Line", "compare", "dearer", "main", "table"]

SMALL: Final = 100
LARGE: Final = 100_000

_MOST: Final = 2.0
_SETTLED_S: Final = 0.3
_READS: Final = 5
_LOOKED_AT: Final = 2_000
"""Of a tenant's turns, for a page by status: `TURNS_SCANNED_AT_MOST`."""

_SETTINGS: Final = {"RETENTION_DAYS": "90", "PRICES": '{"bench": {"in": 1, "out": 4}}', "MODEL": str(Script(20))}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """
    What something costs in one database.

    Attributes:
        rows: Read.
        ms: Until it was answered: the median where it was asked several times.
        parts: How many things it returns or adds up.
    """

    rows: int
    ms: float
    parts: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """What something costs in the small database, and in the large one."""

    what: str
    small: Cost
    large: Cost

    @property
    def verdict(self) -> str:
        """Whether it is the same, or grows with what it returns, or is dearer than it may be."""
        if self.large.rows <= _MOST * max(self.small.rows, 1):
            return "the same"
        small, large = (cost.rows / max(cost.parts, 1) for cost in (self.small, self.large))
        return "linear" if large <= _MOST * small else "**dearer**"


@dataclass
class _Desk:
    """One Worker, and how it is asked."""

    subject: Subject
    turns: int
    costs: dict[str, Cost] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, *, operates: bool = False, user: str = "ann") -> Any:
        """Return what is answered: JSON, or each line of it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.subject.worker.server.port, timeout=300)
        scope = "turns operate" if operates else "turns"
        headers = {"authorization": f"Bearer {token(tenant='tenant-0', sub=user, scope=scope)}"}
        try:
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, path, sent, {**headers, "content-type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST or '"session.run.failed"' in text[-500:]:
            raise RuntimeError(f"{method} {path}: {response.status} {text[-500:]}")
        kind = response.headers.get("content-type", "")
        if "ndjson" in kind:
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text) if "json" in kind else text

    def measure(self, what: str, work: Callable[[], int], times: int = 1) -> None:
        """Do *work*, which returns how many things it has returned or added up."""
        took = []
        for _ in range(times):
            read_counts(self.subject)
            began = time.monotonic()
            parts = work()
            took.append((time.monotonic() - began) * 1000)
            time.sleep(_SETTLED_S)  # what the Worker does after it has answered
            rows = read_counts(self.subject)["rows_read"]
        self.costs[what] = Cost(rows=rows, ms=statistics.median(took), parts=parts)

    def count(self, sql: str) -> int:
        """Return a number that the database says."""
        [row] = self.subject.worker.sql(sql)
        [number] = row.values()
        return int(number)

    def days_of(self, sessions: Sequence[str]) -> int:
        """Return on how many days sessions of the tenant had calls: each has a row of sums."""
        named = ", ".join(f"'{session}'" for session in sessions)
        rows = "chat_usage_sums WHERE tenant_id = 'tenant-0' AND kind = 'session'"
        return self.count(f"SELECT count(*) FROM {rows} AND key IN ({named})")


def compare(large: int, small: int = SMALL, *, times: int = _READS) -> list[Line]:
    """Fill a database of each size, and measure everything in both."""
    costs = [_measured(turns, times) for turns in (small, large)]
    return [Line(what=what, small=cost, large=costs[1][what]) for what, cost in costs[0].items()]


def dearer(lines: Sequence[Line]) -> list[str]:
    """Return what costs more in the large database than it may."""
    return [f"{line.what}: {line.small} {line.large}" for line in lines if line.verdict not in {"the same", "linear"}]


def table(lines: Sequence[Line], large: int, small: int = SMALL) -> str:
    """Return all of it as Markdown."""
    sizes = f"{small:,}", f"{large:,}"
    head = ["", *(f"rows read, {size} turns" for size in sizes), "returned or added up", "", "ms"]
    rows = [
        [
            line.what,
            f"{line.small.rows:,}",
            f"{line.large.rows:,}",
            f"{line.small.parts:,}"
            if line.small.parts == line.large.parts
            else f"{line.small.parts:,} → {line.large.parts:,}",
            line.verdict,
            f"{line.small.ms:.0f} → {line.large.ms:.0f}",
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def main(arguments: list[str]) -> int:
    """Measure; return 1 where something is dearer than it may be."""
    parser = argparse.ArgumentParser(prog="python -m bench.volume", description=__doc__)
    parser.add_argument("--turns", type=int, default=LARGE, help=f"in the large database, each of {CALLS} model calls")
    turns = parser.parse_args(arguments).turns
    lines = compare(turns)
    print(table(lines, turns))
    for each in (wrong := dearer(lines)):
        print(each)
    return 1 if wrong else 0


def _measured(turns: int, times: int) -> Mapping[str, Cost]:
    with tempfile.TemporaryDirectory(prefix="chatturn-volume-", ignore_cleanup_errors=True) as folder:
        state = Path(folder) / "state"
        database_id = Config.read(paths.DEPLOYMENT_CONFIG, variables=DEFAULTS).database_ids()["DB"]
        apply_schema(state, database_id, paths.SCHEMA)
        began = time.monotonic()
        file = database_file(state, database_id)
        fill(file, Volume(turns=turns))
        filled = f"{turns:,} turns, {turns * CALLS:,} calls, {file.stat().st_size / 1e6:,.0f} MB"
        print(f"{filled} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        with counted_worker(_SETTINGS, folder=Path(folder)) as subject:
            desk = _Desk(subject, turns)
            _measure(desk, times)
        return desk.costs


def _measure(desk: _Desk, times: int) -> None:
    long = "/v1/sessions/long"
    new = iter(range(10**6))

    def turn(session: str, index: int, **options: Any) -> int:
        desk.ask("POST", f"/v1/sessions/{session}/turns/{index}", {"message": "Why?"}, **options)
        return 1

    turn("first", 0)  # warm
    at = desk.turns // 10
    desk.measure("a fresh turn", lambda: turn(f"new-{next(new)}", 0), times)
    desk.measure(
        "a fresh turn, in a session of a tenth of all turns", lambda: turn("long", at + next(new) - times), times
    )
    desk.measure("a replay", lambda: turn("first", 0), times)
    _measure_lists(desk, times, long)
    _measure_usage(desk, times)
    _measure_peoples(desk, times, turn)
    _measure_sweeps(desk)


def _measure_lists(desk: _Desk, times: int, long: str) -> None:
    for path, member in {
        f"{long}/turns/3": None,
        f"{long}/turns/3/stream": None,
        f"{long}/turns/3/versions": "versions",
        "/v1/runs": "runs",
        "/readyz": None,
    }.items():

        def read(path: str = path, member: str | None = member) -> int:
            found = desk.ask("GET", path)
            return 1 if member is None else len(found[member])

        desk.measure(f"GET {path}", read, times)

    def read_messages() -> int:
        page = desk.ask("GET", f"{long}/messages")
        return len(page["messages"]) + len(page["open"])

    desk.measure(f"GET {long}/messages", read_messages, times)
    for query, whose in {"": "a tenant's", "?user=user-1": "a user's"}.items():

        def read_sessions(query: str = query) -> int:
            found = desk.ask("GET", f"/v1/sessions{query}", operates=True)["sessions"]
            return len(found) + desk.days_of([each["sessionId"] for each in found])

        desk.measure(f"GET /v1/sessions, {whose}", read_sessions, times)
    for status in ("failed", "suspended", "orphaned", "completed"):
        looked_at = min(_LOOKED_AT, desk.count("SELECT count(*) FROM chat_turns WHERE tenant_id = 'tenant-0'"))

        def of_status(status: str = status, *, looked_at: int = looked_at) -> int:
            desk.ask("GET", f"/v1/runs?status={status}")
            return looked_at

        desk.measure(f"GET /v1/runs?status={status}", of_status, times)


def _measure_usage(desk: _Desk, times: int) -> None:
    sums = "SELECT count(*) FROM chat_usage_sums WHERE day > date('now', '-30 days')"
    page = "SELECT DISTINCT tenant_id, key FROM chat_usage_sums WHERE kind = 'session' ORDER BY 1, 2 LIMIT 50"
    whole = desk.count(f"{sums} AND kind = 'day'")
    for by, which in {
        "day": "kind = 'day'",
        "tenant": "kind = 'day'",
        "model": "kind = 'model'",
        "session": f"kind = 'session' AND (tenant_id, key) IN ({page})",
    }.items():
        added = whole + desk.count(f"{sums} AND {which}")

        def read(by: str = by, added: int = added) -> int:
            desk.ask("GET", f"/v1/usage?by={by}", operates=True)
            return added

        desk.measure(f"GET /v1/usage?by={by}", read, times)


def _measure_peoples(desk: _Desk, times: int, turn: Callable[..., int]) -> None:
    def rename() -> int:
        desk.ask("PATCH", "/v1/sessions/long", {"title": "T"})
        return 1 + desk.days_of(["long"])

    def rate() -> int:
        desk.ask("POST", "/v1/sessions/long/turns/3/feedback", {"rating": "up"})
        return 1

    def leave(path: str, user: str) -> int:
        desk.ask("DELETE", path, user=user)
        return 1

    desk.measure("PATCH /v1/sessions/long", rename, times)
    desk.measure("POST /v1/sessions/long/turns/3/feedback", rate, times)
    for session in ("left-1", "left-2"):
        for index in range(3):
            turn(session, index, user="leaver")
    turn("left-3", 0)
    desk.measure("the export of a session", lambda: len(desk.ask("GET", "/v1/sessions/left-3/export")), times)
    desk.measure("DELETE a session", lambda: leave("/v1/sessions/left-3", "ann"))
    people = "/v1/users/leaver"
    desk.measure("the export of a user", lambda: len(desk.ask("GET", f"{people}/export", user="leaver")), times)
    desk.measure("DELETE a user's two sessions", lambda: leave(f"{people}/sessions", "leaver"))


def _measure_sweeps(desk: _Desk) -> None:
    def sweep() -> int:
        desk.ask("GET", "/cdn-cgi/local/scheduled?cron=*+*+*+*+*")
        return 1

    due = Volume(turns=desk.turns).due
    desk.measure(f"a sweep: {due} lost turns, {due} hook calls, {due} turns too old", sweep)
    desk.measure("a sweep with nothing to do", sweep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
