"""What no text may say, in whatever pieces it comes."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatturn.agent_runtime.values.unsaid import Unsaid, UnsaidPieces

VALUES = st.lists(st.text("xyz", min_size=3, max_size=6), min_size=1, max_size=3)
PIECES = st.lists(st.text("xyz", max_size=8), max_size=12)


def told(unsaid: Unsaid, pieces: list[str]) -> str:
    """Return all that is told of a text in *pieces*."""
    text = UnsaidPieces(unsaid)
    return "".join([*map(text.feed, pieces), text.cut()])


@given(VALUES, PIECES)
@example(["xxx", "xxxyyy"], ["xxx", "yyy"])
@example(["zxy", "xyz"], ["zx", "yzz"])
def test_pieces_are_told_as_the_whole_is(values: list[str], pieces: list[str]) -> None:
    """However they are cut; no value is in what is told."""
    unsaid = Unsaid(*values)
    whole = told(unsaid, ["".join(pieces)])

    assert whole == told(unsaid, pieces)
    assert not [value for value in values if value in whole]


@given(VALUES, PIECES)
def test_no_value_is_told_whatever_is_told_between_its_pieces(values: list[str], pieces: list[str]) -> None:
    """Nor more than half of one where it is cut off."""
    text = UnsaidPieces(Unsaid(*values))
    shown = [text.feed(piece) + text.cut() for piece in pieces]

    for value in values:
        assert value not in "".join(shown)
        assert not [each for each in shown if each.endswith(value[: len(value) // 2 + 1])]


@given(st.lists(st.text("abc", max_size=5), max_size=8))
def test_a_text_without_a_value_is_told_as_it_is(pieces: list[str]) -> None:
    assert "".join(pieces) == told(Unsaid("xyz-token"), pieces)


def test_only_what_may_be_a_beginning_is_held_back() -> None:
    text = UnsaidPieces(Unsaid("token-1"))

    assert ["say ", "", "tok or", " "] == [text.feed(piece) for piece in ("say to", "k", " or", " t")]
    assert ["t", "", "[redacted]", "!"] == [text.cut(), text.cut(), text.feed("oken-1"), text.feed("!")]


@pytest.mark.parametrize("value", ["a" * 16_000, "ab" * 8_000])
def test_a_long_value_letter_by_letter_takes_no_time_that_anybody_notices(value: str) -> None:
    began = time.process_time()
    shown = told(Unsaid(value), [*value[:-1], "!", *value])

    assert value not in shown
    assert time.process_time() - began < 5
