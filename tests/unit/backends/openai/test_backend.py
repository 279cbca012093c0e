"""The OpenAI-compatible backend against a scripted transport: tries, deadlines, aborts, and O1 to O8."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count, pairwise
from typing import Any, cast

import pytest

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.backends.openai.backend import create_openai_compatible_backend
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendReportedError,
    BackendTimeout,
    BackendTransportError,
    ConfigurationError,
    ContextOverflow,
    QuotaExhausted,
)
from chatturn.events import ChatStreamEvent, EventBatch, TextAssembly, events_of, text_delta, usage_event
from chatturn.telemetry.spans import SpanRecorder
from tests.support.transport import HANG, Reply, ScriptedTransport

ASKED = AgentBackendInput(messages=[{"role": "user", "content": "Hi"}])
CONTEXT = AgentBackendContext(request_id="run-1:attempt-1")


def frame(content: str = "", *, finish: str | None = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content else {}, "finish_reason": finish}
    data = {"id": "chatcmpl-1", "model": "m-2024", "choices": [choice]} | members
    return f"data: {json.dumps(data)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
END = frame(finish="stop") + DONE
USAGE = frame(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2})
OK = Reply(body=[frame("Hello") + END])
UNREACHABLE = BackendTransportError("connection refused", backend="fetch")


def backend(transport: ScriptedTransport, **options: Any) -> AgentExecutionBackend:
    """A backend whose jitter is always 0 and whose clock stands at 0."""
    fixed: dict[str, Any] = {
        "base_url": "https://api.example/v1",
        "api_key": "sk-1",
        "model": "m",
        "uniform": lambda _low, _high: 0.0,
        "now": lambda: 0.0,
    }
    return create_openai_compatible_backend(transport=transport, **fixed | options)


async def batches(
    answering: AgentExecutionBackend,
    request: AgentBackendInput = ASKED,
    context: AgentBackendContext = CONTEXT,
) -> list[list[ChatStreamEvent]]:
    found = [batch async for batch in answering.stream(request, context)]
    return [list(events_of(batch)) for batch in found]


async def text_of(answering: AgentExecutionBackend) -> str:
    assembly = TextAssembly()
    for batch in await batches(answering):
        assembly.add_all(batch)
    return assembly.text()


async def failure_of(answering: AgentExecutionBackend) -> BackendError:
    with pytest.raises(BackendError) as raised:
        await batches(answering)
    return raised.value


def now() -> float:
    return asyncio.get_running_loop().time()


def waits(transport: ScriptedTransport) -> list[float]:
    """The seconds between the tries."""
    times = [exchange.sent_at for exchange in transport.exchanges]
    return [later - earlier for earlier, later in pairwise(times)]


def left_open(transport: ScriptedTransport) -> int:
    return sum(exchange.closed_at is None for exchange in transport.exchanges)


# The request


async def test_the_request_is_a_streaming_chat_completion() -> None:
    """It goes to the base URL's chat completions, asks for a stream with usage, and carries the key."""
    transport = ScriptedTransport([OK])
    await batches(backend(transport, base_url="https://api.example/v1/"))
    [exchange] = transport.exchanges
    request = exchange.request

    assert (request.method, request.url) == ("POST", "https://api.example/v1/chat/completions")
    assert request.headers == {
        "user-agent": "chatturn",
        "authorization": "Bearer sk-1",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "idempotency-key": "run-1:attempt-1",
    }
    assert json.loads(request.body) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Hi"}],
    }


async def test_options_are_sent_as_they_are() -> None:
    """Further members reach the API, the request's own model goes first, and nothing turns the stream off."""
    transport = ScriptedTransport([OK])
    options = {
        "temperature": 0,
        "tools": [{"type": "function"}],
        "stream": False,
        "messages": [],
        "model": "x",
    }
    await batches(backend(transport), AgentBackendInput(messages=[], model="mine", options=options))
    body = json.loads(transport.exchanges[0].request.body)

    assert (body["model"], body["stream"], body["temperature"]) == ("mine", True, 0)
    assert body["tools"] == [{"type": "function"}]


async def test_no_key_sends_none() -> None:
    """Without a key there is no Authorization header, rather than an empty one."""
    transport = ScriptedTransport([OK])
    await batches(backend(transport, api_key=""))

    assert "authorization" not in transport.exchanges[0].request.headers


async def test_the_body_survives_every_text() -> None:
    """Text of any kind, half characters included, makes a body that is ASCII and reads back the same."""
    transport = ScriptedTransport([OK])
    messages = [{"role": "user", "content": "é\u2028\ud800\0😀"}]
    await batches(backend(transport), AgentBackendInput(messages=messages))
    body = transport.exchanges[0].request.body

    assert body.isascii()
    assert json.loads(body)["messages"] == messages


async def test_a_model_is_required() -> None:
    """Where neither request nor deployment names a model, the setting is named and nothing is sent."""
    transport = ScriptedTransport([])
    with pytest.raises(ConfigurationError, match="MODEL"):
        await batches(backend(transport, model=""))

    assert transport.exchanges == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"base_url": "api.example"}, "OPENAI_BASE_URL"),
        ({"idle_timeout_ms": -1}, "idle_timeout_ms"),
        ({"total_timeout_ms": -1}, "total_timeout_ms"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], name: str) -> None:
    """A base URL without a scheme and a negative deadline fail at construction."""
    with pytest.raises((ConfigurationError, ValueError), match=name):
        backend(ScriptedTransport([]), **options)


# The answer


async def test_events_leave_with_their_chunk() -> None:
    """Each network chunk becomes one list, and one that says nothing becomes none."""
    transport = ScriptedTransport([Reply(body=[frame("a") + frame("b"), b": ping\n\n", frame("c"), END])])

    assert await batches(backend(transport)) == [
        [text_delta("a"), text_delta("b")],
        [text_delta("c")],
        [usage_event(model="m-2024", finishReason="stop")],
    ]


async def test_reading_stops_at_done() -> None:
    """After [DONE] the connection is closed at once, though the server would keep it open."""
    transport = ScriptedTransport([Reply(body=[frame("a"), END, HANG])])
    await batches(backend(transport))

    assert transport.exchanges[0].chunks == 2
    assert transport.exchanges[0].closed_at == 0


@pytest.mark.parametrize("rest", [[HANG], [UNREACHABLE], []])
async def test_a_whole_answer_is_not_lost_to_its_trailer(rest: list[Any]) -> None:
    """After the finish reason only usage is missing: if it does not come soon, the answer stands without."""
    transport = ScriptedTransport([Reply(body=[frame("a"), frame(finish="stop"), *rest])])

    assert await text_of(backend(transport)) == "a"
    assert now() <= 5.002
    assert left_open(transport) == 0


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
async def test_an_answer_that_is_not_streamed_is_accepted(content_type: str) -> None:
    """A server that ignores `stream` is understood."""
    document = b'{"choices":[{"message":{"content":"all"},"finish_reason":"length"}]}'
    reply = Reply(headers={"content-type": content_type}, body=[document[:20], document[20:]])

    assert await batches(backend(ScriptedTransport([reply]))) == [
        [text_delta("all"), usage_event(model="m", finishReason="length")]
    ]


# Tries


@pytest.mark.parametrize("status", [408, 409, 425, 429, 498, 500, 502, 503, 504, 520, 522, 524, 529])
async def test_what_may_pass_is_tried_again_after_the_backoff(status: int) -> None:
    """Every retryable status, and a connection that fails, is tried again 1, 2, 4 … seconds later."""
    refusal = Reply(status=status, body=[HANG]) if status >= 500 else Reply(status=status, body=[b"{}"])
    transport = ScriptedTransport([refusal, UNREACHABLE, Reply(status=status), OK])

    assert await text_of(backend(transport)) == "Hello"
    assert waits(transport) == [1, 2, 4]
    assert left_open(transport) == 0


async def test_the_server_decides_the_wait() -> None:
    """`retry-after` replaces the backoff."""
    headers = {"retry-after": "7"}
    transport = ScriptedTransport([Reply(status=429, headers=headers), OK])
    await batches(backend(transport))

    assert waits(transport) == [7]


async def test_the_servers_verdict_is_final() -> None:
    """`x-should-retry` lets a refusal be tried again, and an overload be given up at once."""
    again = ScriptedTransport([Reply(status=400, headers={"x-should-retry": "true"}), OK])
    never = ScriptedTransport([Reply(status=503, headers={"x-should-retry": "false"})])

    assert await text_of(backend(again)) == "Hello"
    assert type(await failure_of(backend(never))) is BackendRejected


async def test_used_up_tries_say_how_many_and_why() -> None:
    """When the last try fails too, its reason is raised and no time is wasted after it."""
    transport = ScriptedTransport([UNREACHABLE] * 4 + [Reply(status=503, body=[b"busy"])])
    error = await failure_of(backend(transport))

    assert type(error) is BackendTransportError
    assert (error.upstream_status, error.detail) == (503, "busy")
    assert "try 5" in str(error)
    assert now() == 1 + 2 + 4 + 8


async def test_nowhere_to_connect_is_a_transport_error() -> None:
    """An API that cannot be reached at all has status 0."""
    error = await failure_of(backend(ScriptedTransport([UNREACHABLE]), retry=BackendRetryPolicy(max_attempts=1)))

    assert isinstance(error, BackendTransportError)
    assert error.upstream_status == 0


async def test_too_long_a_wait_gives_up_at_once() -> None:
    """Asked to wait beyond the cap, or beyond the call's whole time, the call fails now instead of later."""
    asks = Reply(status=429, headers={"retry-after": "100"})
    capped = backend(ScriptedTransport([asks]), retry=BackendRetryPolicy(retry_after_max_ms=99_000))
    short_of_time = backend(ScriptedTransport([asks]), total_timeout_ms=100_000)

    assert type(await failure_of(capped)) is BackendTransportError
    assert type(await failure_of(short_of_time)) is BackendTransportError
    assert now() == 0


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422])
async def test_a_refusal_is_not_tried_again(status: int) -> None:
    """Any other status ends the call; the API's words are kept for the log and are not in the message."""
    transport = ScriptedTransport([Reply(status=status, body=[b'{"error":"key sk-1 is wrong"}'])])
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendRejected)
    assert error.upstream_status == status
    assert error.detail == '{"error":"key sk-1 is wrong"}'
    assert "sk-1" not in str(error)


async def test_nothing_is_tried_again_once_the_body_has_begun() -> None:
    """A stream that breaks is the turn's to repeat, not the call's: one request was sent."""
    transport = ScriptedTransport([Reply(body=[frame("a"), UNREACHABLE]), OK])

    assert isinstance(await failure_of(backend(transport)), BackendProtocolError)
    assert len(transport.exchanges) == 1


# Deadlines


async def test_no_headers_in_time_is_tried_again_and_then_a_timeout() -> None:
    """Each try has its own deadline to headers; after the last one the error names it."""
    transport = ScriptedTransport([HANG, Reply(after_s=301), HANG])
    error = await failure_of(backend(transport, retry=BackendRetryPolicy(max_attempts=3), total_timeout_ms=0))

    assert isinstance(error, BackendTimeout)
    assert "request_timeout_ms" in str(error)
    assert now() == pytest.approx(3 * 300 + 1 + 2, abs=0.01)
    assert left_open(transport) == 0


async def test_the_deadline_to_headers_is_not_the_bodys() -> None:
    """A body may take longer than its headers were given."""
    transport = ScriptedTransport([Reply(after_s=0.9, body=[frame("a"), 30.0, frame("b"), 30.0, END])])

    assert await text_of(backend(transport, retry=BackendRetryPolicy(request_timeout_ms=1_000))) == "ab"


async def test_a_trickle_ends_with_the_total_deadline() -> None:
    """Chunks that keep coming do not prolong the call; when its time is over, the connection is closed."""
    body = [part for _ in range(100) for part in (frame("a"), 50.0)]
    transport = ScriptedTransport([Reply(body=body)])
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendTimeout)
    assert "total_timeout_ms" in str(error)
    assert transport.exchanges[0].closed_at == pytest.approx(900, abs=0.01)


async def test_the_total_deadline_covers_the_tries() -> None:
    """Time spent on tries is part of the call's time."""
    error = await failure_of(backend(ScriptedTransport([UNREACHABLE, HANG]), total_timeout_ms=10_000))

    assert "total_timeout_ms" in str(error)
    assert now() == pytest.approx(10, abs=0.01)


async def test_an_error_body_that_hangs_does_not_hang_the_call() -> None:
    """What came of a refusal's body within five seconds is its detail."""
    transport = ScriptedTransport([Reply(status=400, body=[b"because", HANG])])
    error = await failure_of(backend(transport))

    assert (type(error), error.detail) == (BackendRejected, "because")
    assert now() == pytest.approx(5, abs=0.01)


async def test_disabled_deadlines_wait_for_ever() -> None:
    """0 disables each deadline."""
    transport = ScriptedTransport([Reply(after_s=9_000, body=[9_000.0, frame("a"), END])])
    patient = backend(transport, retry=BackendRetryPolicy(request_timeout_ms=0), idle_timeout_ms=0, total_timeout_ms=0)

    assert await text_of(patient) == "a"


# Spans


def recorder() -> SpanRecorder:
    ids, clock = count(1), count(1)
    return SpanRecorder(now_ns=lambda: next(clock), new_id=lambda size: f"{next(ids):0{2 * size}x}")


async def test_every_try_has_its_span() -> None:
    """Each try is a client span named for the model; the one that worked says what the answer was."""
    tracer = recorder()
    transport = ScriptedTransport([Reply(status=503), Reply(after_s=2, body=[1.0, frame("a") + USAGE + END])])
    await batches(backend(transport, provider="groq"), ASKED, AgentBackendContext(request_id="r", tracer=tracer))
    failed, worked = tracer.take()

    assert {failed.name, worked.name} == {"chat m"}
    assert {failed.kind, worked.kind} == {"client"}
    assert (failed.error_type, worked.error_type) == ("backend_unavailable", None)
    assert failed.attributes["http.response.status_code"] == 503
    assert worked.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "groq",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "m-2024",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 3.0,  # of this try
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "http.request.resend_count": 1,
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(status=401), "backend_rejected"),
        (Reply(body=[frame("a")]), "backend_protocol"),
        (Reply(body=[b'data: {"error":"x"}\n\n']), "backend_reported"),
        (Reply(body=[HANG]), "backend_timeout"),
    ],
)
async def test_a_failed_call_says_so_on_its_span(reply: Reply, code: str) -> None:
    """The span that failed carries the error's stable code."""
    tracer = recorder()
    with pytest.raises(BackendError):
        await batches(backend(ScriptedTransport([reply])), ASKED, AgentBackendContext(request_id="r", tracer=tracer))
    [span] = tracer.take()

    assert span.error_type == code


# O1 to O8: what agent-runtime's backend got wrong (docs/reference/agent-runtime.md)


@pytest.mark.parametrize(
    ("script", "cancel_at"),
    [
        pytest.param([HANG], 3, id="waiting-for-headers"),
        pytest.param([Reply(status=503), OK], 0.5, id="between-tries"),
        pytest.param([Reply(status=400, body=[HANG])], 2, id="reading-an-error"),
        pytest.param([Reply(body=[HANG])], 7, id="before-the-first-chunk"),
        pytest.param([Reply(body=[frame("a"), HANG])], 7, id="inside-the-body"),
        pytest.param([Reply(body=[frame("a") + frame(finish="stop"), HANG])], 3, id="after-the-finish-reason"),
    ],
)
async def test_o1_a_cancel_closes_the_connection_at_once(script: list[Any], cancel_at: float) -> None:
    """Wherever the call waits, cancelling it ends it then and there, with its connection."""
    transport = ScriptedTransport(script)
    call = asyncio.create_task(batches(backend(transport)))
    await asyncio.sleep(cancel_at)
    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert now() == cancel_at
    assert left_open(transport) == 0
    assert len(transport.exchanges) == 1


async def test_o1_a_reader_that_leaves_closes_the_connection_at_once() -> None:
    """A consumer that stops iterating and closes the stream leaves no connection behind."""
    transport = ScriptedTransport([Reply(body=[frame("a"), HANG])])
    stream = backend(transport).stream(ASKED, CONTEXT)
    async with aclosing(cast("AsyncGenerator[EventBatch, None]", stream)):
        await anext(stream)

    assert transport.exchanges[0].closed_at == 0


async def test_o1_a_stalled_body_does_not_hang() -> None:
    """A body that stops in the middle ends with the idle deadline, which is named, and is closed."""
    transport = ScriptedTransport([Reply(body=[frame("a"), HANG])])
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendTimeout)
    assert "idle_timeout_ms" in str(error)
    assert transport.exchanges[0].closed_at == pytest.approx(300, abs=0.01)


async def test_o2_usage_is_an_event() -> None:
    """What the call consumed is reported, once, with the model that answered."""
    [*_, [usage]] = await batches(
        backend(ScriptedTransport([Reply(body=[frame("a"), frame(finish="stop"), USAGE, DONE])]))
    )

    assert usage == usage_event(model="m-2024", tokensIn=7, tokensOut=2, finishReason="stop")


async def test_o2_absent_usage_is_not_zero() -> None:
    """An answer without usage and finish reason has no usage event at all."""
    assert await batches(backend(ScriptedTransport([Reply(body=[frame("a"), DONE])]))) == [[text_delta("a")]]


@pytest.mark.parametrize(
    "noise", [b": keepalive\n\n", b"event: message\n", b"id: 7\n", b"retry: 10\n\n", b":\n", b"\n\n"]
)
async def test_o3_what_is_no_data_is_never_text(noise: bytes) -> None:
    """Comments and field lines, even in a chunk of their own, are not part of the answer."""
    transport = ScriptedTransport([Reply(body=[noise, frame("a"), noise, frame("b"), noise, END])])

    assert await text_of(backend(transport)) == "ab"


async def test_o3_data_that_is_not_json_is_an_error_and_no_text() -> None:
    """A frame that cannot be parsed fails the call instead of being shown to the user."""
    transport = ScriptedTransport([Reply(body=[b"data: <html>oops</html>\n\n", END])])
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendProtocolError)
    assert error.detail == "<html>oops</html>"
    assert "oops" not in str(error)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_o4_chunk_boundaries_and_newlines_do_not_matter(newline: bytes) -> None:
    """An answer that comes byte by byte, whatever ends its lines, is the same answer."""
    stream = (frame("é") + frame("😀") + USAGE + END).replace(b"\n", newline)
    transport = ScriptedTransport([Reply(body=[bytes([byte]) for byte in stream])])

    assert await text_of(backend(transport)) == "é😀"


async def test_o5_an_error_in_the_stream_fails_the_call() -> None:
    """An error object among the data is raised, not ignored."""
    transport = ScriptedTransport([Reply(body=[frame("a"), b'data: {"error":{"message":"overloaded"}}\n\n', END])])
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendReportedError)
    assert "overloaded" in error.detail


@pytest.mark.parametrize("body", [[], [frame("a")], [frame("a"), b"data: [DO"], [b"<html></html>"]])
async def test_o5_a_cut_stream_is_no_answer(body: list[bytes]) -> None:
    """Without a finish reason or [DONE] nothing is complete."""
    assert isinstance(await failure_of(backend(ScriptedTransport([Reply(body=body)]))), BackendProtocolError)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_o5_why_an_answer_ended_is_visible(reason: str) -> None:
    """An answer that was cut short by the model's side says so, usage or not."""
    transport = ScriptedTransport([Reply(body=[frame("a"), frame(finish=reason)])])

    assert (await batches(backend(transport)))[-1] == [usage_event(model="m-2024", finishReason=reason)]


async def test_o6_the_whole_text_after_its_deltas_is_not_said_twice() -> None:
    """A last frame that repeats the whole message adds nothing to the deltas before it."""
    repeat = frame(choices=[{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}])
    transport = ScriptedTransport([Reply(body=[frame("a"), frame("b"), repeat, DONE])])

    assert await text_of(backend(transport)) == "ab"


async def test_o7_all_tries_of_an_attempt_carry_one_key() -> None:
    """A request that may have been accepted is repeated with the same idempotency key and body."""
    transport = ScriptedTransport([UNREACHABLE, Reply(status=500), HANG, OK])
    await batches(backend(transport))
    requests = [exchange.request for exchange in transport.exchanges]

    assert {request.headers["idempotency-key"] for request in requests} == {"run-1:attempt-1"}
    assert len({request.body for request in requests}) == 1
    assert len(requests) == 4


def test_o7_no_attempts_at_all_is_refused() -> None:
    """A policy that would never send anything cannot be made."""
    with pytest.raises(ValueError, match="max_attempts"):
        BackendRetryPolicy(max_attempts=0)


async def test_o8_an_errors_body_is_read_in_part_and_closed() -> None:
    """At most 2 KiB of a refusal are kept, the rest is not even read, and the connection is closed."""
    transport = ScriptedTransport([Reply(status=400, body=[b"x" * 1_500, "é".encode() * 1_500, b"more", HANG])])
    error = await failure_of(backend(transport))

    assert error.detail == "x" * 1_500 + "é" * 274
    assert transport.exchanges[0].chunks == 2
    assert left_open(transport) == 0


async def test_o8_tool_calls_are_not_dropped() -> None:
    """A call that comes in pieces leaves as one event, complete, before usage."""
    pieces = [
        {"index": 0, "id": "c1", "function": {"name": "find", "arguments": '{"q":'}},
        {"index": 0, "function": {"arguments": '"x"}'}},
    ]
    body = [frame(choices=[{"index": 0, "delta": {"tool_calls": [piece]}}]) for piece in pieces]
    transport = ScriptedTransport([Reply(body=[*body, frame(finish="tool_calls"), USAGE, DONE])])
    [[call, usage]] = await batches(backend(transport))

    assert call == ChatStreamEvent("tool.call", {"toolCallId": "c1", "toolName": "find", "args": {"q": "x"}})
    assert usage.type == "usage"


# What is refused, and what can be said otherwise


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_on_the_same_host_is_followed(status: int) -> None:
    """With the same body and headers, whatever the method would become by HTTP's rules."""
    headers = {"location": "/v2/chat/completions"}
    transport = ScriptedTransport([Reply(status=status, headers=headers), OK])
    assert await text_of(backend(transport)) == "Hello"
    first, second = (exchange.request for exchange in transport.exchanges)

    assert second.url == "https://api.example/v2/chat/completions"
    assert (first.body, first.headers) == (second.body, second.headers)


@pytest.mark.parametrize(
    "location", ["https://elsewhere.example/v1", "http://api.example/v1", "https://user@api.example/v1", ""]
)
async def test_a_redirect_to_another_host_is_told(location: str) -> None:
    """A key is not handed to strangers, nor over an open line; the log has the address."""
    transport = ScriptedTransport([Reply(status=307, headers={"location": location})])
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendRejected)
    assert location in error.detail


@pytest.mark.parametrize("location", ["https://elsewhere.example/v1?key=k-1", "/v1?key=k-1"])
async def test_the_log_has_no_query_of_a_redirect(location: str) -> None:
    """Some APIs take their key in it, and redirects repeat it."""
    transport = ScriptedTransport([Reply(status=307, headers={"location": location})] * 5)
    error = await failure_of(backend(transport))

    assert isinstance(error, BackendRejected)
    assert "/v1?…" in error.detail
    assert len(transport.exchanges) <= 4
    assert "k-1" not in error.detail


async def test_each_way_of_saying_a_request_is_tried_once() -> None:
    """An API that refuses all of them has something else in mind, and teaches nothing."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = AgentBackendInput(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    transport = ScriptedTransport([Reply(status=400, body=[b"messages.1.content: field required"])] * 9)
    ours = backend(transport)
    for _ in range(2):
        with pytest.raises(BackendRejected, match="status 400"):
            await batches(ours, asked)
    contents = [json.loads(each.request.body)["messages"][0].get("content", "absent") for each in transport.exchanges]

    assert contents == ["", None, "absent"] * 2


async def test_a_redirect_in_a_circle_ends() -> None:
    """After three."""
    replies = [Reply(status=307, headers={"location": f"/{at}"}) for at in range(9)]
    transport = ScriptedTransport(replies)

    assert isinstance(await failure_of(backend(transport)), BackendRejected)
    assert len(transport.exchanges) == 4


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ("Argument not supported: stream_options", {}, {"stream_options": None}),
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            {"max_tokens": 5},
            {"max_tokens": None, "max_completion_tokens": 5},
        ),
    ],
)
async def test_what_an_api_wants_otherwise_is_learnt(words: str, options: Any, expected: dict[str, Any]) -> None:
    """At its first refusal, which is no try; later calls say it so at once."""
    transport = ScriptedTransport([Reply(status=400, body=[words.encode()]), OK, OK])
    answering = backend(transport, retry=BackendRetryPolicy(max_attempts=1))
    for _ in range(2):
        await batches(answering, AgentBackendInput(messages=[], options=options))
    bodies = [json.loads(exchange.request.body) for exchange in transport.exchanges]

    assert [expected, expected] == [{name: body.get(name) for name in expected} for body in bodies[1:]]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=402), QuotaExhausted),
        (Reply(status=429, body=[b'{"error":{"code":"insufficient_quota"}}']), QuotaExhausted),
        (Reply(status=403, body=[b"Your credit balance is too low"]), QuotaExhausted),
        (Reply(status=400, body=[b'{"error":{"code":"context_length_exceeded"}}']), ContextOverflow),
        (Reply(status=413, body=[b"prompt is too long: 9 tokens > 8 maximum"]), ContextOverflow),
        (Reply(status=400, body=[b"Input token count (9) exceeds the maximum number of tokens allowed (8)"]), ContextOverflow),
        (Reply(status=401, body=[b"no key"]), BackendRejected),
    ],
)  # fmt: skip
async def test_what_no_try_can_better_is_told_apart(reply: Reply, error: type[BackendError]) -> None:
    """At the first answer."""
    transport = ScriptedTransport([reply])
    failure = await failure_of(backend(transport))

    assert (type(failure), failure.retryable, len(transport.exchanges)) == (error, False, 1)


async def test_a_quota_that_comes_back_is_waited_for() -> None:
    """Gemini says so of the quota of a minute, in the words that others use of an empty account."""
    words = b"You exceeded your current quota, please check your plan and billing details. Please retry in 7s."
    transport = ScriptedTransport([Reply(status=429, body=[words]), OK])

    assert await text_of(backend(transport)) == "Hello"
    assert waits(transport) == [7]


async def test_what_an_api_wants_back_goes_to_nobody_else() -> None:
    """Neither to another provider or model, nor as a member that no API knows."""
    kept = {
        "provider": "openai",
        "model": "m",
        "message": {"reasoning_content": "hm"},
        "calls": [{"extra_content": {"sig": "s"}}],
    }
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call], "kept": kept}
    transport = ScriptedTransport([OK, OK, OK])
    for provider, model in (("openai", "m"), ("other", "m"), ("openai", "another")):
        await batches(backend(transport, provider=provider), AgentBackendInput(messages=[said], model=model))
    own, other, of_another_model = (
        json.loads(exchange.request.body)["messages"][0] for exchange in transport.exchanges
    )

    assert own == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [{**call, "extra_content": {"sig": "s"}}],
    }
    assert other == of_another_model == {"role": "assistant", "content": "", "tool_calls": [call]}
