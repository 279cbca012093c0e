"""The scripted model itself: that it says what its script says, and misbehaves as told."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from chatturn.backends.openai.completions import CompletionReader
from chatturn.errors import BackendError
from chatturn.events import ChatStreamEvent, TextAssembly
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, ToolCall, answer_text


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@contextmanager
def asked(upstream: Upstream, message: str = "Hi", key: str = "k") -> Iterator[http.client.HTTPResponse]:
    """The response to one call; leaving closes the connection."""
    with closing(http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=30)) as connection:
        connection.request("POST", "/v1/chat/completions", request_body(message), {"Idempotency-Key": key})
        with connection.getresponse() as response:
            yield response


def request_body(message: str) -> str:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": message}]})


def raw(upstream: Upstream) -> socket.socket:
    """A connection over which one request has been sent."""
    connection = socket.create_connection(("127.0.0.1", upstream.port), timeout=30)
    body = request_body("Hi")
    connection.sendall(f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def events_of(stream: bytes) -> list[ChatStreamEvent]:
    reader = CompletionReader(model="m", backend="test")
    return [event for batch in reader.feed(stream) for event in batch] + reader.finish()


def text_of(events: list[ChatStreamEvent]) -> str:
    assembly = TextAssembly()
    assembly.add_all(events)
    return assembly.text()


def network_chunks(connection: socket.socket) -> list[int]:
    """Read the whole answer; return the sizes of its HTTP chunks."""
    with connection.makefile("rb") as file:
        while file.readline().strip():
            pass
        sizes = []
        while size := int(file.readline(), 16):
            file.read(size + 2)
            sizes.append(size)
    return sizes


@pytest.mark.parametrize(
    "script",
    [
        Script(),
        Script(text="één 😀 日本", chunk_bytes=1),
        Script(text="één 😀 日本", chunk_bytes=5, newline="\r\n", heartbeats=True),
        Script(newline="\r", heartbeats=True),
        Script(events=50, per_chunk=7, event_bytes=100),
        Script(events=2, event_bytes=500_000),
        Script(usage=None, done=False),
        Script(finish_reason=None),
    ],
)
def test_a_well_behaved_script_is_a_whole_answer(upstream: Upstream, script: Script) -> None:
    """However it is cut and decorated, the stream is one that a correct client understands."""
    upstream.script(script)
    with asked(upstream) as response:
        stream = response.read()

    assert text_of(events_of(stream)) == answer_text(script)


def test_tool_calls_and_usage_are_streamed(upstream: Upstream) -> None:
    """A script's tool calls and token counts arrive as such."""
    call = ToolCall(id="c1", name="find", arguments='{"query":"something long"}')
    upstream.script(Script(tool_calls=(call,), finish_reason="tool_calls", usage=(3, 4)))
    with asked(upstream) as response:
        *_, tool, usage = events_of(response.read())

    assert tool.data == {"toolCallId": "c1", "toolName": "find", "args": {"query": "something long"}}
    assert usage.data == {"model": "scripted-1", "tokensIn": 3, "tokensOut": 4, "finishReason": "tool_calls"}


def test_events_are_grouped_into_network_chunks(upstream: Upstream) -> None:
    """One HTTP chunk holds as many events as the script says."""
    upstream.script(Script(events=96, per_chunk=10))  # and four more: role, finish reason, usage, [DONE]
    with raw(upstream) as connection:
        assert len(network_chunks(connection)) == 10


def test_a_trickle_has_one_byte_per_chunk(upstream: Upstream) -> None:
    """Byte by byte means byte by byte."""
    upstream.script(Script(text="é", chunk_bytes=1))
    with raw(upstream) as connection:
        assert set(network_chunks(connection)) == {1}


@pytest.mark.parametrize(
    "script",
    [
        Script(finish_reason=None, usage=None, done=False),
        Script(stop_after=3),
        Script(error="overloaded"),
    ],
)
def test_an_incomplete_script_is_no_answer(upstream: Upstream, script: Script) -> None:
    """A stream without its end, or with an error in it, is refused by a correct client."""
    upstream.script(script)
    with asked(upstream) as response, pytest.raises(BackendError):
        events_of(response.read())


def test_an_error_has_its_status_headers_and_body(upstream: Upstream) -> None:
    """Refusals are sent as they are written."""
    upstream.script(Script(status=429, headers=(("retry-after-ms", "20"),), body='{"error":"sk-secret"}'))
    with asked(upstream) as response:
        assert (response.status, response.headers["retry-after-ms"]) == (429, "20")
        assert response.read() == b'{"error":"sk-secret"}'


def test_a_cut_ends_inside_the_body(upstream: Upstream) -> None:
    """A connection that is cut ends without the last HTTP chunk."""
    upstream.script(Script(stop_after=2, ending="cut"))
    with asked(upstream) as response, pytest.raises(http.client.IncompleteRead):
        response.read()


def test_a_reset_is_a_reset(upstream: Upstream) -> None:
    """A connection can end with an RST."""
    upstream.script(Script(stop_after=2, ending="reset"))
    with asked(upstream) as response, pytest.raises(ConnectionResetError):
        response.read()


@pytest.mark.parametrize(
    ("script", "chunks"),
    [
        (Script(before_headers_s=None), 0),
        (Script(before_headers_s=60), 0),
        (Script(stop_after=2, ending="hang"), 2),
        (Script(pause_s=60), 1),
    ],
)
def test_the_moment_a_client_lets_go_is_on_record(upstream: Upstream, script: Script, chunks: int) -> None:
    """Wherever the answer hangs, a client's close is noticed at once."""
    upstream.script(script)
    with raw(upstream):
        [call] = upstream.wait_calls(1, timeout=30)
        assert upstream.wait_sent(call, chunks, timeout=30)
        assert not call.wait_closed(0)

    assert call.wait_closed(timeout=30), "it would have paused for longer"
    assert call.closed_at is not None
    assert call.answered_at is None
    assert call.chunks_sent == chunks


def test_every_call_is_on_record(upstream: Upstream) -> None:
    """Who called, with what and how often, is known afterwards."""
    for message, key in (("one", "a"), ("one", "a"), ("two", "b")):
        with asked(upstream, message, key) as response:
            response.read()
    [call] = upstream.calls("two")

    assert upstream.calls_by_key() == {"a": 2, "b": 1}
    assert (call.key, call.message, call.path) == ("b", "two", "/v1/chat/completions")
    assert call.body["model"] == "m"
    assert upstream._wait(lambda: call.answered_at is not None, 10)


def test_a_word_decides_the_script_and_the_queue_the_rest(upstream: Upstream) -> None:
    """Scripts by word are played in order, the last one from then on; the queue serves the others."""
    upstream.on("moody", Script(status=500, body=""), Script(text="fine"))
    upstream.script(Script(text="queued"))

    def status_and_text(message: str) -> Any:
        with asked(upstream, message) as response:
            body = response.read()
            return response.status, text_of(events_of(body)) if body else ""

    assert status_and_text("hello") == (200, "queued")
    assert [status_and_text("so moody") for _ in range(3)] == [(500, ""), (200, "fine"), (200, "fine")]
    assert status_and_text("hello") == (200, "Hello from the scripted model.")


def test_a_connection_serves_several_calls(upstream: Upstream) -> None:
    """After a whole answer the connection stays open for the next call, chunked request bodies included."""
    with closing(http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=30)) as connection:
        for chunked in (False, True):
            body: Any = [request_body("Hi").encode()] if chunked else request_body("Hi")
            connection.request("POST", "/", body, encode_chunked=chunked, headers=CHUNKED if chunked else {})
            with connection.getresponse() as response:
                response.read()
        assert all(call.closed_at is None for call in upstream.calls())

    assert all(call.wait_closed(30) for call in upstream.calls())


CHUNKED = {"Transfer-Encoding": "chunked"}


def test_stopping_ends_every_connection() -> None:
    """No thread and no hanging answer outlives the server."""
    with Upstream() as server:
        server.script(Script(before_headers_s=None))
        connection = raw(server)
        [call] = server.wait_calls(1, timeout=30)
    with connection:
        assert call.wait_closed(0)
        assert connection.recv(1) == b""


def test_twenty_thousand_events_come_quickly(upstream: Upstream) -> None:
    """A long answer is bound by the network, not by the script: benches rely on it."""
    upstream.script(Script(events=20_000))
    with asked(upstream) as response:
        began_at = time.monotonic()
        read = len(response.read())

    assert read > 20_000 * 100
    assert time.monotonic() - began_at < 10
