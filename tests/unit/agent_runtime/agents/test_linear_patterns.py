"""Patterns that are searched for in linear time find what `re` finds."""

import re
import time
import tracemalloc
from contextlib import nullcontext, suppress

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
        st.tuples(st.sampled_from(["i", "-i", "s", "m", "a", "u", "ai", "u-i"]), inner).map(lambda of: f"(?{of[0]}:{of[1]})"),
    ),
    max_leaves=10,
)  # fmt: skip
TEXTS = st.text(alphabet="abcABC019_ éÉ\n-\u017fK", max_size=24)


@given(PATTERNS, TEXTS, st.sampled_from([0, re.IGNORECASE, re.MULTILINE, re.DOTALL, re.ASCII]))
def test_it_finds_what_re_finds(source: str, text: str, flags: int) -> None:
    """
    On every text, under every flag: `re` is the oracle.

    CPython 3.11 misjudges a pattern that begins with a group that has flags of its own.  An empty ``(?=)`` in front of
    it, which finds nothing and everywhere, keeps the oracle from that.
    """
    try:
        pattern = re.compile(f"(?=){source}", flags)
    except re.error:
        assume(False)

    assume(text or r"\B" not in source or not re.search(r"\B", ""))  # from Python 3.14 on: see below
    try:
        linear = LinearPattern(source, flags)
    except ValidationError as refused:
        assume("ways to go on" not in str(refused) and "nodes" not in str(refused))
        raise
    assert (pattern.search(text) is not None) == linear.search(text)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("characters", [25_000, 100_000])
def test_what_is_kept_of_texts_is_bounded(characters: int) -> None:
    """100 or 400 kB in which no letter comes twice: nothing grows with them, and 20 patterns keep at most 5 MB."""
    patterns = [LinearPattern(source) for source in (r"\bword\b", "another")]
    text = "".join(map(chr, range(0x20000, 0x20000 + characters)))
    tracemalloc.start()
    try:
        assert not any(pattern.search(text) for pattern in patterns)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < len(patterns) * 250_000


def test_what_is_kept_of_states_is_bounded() -> None:
    """States, and steps between them, whatever the pattern: 2 MB."""
    pattern = LinearPattern("|".join(f"[ab{chr(0x4E00 + n)}][a-z]{{{n % 9}}}{chr(0x4E00 + n)}x" for n in range(100)))
    text = "".join(f"ab{chr(0x4E00 + n * n % 101)}{'abcz'[n % 4] * (n % 7)}" for n in range(8_000))
    tracemalloc.start()
    try:
        pattern.search(text)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 2_500_000


def test_more_characters_than_are_kept_are_still_found() -> None:
    """What is forgotten in the middle of a search is made again."""
    text = "".join(map(chr, range(0x20000, 0x20000 + 5_000)))

    assert LinearPattern(r"^a[^b]*\Bb$").search(f"a{text}_b")
    assert not LinearPattern(r"^a[^b]*b$").search(f"a{text}b{text}")


@pytest.mark.parametrize("form", ["(?:", "(", "(?:a|"])
@pytest.mark.parametrize("depth", [100, 300, 330, 400, 480, 2_000])
def test_a_deep_pattern_is_compiled_or_refused(form: str, depth: int) -> None:
    """The interpreter's limit is no error of the caller's own."""
    source = form * depth + "a" + ")" * depth
    with nullcontext() if depth == 100 else suppress(ValidationError):
        LinearPattern(source)


def test_a_pattern_that_tells_too_many_characters_apart_is_refused() -> None:
    """Each character that is new is looked for in each set."""
    LinearPattern("".join(map(chr, range(0x4E00, 0x4E00 + 300))))

    with pytest.raises(ValidationError, match="sets of characters"):
        LinearPattern("".join(map(chr, range(0x4E00, 0x4E00 + 301))))


@pytest.mark.parametrize(
    ("source", "text"),
    [(r"(?a)x(?u:\w)", "xé"), (r"x(?a:\w)", "xé"), (r"(?a)(?u:\bé\b)", " é "), (r"(?ai)(?u:É)", "é")],
)
def test_a_part_has_one_type_of_characters(source: str, text: str) -> None:
    """The one that it is given takes the place of the one around it."""
    assert (re.search(source, text) is not None) == LinearPattern(source).search(text)


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
