"""
The rig: two processes at a time serve concurrent turns over one database and are killed or stopped; then the sums.

Nothing is pretended: the processes, SIGKILL, SIGSTOP, the SQLite file and the HTTP to the model are real.  Chance
comes from a seed, though what it hits does not.
"""

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from chatturn.durable.local_stores import FileSystemDurableRunStore
from tests.chaos import worker
from tests.support.children import CONTEXT, start
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script

__all__ = ["MISBEHAVIOUR", "STOPPED", "Report", "run"]

_SPAN: Final = 16
"""Turns that users ask for at the same time."""

STOPPED: Final = 0.06
"""The part of the processes that is stopped for longer than a lease before it is killed."""

_PATIENCE_S: Final = 60.0

_TERMINAL: Final = {f"session.run.{how}" for how in ("completed", "failed", "cancelled", "suspended")}

MISBEHAVIOUR: Final = (
    Script(status=500, body="{}"),
    Script(status=429, headers=(("retry-after-ms", "5"),), body="{}"),
    Script(stop_after=3, ending="cut"),
    Script(stop_after=2, ending="reset"),
    Script(stop_after=2, ending="hang"),
    Script(error="overloaded"),
    Script(usage=None, done=False, finish_reason=None),
)


@dataclass(kw_only=True)
class Report:
    """
    What was done, and what was left.

    Attributes:
        faults: By kind, how many.
        turns: How many there were.
        attempts: Of all of them.
        calls: Of the model.
        lost: Turns whose answer is not stored, or not whole.
        doubled: Turns with two answers, or with a hook that was told two.
        beyond: Attempts that called the model although it had begun to answer them.
        broken: Turns whose log is not one log.
        seconds: It took.
    """

    faults: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    attempts: int = 0
    calls: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled, or paid for beyond need."""
        return not (self.lost or self.doubled or self.beyond or self.broken)

    def table(self) -> str:
        """Return the figures as a table of Markdown."""
        rows = [
            *((f"faults: {kind}", count) for kind, count in sorted(self.faults.items())),
            ("turns", self.turns),
            ("attempts", self.attempts),
            ("model calls", self.calls),
            ("answers lost", len(self.lost)),
            ("answers doubled", len(self.doubled)),
            ("model calls beyond one per attempt", len(self.beyond)),
            ("logs that are not one log", len(self.broken)),
        ]
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in rows)])


def run(
    folder: Path,
    *,
    kills: int,
    seed: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> Report:
    """
    Kill so many processes, then let the turns be finished, and add up.

    Args:
        folder: Where the database and the counters are.
        kills: How many processes.
        seed: Of chance.
        progress: Is told how many were killed so far.
    """
    chance, began = random.Random(seed), time.monotonic()
    report = Report(turns=kills // 2 + _SPAN)
    store = FileSystemDurableRunStore(folder / "db.sqlite3")
    store.sqlite.close()
    with Upstream() as upstream:
        texts = _script(upstream, report.turns, chance)
        running: list[BaseProcess] = []
        for number in range(kills):
            turns = (number // 2, number // 2 + _SPAN)
            running.append(_start(folder, upstream.url, seed + number, turns))
            time.sleep(chance.uniform(0.01, 0.12))
            if len(running) == 2:
                _end(running.pop(0), chance, report)
            progress(number + 1)
        for child in running:
            _end(child, chance, report)
        last = start(worker.finish, folder, upstream.url, report.turns)
        last.join(120 + report.turns)
        if last.exitcode != 0:
            last.kill()
            report.broken.append(f"the turns could not be finished (exit code {last.exitcode})")
        _add_up(folder, upstream, texts, report)
    for kind in ("before", "after", "stall"):
        path = folder / f"failures.{kind}"
        report.faults[f"database, {kind}"] = path.stat().st_size if path.exists() else 0
    report.seconds = time.monotonic() - began
    return report


def _start(folder: Path, upstream: str, seed: int, turns: tuple[int, int]) -> BaseProcess:
    serving, says_so = CONTEXT.Pipe(duplex=False)
    child = start(worker.work, folder, upstream, seed, turns, says_so)
    says_so.close()
    assert serving.poll(_PATIENCE_S), "a worker does not start"
    serving.recv_bytes()
    serving.close()
    return child


def _script(upstream: Upstream, turns: int, chance: random.Random) -> dict[int, str]:
    """Tell the model what to say to each question, and how to misbehave before it does."""
    texts = {}
    for turn in range(turns):
        texts[turn] = f"{worker.message_of(turn)} answer " + " ".join(
            f"{turn}.{n}" for n in range(chance.randint(3, 20))
        )
        bad = [replace(chance.choice(MISBEHAVIOUR), text=texts[turn]) for _ in range(chance.choice([0, 0, 1, 2]))]
        good = Script(text=texts[turn], pause_s=chance.choice([0.0, 0.002, 0.01]))
        upstream.on(worker.message_of(turn), *bad, good)
    return texts


def _end(child: BaseProcess, chance: random.Random, report: Report) -> None:
    assert child.pid is not None
    if chance.random() < STOPPED:
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1.3 * worker.LEASE_MS / 1000)
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.05))
        report.faults["SIGSTOP beyond the lease"] += 1
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    report.faults["SIGKILL"] += 1


def _add_up(folder: Path, upstream: Upstream, texts: dict[int, str], report: Report) -> None:
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        answers: dict[str, list[str]] = {}
        for session, content in connection.execute(
            "SELECT session_id, content FROM chat_messages WHERE role = 'assistant'"
        ):
            answers.setdefault(session, []).append(content)
        logs: dict[str, list[dict[str, object]]] = {}
        for session, lines in connection.execute(
            "SELECT t.session_id, s.lines FROM chat_segments AS s JOIN chat_turns AS t ON t.run_id = s.run_id"
            " WHERE s.first_seq >= t.log_from ORDER BY s.run_id, s.first_seq"
        ):
            logs.setdefault(session, []).extend(json.loads(line) for line in lines.splitlines())
        [(report.attempts,)] = connection.execute("SELECT sum(epoch) FROM durable_runs")
    for turn, text in texts.items():
        session = f"s{turn}"
        stored = answers.get(session, [])
        if stored != [text]:
            report.lost.append(f"{session}: {stored}")
        if fault := _fault_of(logs.get(session, [])):
            report.broken.append(f"{session}: {fault}")
    told: dict[str, set[str]] = {}  # by run, which answers its hook was told: each has a key of its own
    for line in (folder / "journal").read_text().splitlines():
        key, digest = line.split(" ")
        told.setdefault(key.split("/")[0], set()).add(f"{key} {digest}")
    report.doubled += [run_id for run_id, answers in told.items() if len(answers) > 1]
    calls = upstream.calls()
    report.calls = len(calls)
    begun = Counter(call.key for call in calls if call.script.status == 200 and call.chunks_sent > 0)
    report.beyond = [key for key, count in begun.items() if count > 1]
    report.faults["model misbehaves"] = sum(
        replace(call.script, pause_s=0.0, text="") != Script(text="") for call in calls
    )


def _fault_of(log: list[dict[str, object]]) -> str | None:
    kinds = [str(line["type"]) for line in log]
    if kinds[:1] != ["session.run.started"] or kinds.count("session.run.started") != 1:
        return f"it begins with {kinds[:2]}"
    ends = [kind for kind in kinds if kind in _TERMINAL]
    if ends != ["session.run.completed"] or kinds[-1] != ends[0]:
        return f"it ends with {ends}, {kinds[-1]}"
    for before, line in pairwise(log):
        expected = int(str(before["seq"])) + 1
        seq = int(str(line["seq"]))
        if seq != expected and not (line["type"] == "session.run.restarted" and seq > expected):
            return f"seq {seq} follows {before['seq']}"
    return None
