"""
Rounds of kills: workers of two versions serve concurrent turns of one database, two at a time; then the sums.

Each round has a database of its own, which one of the versions finishes, in turns.
"""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from chatturn.durable.local_stores import FileSystemDurableRunStore
from tests.chaos import rig as chaos
from tests.chaos.worker import LEASE_MS
from tests.rolling import serving
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, ToolCall

__all__ = ["ROOT", "Figures", "Version", "run_round"]

ROOT: Final = Path(__file__).parents[2]
_SPAN: Final = 18
"""Turns that users ask for at the same time."""

_TURNS_PER_KILL: Final = 3
"""Each worker finds so many that no worker before it has seen."""

_PATIENCE_S: Final = 120.0
_ENDS: Final = {"session.run.completed", "session.run.cancelled"}


@dataclass(frozen=True, slots=True)
class Version:
    """
    A version of the code.

    Attributes:
        name: Of it.
        folder: Where its files are.
    """

    name: str
    folder: Path

    def start(self, what: str, folder: Path, upstream: str, turns: range, *seed: int) -> "subprocess.Popen[str]":
        """Start `tests.rolling.serving` with this code."""
        script = ROOT / "tests" / "rolling" / "serving.py"
        arguments = [what, str(folder), upstream, str(turns.start), str(turns.stop), *map(str, seed)]
        path = os.pathsep.join([str(self.folder / "src"), str(self.folder)])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE if what == "tell" else None, text=True,
        )  # fmt: skip


@dataclass(kw_only=True)
class Figures:
    """
    What was done, and what was found.

    Attributes:
        counts: What was done, by its name.
        faults: What is wrong, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures as a table of Markdown."""
        rows = [*sorted(self.counts.items()), ("faults", len(self.faults))]
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {count:,} |" for name, count in rows)])


def run_round(folder: Path, versions: tuple[Version, Version], *, kills: int, seed: int, figures: Figures) -> None:
    """
    Kill so many workers, of either version by turns, let the first of *versions* finish, and add up.

    Args:
        folder: Where the database and the notes are; empty.
        versions: Which code.
        kills: How many workers.
        seed: Of chance.
        figures: Are added to.
    """
    chance, turns = random.Random(seed), range(kills * _TURNS_PER_KILL + _SPAN)
    FileSystemDurableRunStore(folder / "db.sqlite3").sqlite.close()
    with Upstream() as upstream:
        texts = _script(upstream, turns, chance)
        running: list[subprocess.Popen[str]] = []
        try:
            for number in range(kills):
                first = number * _TURNS_PER_KILL
                running.append(_serving(versions[number % 2], folder, upstream.url, first, seed + number))
                time.sleep(chance.uniform(0.02, 0.4))
                if len(running) == 2:
                    _end(running.pop(0), chance, figures)
            while running:
                _end(running.pop(0), chance, figures)
            _finish(versions[0], folder, upstream.url, turns, figures)
            told = [_told(version, folder, upstream.url, turns) for version in versions]
        finally:
            for process in running:
                process.kill()
                process.wait()
        figures.counts["model calls"] += len(upstream.calls())
        _compare(told, figures)
        _add_up(folder, upstream, texts, told[0], figures)
    figures.counts["turns"] += len(turns)


def _serving(version: Version, folder: Path, upstream: str, first: int, seed: int) -> "subprocess.Popen[str]":
    process = version.start("serve", folder, upstream, range(first, first + _SPAN), seed)
    marker, until = folder / f"serving.{seed}", time.monotonic() + _PATIENCE_S
    while not marker.exists():
        assert process.poll() is None, f"a worker of {version.name} does not start"
        assert time.monotonic() < until, f"a worker of {version.name} does not begin to serve"
        time.sleep(0.005)
    return process


def _end(process: "subprocess.Popen[str]", chance: random.Random, figures: Figures) -> None:
    if chance.random() < chaos.STOPPED:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.3 * LEASE_MS / 1000)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.05))
        figures.counts["SIGSTOP beyond the lease"] += 1
    process.kill()
    process.wait(_PATIENCE_S)
    figures.counts["SIGKILL"] += 1


def _finish(version: Version, folder: Path, upstream: str, turns: range, figures: Figures) -> None:
    process = version.start("finish", folder, upstream, turns)
    try:
        if process.wait(_PATIENCE_S + 2 * len(turns)):
            figures.faults.append(f"{version.name} could not finish the turns: exit code {process.returncode}")
    except subprocess.TimeoutExpired:
        figures.faults.append(f"{version.name} has not finished the turns in time")
        process.kill()
        process.wait()


def _told(version: Version, folder: Path, upstream: str, turns: range) -> Mapping[str, Any]:
    text, _ = version.start("tell", folder, upstream, turns).communicate(timeout=_PATIENCE_S + len(turns))
    told: Mapping[str, Any] = json.loads(text)
    return told


def _script(upstream: Upstream, turns: range, chance: random.Random) -> dict[int, str]:
    """Tell the model what to say to each question, and how to misbehave before it does; return the answers."""
    texts = {}
    for turn in turns:
        word = serving.message_of(turn)
        said = f"answer {turn} " + " ".join(f"{turn}.{n}" for n in range(chance.randint(3, 20)))
        slow = chance.choice([0.002, 0.01, 0.04])
        bad = [replace(chance.choice(chaos.MISBEHAVIOUR), text=said) for _ in range(chance.choice([0, 0, 1, 2]))]
        texts[turn] = said
        match serving.kind_of(turn):
            case "plain":
                upstream.on(word, *bad, Script(text=said, pause_s=slow))
            case "agent":
                note = f"note{turn}"
                add = ToolCall(id="call_0", name="add_note", arguments=json.dumps({"text": note}))
                send = ToolCall(id="call_1", name="send_note", arguments=json.dumps({"to": f"b{turn}", "text": note}))
                asks = Script(text="I do it.", pause_s=slow, finish_reason="tool_calls")
                upstream.on(word, replace(asks, tool_calls=(add,)))
                upstream.on(f'{{"kept":"{note}"}}', replace(asks, tool_calls=(send,)))
                upstream.on(f'{{"sent":"b{turn}"}}', Script(text=said, pause_s=slow))
                texts[turn] = f"I do it.I do it.{said}"
            case _:
                texts[turn] = serving.steps_text(turn)
    return texts


# What is left


def _compare(told: list[Mapping[str, Any]], figures: Figures) -> None:
    """Find what the two versions say differently of the same rows; what only this one says is left out."""
    ours, theirs = told
    figures.faults += _differences("usage", ours["usage"], theirs["usage"])
    for turn, of_ours in ours["turns"].items():
        figures.faults += _differences(f"turn {turn}", of_ours, theirs["turns"][turn])


def _differences(place: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            each
            for name in one.keys() & other.keys()
            for each in _differences(f"{place}.{name}", one[name], other[name])
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            each
            for at, pair in enumerate(zip(one, other, strict=True))
            for each in _differences(f"{place}[{at}]", *pair)
        ]
    return [] if one == other else [f"{place}: one version says {one}, the other {other}"]


def _add_up(
    folder: Path, upstream: Upstream, texts: Mapping[int, str], told: Mapping[str, Any], figures: Figures
) -> None:
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        for what, query in _LEFT_OVER.items():
            figures.faults += [f"{what}: {row}" for row in connection.execute(query).fetchall()]
        [(attempts,)] = connection.execute("SELECT sum(epoch) FROM durable_runs")
        [(suspended,)] = connection.execute("SELECT sum(suspensions) FROM chat_turns")
        answers = _answers(connection)
    figures.counts["attempts"] += attempts
    figures.counts["waits"] += suspended
    for turn, text in texts.items():
        figures.faults += _faults_of_turn(turn, text, answers, told["turns"][str(turn)], figures)
    figures.faults += _twice("a hook", _notes(folder, "journal"), lambda key: key.rpartition("/")[0])
    figures.faults += _twice(
        "an effect's key", [(note, key) for note, key in _notes(folder, "effects")], lambda note: note
    )
    figures.faults += _said_otherwise(folder, told)
    figures.faults += _replayed_otherwise(folder, told)
    begun = Counter(call.key for call in upstream.calls() if call.script.status == 200 and call.chunks_sent > 0)
    figures.faults += [f"the model was called twice with {key}" for key, count in begun.items() if count > 1]
    figures.counts["cancels"] += len(_notes(folder, "cancels"))
    figures.counts["replays"] += len(_notes(folder, "replays"))
    figures.counts["lines read"] += len(_notes(folder, "said"))
    for kind in ("before", "after", "stall"):
        with suppress(FileNotFoundError):
            figures.counts[f"database fails: {kind}"] += (folder / f"failures.{kind}").stat().st_size


_LEFT_OVER: Final = {
    "a sum that is not what the rows say": (
        "SELECT s.tenant_id, s.day FROM chat_usage_sums AS s LEFT JOIN ("
        "  SELECT tenant_id, substr(recorded_at, 1, 10) AS day, count(*) AS calls, count(DISTINCT run_id) AS turns,"
        "    coalesce(sum(tokens_in) FILTER (WHERE wasted = 0), 0) AS tokens_in FROM chat_usage GROUP BY 1, 2) AS u"
        " ON u.tenant_id = s.tenant_id AND u.day = s.day WHERE s.kind = 'day' AND NOT coalesce("
        "  s.delivered_calls + s.wasted_calls = u.calls AND s.turns = u.turns"
        "  AND s.delivered_tokens_in = u.tokens_in, 0)"
    ),
    "a call that nobody has settled": "SELECT run_id, attempt, call_index FROM chat_usage WHERE outcome = 'running'",
    "a call that is another tenant's": (
        "SELECT run_id, tenant_id, session_id FROM chat_usage"
        " WHERE run_id NOT LIKE 'chat:' || tenant_id || ':' || session_id || ':%' OR tenant_id = ''"
    ),
    "a run that is not over": "SELECT run_id, status FROM durable_runs WHERE status <> 'completed'",
    "an attempt that is not counted": (
        "SELECT r.run_id, r.epoch, t.attempt FROM durable_runs AS r JOIN chat_turns AS t ON t.run_id = r.run_id"
        " WHERE t.attempt <> r.epoch"
    ),
    "a hook that was given up": "SELECT run_id, hook, failures FROM chat_outbox WHERE status = 'given_up'",
    "an answer of which no call is delivered": (
        "SELECT m.run_id FROM chat_messages AS m WHERE m.role = 'assistant' AND m.run_id NOT LIKE '%:steps%'"
        " AND m.content <> '' AND NOT EXISTS (SELECT 1 FROM chat_usage WHERE run_id = m.run_id AND wasted = 0)"
    ),
}


def _answers(connection: sqlite3.Connection) -> dict[tuple[str, str], list[str]]:
    answers: dict[tuple[str, str], list[str]] = {}
    query = "SELECT tenant_id, session_id, content FROM chat_messages WHERE role = 'assistant'"
    for tenant, session, content in connection.execute(query):
        answers.setdefault((tenant, session), []).append(content)
    return answers


def _faults_of_turn(
    turn: int, text: str, answers: Mapping[tuple[str, str], list[str]], told: Mapping[str, Any], figures: Figures
) -> list[str]:
    name, log = f"turn {turn} ({serving.kind_of(turn)})", told["log"]
    stored = answers.get((serving.tenant_of(turn), serving.session_of(turn)), [])
    kinds = [line["type"] for line in log]
    ended = kinds[-1] if kinds else "nothing"
    figures.counts[f"turns {ended.rpartition('.')[2]}"] += 1
    whole = [text] if serving.kind_of(turn) != "agent" else [text, text.rpartition("I do it.")[2]]
    may_be = ended == "session.run.cancelled" and serving.is_cancelled(turn)
    faults = []
    if len(stored) != 1 or not (stored[0] in whole or (may_be and any(each.startswith(stored[0]) for each in whole))):
        faults.append(f"{name}: its answer is {stored}, not {text!r}")
    if ended not in _ENDS or (ended == "session.run.cancelled") > serving.is_cancelled(turn):
        faults.append(f"{name}: its log ends with {ended}")
    if kinds[:1] != ["session.run.started"] or [kind for kind in kinds if kind in _ENDS] != [ended]:
        faults.append(f"{name}: its log is {kinds}")
    if told["replay"][-1]["type"] != ended:
        faults.append(f"{name}: its log ends with {ended}, its replay with {told['replay'][-1]}")
    return faults


def _notes(folder: Path, name: str) -> list[tuple[str, str]]:
    """Return the first word and the rest of each line of a file of notes."""
    try:
        lines = (folder / name).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def _twice(what: str, notes: list[tuple[str, str]], name_of: Any) -> list[str]:
    found: dict[str, set[tuple[str, str]]] = {}
    for first, rest in notes:
        found.setdefault(name_of(first), set()).add((first, rest))
    return [f"{what} was had twice: {sorted(each)}" for each in found.values() if len(each) > 1]


def _said_otherwise(folder: Path, told: Mapping[str, Any]) -> list[str]:
    """Find lines that a reader was told under a number which the log gives to another line."""
    stored = {
        (turn, str(line["seq"])): hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]
        for turn, each in told["turns"].items()
        for line in each["log"]
        if "seq" in line
    }
    return [
        f"turn {turn}: line {rest} is another one in the log"
        for turn, rest in _notes(folder, "said")
        if stored.get((turn, rest.split()[0]), rest.split()[1]) != rest.split()[1]
    ]


def _replayed_otherwise(folder: Path, told: Mapping[str, Any]) -> list[str]:
    faults = []
    for turn, rest in _notes(folder, "replays"):
        *_, last = told["turns"][turn]["replay"]
        text = next(
            (line["data"]["finalText"] for line in told["turns"][turn]["replay"] if line["type"] == "result"), ""
        )
        if rest != f"{last['type']} {hashlib.sha256(text.encode()).hexdigest()}":
            faults.append(f"turn {turn} was replayed as {rest}, and now as {last['type']} {text!r}")
    return faults
