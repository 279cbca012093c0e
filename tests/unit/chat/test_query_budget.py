"""How often something that costs a query is done: often at first, and within a budget however long it lasts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.chat.log.query_budget import FOLLOW_PACES, Pace, log_pace

QUARTER_MS = 900_000.0
PACES = [*FOLLOW_PACES.values(), log_pace("paid", 250), log_pace("free", 250)]


def count(pace: Pace, until_ms: float) -> int:
    """Count how often it is done until then."""
    passed_ms, done = 0.0, 0
    while passed_ms < until_ms:
        passed_ms += pace.interval_ms(passed_ms)
        done += 1
    return done


@pytest.mark.parametrize("pace", PACES)
def test_a_quarter_of_an_hour_is_within_the_budget(pace: Pace) -> None:
    """A few more where the interval changes."""
    assert pace.queries * 0.95 <= count(pace, QUARTER_MS) <= pace.queries * 1.05 + 4


@given(st.integers(1, 2_000), st.integers(1, 5_000))
def test_any_budget_is_kept(first_ms: int, queries: int) -> None:
    """Whatever the shortest interval."""
    assert count(Pace(first_ms=first_ms, queries=queries), QUARTER_MS) <= queries * 1.1 + 6


@pytest.mark.parametrize("pace", PACES)
def test_the_interval_only_grows(pace: Pace) -> None:
    """From the shortest on."""
    intervals = [pace.interval_ms(seconds * 1000) for seconds in range(0, 900, 7)]

    assert pace.first_ms == intervals[0]
    assert sorted(intervals) == intervals


def test_a_log_may_be_stored_at_its_end_only() -> None:
    """With 0 nothing is ever due before."""
    assert log_pace("paid", 0).interval_ms(QUARTER_MS) > 1_000 * QUARTER_MS


@pytest.mark.parametrize("values", [{"first_ms": 0, "queries": 1}, {"first_ms": 1, "queries": 0}])
def test_a_pace_without_time_or_budget_is_refused(values: dict[str, int]) -> None:
    """At once, where it is made."""
    with pytest.raises(ValueError, match="at least 1"):
        Pace(**values)
