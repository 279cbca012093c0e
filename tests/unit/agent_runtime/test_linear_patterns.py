"""Patterns that are searched for in linear time find what `re` finds."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chatturn.agent_runtime.linear_patterns import MAX_NODES, LinearPattern
from chatturn.errors import ValidationError

MEGABYTE = 1_000_000

PIECES = st.sampled_from(
    [
        "a",
        "b",
        "é",
        ".",
        r"\d",
        r"\w",
        r"\s",
        "[ab]",
        "[^a]",
        "[a-c0-9_]",
        r"[\d\-é]",
        "^",
        "$",
        r"\b",
        r"\A",
        r"\Z",
        "\n",
        "A",
    ]
)
PATTERNS = st.recursive(
    PIECES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ways: f"(?:{'|'.join(ways)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])).map(lambda of: f"(?:{of[0]}){of[1]}"),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"(?i:{one})"),
    ),
    max_leaves=10,
)  # fmt: skip
TEXTS = st.text(alphabet="abcABC019_ é\n-\u017fK", max_size=24)


@given(PATTERNS, TEXTS, st.sampled_from([0, re.IGNORECASE, re.MULTILINE, re.DOTALL, re.ASCII]))
def test_it_finds_what_re_finds(source: str, text: str, flags: int) -> None:
    """On every text, under every flag: `re` is the oracle."""
    try:
        pattern = re.compile(source, flags)
    except re.error:
        assume(False)

    assert (pattern.search(text) is not None) == LinearPattern(source, flags).search(text)


@pytest.mark.parametrize(
    "source",
    [r"(a+)+$", r"(a|a)*b", r"(a|aa)+c", r".*x.*y.*z", r"(\w+\s?)*!", r"a.*a.*b", r"(?:a?){30}a{30}b", r"^(([a-z])+.)+[A-Z]([a-z])+$"],
)  # fmt: skip
@pytest.mark.parametrize("text", ["a" * MEGABYTE, "ax" * (MEGABYTE // 2), "sue " * (MEGABYTE // 4)])
def test_a_megabyte_takes_no_longer_than_its_characters(source: str, text: str) -> None:
    """`re` would need more steps than there are atoms, or at least the square of the text's length."""
    began = time.process_time()

    LinearPattern(source).search(text)

    assert time.process_time() - began < 5


def test_a_text_of_every_character_is_linear_too() -> None:
    """Each character that was not seen before costs a little more, once."""
    text = "".join(chr(point) for point in range(0x100, 0x110000, 31) if not 0xD800 <= point < 0xE000)
    began = time.process_time()

    assert not LinearPattern(r"(\w+é|[^\d]*\d)!$").search(text)
    assert time.process_time() - began < 10


def test_a_pattern_with_more_states_than_are_kept_still_finds() -> None:
    """Its automaton has 2^12 states; what is forgotten is made again."""
    pattern = LinearPattern(r"a[ab]{12}c")
    text = "".join("ab"[(number * number // 7) % 2] for number in range(60_000))

    assert not pattern.search(text)
    assert pattern.search(text + "a" + "ab" * 6 + "c")


@pytest.mark.parametrize("source", [r"(?=a)b", r"(?!a)b", r"(?<=a)b", r"(?<!a)b", r"(a)\1", r"(a)?(?(1)b|c)"])
def test_what_no_automaton_can_do_is_refused(source: str) -> None:
    """Look-around and back-references, when the pattern is compiled."""
    with pytest.raises(ValidationError, match="linear time"):
        LinearPattern(source)


@pytest.mark.parametrize("source", ["(", "a{2", "[b-a]", "*a", r"\q"])
def test_what_re_does_not_understand_is_refused(source: str) -> None:
    """A brace without its end is a letter to `re`, and so it is here."""
    if source == "a{2":
        assert LinearPattern(source).search("xa{2")
        return
    with pytest.raises(ValidationError, match="is none"):
        LinearPattern(source)


@pytest.mark.parametrize(
    "source",
    ["(?:){4000000000}", "(){4000000000}", "(?:a{0}){4000000000}", "((?:){9}){4000000000}", "(?:(?i:)){99999999}"],
)
def test_nothing_however_often_is_nothing(source: str) -> None:
    """It is found everywhere, and costs nothing."""
    assert LinearPattern(source).search("xyz")


@pytest.mark.parametrize("source", [f"a{{{MAX_NODES}}}", "((a{50}){50}){50}", "(" * 2_000 + ")" * 2_000])
def test_a_pattern_without_measure_is_refused(source: str) -> None:
    """It is small as text, and large written out."""
    with pytest.raises(ValidationError):
        LinearPattern(source)
