"""Reading an answer: what counts as text, as a tool call, as usage, as the end, and as a failure."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.backends.openai.completions import CompletionReader
from chatturn.backends.openai.template import FrameTemplate
from chatturn.backends.openai.tool_calls import parse_arguments
from chatturn.chat.log.log import TurnLog
from chatturn.durable.steps import result_text
from chatturn.errors import BackendProtocolError, BackendReportedError, ContextOverflow
from chatturn.events import (
    ChatStreamEvent,
    TextAssembly,
    TextDeltas,
    reasoning_delta,
    text_delta,
    tool_call,
    usage_event,
)

STOP = usage_event(model="m", finishReason="stop")


def chunk(delta: Any = None, *, finish: str | None = None, **members: Any) -> dict[str, Any]:
    """A chunk as OpenAI sends it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}],
    } | members


def sse(*frames: object, separators: tuple[str, str] = (",", ":")) -> bytes:
    texts = (text if isinstance(text, str) else json.dumps(text, separators=separators) for text in frames)
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def reader() -> CompletionReader:
    return CompletionReader(model="asked", backend="openai")


def fed(answer: CompletionReader, *chunks: bytes) -> list[ChatStreamEvent]:
    """What these bytes say, in whatever batches."""
    return [event for chunk in chunks if not answer.done for batch in answer.feed(chunk) for event in batch]


def said(*chunks: bytes) -> list[ChatStreamEvent]:
    """Everything that an answer of these bytes says, its end included."""
    answer = reader()
    return fed(answer, *chunks) + answer.finish()


def text_of(events: list[ChatStreamEvent]) -> str:
    assembly = TextAssembly()
    assembly.add_all(events)
    return assembly.text()


def piece(index: int | None, id_: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    """A fragment of a tool call."""
    return {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*deltas: list[dict[str, Any]]) -> list[ChatStreamEvent]:
    frames = [chunk({"tool_calls": pieces}) for pieces in deltas]
    return said(sse(*frames, chunk(finish="tool_calls"), "[DONE]"))[:-1]


def test_an_answer_is_its_deltas_and_its_usage() -> None:
    """Text comes delta by delta; usage comes once, at the end, with the model and the finish reason."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    stream = sse(
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk(finish="stop"),
        chunk(choices=[], usage=usage),
        "[DONE]",
    )

    assert said(stream) == [
        text_delta("Hel"),
        text_delta("lo"),
        usage_event(model="m", tokensIn=10, tokensOut=5, tokensCached=4, tokensReasoning=2, finishReason="stop"),
    ]


@given(
    st.lists(st.text() | st.sampled_from(['"', "\\", "\n", '","finish_reason":"x', "\U0001f600"]), max_size=8),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.booleans(),
    st.data(),
)
def test_the_template_reads_what_the_parser_reads(
    texts: list[str], separators: tuple[str, str], ascii_only: bool, data: st.DataObject
) -> None:
    """Whatever the texts are, however the frames are written and cut, the answer is their concatenation."""
    frames = [json.dumps(chunk({"content": text}), separators=separators, ensure_ascii=ascii_only) for text in texts]
    stream = sse(*frames, chunk(finish="stop"))
    place = data.draw(st.integers(0, len(stream)))

    assert text_of(said(stream[:place], stream[place:])) == "".join(texts)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (['{"content":"x","choices":[{"delta":{"content":"a"}}]}'] * 4, "aaaa"),
        ([f'{{"choices":[{{"delta":{{"content": "a"}},"content":"{n}"}}]}}' for n in "1234"], "aaaa"),
        ([f'{{"b\\"content":"{n}","choices":[{{"delta":{{"content": "a"}}}}]}}' for n in "1234"], "aaaa"),
        ([f'{{"choices":[{{"delta":{{"content":"{n}","content":"a"}}}}]}}' for n in "1234"], "aaaa"),
        ([f'{{"choices":[{{"delta":{{"content":"a"}},"index":{n}}}]}}' for n in "0011"], "aa"),
    ],
)
def test_the_template_is_not_taken_in(frames: list[str], expected: str) -> None:
    """Frames in which something else is named content are read as the parser reads them."""
    assert text_of(said(sse(*frames, chunk(finish="stop")))) == expected


def test_a_frame_that_only_resembles_the_template_is_parsed() -> None:
    """After frames all alike, one that ends the answer early or carries an error is still noticed."""
    alike = [chunk({"content": "a"})] * 4
    resembling = sse(chunk({"content": "a"})).replace(b'"content":"a"', b'"content":"a","role":"x"')

    assert text_of(said(sse(*alike), resembling, sse(chunk(finish="stop")))) == "aaaaa"
    with pytest.raises(BackendReportedError):
        said(sse(*alike), b"event: error\n" + sse(alike[0]), sse("[DONE]"))


ODD = (
    ": a comment",
    "id: 7",
    "event: error",
    "data:",
    'data: {"choices":[{"index":0,"delta":{"content":"a\\u00e9\\ud83d"}}]}',
    'data: {"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}',
    'data: {"choices":[{"index":1,"delta":{"content":"of another answer"}}]}',
    "data: " + json.dumps(chunk({"content": "other", "role": "assistant"}), separators=(",", ":")),
    "data: " + json.dumps(chunk({"content": "in two\nlines"}), separators=(",", ":")).replace(",", ",\ndata: "),
    "data: " + json.dumps(chunk({"content": "spaced"})),
    "data: " + json.dumps(chunk(finish="stop"), separators=(",", ":")),
    "data: [DONE]",
)


@given(
    st.lists(st.text(max_size=8) | st.sampled_from(ODD)),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_a_burst_is_read_as_its_frames_one_by_one(
    pieces: list[str], ensure_ascii: bool, newline: str, data: st.DataObject
) -> None:
    """However many frames arrive at once, whatever is between them, they say what each says by itself."""

    def frame(text: str) -> str:
        return "data: " + json.dumps(chunk({"content": text}), ensure_ascii=ensure_ascii, separators=(",", ":"))

    frames = [*map(frame, "abc"), *(piece if piece in ODD else frame(piece) for piece in pieces)]
    stream = "".join(f"{each}\n\n" for each in frames).replace("\n", newline).encode("utf-8", "replace")
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    parts = [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameTemplate, "bodies_of", lambda _self, several: ([], several))
        expected = fed(reader(), stream)

    assert expected == fed(reader(), *parts)


def test_a_burst_is_not_looked_at_piece_by_piece() -> None:
    """Once the frames' make is known, those that arrive together stay together; what follows them does, too."""
    answer = reader()
    fed(answer, sse(*[chunk({"content": "a"})] * 3))
    frames = [chunk({"content": text}) for text in ("b", "", 'c"/\\\n', "ü")]  # of which json.dumps escapes some

    [deltas, rest] = answer.feed(sse(*frames, chunk({"content": "d"}, finish="stop")))

    assert isinstance(deltas, TextDeltas)
    assert list(deltas) == [text_delta(text) for text in ("b", 'c"/\\\n', "ü")]
    assert rest == [text_delta("d")]


def test_events_that_arrive_together_leave_together() -> None:
    """One network chunk becomes one list, in order."""
    assert fed(reader(), sse(*[chunk({"content": letter}) for letter in "abc"])) == [
        text_delta("a"),
        text_delta("b"),
        text_delta("c"),
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(name: str) -> None:
    """Reasoning has its own events and comes before the text of the same delta."""
    stream = sse(chunk({name: "hmm", "content": "so"}), chunk(finish="stop"))

    assert said(stream) == [reasoning_delta("hmm"), text_delta("so"), STOP]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": [{"type": "text", "text": "no"}, {"type": "image"}, {"type": "text"}]},
        {"refusal": "no", "content": None},
        {"role": "assistant", "content": "no", "tool_calls": None, "reasoning_content": None},
    ],
)
def test_text_has_several_shapes(delta: dict[str, Any]) -> None:
    """A list of parts and a refusal are text like a plain string."""
    events = said(sse(chunk(delta), chunk(finish="stop")))

    assert [event for event in events if not event.type.startswith("answer.")] == [text_delta("no"), STOP]


def test_a_whole_message_is_accepted() -> None:
    """A frame with `message` instead of `delta` says the whole answer."""
    stream = sse(chunk(choices=[{"message": {"content": "all"}, "finish_reason": "stop"}]))

    assert said(stream) == [text_delta("all"), STOP]


def test_only_the_first_of_several_answers_counts() -> None:
    """Choices beside the first are another answer, and not part of this one."""
    other = {"index": 1, "delta": {"content": "other"}}

    assert text_of(said(sse(chunk(choices=[other]), chunk({"content": "one"}), chunk(finish="stop")))) == "one"


@pytest.mark.parametrize(
    "frame",
    [
        [],
        7,
        None,
        "text",
        {},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": True, "tool_calls": {"index": 0}}}]},
        {"choices": [{"delta": {"tool_calls": [7, {"index": 0, "function": "f"}]}}]},
        {"type": "ping"},
        {"usage": [1]},
    ],
)
def test_frames_of_unknown_shape_are_skipped(frame: object) -> None:
    """JSON that is no chunk changes nothing about the answer's text and end."""
    stream = sse(json.dumps(frame), chunk({"content": "a"}), chunk(finish="stop"))

    assert text_of(said(stream)) == "a"


def test_nothing_is_read_after_done() -> None:
    """What follows [DONE] is not part of the answer, not even in the same chunk."""
    answer = reader()
    events = fed(answer, sse(chunk({"content": "a"}), "[DONE]", chunk({"content": "b"}), "junk"))

    assert answer.done
    assert events + answer.finish() == [text_delta("a")]


def test_halves_of_a_character_become_whole() -> None:
    """A surrogate pair whose halves were escaped in two deltas is one character; a lone half is replaced."""
    halves = [chunk({"content": "a\ud83d"}), chunk({"content": "\ude00b"}), chunk({"content": "\ud83dc"})]
    text = text_of(said(sse(*halves, chunk(finish="stop"))))

    assert text == "a\U0001f600b\ufffdc"


def test_tool_calls_are_assembled_per_index() -> None:
    """Fragments of several calls may interleave; each call leaves once, its arguments parsed."""
    assert calls(
        [piece(0, "a", "find", ""), piece(1, "b", "sum", '{"n"')],
        [piece(0, None, None, '{"q":')],
        [piece(1, None, None, ":1}"), piece(0, None, None, '"x"}')],
    ) == [
        tool_call(tool_call_id="a", tool_name="find", args={"q": "x"}),
        tool_call(tool_call_id="b", tool_name="sum", args={"n": 1}),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        (" ", {}),
        (None, {}),
        ({"q": 1}, {"q": 1}),
        ("[1]", [1]),
        ('{"q":', '{"q":'),
        ('{"q":NaN}', '{"q":NaN}'),
        ('{"q":1e999}', '{"q":1e999}'),
        ('{"q":"\\ud800"}', '{"q":"\\ud800"}'),
        pytest.param("[" * 100_000, "[" * 100_000, id="bottomless"),
    ],
)
def test_arguments_are_json_or_their_raw_text(arguments: Any, expected: Any) -> None:
    """Arguments that no line of a log could carry are passed on as the text that the model wrote."""
    [call] = calls([piece(0, "a", "f", arguments)])

    assert call.data is not None
    assert expected == call.data["args"]


def test_careless_servers_tool_calls_are_told_apart() -> None:
    """Calls without index or all with index 0 differ by their id; a name that is repeated is not doubled."""
    assert calls([piece(0, "a", "f", "1"), piece(0, "b", "g", "2")], [piece(None, "c", "h", "3")]) == [
        tool_call(tool_call_id="a", tool_name="f", args=1),
        tool_call(tool_call_id="b", tool_name="g", args=2),
        tool_call(tool_call_id="c", tool_name="h", args=3),
    ]
    assert calls([piece(0, "", "f", "1")], [piece(0, None, "f", "2")]) == [
        tool_call(tool_call_id="call_0", tool_name="f", args=12)
    ]


def test_tool_calls_leave_with_done_where_no_reason_is_given() -> None:
    """Calls are complete at the finish reason, or else at the answer's end, and never leave twice."""
    frames = [chunk({"tool_calls": [piece(0, "a", "f", "{}")]})]
    expected = [tool_call(tool_call_id="a", tool_name="f", args={})]

    assert expected == said(sse(*frames, "[DONE]"))
    assert expected == said(sse(*frames, chunk(finish="tool_calls"), chunk(finish="tool_calls")))[:-1]


@pytest.mark.parametrize("count", [-1, 1.5, True, "3", None, 2**53, {}])
def test_a_count_that_is_none_is_left_out(count: object) -> None:
    """A negative, broken, absurd or mistyped count is unknown, not zero."""
    stream = sse(chunk(finish="stop"), chunk(choices=[], usage={"prompt_tokens": count, "completion_tokens": 2}))

    assert said(stream) == [usage_event(model="m", tokensOut=2, finishReason="stop")]


def test_nan_is_no_count_and_no_failure() -> None:
    """NaN, which is not JSON though some servers write it, counts as not given."""
    stream = sse(chunk(finish="stop"), '{"choices":[],"usage":{"prompt_tokens":NaN,"completion_tokens":-Infinity}}')

    assert said(stream) == [STOP]


def test_other_dialects_of_usage_are_understood() -> None:
    """Token counts by the names of OpenAI's newer API and of DeepSeek."""
    usage = {"input_tokens": 3, "output_tokens": 2, "prompt_cache_hit_tokens": 1}

    assert said(sse(chunk(finish="stop", usage=usage))) == [
        usage_event(model="m", tokensIn=3, tokensOut=2, tokensCached=1, finishReason="stop")
    ]


@pytest.mark.parametrize("bytes_", [b"data: " + b"x" * 8_000_001, b"data: " + b"[" * 200_000 + b"\n\n"])
def test_endless_and_bottomless_frames_fail_the_answer(bytes_: bytes) -> None:
    """A frame over 8 MB, or nested so deep that parsing it would end the Worker, is a protocol error."""
    with pytest.raises(BackendProtocolError):
        said(bytes_)


def test_arguments_fit_into_what_they_are_kept_in() -> None:
    """The record of a model call has them three levels down, and may have 64; deeper ones count as malformed."""
    fits, deep = ("[" * levels + "]" * levels for levels in (60, 61))

    assert json.loads(fits) == parse_arguments(fits)
    assert deep == parse_arguments(deep)
    assert result_text({"calls": [{"args": parse_arguments(fits)}]}, "model:1", "run-1")


def test_many_brackets_are_not_deep() -> None:
    """Only nesting is limited: neither many lists side by side nor brackets inside strings count."""
    logprobs = [{"token": '[{"\\', "top": [{}]}] * 100
    stream = sse(chunk({"content": "[{" * 100, "logprobs": logprobs}), chunk(finish="stop"))

    assert text_of(said(stream)) == "[{" * 100


def test_what_came_before_a_failure_is_not_lost() -> None:
    """Text that arrives in the same chunk as an error is still said; the error follows at the end."""
    answer = reader()
    events = fed(answer, sse(chunk({"content": "a"}), {"error": {"message": "overloaded"}}))

    assert events == [text_delta("a")]
    with pytest.raises(BackendReportedError):
        answer.finish()


@pytest.mark.parametrize(
    "stream",
    [
        sse({"error": {"message": "overloaded"}}),
        sse({"error": "overloaded"}),
        sse(chunk({"content": "a"}, error={"message": "overloaded"})),
        b'event: error\ndata: {"message":"overloaded"}\n\n',
        b"event: error\ndata: overloaded\n\n",
    ],
)
def test_an_error_in_the_stream_has_the_apis_words_in_its_detail(stream: bytes) -> None:
    """Every way to report an error in the stream fails the answer; its words are for the log only."""
    with pytest.raises(BackendReportedError) as raised:
        said(stream, sse("[DONE]"))

    assert "overloaded" in raised.value.detail
    assert "overloaded" not in str(raised.value)


def test_an_error_as_finish_reason_fails_the_answer() -> None:
    """A router's finish reason `error` is no end of an answer."""
    with pytest.raises(BackendReportedError):
        said(sse(chunk({"content": "a"}, finish="error"), "[DONE]"))


def test_a_name_that_is_a_text_is_cut() -> None:
    """Whatever a server says in place of a model, an id or a reason, a trace has a name and not the answer."""
    answer = reader()
    fed(answer, sse(chunk({"content": "a"}, finish="why " * 100_000, model="who " * 1_000, id="\ud800" * 1_000)))
    names = (answer.model, answer.response_id, answer.finish_reason)

    assert [200, 200, 200] == [len(name or "") for name in names]


def whole(body: object, cut: Callable[[bytes], list[bytes]] = lambda body: [body]) -> list[ChatStreamEvent]:
    answer = CompletionReader(model="asked", backend="openai")
    for part in cut(json.dumps(body).encode()):
        assert answer.feed(part) == []
    return answer.finish()


def test_a_completion_that_is_not_streamed_is_read_whole() -> None:
    """A server that ignores `stream` sends one JSON document, in any number of chunks."""
    message = {"content": "all", "tool_calls": [piece(None, "a", "f", "{}")]}
    body = {
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1},
    }

    assert whole(body, lambda text: [text[:9], text[9:]]) == [
        text_delta("all"),
        tool_call(tool_call_id="a", tool_name="f", args={}),
        usage_event(model="m", tokensIn=1, finishReason="stop"),
    ]


def test_a_long_completion_is_said_in_pieces_that_can_be_stored() -> None:
    """Each is a line of the turn's log, and a line has its limit."""
    message = {"content": "é" * 450_000, "reasoning_content": "r" * 450_000}
    events = whole({"choices": [{"message": message}]})
    assembly = TextAssembly()
    assembly.add_all(events)

    assert message["content"] == assembly.text()
    assert len(TurnLog().extend(events)) > 900_000


def test_a_whole_completion_needs_no_finish_reason() -> None:
    """A document that is complete JSON is a complete answer."""
    assert whole({"choices": [{"message": {"content": "all"}}]}) == [text_delta("all")]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"message": "no"}}, BackendReportedError),
        ({}, BackendProtocolError),
        ([], BackendProtocolError),
        ({"choices": []}, BackendProtocolError),
    ],
)
def test_a_whole_body_without_an_answer_fails(body: object, error: type[Exception]) -> None:
    """An error object is reported as one; a document without an answer is none."""
    with pytest.raises(error):
        whole(body)


def test_a_whole_body_has_a_limit() -> None:
    """A body over 8 MB is not collected further."""
    answer = CompletionReader(model="asked", backend="openai")
    answer.feed(b"{" * 8_000_001)

    assert answer.done
    with pytest.raises(BackendProtocolError):
        answer.finish()


@pytest.mark.parametrize("filling", ["a", "\x01", "\U0001f600"])
def test_arguments_that_no_line_can_hold_are_malformed(filling: str) -> None:
    """The model is told so, instead of the turn failing."""
    fits, longer = (json.dumps({"a": filling * count}, ensure_ascii=False) for count in (20_000, 200_001))

    assert {"a": filling * 20_000} == parse_arguments(fits)
    assert isinstance(parse_arguments(longer), str)
    assert len(parse_arguments(longer)) < 2_000


def kept(*deltas: dict[str, Any]) -> dict[str, Any]:
    """Return what an API wants back with a call that these deltas come before."""
    answer = CompletionReader(model="m", backend="openai", tools=("f",))
    call = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}, "x": {"sig": "s"}}]}
    fed(answer, sse(*map(chunk, [*deltas, call]), chunk(finish="tool_calls"), "[DONE]"))
    answer.finish()
    return answer.kept()


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([], {}),
        ([{"content": "a", "role": "assistant"}], {}),
        ([{"reasoning_content": "a"}, {"reasoning_content": "b"}], {"reasoning_content": "ab"}),
        (
            [{"thinking_blocks": [{"type": "thinking", "thinking": text, "signature": sig}]} for text, sig in (("a", None), ("", "S"))],
            {"thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "S"}]},
        ),
        (
            [{"reasoning_details": [{"type": "reasoning.text", "index": at, "text": text}]} for at, text in ((0, "a"), (1, "c"), (0, "b"))],
            {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "ab"}, {"type": "reasoning.text", "index": 1, "text": "c"}]},
        ),
        (
            [{"thinking_blocks": [{"type": "redacted_thinking", "data": data}]} for data in "XY"],
            {"thinking_blocks": [{"type": "redacted_thinking", "data": data} for data in "XY"]},
        ),
        (
            [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}, {"type": "text", "text": "b"}]}],
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]},
        ),
    ],
)  # fmt: skip
def test_what_an_api_wants_back_is_put_together_as_it_came(
    deltas: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    """Pieces of a text, of a block, of an item of a list; and the members of the call."""
    assert kept(*deltas) == {"message": expected, "calls": [{"x": {"sig": "s"}}]}


@pytest.mark.parametrize(
    ("deltas", "names"),
    [
        ([[piece(0, None, "f", ""), piece(0, None, "f", "")]], ["f", "f"]),
        ([[piece(0, "a", "functions.f:0", "{}")]], ["f"]),
        ([[piece(0, "a", "g h", "{}")]], ["g_h"]),
        ([[piece(0, "a", "f<|channel|>json", "{}")]], ["f"]),
    ],
)
def test_names_are_such_as_every_api_takes_back(deltas: list[Any], names: list[str]) -> None:
    """And such as the tool has, where that can be told."""
    answer = CompletionReader(model="m", backend="openai", tools=("f",))
    fed(answer, sse(*[chunk({"tool_calls": pieces}) for pieces in deltas], chunk(finish="tool_calls"), "[DONE]"))

    assert names == [(event.data or {})["toolName"] for event in answer.finish() if event.type == "tool.call"]


def test_thousands_of_calls_take_no_more_than_their_number() -> None:
    """8,000 calls once took 14 s of an isolate: each piece looked at every call before it."""
    stream = sse(
        *[chunk({"tool_calls": [piece(at, f"c{at}", "f", '{"n":1}')]}) for at in range(8_000)],
        chunk(finish="tool_calls"),
    )
    began = time.process_time()
    answer = CompletionReader(model="m", backend="openai", tools=("f",))
    fed(answer, stream)

    assert 8_001 == len(answer.finish())
    assert time.process_time() - began < 3


ARGUMENTS_TO_COME: tuple[Any, ...] = ("{ }", {}, "null", None)
HI, THERE, END = chunk({"content": "Hi"}), chunk({"content": " there"}), chunk(finish="stop")


def message(content: object, **members: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": content}, **members}]}


@pytest.mark.parametrize(
    "failure",
    [
        {"Error": {"Code": "500", "Message": "boom"}},
        {"Message": "Too many tokens, please wait before trying again."},
        {"message": {"text": "boom"}},
        {"fault": {"faultstring": "boom", "detail": {"errorcode": "x"}}},
        {"Response": {"Error": {"Code": "FailedOperation", "Message": "boom"}}},
        {"ErrorMsg": {"Msg": "boom", "Code": 1}},
        {"exception": "ValueError: boom"},
        {"success": False, "result": None},
        {"status": "failed"},
        {"type": "exception"},
        {"choices": [], "message": "boom", "code": 500},
        {"choices": None, "detail": "boom"},
        chunk(base_resp={"status_code": 1013, "status_msg": "boom"}),
        {"nobody": "knows this"},
        "event: Error\ndata: {}\n\n",
        "event: exception\ndata: {}\n\n",
        "event: response.failed\ndata: {}\n\n",
        "event: error\n\n",
        "data: {}\nevent: error\n\n",
    ],
)
def test_done_makes_no_answer_of_what_failed_in_whatever_words(failure: Any) -> None:
    """Nothing that came before an error is an answer, though the server goes on to say [DONE]."""
    frame = failure.encode() if isinstance(failure, str) else sse(failure)

    with pytest.raises((BackendReportedError, BackendProtocolError)):
        said(sse(HI) + frame + sse("[DONE]"))


@pytest.mark.parametrize("last", ["abort", "error", "weird"])
def test_an_empty_frame_does_not_take_back_how_an_answer_failed(last: str) -> None:
    """Gateways put a `stop` of their own behind the server's reason."""
    with pytest.raises(BackendReportedError):
        said(sse(HI, chunk(finish=last), chunk({"content": ""}, finish="stop"), "[DONE]"))


@pytest.mark.parametrize("each", ["FINISH_REASON_UNSPECIFIED", "continue", "stop"])
def test_what_stands_beside_every_piece_is_no_reason_yet(each: str) -> None:
    """Only the last one counts, and that may come alone."""
    events = said(sse(chunk({"content": "Hi"}, finish=each), chunk({"content": "!"}, finish=each), END, "[DONE]"))

    assert (text_of(events), events[-1]) == ("Hi!", STOP)


@pytest.mark.parametrize(
    "frame",
    [
        chunk(finish="FinishReason.MAX_TOKENS"),
        chunk({"finish_reason": "length"}),
        {**chunk(), "finish_reason": "length"},
        {"choices": [{"index": 0, "delta": {}, "finishReason": "MAX_TOKENS"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": {"type": "length"}}]},
    ],
)
def test_a_reason_is_read_wherever_it_stands(frame: dict[str, Any]) -> None:
    """A cut answer is told to be cut, also where an empty `stop` follows."""
    for end in (frame,), (frame, END):
        events = said(sse(HI, *end, "[DONE]"))
        assert (events[-1].data or {})["finishReason"] == "length"


@pytest.mark.parametrize(
    "frames",
    [
        [message("Hi"), message(" there"), END],
        [message("Hi"), message("Hi there"), END],
        [message("Hi"), message("Hi there", finish_reason="stop"), message("Hi there", finish_reason="stop")],
        [chunk({"role": "assistant"}), message("Hi there", finish_reason="stop")],
        [HI, THERE, message("Hi there", finish_reason="stop")],
        [{"choices": [{"text": "Hi"}]}, {"choices": [{"text": " there"}]}, END],
        [chunk({"content": ["Hi", {"text": " there"}]}), END],
        [chunk({"content": {"type": "text", "text": "Hi there"}}), END],
        ["data: " + json.dumps(HI), "data: " + json.dumps(THERE), END],
        [
            {"choices": [{"index": "0", "delta": {"content": "Hi there"}}]},
            {"choices": [{"index": "1", "delta": {"content": "Yo"}}]},
            END,
        ],
        [{"response": "Hi"}, {"response": " there"}, {"response": ""}],
        [HI, THERE, END, "DONE"],
    ],
)
def test_no_text_is_lost_and_none_is_said_twice(frames: list[Any]) -> None:
    """Whatever a server puts it into."""
    assert text_of(said(sse(*frames, "[DONE]"))) == "Hi there"


def test_a_token_that_is_a_number_is_text() -> None:
    """Workers AI sends it so."""
    assert text_of(said(sse({"response": "I am "}, {"response": 4}, {"response": "!"}, "[DONE]"))) == "I am 4!"


@pytest.mark.parametrize("tail", ["\n\ndata: [DONE]\n\n", ""])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_whole_body_may_have_something_behind_it(indent: int | None, tail: str) -> None:
    """It is read as JSON that ends where it ends."""
    assert text_of(said((json.dumps(message("Hi"), indent=indent) + tail).encode())) == "Hi"


def test_lines_of_json_are_as_many_as_they_are() -> None:
    """Ollama's own API sends them; time is in proportion to their number."""
    frames = "\n".join(map(json.dumps, [HI] * 20_000 + [END]))

    assert text_of(said(frames.encode())) == "Hi" * 20_000


def test_an_error_on_several_lines_is_told_by_its_words() -> None:
    """A comment came first, so the body was taken for a stream."""
    body = json.dumps({"error": {"message": "prompt is too long"}}, indent=2)

    with pytest.raises(ContextOverflow):
        said(f": keep-alive\n\n{body}\n".encode())


@pytest.mark.parametrize(
    "frames",
    [
        [chunk({"tool_calls": piece(0, "a", "f", "")}), chunk({"tool_calls": piece(0, "", None, '{"x":1}')})],
        [chunk({"tool_calls": [{"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'}]})],
        [chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "input": {"x": 1}}}]})],
        [chunk({"tool_calls": [piece(0, "a", None, '{"x":')]}), chunk({"tool_calls": [piece(0, None, "f", "1}")]})],
        *(
            [
                chunk({"tool_calls": [piece(0, "a", "f", first)]}),
                chunk({"tool_calls": [piece(0, None, None, '{"x":1}')]}),
            ]
            for first in ARGUMENTS_TO_COME
        ),
        *(
            [chunk({"tool_calls": [piece(0, "a", "f", '{"x":1}')]}), chunk({"tool_calls": [again]})]
            for again in (
                piece(0, "a", "f", '{"x":1}'),
                piece(0, "b", None, ""),
                piece(1, "", "", ""),
                {"index": 0, "function": {}},
                {},
            )
        ),
    ],
)
def test_one_call_is_one_however_its_pieces_come(frames: list[dict[str, Any]]) -> None:
    """TGI, gateways, and servers that say everything again."""
    events = said(sse(*frames, chunk(finish="tool_calls"), "[DONE]"))

    assert events[:-1] == [tool_call(tool_call_id="a", tool_name="f", args={"x": 1})]


@pytest.mark.parametrize("arguments", ["", '{"x":'])
def test_without_a_reason_a_call_without_all_its_arguments_is_not_used(arguments: str) -> None:
    """A server that gives up says [DONE], too."""
    with pytest.raises(BackendProtocolError):
        said(sse(chunk({"tool_calls": [piece(0, "a", "f", arguments)]}), "[DONE]"))


@pytest.mark.parametrize(
    "frames",
    [
        [chunk(finish="stop", x_groq={"usage": {"prompt_tokens": 7, "completion_tokens": 2}})],
        [chunk(usage={"prompt_tokens": 7}), chunk(finish="stop", usage={"completion_tokens": 2})],
        [
            chunk(finish="stop", usage={"prompt_tokens": 7, "completion_tokens": 2}),
            {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}},
        ],
    ],
)
def test_counts_add_up_to_what_was_said_of_each(frames: list[dict[str, Any]]) -> None:
    """Each frame may have some of them, and the last may have zeros."""
    data = said(sse(HI, *frames, "[DONE]"))[-1].data or {}

    assert (data["tokensIn"], data["tokensOut"]) == (7, 2)
