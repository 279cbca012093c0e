"""Frames of server-sent events: whatever is put in, a reader gets one event, and that one."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatturn.agent_runtime.shown.sanitize import RuntimeTelemetryOptions, sanitize_knowledge_readiness_report
from chatturn.agent_runtime.shown.server_sent_events import (
    readiness_server_sent_event,
    runtime_stream_server_sent_event,
)
from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.events import RuntimeStreamEvent, TextDeltaEvent
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport
from chatturn.backends.openai.sse import ServerSentEvent, SSEDecoder
from chatturn.events import encode_line, text_delta
from chatturn.http.sse import to_sse
from chatturn.sse_frames import encode_server_sent_event
from tests.support.runtime_values import PRIVATE, events, json_values, private, values_of


def read(frame: str) -> ServerSentEvent:
    """What a reader makes of it."""
    decoder = SSEDecoder()
    [event] = decoder.feed(frame.encode())
    assert not decoder.finish()
    return event


def test_the_known_answer() -> None:
    """The known answer of docs/reference/agent-runtime.md, to the byte."""
    frame = encode_server_sent_event({"type": "ping"}, event="runtime\nbad", id="id\n1", retry=1000)

    assert 'id: id 1\nevent: runtime bad\nretry: 1000\ndata: {"type":"ping"}\n\n' == frame


@given(st.text(st.characters()), st.text(st.characters()), st.text(st.characters()))
def test_any_text_is_one_event(data: str, event: str, id_: str) -> None:
    """Nothing in the data, the type or the id ends the event or begins another, and the data come out as they are."""
    got = read(encode_server_sent_event(data, event=event, id=id_))
    clean = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in data)

    assert clean.replace("\r\n", "\n").replace("\r", "\n") == got.data


@given(json_values(st.text(st.characters())).filter(lambda value: not isinstance(value, str)))
def test_any_json_is_one_event(value: Any) -> None:
    """What is no text goes out as JSON, and is read as it was."""
    assert value == json.loads(read(encode_server_sent_event(value)).data)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("a\nb", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\rb", ["a", "b"]),
        ("a\r\rb\n", ["a", "", "b", ""]),
        ("a\u2028b\x85c", ["a\u2028b\x85c"]),
        ("", [""]),
    ],
)
def test_data_are_cut_where_a_reader_ends_a_line(data: str, lines: list[str]) -> None:
    """At a lone CR as well, where agent-runtime's encoder ends the event's data early."""
    assert "".join(f"data: {line}\n" for line in lines) + "\n" == encode_server_sent_event(data)


def test_an_id_has_no_nul() -> None:
    """A reader ignores an id with one, and would come back to another place."""
    assert "id: 42\ndata: a\n\n" == encode_server_sent_event("a", id="4\x002")
    assert "data: a\n\n" == encode_server_sent_event("a", id="\0")


@pytest.mark.parametrize("ends", ["\n", "\r", "\r\n"])
def test_a_line_end_in_an_id_or_a_type_is_as_many_spaces(ends: str) -> None:
    """Each character becomes one."""
    spaces = " " * len(ends)

    expected = f"id: a{spaces}b\nevent: c{spaces}d\ndata: x\n\n"
    assert expected == encode_server_sent_event("x", id=f"a{ends}b", event=f"c{ends}d")


@pytest.mark.parametrize(
    ("retry", "line"),
    [(0, "retry: 0\n"), (1.9, "retry: 1\n"), (-1, ""), (math.nan, ""), (math.inf, ""), (None, "")],
)
def test_retry_is_whole_milliseconds_or_nothing(retry: float | None, line: str) -> None:
    """Finite, not negative, rounded down."""
    assert f"{line}data: a\n\n" == encode_server_sent_event("a", retry=retry)


def test_empty_fields_are_as_none() -> None:
    """An empty id would make the reader forget its place."""
    assert "data: a\n\n" == encode_server_sent_event("a", id="", event="")


@pytest.mark.parametrize("data", [math.nan, {1, 2}, object()])
def test_what_is_no_json_is_refused(data: object) -> None:
    """The caller learns of it, not the reader."""
    with pytest.raises((TypeError, ValueError)):
        encode_server_sent_event(data)


def test_the_log_s_events_are_frames_too() -> None:
    """One rule: a line of the log is the data of a frame whose id is its seq."""
    line = encode_line(text_delta("a"), 3, 1)

    assert encode_server_sent_event(line[:-1], id="3") == to_sse(line)


# Runtime events


@given(events(private))
@settings(max_examples=50)
def test_an_event_is_sent_sanitized(event: RuntimeStreamEvent) -> None:
    """By default nothing that anybody said is on the wire."""
    frame = runtime_stream_server_sent_event(event, id="1", event="runtime")

    assert PRIVATE not in frame
    assert ("runtime", "1", event.type) == (
        read(frame).event,
        read(frame).last_event_id,
        json.loads(read(frame).data)["type"],
    )


def test_an_answer_is_sent_if_it_is_asked_for() -> None:
    """A page that shows it asks for text."""
    assert 'data: {"type":"text_delta","text":"[redacted]"}\n\n' == runtime_stream_server_sent_event(
        TextDeltaEvent(text="a")
    )
    frame = runtime_stream_server_sent_event(TextDeltaEvent(text="a"), RuntimeTelemetryOptions(include_text=True))

    assert 'data: {"type":"text_delta","text":"a"}\n\n' == frame


@given(values_of(KnowledgeReadinessReport, lambda _: st.text("ab")))
@settings(max_examples=20)
def test_a_report_is_sent_sanitized(report: KnowledgeReadinessReport) -> None:
    """As what it is, with its fields."""
    frame = readiness_server_sent_event(report, event="readiness", retry=5)
    expected = {"type": "readiness", "readiness": to_json(sanitize_knowledge_readiness_report(report))}

    assert frame.startswith("event: readiness\nretry: 5\ndata: ")
    assert expected == json.loads(read(frame).data)
