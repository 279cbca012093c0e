"""The short form of a log: whatever the lines, they come back byte for byte."""

import json

from hypothesis import given
from hypothesis import strategies as st

from chatturn.chat.log.compact import compact, expand, is_compact
from chatturn.events import ChatStreamEvent, encode_lines, reasoning_delta, text_delta, tool_result, usage_event

# No half surrogate pairs: no line can hold one.
Text = st.text(st.characters(exclude_categories=["Cs"]))
Deltas = st.lists(Text.filter(bool), min_size=1, max_size=20).map(lambda texts: [text_delta(text) for text in texts])
Others = st.one_of(
    st.builds(reasoning_delta, Text.filter(bool)),
    st.builds(lambda text: tool_result(tool_call_id="c", tool_name="t", result={"delta": text}), Text),
    st.builds(lambda text: ChatStreamEvent(text, {"delta": text, '"delta":"': [text]}), Text.filter(bool)),
    st.just(usage_event(tokensOut=1)),
).map(lambda event: [event])
Events = st.lists(Deltas | Others, max_size=12).map(lambda groups: [event for group in groups for event in group])


@given(events=Events, first_seq=st.integers(0, 10**9), attempt=st.integers(1, 99))
def test_what_is_made_short_comes_back(events: list[ChatStreamEvent], first_seq: int, attempt: int) -> None:
    """Any events, anywhere in a log."""
    lines = "".join(encode_lines(events, first_seq, attempt))
    short = compact(lines)

    earlier = short.replace(f"~{len(lines)}", "~").replace("\t", "\n")
    assert lines == expand(short) == expand(earlier)
    assert len(short) <= len(lines) + len(f"~{len(lines)}\t")
    assert "\n" not in short
    assert expand(lines) == lines


@given(events=Events, without=st.integers(0, 60))
def test_a_reader_with_a_cursor_is_given_the_lines_behind_it(events: list[ChatStreamEvent], without: int) -> None:
    """In the middle of a block and between them, as of lines that are not short."""
    lines = encode_lines(events, 7, 2)
    without = min(without, len(lines))
    text = "".join(lines)

    assert "".join(lines[without:]) == expand(text, without) == expand(compact(text), without)


@given(texts=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=8))
def test_lines_of_any_form_come_back(texts: list[str]) -> None:
    """Also those that no engine of ours has written, as long as each is a JSON object."""
    lines = "".join(f"{{{text}}}\n" for text in texts)

    assert lines == expand(compact(lines))


def test_seqs_that_are_no_consecutive_numbers_come_back() -> None:
    """A log skips numbers where a worker was lost."""
    line = '{"type":"message.part.updated","data":{"part":{"type":"text"},"delta":"a"},"seq":%s,"attempt":1}\n'
    lines = "".join(line % seq for seq in ("1", "2", "7", "8", "8", "007", "9"))

    assert lines == expand(compact(lines))


def test_an_answer_is_stored_in_little_more_than_itself() -> None:
    """Three times the answer at most; as lines it is twenty-eight times."""
    words = [f"w{number % 97} " for number in range(2_000)]
    lines = "".join(encode_lines([text_delta(word) for word in words], 1, 1))
    short = compact(lines)

    assert is_compact(short)
    assert len(short) < 1.5 * len("".join(words))
    assert 20 * len("".join(words)) < len(lines)


def test_one_line_is_itself_without_its_line_break() -> None:
    """A block of one gains nothing."""
    [line] = encode_lines([text_delta("a\nb")], 1, 1)

    assert compact(line) == f"~{len(line)}\t{line[:-1]}\t"
    assert json.loads(expand(compact(line)))["seq"] == 1
