"""What routes and sweeps cost does not grow with the database: `make volume`, with fewer turns."""

import pytest

from bench.volume import compare, dearer

pytestmark = pytest.mark.slow


def test_nothing_gets_dearer_with_the_turns_that_are_there() -> None:
    """Rows read on D1, with fifty times as many turns: at most twice as many, or for each thing that is returned."""
    lines = compare(5_000, times=1)

    assert [] == dearer(lines)
    assert 25 <= len(lines)
