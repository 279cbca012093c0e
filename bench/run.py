"""
`make bench`: measure everything, print it, and write `bench/RESULTS.md`.

``--quick`` takes few rounds, for a look while working, and leaves the file alone.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import load, logs, measures
from bench.measures import Figures, Subjects
from bench.report import Bar, Report, cells
from bench.upstream import Script
from bench.workers import NAMES, least_worker, running_peers, running_subjects, traced_workers

_RESULTS: Final = Path(__file__).parent / "RESULTS.md"
_TELEMETRY_BARS: Final = {"time to first byte": 1.02, "CPU, of ten in a row": 1.1}

_ON_D1: Final = {
    "round_trips": "round trips",
    "statements": "statements",
    "rows_written": "rows written",
    "rows_read": "rows read",
}
"""What is told of D1 for each turn, and its heading."""

_AWAY_MS: Final = (0, 5, 20)
"""How much further away the database is than in the same process."""

_AT_ONCE: Final = (1, 8, 32, 128)

_FLUSHED_S: Final = 0.6
"""After an answer, until its telemetry has been sent."""

_OURS: Final = "chatturn"
_FIELDS: Final = {"first_byte": "time to first byte", "total": "total", "cpu": "CPU"}


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How much is measured."""

    warm_up: int
    rounds: dict[int, int]
    replays: int
    long_rounds: int
    turns_at_once: int
    memory_turns: int
    lag_rounds: int
    log_rounds: int
    followed_turns: int
    traced_rounds: int
    steps: int
    peer_rounds: int


_FULL: Final = _Plan(
    warm_up=60,
    rounds={1: 50, 20: 60, 200: 20, 2_000: 11},
    replays=100,
    long_rounds=3,
    turns_at_once=192,
    memory_turns=2_000,
    lag_rounds=2,
    log_rounds=25,
    followed_turns=5,
    traced_rounds=100,
    steps=1_000,
    peer_rounds=3,
)
_QUICK: Final = _Plan(
    warm_up=20,
    rounds={1: 10, 20: 15, 200: 5, 2_000: 3},
    replays=20,
    long_rounds=1,
    turns_at_once=64,
    memory_turns=200,
    lag_rounds=1,
    log_rounds=6,
    followed_turns=2,
    traced_rounds=20,
    steps=200,
    peer_rounds=1,
)


def main(arguments: list[str]) -> int:
    """Measure; return 0 whether or not the bars are reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds; bench/RESULTS.md is left alone")
    quick = parser.parse_args(arguments).quick
    plan = _QUICK if quick else _FULL
    began = time.monotonic()
    report = Report(command="make bench" + (" ARGS=--quick" if quick else ""))
    _count(report)
    _count_crossings(report)
    _measure_log(plan, report)
    _measure_steps(plan, report)
    with running_subjects() as subjects:
        _say("warming up")
        measures.warm_up(subjects, plan.warm_up)
        _measure_turns(subjects, plan, report)
        _measure_streams(subjects, plan, report)
        _measure_lag(subjects, plan, report)
        _measure_least(subjects, plan, report)
        _measure_concurrency(subjects, plan, report)
        _measure_memory(subjects, plan, report)
    _measure_beside_peer(plan, report)
    _measure_telemetry(plan, report)
    print(report.text())
    if not quick:
        _RESULTS.write_text(report.text(), "utf-8")
    _say(f"took {time.monotonic() - began:.0f} s")
    return 0


def _count(report: Report) -> None:
    _say("counting round trips")
    found = measures.counts()
    fresh, replay = found["fresh"], found["replay"]
    report.bars += [
        Bar(what="D1 round trips of a fresh turn", most=2, measured=fresh["round_trips"]),
        Bar(what="D1 round trips of a replay", most=1, measured=replay["round_trips"]),
    ]
    rows = [[what, *(str(counts[name]) for name in _ON_D1)] for what, counts in found.items()]
    report.add("D1, counted", ["turn of 20 chunks", *_ON_D1.values()], rows)


def _count_crossings(report: Report) -> None:
    _say("counting crossings and byte codes")
    found = load.turn_counts()
    rows = [
        [what, *(f"{counts[name]:.1f}" if name in counts else "" for counts in found.values())]
        for name, what in load.COUNTED.items()
    ]
    report.add("What a turn does, counted", ["", *found], rows)


def _measure_beside_peer(plan: _Plan, report: Report) -> None:
    for away_ms in _AWAY_MS:
        with running_peers(away_ms) as subjects:
            _say(f"beside peer, the database {away_ms} ms further away")
            measures.warm_up(subjects, plan.warm_up)
            _measure_throughput(subjects, plan, report, away_ms)
            if not away_ms:
                _measure_paced(subjects, plan, report)


def _measure_throughput(subjects: Subjects, plan: _Plan, report: Report, away_ms: int) -> None:
    rows, ours = [], {}
    for at_once in _AT_ONCE:
        _say(f"{at_once} at once")
        rates, costs = load.throughput(subjects, at_once, max(plan.turns_at_once, 2 * at_once), plan.peer_rounds)
        ours[at_once] = rates[_OURS]
        rows.append([str(at_once), *cells(rates, floor="peer"), *cells(costs, floor="peer")])
        if at_once in {8, 32} and not away_ms:
            measured = rates[_OURS] / rates["peer"]
            report.bars.append(Bar(what=f"turns/s beside peer, {at_once} at once", least=1.0, measured=measured))
    if not away_ms:
        kept = ours[128] / ours[32]
        report.bars.append(Bar(what="turns/s, 128 at once beside 32 at once", least=1.0, measured=kept))
    header = ["at once", *(f"{name}, turns/s" for name in subjects), *(f"{name}, CPU ms" for name in subjects)]
    report.add(f"Turns of 20 chunks beside peer, the database {away_ms} ms further away", header, rows)


def _measure_paced(subjects: Subjects, plan: _Plan, report: Report) -> None:
    rows = []
    for streams in (1, 8):
        _say(f"{streams} paced streams at once")
        found = load.paced_lag(subjects, streams, plan.peer_rounds)
        for what in ("median", "high"):
            figures = {name: getattr(lag, what) for name, lag in found.items()}
            words = "median" if what == "median" else "90th percentile"
            rows.append([f"lag of a delta, {streams} at once, {words}", *cells(figures, floor="peer")])
            measured = figures[_OURS] / figures["peer"]
            if what == "median":
                report.bars.append(Bar(what=f"paced lag beside peer, {streams} at once", most=1.3, measured=measured))
            elif streams > 1:
                bar = f"paced lag beside peer, {streams} at once, 90th percentile"
                report.bars.append(Bar(what=bar, most=1.6, measured=measured))
    _say("CPU of a paced stream")
    whole, each = load.paced_cpu(subjects, 3 * plan.peer_rounds)
    measured = whole[_OURS] / whole["peer"]
    report.bars.append(Bar(what="CPU of a paced stream beside peer", most=1.2, measured=measured))
    rows += [["CPU, 120 chunks", *cells(whole, floor="peer")], ["CPU, a chunk more", *cells(each, floor="peer")]]
    report.add("Streams of a chunk each 20 ms beside peer, ms", ["", *subjects], rows)


def _measure_log(plan: _Plan, report: Report) -> None:
    _say("the log, stored meanwhile or with the end")
    rows = []
    for what, sample in logs.log_cost(plan.log_rounds).items():
        for field in ("first_byte", "total", "cpu"):
            stored, at_end = getattr(sample, field).values()
            rows.append([f"{what}, {_FIELDS[field]}", f"{at_end:.1f}", f"{stored:.1f} ({stored / at_end:.2f}x)"])
            if field != "cpu":
                report.bars.append(
                    Bar(what=f"log on to off: {what}, {_FIELDS[field]}", most=1.05, measured=stored / at_end)
                )
    report.add("What storing the log costs its stream, ms", ["", "stored with the end", "stored every 250 ms"], rows)
    _say("rows of a turn of 20 s")
    counts = logs.rows_of_a_long_turn()
    report.bars.append(Bar(what="rows written, 2,000 events in 20 s", most=120, measured=counts["rows_written"]))
    _say("followers")
    behind = logs.followers(plan.followed_turns)
    for (where, lag), most in zip(behind.items(), (50, 400), strict=True):
        report.bars.append(Bar(what=f"a follower's lag {where}, 99th percentile, ms", most=most, measured=lag.high))
    figures = [[where, f"{lag.median:.1f}", f"{lag.high:.1f}"] for where, lag in behind.items()]
    report.add("A follower's lag behind the turn's own reader, ms", ["", "median", "99th percentile"], figures)


def _measure_steps(plan: _Plan, report: Report) -> None:
    _say("durable steps")
    found = measures.steps(plan.steps)
    rows = [
        [
            what,
            f"{ms / plan.steps:.2f}",
            f"{counts['round_trips'] / plan.steps:.3f}",
            *(str(counts[name]) for name in _ON_D1),
        ]
        for what, (ms, counts) in found.items()
    ]
    header = ["", "ms a step", "round trips a step", *_ON_D1.values()]
    report.add(f"{plan.steps:,} durable steps on D1, beside a naive loop", header, rows)


def _measure_turns(subjects: Subjects, plan: _Plan, report: Report) -> None:
    _say("empty requests")
    samples = {"GET, an answer of a few bytes": measures.empty_requests(subjects, plan.replays)}
    for events, rounds in plan.rounds.items():
        what = f"{events:,} chunks" if events > 1 else "1 chunk"
        _say(f"turns of {what}")
        samples[f"fresh, {what}"] = measures.fresh_turns(subjects, Script(events), rounds)
    _say("2,000 events, ten per chunk")
    ten = measures.fresh_turns(subjects, Script(2_000, 10), plan.rounds[2_000])
    samples["fresh, 2,000 events, ten per chunk"] = ten
    _say("replays")
    replay = samples["replay, 20 chunks"] = measures.replays(subjects, plan.replays)
    one = samples["fresh, 2,000 chunks"]
    report.bars += [
        Bar(what="total, 20 chunks", most=1.2, measured=_ratio(samples["fresh, 20 chunks"].total)),
        Bar(what="total, replay", most=1.15, measured=_ratio(replay.total)),
        Bar(what="CPU, 2,000 events, one per chunk", most=0.7, measured=_ratio(one.cpu)),
        Bar(what="CPU, 2,000 events, ten per chunk", most=0.25, measured=_ratio(ten.cpu)),
    ]
    for title, field in (("Total, ms", "total"), ("Time to first byte, ms", "first_byte"), ("CPU, ms", "cpu")):
        rows = [[what, *cells(getattr(sample, field))] for what, sample in samples.items()]
        report.add(title, ["", *NAMES], rows)


def _measure_streams(subjects: Subjects, plan: _Plan, report: Report) -> None:
    rows = []
    for per_chunk, least in ((1, 1.5), (10, 5.0)):
        _say(f"20,000 events of 8 bytes, {per_chunk} per chunk")
        sample = measures.fresh_turns(subjects, Script(20_000, per_chunk), plan.long_rounds)
        rates = {name: 20_000 / ms * 1000 for name, ms in sample.total.items()}
        what = f"{per_chunk} per chunk"
        rows.append([what, *cells(rates), *cells(sample.cpu)])
        report.bars.append(Bar(what=f"events/s, 20,000 events, {what}", least=least, measured=_ratio(rates)))
    header = ["", *(f"{name}, events/s" for name in NAMES), *(f"{name}, CPU ms" for name in NAMES)]
    report.add("20,000 events of 8 bytes", header, rows)


def _measure_lag(subjects: Subjects, plan: _Plan, report: Report) -> None:
    _say("20 ms between events")
    median, high = measures.delta_lag(subjects, events=100, pause_ms=20, rounds=plan.lag_rounds)
    report.bars.append(Bar(what="delta lag at 20 ms between events", most=1.2, measured=_ratio(median)))
    rows = [["median", *cells(median)], ["95th percentile", *cells(high)]]
    report.add("Lag of a delta at 20 ms between events, ms", ["", *NAMES], rows)


def _measure_least(subjects: Subjects, plan: _Plan, report: Report) -> None:
    _say("the least that Python costs")
    with least_worker() as least:
        compared = {"floor": subjects["floor"], "least": least, _OURS: subjects[_OURS]}
        measures.warm_up({"least": least}, plan.warm_up)
        measures.empty_requests(compared, plan.replays)  # which the compilers have not seen yet
        empty = measures.empty_requests(compared, plan.replays)
        lag, _ = measures.delta_lag(compared, events=100, pause_ms=20, rounds=plan.lag_rounds)
    rows = [
        ["GET, total", *cells(empty.total)],
        ["GET, CPU", *cells(empty.cpu)],
        ["lag of a delta at 20 ms between events", *cells(lag)],
    ]
    report.add("The least that Python costs, ms", ["", *compared], rows)


def _measure_concurrency(subjects: Subjects, plan: _Plan, report: Report) -> None:
    rows = []
    for at_once in (1, 8, 32):
        _say(f"{at_once} turns at once")
        rates = measures.concurrency(subjects, at_once, plan.turns_at_once)
        rows.append([str(at_once), *cells(rates)])
    report.add("Turns of 20 chunks per second, so many at once", ["at once", *NAMES], rows)


def _measure_memory(subjects: Subjects, plan: _Plan, report: Report) -> None:
    rows = []
    for name in ("floor", _OURS):
        _say(f"memory of {name}")
        sizes = measures.memory(subjects[name], plan.memory_turns, 4)
        rows.append([name, *(f"{size:.0f}" for size in sizes)])
    parts = [f"after {plan.memory_turns * part // 4:,}" for part in range(1, 5)]
    report.add("Resident memory over turns of 20 chunks, MB", ["", "before", *parts], rows)


def _measure_telemetry(plan: _Plan, report: Report) -> None:
    rows = []
    with traced_workers() as subjects:
        measures.warm_up(subjects, plan.warm_up)
        for events in (20, 200):
            _say(f"telemetry, turns of {events} chunks")
            sample = measures.fresh_turns(subjects, Script(events), plan.traced_rounds, _FLUSHED_S)
            in_a_row = measures.turns_in_a_row(subjects, Script(events), plan.traced_rounds // 5, 10, _FLUSHED_S)
            figures = {
                "time to first byte": sample.first_byte,
                "total": sample.total,
                "CPU, one turn alone": sample.cpu,
                "CPU, of ten in a row": in_a_row,
            }
            for what, measured in figures.items():
                ratio = measured["on"] / measured["off"]
                rows.append([f"{events} chunks, {what}", *(f"{ms:.2f}" for ms in measured.values()), f"{ratio:.3f}"])
                if what in _TELEMETRY_BARS:
                    name = f"{what}, {events} chunks, telemetry on and off"
                    report.bars.append(Bar(what=name, most=_TELEMETRY_BARS[what], measured=ratio))
    report.add("Telemetry off and on, ms", ["", "off", "on", "ratio"], rows)


def _ratio(figures: Figures) -> float:
    return figures[_OURS] / figures["floor"]


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
