"""What the scripted model says, and how it misbehaves while it does: values and bytes, no sockets."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

__all__ = ["Ending", "Script", "ToolCall", "answer_text", "head", "http_chunks"]

Ending = Literal["end", "hang", "cut", "reset"]
"""After the last chunk: the end of the body, silence, a FIN in the middle of the body, or an RST."""

_MODEL: Final = "scripted-1"
_FRAGMENT: Final = 6  # characters of a tool call's arguments per event


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call, whose arguments stream in fragments."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """
    One answer.  The default is a short, well-behaved stream with usage.

    Attributes:
        status: The HTTP status.
        headers: Further headers.
        body: Sent with a Content-Length instead of a stream, if given.
        text: What the model says, an event per word.
        frames: The data of all events instead, JSON or text: what another server than a model's would say.
        events: So many events instead, of *event_bytes* each.
        event_bytes: The length of their text.
        tool_calls: What the model asks for after its text.
        usage: Tokens in and out; None reports none.
        finish_reason: None sends none.
        done: Whether ``[DONE]`` is sent.
        error: An error frame after the text, in place of all that would follow.
        per_chunk: Events per network chunk.
        chunk_bytes: Cut the stream into chunks of so many bytes instead, through characters and newlines.
        newline: What ends a line.
        heartbeats: Whether a comment precedes every event.
        before_headers_s: Wait so long before the headers; None waits for ever.
        pause_s: Wait so long between two chunks.
        hold_after: After so many chunks wait for `Upstream.release`; None waits for nothing.
        stop_after: So many chunks are sent; None sends all.
        ending: What follows the last chunk that is sent.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    text: str = "Hello from the scripted model."
    frames: tuple[str, ...] | None = None
    events: int = 0
    event_bytes: int = 8
    tool_calls: tuple[ToolCall, ...] = ()
    usage: tuple[int, int] | None = (11, 5)
    finish_reason: str | None = "stop"
    done: bool = True
    error: str | None = None
    per_chunk: int = 1
    chunk_bytes: int = 0
    newline: str = "\n"
    heartbeats: bool = False
    before_headers_s: float | None = 0.0
    pause_s: float = 0.0
    hold_after: int | None = None
    stop_after: int | None = None
    ending: Ending = "end"


def answer_text(script: Script) -> str:
    """Return the text that a client should have put together from the whole of *script*."""
    return "".join(_pieces(script))


def head(script: Script) -> bytes:
    """Return the status line and the headers."""
    stream = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
    whole = {"content-type": "application/json", "content-length": str(len((script.body or "").encode()))}
    headers = (stream if script.body is None else whole) | dict(script.headers)
    lines = [f"HTTP/1.1 {script.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


@lru_cache(maxsize=32)
def http_chunks(script: Script) -> tuple[bytes, ...]:
    """Return what is written after the headers, one entry per write; rendered once per script."""
    if script.body is not None:
        return (script.body.encode(),)
    frames = [_render(frame, script).encode() for frame in _frames(script)]
    if script.chunk_bytes:
        payloads = _cut(b"".join(frames), script.chunk_bytes)
    else:
        payloads = [b"".join(frames[at : at + script.per_chunk]) for at in range(0, len(frames), script.per_chunk)]
    return tuple(b"%x\r\n%b\r\n" % (len(payload), payload) for payload in payloads[: script.stop_after])


def _cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def _pieces(script: Script) -> list[str]:
    if script.events:
        return ["x" * script.event_bytes] * script.events
    words = script.text.split(" ")
    return [word if position == 0 else f" {word}" for position, word in enumerate(words)]


def _frames(script: Script) -> Iterator[Any]:
    if script.frames is not None:
        yield from (json.loads(frame) if frame.startswith("{") else frame for frame in script.frames)
        return
    yield _chunk({"role": "assistant", "content": ""})
    yield from (_chunk({"content": piece}) for piece in _pieces(script))
    if script.error is not None:
        yield {"error": {"message": script.error}}
        return
    for index, call in enumerate(script.tool_calls):
        yield _tool_piece(index, "", id=call.id, name=call.name)
        for at in range(0, len(call.arguments), _FRAGMENT):
            yield _tool_piece(index, call.arguments[at : at + _FRAGMENT])
    if script.finish_reason is not None:
        yield _chunk({}, script.finish_reason)
    if script.usage is not None:
        tokens_in, tokens_out = script.usage
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": sum(script.usage)}
        yield _chunk(None) | {"choices": [], "usage": usage}
    if script.done:
        yield "[DONE]"


def _chunk(delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": _MODEL,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        "usage": None,
    }


def _tool_piece(index: int, arguments: str, **first: str) -> dict[str, Any]:
    function = {"arguments": arguments}
    piece: dict[str, Any] = {"index": index, "function": function}
    if first:
        piece |= {"id": first["id"], "type": "function"}
        function["name"] = first["name"]
    return _chunk({"tool_calls": [piece]})


def _render(frame: Any, script: Script) -> str:
    data = frame if isinstance(frame, str) else json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
    heartbeat = f": keepalive{script.newline * 2}" if script.heartbeats else ""
    return f"{heartbeat}data: {data}{script.newline * 2}"
