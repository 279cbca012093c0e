"""Chat events: their lines, and the text that they add up to."""

import json
from json.encoder import encode_basestring
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.events import (
    ChatStreamEvent,
    TextAssembly,
    TextDeltas,
    encode_line,
    encode_lines,
    reasoning_delta,
    text_delta,
    tool_call,
    usage_event,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def part(delta: str | None = None, **fields: Any) -> ChatStreamEvent:
    return ChatStreamEvent(
        "message.part.updated", {"part": fields} if delta is None else {"delta": delta, "part": fields}
    )


def assembled(*events: ChatStreamEvent) -> str:
    assembly = TextAssembly()
    assembly.add_all(events)
    return assembly.text()


@given(st.text())
def test_the_template_for_text_is_the_encoders_own_text(text: str) -> None:
    """A text delta's line, which is put together by hand, is the line that the encoder would make."""
    by_hand = encode_line(text_delta(text), 3, 1)
    by_encoder = encode_line(ChatStreamEvent("message.part.updated", json.loads(by_hand)["data"]), 3, 1)

    assert by_encoder == by_hand


@given(st.lists(st.text(st.characters(codec="utf-8"))), st.integers(0), st.integers(1))
def test_deltas_are_the_events_that_they_stand_for(texts: list[str], seq: int, attempt: int) -> None:
    """Pieces that are kept as JSON have the lines and the text of the events that they are when looked at."""
    deltas = TextDeltas([encode_basestring(text)[1:-1] for text in texts])
    events = [text_delta(text) for text in texts if text]

    assert events == list(deltas)
    assert len(events) == len(deltas)
    assert events[1:] == list(deltas[1:])
    assert [encode_line(event, seq + n, attempt) for n, event in enumerate(events)] == encode_lines(
        deltas, seq, attempt
    )
    assert "".join(texts) == deltas.text() == assembled(*deltas)


@given(
    st.text(min_size=1),
    st.none() | st.dictionaries(st.text(), JSON, max_size=3),
    st.integers(0),
    st.integers(1),
)
def test_a_line_is_one_json_object_on_one_line(type_: str, data: dict[str, Any] | None, seq: int, attempt: int) -> None:
    """Every event becomes exactly one LF-terminated line that says what the event says."""
    line = encode_line(ChatStreamEvent(type_, data), seq, attempt)
    expected = {"type": type_, "seq": seq, "attempt": attempt} | ({} if data is None else {"data": data})

    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    assert expected == json.loads(line)


def test_a_line_that_is_no_json_is_refused() -> None:
    """NaN has no place in a log."""
    with pytest.raises(ValueError, match="JSON"):
        encode_line(ChatStreamEvent("x", {"value": float("nan")}), 0, 1)


def test_what_is_unknown_is_left_out_of_usage() -> None:
    """A count that the model did not report is absent, because unknown is not zero."""
    assert usage_event(model="m", tokensIn=None, tokensOut=0).data == {"model": "m", "tokensOut": 0}


def test_deltas_append_part_by_part() -> None:
    """Deltas add up within their part, and parts follow each other in the order of their first appearance."""
    assert assembled(part("a", id="1"), part("x", id="2"), part("b", id="1"), part("y", id="2")) == "abxy"


def test_a_cumulative_text_replaces_its_part_only() -> None:
    """A part that is sent whole again replaces what was known of it, and nothing else."""
    assert assembled(part("a", id="1"), part("x", id="2"), part(id="1", text="abc")) == "abcx"


def test_a_result_says_the_whole() -> None:
    """A result counts for everything before it, instead of being added to it (O6)."""
    assert assembled(text_delta("Hel"), text_delta("lo"), ChatStreamEvent("result", {"finalText": "Hello"})) == "Hello"


@pytest.mark.parametrize(
    "event",
    [
        reasoning_delta("hmm"),
        tool_call(tool_call_id="1", tool_name="find", args={}),
        usage_event(model="m"),
        ChatStreamEvent("ping"),
        part("{}", id="3", type="tool"),
        ChatStreamEvent("message.part.updated", {"delta": 7}),
        ChatStreamEvent("result", {"finalText": None}),
    ],
)
def test_what_is_no_text_adds_nothing(event: ChatStreamEvent) -> None:
    """Reasoning, tools, usage and malformed parts are never part of the answer."""
    assert assembled(text_delta("a"), event, text_delta("b")) == "ab"
