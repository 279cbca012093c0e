"""Patterns that are searched for in linear time find what `re` finds."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chatturn.agent_runtime.agents.linear_patterns import MAX_NODES, LinearPattern
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
        r"\B",
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
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,20}", "{2,}", "*?", "+?"])).map(lambda of: f"(?:{of[0]}){of[1]}"),
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

    assume(text or r"\B" not in source or not re.search(r"\B", ""))  # from Python 3.14 on: see below
    assert (pattern.search(text) is not None) == LinearPattern(source, flags).search(text)


@pytest.mark.parametrize("flags", [0, re.ASCII])
def test_an_empty_text_has_no_place_that_is_no_boundary(flags: int) -> None:
    r"""As for `re` up to Python 3.13, the Worker's; from 3.14 on, `re` finds ``\B`` there, and this still does not."""
    assert [False, False, True, True] == [LinearPattern(r"\B", flags).search(text) for text in ("", "a", "ab", "\n")]
    assert LinearPattern(r"\B|x*").search("")


@pytest.mark.parametrize(
    "source",
    [
        r"a(?:a|b){600}c", r"a[ab]{0,600}c", r"a(?:a|ba){300}c", r"((?:a{0,5}b){0,10}a){0,10}c", r"a[ab]{1900}c",
        r"\ba\w{600}c", "(?:(?:a|b)?" + "){1}(?:".join("abababab" * 10) + ")c",
    ],
)  # fmt: skip
def test_a_long_repeat_costs_little_for_each_letter(source: str) -> None:
    """Its 600 to 1,900 nodes are looked at at once; one after the other they took 90 to 250 us a letter."""
    text = "".join("ab"[(number * number // 7 + number // 3) % 2] for number in range(50_000))
    pattern = LinearPattern(source)
    began = time.process_time()

    pattern.search(text)

    assert time.process_time() - began < 50_000 * 30e-6


@pytest.mark.parametrize(
    "source", ["".join(f"[{x}{y}]?" for x in "abcdefghij" for y in "klmnopqrstuvwxyzABCDE") + "!", "(?:a?b?){400}c"]
)
def test_a_pattern_with_too_many_ways_is_refused_at_once(source: str) -> None:
    """Each of 250 characters may be followed by any later one: no set of them can be told at once."""
    began = time.process_time()
    with pytest.raises(ValidationError, match="ways to go on"):
        LinearPattern(source)

    assert time.process_time() - began < 2


@given(st.integers(0, 30), st.integers(0, 30), st.text(alphabet="ab", max_size=60))
def test_long_repeats_find_what_re_finds(least: int, more: int, text: str) -> None:
    """Also where what is repeated has several ends, and may be nothing."""
    for source in ("a(?:a|ba){%d,%d}bb", "b(?:a?b|aa){%d,%d}a$", "(?:ab?){%d,%d}(?:ba)+$", r"a\B(?:a|b\b|b){%d,%d}b$"):
        written = source % (least, least + more)
        assert (re.search(written, text) is not None) == LinearPattern(written).search(text)


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
