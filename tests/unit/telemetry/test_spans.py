"""A turn's spans: their tree, their times, their failures, and the trace they share with others."""

import asyncio
from collections.abc import Generator
from contextlib import suppress
from itertools import count
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.errors import BackendTimeout
from chatturn.telemetry import conventions
from chatturn.telemetry.spans import FinishedSpan, SpanRecorder, TraceParent, parse_traceparent
from chatturn.telemetry.tracer import Tracer

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER: Final = "00f067aa0ba902b7"


def recorder(*, parent: TraceParent | None = None, limit: int = 512) -> SpanRecorder:
    """A recorder whose ids are 1, 2, 3 … and whose clock is a nanosecond later each time."""
    ids, clock = count(1), count(100)
    return SpanRecorder(
        now_ns=lambda: next(clock),
        new_id=lambda size: f"{next(ids):0{2 * size}x}",
        parent=parent,
        limit=limit,
    )


def only(recorded: SpanRecorder) -> FinishedSpan:
    """The one span that has ended."""
    [span] = recorded.take()
    return span


def test_it_is_a_tracer() -> None:
    """The core can be given one: the type checker sees to it."""
    tracer: Tracer = recorder()

    with tracer.span("turn") as span:
        span.set("a", 1)


# The tree


def test_spans_nest_and_end_in_order() -> None:
    """A span's parent is the innermost one open when it began."""
    spans = recorder()
    with spans.span("turn"), spans.span("claim"):
        pass
    with spans.span("next"):
        pass

    claim, turn, following = spans.take()
    assert [claim.name, turn.name, following.name] == ["claim", "turn", "next"]
    assert [claim.parent_span_id, turn.parent_span_id, following.parent_span_id] == [turn.span_id, None, None]
    assert {span.trace_id for span in (claim, turn, following)} == {spans.trace_id}
    assert turn.start_ns < claim.start_ns < claim.end_ns < turn.end_ns < following.start_ns


async def test_what_another_task_does_is_beside_what_this_one_does() -> None:
    """A write that goes on in the background is no part of the model call that happens to be open."""
    spans = recorder(parent=TraceParent(TRACE, CALLER, 1))

    async def write() -> None:
        with spans.span("write"):
            await asyncio.sleep(0)

    with spans.span("chat"):
        await asyncio.create_task(write())
        with spans.span("below"):
            pass
    parents = {span.name: span.parent_span_id for span in spans.take()}

    assert CALLER == parents["write"] == parents["chat"]
    assert parents["below"] not in {None, CALLER}


def test_the_first_span_belongs_under_the_callers() -> None:
    """With a caller's traceparent, its trace goes on."""
    spans = recorder(parent=TraceParent(TRACE, CALLER, 1))
    with spans.span("turn"):
        pass

    span = only(spans)
    assert (span.trace_id, span.parent_span_id) == (TRACE, CALLER)


def test_a_span_that_outlives_the_one_around_it_harms_nothing() -> None:
    """Ends out of order leave the other spans as they are."""
    spans = recorder()
    outer, inner = spans.span("outer"), spans.span("inner")
    with outer:
        inner.__enter__()
    with spans.span("below inner"):
        inner.__exit__(None, None, None)

    assert [span.name for span in spans.take()] == ["outer", "inner", "below inner"]


def test_a_span_never_ends_before_it_began() -> None:
    """A clock that is set back in between does not show."""
    clock = iter([1_000, 900])
    spans = SpanRecorder(now_ns=lambda: next(clock), new_id=lambda size: "1" * 2 * size)
    with spans.span("turn"):
        pass

    span = only(spans)
    assert (span.start_ns, span.end_ns) == (1_000, 1_000)


def test_spans_are_handed_over_once() -> None:
    """What was taken is not taken again; what was open is taken when it has ended."""
    spans = recorder()
    with spans.span("turn"):
        with spans.span("claim"):
            pass
        assert [span.name for span in spans.take()] == ["claim"]

    assert [span.name for span in spans.take()] == ["turn"]
    assert spans.take() == ()


def test_span_names_are_the_operation_and_its_subject() -> None:
    """Without a subject the operation alone, as the conventions say."""
    named = [conventions.span_name(conventions.CHAT, model) for model in ("gpt-x", "", None)]

    assert named == ["chat gpt-x", "chat", "chat"]


def test_every_name_of_the_conventions_is_its_own() -> None:
    """Two constants never note the same fact."""
    names = [value for key, value in vars(conventions).items() if key.isupper()]

    assert len(names) == len(set(names)) > 20


# What is noted


def test_attributes_are_what_was_noted_last() -> None:
    """None is not noted, neither at the start nor later."""
    spans = recorder()
    with spans.span("turn", kind="client", attributes={"a": 1, "b": None, "c": "x"}) as span:
        span.set("a", 2)
        span.set("c", None)
        span.set("d", ("stop",))

    finished = only(spans)
    assert finished.attributes == {"a": 2, "c": "x", "d": ("stop",)}
    assert finished.kind == "client"


def test_a_finished_span_does_not_change() -> None:
    """Facts that come after the end are late."""
    spans = recorder()
    with spans.span("turn") as span:
        pass
    span.set("late", value=True)
    span.fail("late")

    finished = only(spans)
    assert (finished.attributes, finished.error_type) == ({}, None)


# Failures


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (BackendTimeout("sk-secret", backend="openai"), "backend_timeout"),
        (ValueError("sk-secret"), "ValueError"),
        (asyncio.CancelledError("sk-secret"), "CancelledError"),
    ],
)
def test_an_exception_fails_the_span_it_leaves(error: BaseException, error_type: str) -> None:
    """Its code or class is noted, its message never, and it goes on its way."""
    spans = recorder()
    with pytest.raises(type(error)), spans.span("turn"):
        raise error

    span = only(spans)
    assert span.error_type == error_type
    assert "sk-secret" not in repr(span)


def test_an_exception_that_is_caught_inside_fails_only_the_inner_span() -> None:
    """A retry that succeeds is a success."""
    spans = recorder()
    with spans.span("turn"), suppress(ValueError), spans.span("try"):
        raise ValueError

    assert [(span.name, span.error_type) for span in spans.take()] == [("try", "ValueError"), ("turn", None)]


def test_the_first_mark_of_failure_stays() -> None:
    """What the code said about the failure is nearer to the cause than what then passed by."""
    spans = recorder()
    with suppress(ValueError), spans.span("turn") as span:
        span.fail("empty_answer")
        span.fail("backend_error")
        raise ValueError

    assert only(spans).error_type == "empty_answer"


def test_a_reader_that_has_all_it_wants_is_no_failure() -> None:
    """Closing a generator inside its span ends the span well."""
    spans = recorder()

    def stream() -> Generator[int, None, None]:
        with spans.span("chat"):
            yield from count()

    reading = stream()
    next(reading)
    reading.close()

    assert only(spans).error_type is None


# The limit


def test_spans_beyond_the_limit_are_counted_and_leave_no_holes() -> None:
    """The spans around the forgotten ones are all there."""
    spans = recorder(limit=3)
    with spans.span("turn"):
        for name in "abcd":
            with spans.span(name), spans.span(f"inside {name}") as span:
                span.set("ignored", 1)

    assert [span.name for span in spans.take()] == ["inside a", "a", "turn"]
    assert spans.dropped == 6


# traceparent


def test_the_header_names_the_current_span() -> None:
    """Another service's spans belong below the innermost span that is open."""
    spans = recorder()
    assert spans.traceparent() is None
    with spans.span("turn"):
        with spans.span("chat"):
            header = spans.traceparent()

        assert parse_traceparent(spans.traceparent()) != parse_traceparent(header)

    chat, _ = spans.take()
    assert parse_traceparent(header) == TraceParent(spans.trace_id, chat.span_id, 1)


def test_outside_any_span_the_callers_is_passed_on() -> None:
    """The trace does not break where nothing is recorded."""
    spans = recorder(parent=TraceParent(TRACE, CALLER, 1))

    assert spans.traceparent() == f"00-{TRACE}-{CALLER}-01"


@pytest.mark.parametrize(("received", "sent"), [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("fc", "00")])
def test_flags_are_passed_on(received: str, sent: str) -> None:
    """Whether it is sampled, whether its id is random; bits without a meaning yet are not."""
    spans = recorder(parent=parse_traceparent(f"00-{TRACE}-{CALLER}-{received}"))
    with spans.span("turn"):
        header = spans.traceparent()

    assert header is not None
    assert header[-2:] == sent


hex_ids = st.integers(1, 2**64 - 1)


@given(trace=hex_ids, span=hex_ids, flags=st.integers(0, 255), padding=st.sampled_from(["", " ", "\t"]))
def test_every_valid_traceparent_is_read(trace: int, span: int, flags: int, padding: str) -> None:
    """Its three fields come out as they are."""
    header = f"{padding}00-{trace:032x}-{span:016x}-{flags:02x}{padding}"

    assert parse_traceparent(header) == TraceParent(f"{trace:032x}", f"{span:016x}", flags)


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True))
def test_what_is_read_could_be_sent_on(header: str) -> None:
    """Whatever comes in is ignored or valid; nothing raises."""
    read = parse_traceparent(header)

    assert read is None or parse_traceparent(read.header()) == read._replace(flags=read.flags & 3)


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    """Further fields after the known ones are allowed from version 01 on."""
    assert parse_traceparent(f"cc-{TRACE}-{CALLER}-01-what-comes") == TraceParent(TRACE, CALLER, 1)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01-more",
        f"cc-{TRACE}-{CALLER}-01.more",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{CALLER}-1",
        f"00-{TRACE}-{CALLER}",
        f"00-{TRACE}-{CALLER}-01\n",
        f"00-{TRACE[:-1]}٣-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01, 00-{TRACE}-{CALLER}-01",
    ],
)
def test_an_invalid_traceparent_is_ignored(header: str | None) -> None:
    """A new trace begins then."""
    assert parse_traceparent(header) is None
