"""
The threads' rig: people edit, type ahead and stop in a few threads that they share, while who serves them is killed.

Every version has an answer of its own, with a number that no other one has.  So what each model call was shown can be
looked up afterwards, and whether it is what the thread was.
"""

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from chatturn.durable.local_stores import FileSystemDurableRunStore
from tests.chaos import people, worker
from tests.support.children import CONTEXT, start
from tests.support.upstream import Call, Upstream
from tests.support.upstream_script import Script, ToolCall

__all__ = ["ThreadsReport", "run"]

_KILLS_PER_THREAD: Final = 12
_THREADS_AT_ONCE: Final = 3
_STOPPED: Final = 0.06
_PATIENCE_S: Final = 60.0
_TERMINAL: Final = {f"session.run.{how}" for how in ("completed", "failed", "cancelled", "suspended")}
_OVER: Final = ("completed", "cancelled")

_MISBEHAVIOUR: Final = (
    Script(status=500, body="{}"),
    Script(status=429, headers=(("retry-after-ms", "5"),), body="{}"),
    Script(status=503, body="{}"),
    Script(stop_after=3, ending="cut"),
    Script(stop_after=2, ending="reset"),
    Script(error="overloaded"),
)


class _Model(Upstream):
    """A model that repeats the question behind a number of its own, and misbehaves now and then."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def _choose(self, message: str) -> Script:
        number = len(self._calls)
        if people.APPROVED in message:
            return Script(text="", tool_calls=(ToolCall(id=f"c{number}", name="send", arguments="{}"),))
        if self._chance.random() < 0.15:
            return self._chance.choice(_MISBEHAVIOUR)
        text = f"#{number} {message} " + " ".join(f"{number}.{n}" for n in range(self._chance.randint(1, 12)))
        return Script(text=text, pause_s=self._chance.choice([0.0, 0.002, 0.01]))


@dataclass(kw_only=True)
class ThreadsReport:
    """
    What was done, and what was left.

    Attributes:
        counted: How often, by what.
        lost: Messages and versions that somebody was told of, and that are not there, or are others by now.
        disordered: Answers that stand in a thread whose answer before them they do not follow.
        strange: Model calls that were shown what nobody's thread ever was, and answers to another question.
        doubled: Hook calls and effects that were told two things under one key.
        broken: Logs that are not one log, and turns that nobody could end.
        seconds: It took.
    """

    counted: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """All that must not be, in words."""
        kinds = ("lost", "disordered", "strange", "doubled", "broken")
        return [f"{kind}: {each}" for kind in kinds for each in getattr(self, kind)]

    def table(self) -> str:
        """Return the figures as a table of Markdown."""
        rows = [
            *sorted(self.counted.items()),
            ("versions lost", len(self.lost)),
            ("turns out of order", len(self.disordered)),
            ("answers to a question that was not the thread's", len(self.strange)),
            ("hook calls and effects with two meanings", len(self.doubled)),
            ("logs that are not one log", len(self.broken)),
        ]
        return "\n".join(["| threads | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in rows)])


def run(folder: Path, *, kills: int, seed: int, progress: Callable[[int], None] = lambda _done: None) -> ThreadsReport:
    """
    Kill so many processes, then let what was begun be ended, and add up.

    Args:
        folder: Where the database and the journal are.
        kills: How many processes.
        seed: Of chance.
        progress: Is told how many were killed so far.
    """
    chance, began = random.Random(seed), time.monotonic()
    report = ThreadsReport()
    FileSystemDurableRunStore(folder / "db.sqlite3").sqlite.close()
    (folder / "journal").touch()
    with _Model(chance) as model:
        running: list[BaseProcess] = []
        for number in range(kills):
            first = number // _KILLS_PER_THREAD
            running.append(_start(folder, model.url, seed + number, (first, first + _THREADS_AT_ONCE)))
            time.sleep(chance.uniform(0.02, 0.25))
            if len(running) == 2:
                _end(running.pop(0), chance, report)
            progress(number + 1)
        for child in running:
            _end(child, chance, report)
        last = start(people.settle, folder, model.url)
        last.join(120 + kills)
        if last.exitcode != 0:
            last.kill()
            report.broken.append(f"the turns could not be ended (exit code {last.exitcode})")
        _add_up(folder, model.calls(), report)
    report.seconds = time.monotonic() - began
    return report


def _start(folder: Path, upstream: str, seed: int, sessions: tuple[int, int]) -> BaseProcess:
    serving, says_so = CONTEXT.Pipe(duplex=False)
    child = start(people.work, folder, upstream, seed, sessions, says_so)
    says_so.close()
    assert serving.poll(_PATIENCE_S), "a worker does not start"
    serving.recv_bytes()
    serving.close()
    return child


def _end(child: BaseProcess, chance: random.Random, report: ThreadsReport) -> None:
    assert child.pid is not None
    assert child.exitcode is None, f"a worker ended by itself, with {child.exitcode}"
    if chance.random() < _STOPPED:
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1.3 * worker.LEASE_MS / 1000)
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.05))
        report.counted["faults: SIGSTOP beyond the lease"] += 1
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    report.counted["faults: SIGKILL"] += 1


# Adding up


@dataclass(frozen=True, kw_only=True)
class _Version:
    """
    A version of a turn, as the database has it in the end.

    Attributes:
        place: Its session, its index and its number.
        parent: The place that it follows; None for none.
        status: ``cancelled``, or its run's.
        answer: None for none.
        began: When its answering began for the last time.
        ended: When it ended.
    """

    run_id: str
    place: tuple[str, int, int]
    parent: tuple[str, int, int] | None
    question: str
    status: str
    answer: str | None
    began: str | None
    ended: str | None


_VERSIONS: Final = """
SELECT t.run_id, t.session_id, t.turn_index, t.version, t.parent_index, t.parent_version, t.user_message,
  CASE WHEN t.cancelled_at IS NULL THEN r.status ELSE 'cancelled' END, s.result_json ->> '$.finalText', s.started_at,
  r.completed_at
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id
LEFT JOIN durable_steps AS s ON s.run_id = t.run_id AND s.step_index = 0
"""


def _versions(connection: sqlite3.Connection) -> Iterator[_Version]:
    for run_id, session, index, version, parent_index, parent, question, *rest in connection.execute(_VERSIONS):
        status, answer, began, ended = rest
        yield _Version(
            run_id=run_id,
            place=(session, index, version),
            parent=None if parent is None else (session, parent_index, parent),
            question=question,
            status=status,
            answer=answer,
            began=began,
            ended=ended,
        )


def _add_up(folder: Path, calls: Sequence[Call], report: ThreadsReport) -> None:
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        versions = {each.place: each for each in _versions(connection)}
        messages = connection.execute(
            "SELECT session_id, turn_index, version, breaks FROM chat_messages WHERE role = 'assistant' ORDER BY 1, 2"
        ).fetchall()
        logs: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for run_id, lines in connection.execute(
            "SELECT s.run_id, s.lines FROM chat_segments AS s JOIN chat_turns AS t ON t.run_id = s.run_id"
            " WHERE s.first_seq >= t.log_from ORDER BY s.run_id, s.first_seq"
        ):
            logs[run_id] += [json.loads(line) for line in lines.splitlines()]
        [(attempts,)] = connection.execute("SELECT sum(epoch) FROM durable_runs")
    journal = [json.loads(line) for line in (folder / "journal").read_text().splitlines()]
    _look_for_lost(versions, journal, report)
    _look_for_disorder(versions, messages, report)
    _look_for_strange(versions, calls, report)
    _look_for_doubled(journal, report)
    for each in versions.values():
        if each.status not in {*_OVER, "failed"}:
            report.broken.append(f"{each.run_id} is {each.status}")
        if each.status in _OVER and each.run_id in logs and (fault := _fault_of(logs[each.run_id], each.status)):
            report.broken.append(f"{each.run_id}: {fault}")
    for kind in ("before", "after", "stall"):
        path = folder / f"failures.{kind}"
        report.counted[f"faults: database, {kind}"] = path.stat().st_size if path.exists() else 0
    report.counted["threads"] = len({session for session, _, _ in versions})
    report.counted["turns"] = len({place[:2] for place in versions})
    report.counted["versions"] = len(versions)
    report.counted["attempts"] = attempts
    report.counted["model calls"] = len(calls)
    report.counted["versions detached or replaced"] = len(versions) - sum(1 for _ in _path_places(messages))
    for status in (*_OVER, "failed"):
        report.counted[f"versions {status}"] = sum(each.status == status for each in versions.values())
    for kind, count in Counter(each["kind"] for each in journal).items():
        report.counted[f"told: {kind}"] = count


def _look_for_lost(
    versions: Mapping[tuple[str, int, int], _Version], journal: Sequence[dict[str, Any]], report: ThreadsReport
) -> None:
    asked = {each.run_id: each.question for each in versions.values()}
    for each in journal:
        if each["kind"] == "sent" and asked.get(each["run_id"]) != each["question"]:
            report.lost.append(f"{each['run_id']} was sent {each['question']!r}, and is {asked.get(each['run_id'])!r}")
        elif each["kind"] == "headless":
            report.broken.append(f"a stream has no beginning: {each['lines']}")
        elif each["kind"] == "ended":
            found = versions.get((each["session"], each["index"], each["version"]))
            if found is None or found.status not in _OVER or found.answer is None:
                report.lost.append(f"{each}: {found}")


def _path_places(messages: Sequence[tuple[str, int, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Go through the places of every thread, up to where it breaks."""
    broken: set[str] = set()
    for session, index, version, breaks in messages:
        if breaks:
            broken.add(session)
        if session not in broken:
            yield session, index, version


def _look_for_disorder(
    versions: Mapping[tuple[str, int, int], _Version],
    messages: Sequence[tuple[str, int, int, int]],
    report: ThreadsReport,
) -> None:
    before: tuple[str, int, int] | None = None
    for place in _path_places(messages):
        last = before if before is not None and before[0] == place[0] else None
        each, before = versions[place], place
        if each.parent != last:
            report.disordered.append(f"{each.run_id} stands behind {last}, and follows {each.parent}")
        elif last is not None and str(each.began) < str(versions[last].ended):
            report.disordered.append(f"{each.run_id} was begun at {each.began}, before the end of {versions[last]}")
    last = None
    for session, index, version, breaks in messages:
        place, parent = (session, index, version), versions[session, index, version].parent
        if last is not None and last[0] != session:
            last = None
        if breaks != (parent != last):
            report.disordered.append(f"{session} {index} ~{version}: its mark says {breaks}, its parent {parent}")
        last = place


def _look_for_strange(
    versions: Mapping[tuple[str, int, int], _Version], calls: Sequence[Call], report: ThreadsReport
) -> None:
    answered: dict[str | None, _Version] = {each.answer: each for each in versions.values() if each.answer}
    for each in answered.values():
        whole = each.status == "completed" and people.APPROVED not in each.question
        if whole and f" {each.question} " not in str(each.answer):
            report.strange.append(f"{each.run_id} was asked {each.question!r} and answers {each.answer!r}")
    for call in calls:
        if (fault := _fault_of_history(call.body["messages"], answered, versions)) is not None:
            report.strange.append(fault)


def _fault_of_history(
    messages: Sequence[dict[str, Any]],
    answered: Mapping[str | None, _Version],
    versions: Mapping[tuple[str, int, int], _Version],
) -> str | None:
    """Return what is wrong with what a model was shown; None if it was a thread."""
    said = [each for each in messages if each["role"] in {"user", "assistant"} and not each.get("tool_calls")]
    while said and said[-1]["role"] == "assistant":
        said.pop()
    pairs = [(said[at]["content"], said[at + 1]["content"]) for at in range(0, len(said) - 1, 2)]
    shown = [answered.get(answer) for _, answer in pairs]
    for (question, answer), version in zip(pairs, shown, strict=True):
        if version is None or version.question != question:
            return f"nobody ever had {question!r}: {answer!r}, before {said[-1]['content']!r}"
    for last, version in pairwise([None, *shown]):
        parent = version.parent if version is not None else None
        while parent is not None and not versions[parent].answer:
            parent = versions[parent].parent  # stopped before it said anything: no model is shown that
        if version is not None and parent != (None if last is None else last.place):
            return f"{version.run_id} was shown behind {last and last.run_id}, and follows {parent}"
    return None


def _look_for_doubled(journal: Sequence[dict[str, Any]], report: ThreadsReport) -> None:
    told: defaultdict[str, set[str]] = defaultdict(set)
    for each in journal:
        if each["kind"] in {"answer", "change"}:
            told[each["key"]].add(each["text"])
    report.doubled += [f"{key}: {texts}" for key, texts in told.items() if len(texts) > 1]


def _fault_of(log: Sequence[dict[str, Any]], status: str) -> str | None:
    kinds = [str(line["type"]) for line in log]
    if kinds[:1] != ["session.run.started"]:
        return f"it begins with {kinds[:2]}"
    ends = [kind for kind in kinds if kind in _TERMINAL]
    if kinds[-1] != ends[-1] or ends[-1] != f"session.run.{status}":
        return f"it ends with {ends}, {kinds[-1]}"
    seqs = [line["seq"] for line in log]
    return None if seqs == sorted(set(seqs)) else f"its seqs are {seqs}"
