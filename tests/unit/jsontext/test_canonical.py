"""Canonical JSON is JavaScript's text, to the byte: pinned digests, and Node's own as the oracle."""

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.jsontext.canonical import MAX_DEPTH, canonical_hash, canonical_json

# agent-runtime's algorithm.  Its objects have no prototype, so that `__proto__` is an ordinary member here.
ORACLE: Final = r"""
const { createHash } = require("node:crypto");
const rebuilt = (value) => {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(rebuilt);
  const fresh = Object.create(null);
  for (const key of Object.keys(value).sort()) fresh[key] = rebuilt(value[key]);
  return fresh;
};
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const text = JSON.stringify(rebuilt(JSON.parse(line)));
  const hash = createHash("sha256").update(text, "utf8").digest("hex");
  process.stdout.write(JSON.stringify([text, hash]) + "\n");
});
"""

Oracle = Callable[[object], tuple[str, str]]


@pytest.fixture(scope="module")
def javascript() -> Iterator[Oracle]:
    """Node: a value's canonical text and its hash."""
    own = Path(__file__).parents[3] / ".venv/bin/node"
    node = str(own) if own.exists() else shutil.which("node")
    if node is None:
        pytest.skip("needs Node: neither .venv/bin/node nor `node` on the PATH")
    with subprocess.Popen([node, "-e", ORACLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        to_node, from_node = process.stdin, process.stdout
        assert to_node is not None
        assert from_node is not None

        def ask(value: object) -> tuple[str, str]:
            to_node.write(json.dumps(value).encode() + b"\n")
            to_node.flush()
            text, digest = json.loads(from_node.readline())
            return text, digest

        yield ask
        to_node.close()


NUMBERS: Final = [
    1.0,
    1e21,
    1e20,
    123456789012345680000.0,
    1e-7,
    0.000001,
    -0.0,
    5e-324,
    1.7976931348623157e308,
    0.1,
    100,
]


# What agent-runtime's values pin


@pytest.mark.parametrize(
    ("value", "text", "digest"),
    [
        pytest.param({}, "{}", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", id="empty"),
        pytest.param(
            {"b": 1, "a": [3, {"d": None, "c": True}]},
            '{"a":[3,{"c":true,"d":null}],"b":1}',
            "d8d702ad6a0f5ba2f81198b36a5f77fffbac20ab90e30c6572ff0be10b37f645",
            id="nested",
        ),
        pytest.param(
            {"10": 1, "2": 2, "a": 3, "01": 4, "-1": 5},
            '{"2":2,"10":1,"-1":5,"01":4,"a":3}',
            "6600b9297b685658eb8ccf8dfb4f7a0e079fdd40e7047b37cc2d089f1d1843c0",
            id="integer-like names",
        ),
        pytest.param(
            NUMBERS,
            "[1,1e+21,100000000000000000000,123456789012345680000,1e-7,0.000001,0,5e-324,1.7976931348623157e+308,0.1,100]",
            "d3f065bf73b48a3db7010fbe8445d85c9343c817dd5c7a04991459e0df9fcbab",
            id="numbers",
        ),
        pytest.param(
            {"\U00010000": 1, "\uffff": 2, "z": 3},
            '{"z":3,"\U00010000":1,"\uffff":2}',
            "8857e8a63b75697a1edefe7be9606c54bb1d9259f1051ecc2075fa8b623aff90",
            id="UTF-16 order",
        ),
        pytest.param(
            {"userMessage": "hello", "model": None},
            '{"model":null,"userMessage":"hello"}',
            "b31e4d00b684d1380865e28c4cedbea845b8e9d11539305ad2349b5db787eac2",
            id="chat input",
        ),
    ],
)
def test_known_values_have_the_pinned_text_and_digest(value: object, text: str, digest: str) -> None:
    """Hashes that agent-runtime has stored stay valid."""
    assert text == canonical_json(value)
    assert digest == canonical_hash(value)


# JavaScript as the oracle

utf16_texts = st.text(st.characters())
names = (utf16_texts | st.from_regex(r"[0-9]{1,11}|__proto__|constructor", fullmatch=True)).map(
    # Names that differ in Python but not in UTF-16 are an error here; a test of its own has them.
    lambda name: name.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
safe_integers = st.integers(-(2**53) + 1, 2**53 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | safe_integers | finite | utf16_texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(names, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(value=values)
def test_every_value_has_the_text_and_hash_that_javascript_gives_it(javascript: Oracle, value: object) -> None:
    """Whatever JSON a client sends, both engines hash it alike."""
    assert javascript(value) == (canonical_json(value), canonical_hash(value))


@given(number=finite)
def test_every_number_is_written_as_in_javascript(javascript: Oracle, number: float) -> None:
    """Shortest digits, and exponents only where JavaScript has them."""
    assert javascript(number)[0] == canonical_json(number)


@pytest.mark.parametrize("exponent", range(-25, 26))
def test_powers_of_ten_are_written_as_in_javascript(javascript: Oracle, exponent: int) -> None:
    """The places where either language changes to exponents are not shared, and do not show."""
    numbers = [
        sign * digits * 10.0**exponent for sign in (1, -1) for digits in (1, 1.5, 123.456, 2 / 3, 9.999999999999999)
    ]

    assert javascript(numbers)[0] == canonical_json(numbers)


def test_array_indices_end_where_javascripts_do(javascript: Oracle) -> None:
    """4294967294 is the last name that is ordered as a number."""
    members = dict.fromkeys(
        ["4294967296", "4294967295", "4294967294", "9", "10", "1", "0", "00", "-0", "1.5", "+1", "٣"], 0
    )

    assert javascript(members)[0] == canonical_json(members)


def test_every_code_unit_is_escaped_as_in_javascript(javascript: Oracle) -> None:
    """All of them, the surrogates without a partner included."""
    units = [chr(unit) for unit in range(0x10000)]

    assert javascript(units)[0] == canonical_json(units)


@given(
    value=st.recursive(
        st.none() | st.booleans() | safe_integers | st.text(),
        lambda i: st.lists(i) | st.dictionaries(st.text(), i),
    )
)
def test_the_text_reads_back_as_the_value(value: object) -> None:
    """Nothing is lost, so two values with one text are equal."""
    assert value == json.loads(canonical_json(value))


def test_a_pair_of_surrogates_is_the_character_it_means() -> None:
    """How a text was decoded does not change its hash."""
    assert canonical_json({"k": "😀"}) == canonical_json({"k": "\ud83d\ude00"})


# What is refused


class Colour(StrEnum):
    """A str that is more than a str."""

    RED = "red"


class Pair(NamedTuple):
    """A tuple whose names its JSON would lose."""

    left: int
    right: int


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (math.nan, "the number nan"),
        (math.inf, "the number inf"),
        (-math.inf, "the number -inf"),
        (2**53, "an int beyond ±(2**53 - 1)"),
        (-(2**53), "an int beyond ±(2**53 - 1)"),
        (10**400, "an int beyond ±(2**53 - 1)"),
        (b"bytes", "a value of type bytes"),
        ({1, 2}, "a value of type set"),
        (object(), "a value of type object"),
        (Colour.RED, "a value of type Colour"),
        (Pair(1, 2), "a value of type Pair"),
        (MappingProxyType({}), "a value of type mappingproxy"),
        ({1: "x"}, "a member whose name is of type int"),
        ({None: "x"}, "a member whose name is of type NoneType"),
        ({Colour.RED: "x"}, "a member whose name is of type Colour"),
        ({"😀": 1, "\ud83d\ude00": 2}, "two members whose names are the same text in UTF-16"),
    ],
)
def test_what_json_cannot_carry_is_named_with_its_place(value: object, what: str) -> None:
    """The message says what is wrong and where it stands."""
    with pytest.raises(TypeError) as caught:
        canonical_json({"input": ["fine", {"it": value}]})

    assert f"canonical JSON cannot carry {what}, found at value['input'][1]['it']" == str(caught.value)


@pytest.mark.parametrize("container", [list, dict])
def test_a_value_that_contains_itself_is_refused(container: Callable[[], Any]) -> None:
    """A cycle is a clear error, not an overflowing stack."""
    value = container()
    inner = [value]
    value.update(again=inner) if isinstance(value, dict) else value.append(inner)

    with pytest.raises(TypeError, match="contains itself"):
        canonical_json(value)


def test_a_value_may_appear_twice() -> None:
    """Sharing is not a cycle."""
    shared = {"x": 1}

    assert canonical_json([shared, shared]) == '[{"x":1},{"x":1}]'


def test_nesting_ends_at_its_limit() -> None:
    """The limit itself is fine; one level more is a clear error."""

    def nested(levels: int) -> object:
        value: object = []
        for _ in range(levels - 1):
            value = [value]
        return value

    assert canonical_json(nested(MAX_DEPTH)) == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    with pytest.raises(TypeError, match="nested deeper than"):
        canonical_json(nested(MAX_DEPTH + 1))
