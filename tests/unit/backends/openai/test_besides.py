"""What a model says besides text: each kind is an event of its own, within limits, whoever cuts the body where."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.backends.openai.besides import MAX_BESIDES_CHARACTERS, MAX_VALUE_CHARACTERS
from chatturn.backends.openai.completions import CompletionReader
from chatturn.events import ChatStreamEvent, encode_line
from tests.unit.backends.openai.test_completions import chunk, said, sse

PICTURE = "data:image/png;base64,iVBORw=="


def besides(*deltas: dict[str, Any], **members: Any) -> list[tuple[str, Any]]:
    """Return what is told besides text of an answer of these deltas."""
    frames = [json.dumps({"choices": [{"index": 0, "delta": delta, **members}]}) for delta in deltas]
    events = said(sse(*frames, chunk({"content": "Hi"}), chunk(finish="stop")))
    return [(event.type, event.data) for event in events if event.type.startswith("answer.")]


CITED = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.test", "title": "A", "start_index": 0, "end_index": 2},
}


@pytest.mark.parametrize(
    ("delta", "kind", "data"),
    [
        (
            {"annotations": [CITED]},
            "answer.citations",
            {
                "citations": [
                    {"type": "url_citation", "url": "https://a.test", "title": "A", "startIndex": 0, "endIndex": 2}
                ]
            },
        ),
        ({"citations": ["https://a.test"]}, "answer.citations", {"citations": [{"url": "https://a.test"}]}),
        (
            {"images": [{"type": "image_url", "image_url": {"url": PICTURE}}]},
            "answer.images",
            {"images": [{"url": PICTURE}]},
        ),
        ({"content": [{"type": "image_url", "image_url": PICTURE}]}, "answer.images", {"images": [{"url": PICTURE}]}),
        ({"refusal": "No."}, "answer.refusal", {"text": "No."}),
        ({"plan": {"steps": [1]}}, "answer.data", {"name": "plan", "value": {"steps": [1]}}),
        ({"content": [{"type": "video", "video": {"id": 1}}]}, "answer.data", {"name": "video", "value": {"id": 1}}),
        (
            {"content": [{"type": "citation", "citation": {"url": "https://a.test"}}]},
            "answer.citations",
            {"citations": [{"url": "https://a.test"}]},
        ),
        (
            {"audio": {"id": "a1", "data": "AAAA", "transcript": "Hi", "expires_at": 9}},
            "answer.audio",
            {"id": "a1", "expiresAt": 9, "transcript": "Hi", "characters": 4},
        ),
    ],
)
def test_each_kind_is_an_event_of_its_own(delta: dict[str, Any], kind: str, data: Any) -> None:
    """In one form, wherever a server puts it."""
    assert besides(delta) == [(kind, data)]


def test_pieces_add_up_and_what_is_said_again_is_told_once() -> None:
    """Perplexity has all its sources beside each piece."""
    frame = {"citations": ["https://a.test", "https://b.test"], "choices": [{"index": 0, "delta": {"content": "x"}}]}
    events = said(sse(*[json.dumps(frame)] * 9, chunk(finish="stop")))
    pieces = besides({"plan": "one "}, {"plan": "two"}, {"refusal": "N"}, {"refusal": "o."})

    assert [event.data for event in events if event.type == "answer.citations"] == [
        {"citations": [{"url": "https://a.test"}, {"url": "https://b.test"}]}
    ]
    assert pieces == [("answer.refusal", {"text": "No."}), ("answer.data", {"name": "plan", "value": "one two"})]


def test_log_probabilities_are_told_in_their_order() -> None:
    """Also where every frame has as many of them as tokens, and is otherwise like the one before."""
    frames = [
        json.dumps(
            {
                "choices": [
                    {"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [{"token": "x", "logprob": -n}]}}
                ]
            }
        )
        for n in range(50)
    ]
    events = said(sse(*frames, chunk(finish="stop")))
    [told] = [event.data for event in events if event.type == "answer.logprobs"]

    assert told == {"content": [{"token": "x", "logprob": -n} for n in range(50)]}


def test_what_is_no_data_is_not_told() -> None:
    """Reasoning, signatures, empty members, and what some servers pad their frames with."""
    assert besides({"role": "assistant", "content": "x", "reasoning": "r", "obfuscation": "ab", "audio": None}) == []
    assert besides({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}], "partial": False}) == []


def test_an_answer_of_an_image_alone_is_an_answer() -> None:
    """Its text says what it is; so is one of sound alone, whose text is what it says."""
    image = said(sse(chunk({"images": [{"image_url": {"url": PICTURE}}]}), chunk(finish="stop")))
    sound = said(
        sse(
            chunk({"audio": {"id": "a", "transcript": "Hel"}}),
            chunk({"audio": {"transcript": "lo"}}),
            chunk(finish="stop"),
        )
    )

    assert (image[0].data or {})["delta"] == "[image]"
    assert (sound[0].data or {})["delta"] == "Hello"


@pytest.mark.parametrize(
    "delta",
    [
        {"plan": "x" * (MAX_VALUE_CHARACTERS + 1)},
        {"plan": "x" * (MAX_BESIDES_CHARACTERS + 1)},
        {"plan": json.loads("[" * 50 + "]" * 50)},
    ],
)
def test_what_is_too_long_is_named(delta: dict[str, Any]) -> None:
    """And how long it was; what nests too deep likewise."""
    [(kind, data)] = besides(delta)

    assert (kind, data["name"], data["characters"] >= 100, "value" in data) == ("answer.data", "plan", True, False)


def test_a_large_image_is_named_by_what_it_is() -> None:
    """Its address is its content."""
    [(_, data)] = besides({"images": [{"image_url": {"url": PICTURE + "A" * MAX_VALUE_CHARACTERS}}]})

    assert data["images"][0]["mediaType"] == "image/png"
    assert data["images"][0]["characters"] > MAX_VALUE_CHARACTERS


def test_a_thousand_values_keep_within_the_limits() -> None:
    """Each event fits a line, and all of them an answer."""
    deltas = [
        {"annotations": [{"url": f"https://a.test/{n}/" + "x" * 900}], f"member{n % 40}": "y" * 500}
        for n in range(1000)
    ]
    sizes = [len(json.dumps(data)) for _, data in besides(*deltas)]

    assert max(sizes) <= MAX_VALUE_CHARACTERS + 100
    assert sum(sizes) <= MAX_BESIDES_CHARACTERS + 100 * len(sizes)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["annotations", "citations", "images", "audio", "refusal", "plan", "content", "x"]),
            anything,
        ),
        max_size=4,
    ),
    anything,
)
def test_nothing_that_an_api_says_breaks_an_answer(deltas: list[dict[str, Any]], beside: Any) -> None:
    """Whatever stands there can be a line."""
    reader = CompletionReader(model="m", backend="b")
    frames = [json.dumps({"citations": beside, "choices": [{"delta": delta, "logprobs": beside}]}) for delta in deltas]
    batches = list(reader.feed(sse(*frames, chunk({"content": "Hi"}), chunk(finish="stop"))))
    events: list[ChatStreamEvent] = [*(event for batch in batches for event in batch), *reader.finish()]

    assert all(encode_line(event, 1, 1).encode() for event in events)
