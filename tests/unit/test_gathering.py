"""When chunks are taken one by one, and when together: the rule, and an isolate in virtual time that keeps to it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from chatturn.gathering import Gathering, Work

DELIVERY_S = 0.001


@dataclass(kw_only=True)
class _Stream:
    """
    One answer in an isolate.

    Attributes:
        gathered: When the chunks came that wait.
        lags_s: Of each chunk, from its coming to its delivery's end.
        deliveries: How often chunks were delivered.
        timers: How often a timer was set.
    """

    gathering: Gathering
    closed: bool = False
    gathered: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    deliveries: int = 0
    timers: int = 0


def run(arrivals: Sequence[Sequence[float]], other_work: Sequence[tuple[float, float]] = ()) -> list[_Stream]:
    """
    Let chunks come to streams of one isolate, which does one thing at a time.

    Args:
        arrivals: For each stream, when its chunks come, in seconds.
        other_work: What else the isolate does: when it comes, and how long it takes.
    """
    work = Work()
    streams = [_Stream(gathering=Gathering(work)) for _ in arrivals]
    order, now_s = count(), 0.0
    events = [(at, next(order), "chunk", number) for number, times in enumerate(arrivals) for at in times]
    events += [(at, next(order), "work", took) for at, took in other_work]  # type: ignore[misc]  # seconds, no stream
    heapq.heapify(events)
    while events:
        at, _, kind, what = heapq.heappop(events)
        now_s = max(now_s, at)
        if kind == "work":
            work.pieces += 1
            now_s += what
            continue
        stream = streams[what]
        if kind == "chunk":
            stream.gathered.append(at)
            if stream.closed:
                continue
            gather_s = stream.gathering.came(now_s)
        else:
            work.fired(now_s, now_s - at)
            gather_s = stream.gathering.gathered(len(stream.gathered))
            stream.closed = gather_s is not None
            if not stream.gathered:
                continue
        work.pieces += 1
        now_s += DELIVERY_S
        stream.gathering.delivered(now_s)
        stream.deliveries += 1
        stream.lags_s += [now_s - came for came in stream.gathered]
        stream.gathered = []
        stream.closed = gather_s is not None
        if gather_s is not None:
            stream.timers += 1
            heapq.heappush(events, (now_s + gather_s, next(order), "timer", what))
    return streams


def paced(chunks: int, every_s: float = 0.02) -> list[float]:
    return [number * every_s for number in range(chunks)]


def test_a_stream_that_is_alone_gets_each_chunk_at_once_and_sets_no_timer() -> None:
    [stream] = run([paced(100)])
    assert stream.deliveries == 100
    assert not stream.timers
    assert max(stream.lags_s) < 1.01 * DELIVERY_S


def test_a_burst_is_taken_in_few_pieces() -> None:
    [stream] = run([[0.0001 * number for number in range(200)]])
    assert len(stream.lags_s) == 200
    assert stream.deliveries <= 6


def test_streams_beside_each_other_are_late_by_no_more_than_their_deliveries_take() -> None:
    streams = run([paced(100)] * 8)
    assert all(stream.deliveries == 100 for stream in streams)
    assert max(max(stream.lags_s) for stream in streams) < 8.01 * DELIVERY_S


def test_streams_beside_each_other_set_few_timers_while_none_is_late() -> None:
    """One now and then tells whether anything gathers by now; each chunk is still taken at once."""
    for number in (2, 4, 8):
        streams = run([[at + 0.02 * stream / number for at in paced(200)] for stream in range(number)])
        assert all(stream.deliveries == 200 for stream in streams)
        assert max(max(stream.lags_s) for stream in streams) < 1.01 * DELIVERY_S
        assert 0 < sum(stream.timers for stream in streams) < 0.15 * 200 * number


def test_in_a_busy_isolate_bursts_are_taken_in_few_pieces_each() -> None:
    streams = run([[0.0] * 20 for _ in range(32)])
    assert all(stream.deliveries <= 3 for stream in streams)
    # A chunk by itself would be a delivery each: 640 ms.
    assert max(max(stream.lags_s) for stream in streams) < 0.1


def test_more_streams_than_an_isolate_can_serve_chunk_by_chunk_are_not_later_and_later() -> None:
    streams = run([paced(200)] * 40)  # 40 deliveries each 20 ms would take 40 ms
    assert all(len(stream.lags_s) == 200 for stream in streams)
    first, last = (max(max(stream.lags_s[part]) for stream in streams) for part in (slice(0, 50), slice(150, 200)))
    assert last < 1.5 * first
    assert last < 0.2


def test_other_work_makes_chunks_gather_for_no_longer_than_a_tenth_of_a_second() -> None:
    [stream] = run([paced(200, 0.001)], other_work=[(0.05 * number, 0.045) for number in range(5)])
    assert stream.deliveries < 40
    assert max(stream.lags_s) < 0.1 + 0.045 + 0.01


def test_after_the_work_is_over_chunks_are_taken_at_once_again() -> None:
    times = paced(200)
    [stream, _] = run([times, paced(20)])
    assert stream.timers <= 25
    assert max(stream.lags_s[50:]) < 1.01 * DELIVERY_S


def test_how_long_chunks_gather_grows_with_crowds_and_with_lateness_up_to_a_bound() -> None:
    work = Work()
    gathering = Gathering(work)
    assert gathering.came(0.0) is None
    gathering.delivered(0.1)  # a slow machine took long for it
    assert gathering.came(0.101) == 0.002
    assert [gathering.gathered(4) for _ in range(5)] == [0.004, 0.008, 0.016, 0.016, 0.016]
    assert gathering.gathered(2) == 0.002
    for late_s, gather_s in ((0.01, 0.04), (1.0, 0.1)):
        work.fired(0.2, late_s)
        assert gathering.gathered(2) == gather_s


def test_beside_other_work_gathering_is_tried_more_rarely_the_more_often_nothing_was_gathered() -> None:
    work = Work()
    gathering = Gathering(work)

    def tried(chunks: int) -> list[int]:
        """Let *chunks* come, 20 ms apart, each after other work; return after which of them gathering was tried."""
        found = []
        for number in range(chunks):
            work.pieces += 1
            if gathering.came(float(number)) is not None:
                found.append(number)
                assert gathering.gathered(0) is None
            gathering.delivered(number + 0.01)
        return found

    assert tried(60) == [0, 2, 6, 14, 30, 46]
    assert gathering.gathered(2) is not None
    gathering.delivered(60.0)
    assert tried(10) == [0, 2, 6]


def test_single_chunks_are_gathered_twice_at_most() -> None:
    gathering = Gathering(Work())
    assert [gathering.gathered(chunks) is None for chunks in (1, 2, 1, 1, 1, 1)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]


def test_the_first_chunk_gathers_the_next_ones_for_as_long_as_timers_are_late() -> None:
    work = Work()
    gathering = Gathering(work)
    work.pieces = 1
    work.fired(1.0, 0.03)
    assert gathering.came(1.9) == 0.03
    assert gathering.came(2.1) == 0.002  # the isolate may have nothing to do by now
