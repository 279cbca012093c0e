"""The event stream grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.backends.openai.sse import MAX_EVENT_BYTES, EventTooLong, ServerSentEvent, SSEDecoder


def decoded(*chunks: bytes, max_event_bytes: int = MAX_EVENT_BYTES) -> list[ServerSentEvent]:
    decoder = SSEDecoder(max_event_bytes=max_event_bytes)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def reference(stream: bytes) -> tuple[list[ServerSentEvent], str, int | None]:
    """Read the whole of *stream* line by line, as the standard words it: slow and obvious."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    *lines, _unfinished = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events, data, event, last_id, id_buffer, retry = [], "", "", "", "", None
    for line in lines:
        if line == "":
            last_id = id_buffer
            if data != "":
                events.append(ServerSentEvent(data[:-1], event or "message", last_id))
            data, event = "", ""
            continue
        name, _, value = line.partition(":")
        value = value[1:] if value[:1] == " " else value
        if name == "event":
            event = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            id_buffer = value
        elif name == "retry" and value and all(character in "0123456789" for character in value):
            retry = int(value)
    return events, last_id, retry


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


PIECES = [
    b"data: ",
    b"data:",
    b"data",
    b"event: ",
    b"event:x",
    b"id: 7",
    b"id",
    b"id: a\0b",
    b"retry: 30",
    b"retry: 3x",
    b": note",
    b":",
    b" ",
    b"\n",
    b"\n",
    b"\n\n",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b'{"a":1}',
    "\u2028é😀".encode(),
    b"\xf0\x9f",
    b"\xef\xbb\xbf",
    b"\xff",
]
STREAMS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=40).map(b"".join)


@given(STREAMS, st.lists(st.integers(0, 1_000), max_size=12))
def test_any_bytes_cut_anywhere_are_read_as_the_standard_says(stream: bytes, places: list[int]) -> None:
    """For every stream and every way to cut it, the decoder agrees with the line-by-line reference."""
    decoder = SSEDecoder()
    events = [event for chunk in cut(stream, places) for event in decoder.feed(chunk)]
    decoder.finish()
    actual = (events, decoder.last_event_id, decoder.retry_ms)

    assert reference(stream) == actual


@given(st.lists(st.text(st.characters(exclude_characters="\r\n"), min_size=1), max_size=8))
def test_byte_by_byte_is_the_same_as_at_once(texts: list[str]) -> None:
    """An answer that trickles in one byte at a time has the same events as one that comes in one piece."""
    stream = "".join(f"data: {text}\r\n\r\n" for text in texts).encode("utf-8", "replace")
    expected = decoded(stream)
    actual = decoded(*(stream[at : at + 1] for at in range(len(stream))))

    assert len(texts) == len(actual)
    assert expected == actual


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"])
def test_every_newline_ends_lines_and_events(newline: bytes) -> None:
    """CR, LF and CRLF mean the same."""
    stream = newline.join([b"data: one", b"", b"data: two", b"data: lines", b"", b""])

    assert [ServerSentEvent("one"), ServerSentEvent("two\nlines")] == decoded(stream)


def test_a_crlf_split_across_chunks_is_one_newline() -> None:
    """The LF of a CRLF that begins the next chunk is no blank line of its own."""
    assert [ServerSentEvent("a\nb")] == decoded(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n")


def test_an_event_leaves_with_its_blank_line() -> None:
    """An event is not held back until the next chunk, even if its last CR might be half of a CRLF."""
    assert [ServerSentEvent("a")] == decoded(b"data: a\r\r")


def test_comments_are_nothing() -> None:
    """A heartbeat yields no event, alone or inside one."""
    assert [ServerSentEvent("a")] == decoded(b": keepalive\n\n", b"data: a\n: still\n\n", b":\n\n")


def test_an_id_stays_until_the_next_and_nul_is_refused() -> None:
    """The last id holds for later events; one with a NUL is as if it were not there."""
    events = decoded(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\nid\ndata: d\n\n")

    assert [event.last_event_id for event in events] == ["1", "1", "1", ""]


def test_retry_takes_digits_only() -> None:
    """A reconnection time that is not all ASCII digits is ignored, and so is an absurd one."""
    decoder = SSEDecoder()
    decoder.feed("retry: 10\n\nretry: 1e3\n\nretry: ٣\n\n".encode() + b"retry: " + b"9" * 5_000 + b"\n\n")

    assert decoder.retry_ms == 10


def test_only_one_leading_bom_is_dropped() -> None:
    """One byte order mark at the very start is no part of the stream, a second one is."""
    assert [ServerSentEvent("a")] == decoded(b"\xef", b"\xbb", b"\xbfdata: a\n\n")
    assert decoded(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n") == []


def test_utf_8_split_anywhere_is_whole_again() -> None:
    """A character whose bytes come in two chunks is one character; bytes that are none are replaced."""
    assert [ServerSentEvent("😀"), ServerSentEvent("\ufffd")] == decoded(
        b"data: \xf0\x9f", b"\x98\x80\n\n", b"data: \xf0\x9f\n\n"
    )


def test_only_one_leading_space_belongs_to_the_grammar() -> None:
    """A value keeps all its spaces but the first; without one it keeps all."""
    assert [ServerSentEvent("  a"), ServerSentEvent("b"), ServerSentEvent("")] == decoded(
        b"data:   a\n\ndata:b\n\ndata\n\n"
    )


def test_unicode_line_separators_are_text() -> None:
    """Only CR and LF end a line: U+2028, U+0085 and vertical tabs are part of an answer."""
    assert [ServerSentEvent("a\u2028b\u0085c\vd")] == decoded("data: a\u2028b\u0085c\vd\n\n".encode())


def test_an_unfinished_event_is_dropped_and_reported() -> None:
    """At the end of the stream, an event without its blank line is no event; a comment is no loss."""
    broken, commented = SSEDecoder(), SSEDecoder()
    broken.feed(b"data: a\n\ndata: half\n")
    commented.feed(b"data: a\n\n: bye\n")

    assert [] == broken.finish() == commented.finish()
    assert (broken.broke_off, commented.broke_off) == (True, False)


@pytest.mark.parametrize("chunks", [[b"data: " + b"x" * 95 + b"\n\n"], [b"data: ", b"x" * 95, b"x", b"x"]])
def test_an_endless_event_is_refused(chunks: list[bytes]) -> None:
    """An event over the limit raises, whether it comes whole or never ends."""
    with pytest.raises(EventTooLong, match="100 bytes"):
        decoded(*chunks, max_event_bytes=100)


def test_many_events_together_may_exceed_what_one_may_not() -> None:
    """The limit is for one event, not for what arrives at once."""
    assert len(decoded(b"data: 0123456789\n\n" * 10, max_event_bytes=20)) == 10
