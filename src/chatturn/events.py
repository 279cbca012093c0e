"""
Chat events of a running turn, their lines in the log, and the answer text that they add up to.

The vocabulary is agent-runtime's (docs/reference/agent-runtime.md).  A producer yields events, or sequences of
events that arrived together; the engine turns each into one line of the turn's log, ``{"type", "data"?, "seq",
"attempt"}``, LF-terminated.  Pure: no I/O, no clock.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, Final, TypeAlias, overload

__all__ = [
    "BESIDES_PREFIX",
    "EVENT_TYPES",
    "LIFECYCLE_PREFIX",
    "MESSAGE_PART",
    "TOOL_OUTCOMES",
    "ChatStreamEvent",
    "EventBatch",
    "TextAssembly",
    "TextDeltas",
    "encode_line",
    "encode_lines",
    "events_of",
    "is_answer",
    "pieces_of",
    "reasoning_delta",
    "stored_event",
    "text_delta",
    "text_deltas",
    "text_so_far",
    "tool_approval",
    "tool_call",
    "tool_client",
    "tool_error",
    "tool_result",
    "usage_event",
]

LIFECYCLE_PREFIX: Final = "session.run."

BESIDES_PREFIX: Final = "answer."
"""Begins the types of what belongs to an answer and is no text."""

# Every event type of the engine and its own backends; products may add others.
EVENT_TYPES: Final[Mapping[str, str]] = {
    "session.run.queued": "the turn waits for others of its session; `position` says for how many",
    "session.run.started": "the run is claimed; what follows belongs to this attempt",
    "session.run.completed": "terminal: the answer is stored",
    "session.run.failed": "terminal: this attempt ended without an answer",
    "session.run.cancelled": "terminal: the turn was stopped; what it had said is its answer",
    "session.run.restarted": "the worker was lost, and another goes on: discard the text of the attempt before",
    "session.run.suspended": "terminal: the turn waits for an event, and no worker for it; ask again when it has come",
    "context": "what of the conversation the model is not shown: there is too much of it",
    "message.part.updated": "a piece of the answer, or of its reasoning",
    "tool.call": "the model asks for a tool, arguments complete",
    "tool.approval": "somebody must agree before this tool call is done; `key` is the event's",
    "tool.client": "the client is to do this tool call; `key` is the event that its result is sent as",
    "tool.result": "a tool call was done",
    "tool.error": "a tool call was not done, or failed; the model is told the same",
    "answer.citations": "what the answer refers to: `citations`, each with `url` and `title` as far as the model said",
    "answer.images": "images that belong to the answer: `images`, each with `url`, or, too long, how long it is",
    "answer.audio": "the answer as sound: the API's own reference to it, and what it says; never its bytes",
    "answer.refusal": "the answer, or the end of it, is a refusal, in the model's words; its text says the same",
    "answer.logprobs": "log probabilities of the answer's tokens, if they were asked for, as the API gives them",
    "answer.data": "what else an API put beside its text: `name` and `value`, or, too long, how long it is",
    "usage": "what the model call consumed, as the model reported it",
    "ping": "the connection is alive, and the next line or ping comes within `everyMs` milliseconds",
    "result": "the whole answer: of a turn that had finished before, or as it was redacted",
    "error": "why the attempt failed: code, public sentence, whether a retry can help",
}


@dataclass(slots=True)
class ChatStreamEvent:
    """
    One event.  Treat it as a value: never change it after it was made.

    (Not frozen: a frozen dataclass costs three times as much to build, and there is one per token.)

    Attributes:
        type: What happened.
        data: The event's data; JSON only.
    """

    type: str
    data: dict[str, Any] | None = None


_STORED_MEMBERS: Final[Mapping[str, frozenset[str] | None]] = {
    "session.run.started": None,
    "session.run.restarted": None,
    "usage": None,
    "context": None,
    "tool.approval": frozenset({"key", "toolName"}),
    "tool.client": frozenset({"key", "toolName"}),
}
"""By event type: the members of the data that hold no words of users or models; None for all members."""

EventBatch: TypeAlias = ChatStreamEvent | Sequence[ChatStreamEvent]
"""A producer yields one event, or several that arrived together and may be written together."""

_PIECE_CHARACTERS: Final = 100_000

_TEXT_PART: Final[dict[str, str]] = {"id": "text", "type": "text"}
_REASONING_PART: Final[dict[str, str]] = {"id": "reasoning", "type": "reasoning"}
TOOL_OUTCOMES: Final = frozenset({"tool.result", "tool.error"})
MESSAGE_PART: Final = "message.part.updated"
"""The type of every piece of an answer or of its reasoning."""

# The line of a piece of the answer: the text as JSON stands between start and end, then the place in the log.
_DELTA_START: Final = f'{{"type":"{MESSAGE_PART}","data":{{"delta":'
_DELTA_END: Final = ',"part":{"id":"text","type":"text"}}'


def text_delta(text: str) -> ChatStreamEvent:
    """Make the event for a further piece of the answer."""
    return ChatStreamEvent(MESSAGE_PART, {"delta": text, "part": _TEXT_PART})


def text_deltas(text: str) -> Sequence[ChatStreamEvent]:
    """Make the events for a further piece of the answer of any length."""
    return [text_delta(text)] if len(text) <= _PIECE_CHARACTERS else [text_delta(piece) for piece in pieces_of(text)]


def pieces_of(text: str) -> list[str]:
    """Cut a long text into pieces whose lines can be stored; an empty text has no pieces."""
    return [text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS)]


def text_so_far(text: str) -> list[ChatStreamEvent]:
    """Make the events for the answer so far; they replace the earlier events of the answer."""
    first, *others = pieces_of(text) or [""]
    whole_part = ChatStreamEvent(MESSAGE_PART, {"part": {**_TEXT_PART, "text": first}})
    return [whole_part, *map(text_delta, others)]


def reasoning_delta(text: str) -> ChatStreamEvent:
    """Make the event for a further piece of the model's reasoning, which is never part of the answer."""
    return ChatStreamEvent(MESSAGE_PART, {"delta": text, "part": _REASONING_PART})


def tool_call(*, tool_call_id: str, tool_name: str, args: Any) -> ChatStreamEvent:
    """Make the event for a tool call whose arguments are complete."""
    return ChatStreamEvent("tool.call", {"toolCallId": tool_call_id, "toolName": tool_name, "args": args})


def tool_approval(*, tool_call_id: str, tool_name: str, args: Any, key: str) -> ChatStreamEvent:
    """Make the event for a tool call that waits for the event *key* of the run."""
    members = {"toolCallId": tool_call_id, "toolName": tool_name, "args": args, "key": key}
    return ChatStreamEvent("tool.approval", members)


def tool_client(*, tool_call_id: str, tool_name: str, args: Any, key: str) -> ChatStreamEvent:
    """Make the event for a tool call that the client executes; its result is the event *key* of the run."""
    members = {"toolCallId": tool_call_id, "toolName": tool_name, "args": args, "key": key}
    return ChatStreamEvent("tool.client", members)


def tool_result(*, tool_call_id: str, tool_name: str, result: Any) -> ChatStreamEvent:
    """Make the event for a tool call that succeeded."""
    return ChatStreamEvent("tool.result", {"toolCallId": tool_call_id, "toolName": tool_name, "result": result})


def tool_error(*, tool_call_id: str, tool_name: str, code: str, message: str) -> ChatStreamEvent:
    """Make the event for a tool call that failed or was not executed."""
    members = {"toolCallId": tool_call_id, "toolName": tool_name, "code": code, "message": message}
    return ChatStreamEvent("tool.error", members)


def usage_event(**fields: Any) -> ChatStreamEvent:
    """
    Make the event for what one model call consumed.

    Args:
        fields: model, tokensIn, tokensOut, tokensCached, tokensReasoning, finishReason …; None is left out,
            because unknown is not zero.
    """
    return ChatStreamEvent("usage", {key: value for key, value in fields.items() if value is not None})


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def is_answer(event: ChatStreamEvent) -> bool:
    """Say whether *event* is a piece of the answer's text."""
    if event.type != MESSAGE_PART or event.data is None:
        return False
    part = event.data.get("part")
    return not isinstance(part, dict) or part.get("type", "text") == "text"


def stored_event(event: ChatStreamEvent) -> ChatStreamEvent:
    """Return *event* as a redacting log stores it: its type, and the data that need no redaction."""
    if event.type == MESSAGE_PART:
        return text_delta("") if is_answer(event) else reasoning_delta("")
    members = _STORED_MEMBERS.get(event.type, frozenset())
    if members is None or event.data is None:
        return event
    if event.type == "result":
        return ChatStreamEvent(event.type, {"finalText": ""})
    data = {name: value for name, value in event.data.items() if name in members}
    return ChatStreamEvent(event.type, data or None)


def encode_line(event: ChatStreamEvent, seq: int | None, attempt: int) -> str:
    """
    Encode *event* as its line.

    Args:
        event: What happened.
        seq: 0-based position in the run's log, without gaps; None for a line that is not in the log.
        attempt: Which attempt said it, from 1.

    Raises:
        ValueError: The data holds NaN or an infinity, which JSON cannot carry.
        TypeError: The data is not JSON.
    """
    data = event.data
    place = "" if seq is None else f',"seq":{seq},"attempt":{attempt}'
    if data is None:
        body = ""
    elif len(data) == 2 and data.get("part") is _TEXT_PART and event.type == MESSAGE_PART:  # noqa: PLR2004
        # Nearly every line of an answer: a template makes the same text five times faster than the encoder.
        return f"{_DELTA_START}{encode_basestring(data['delta'])}{_DELTA_END}{place}}}\n"
    else:
        body = ',"data":' + _encode(data)
    return f'{{"type":{encode_basestring(event.type)}{body}{place}}}\n'


def events_of(batch: EventBatch) -> Sequence[ChatStreamEvent]:
    """Return the events in one yield of a producer."""
    return [batch] if isinstance(batch, ChatStreamEvent) else batch


def encode_lines(events: Sequence[ChatStreamEvent], first_seq: int, attempt: int) -> list[str]:
    """Encode *events*, which are consecutive in the log, as their lines; see `encode_line`."""
    if type(events) is TextDeltas:
        return events.lines(first_seq, attempt)
    return [encode_line(event, seq, attempt) for seq, event in enumerate(events, first_seq)]


class TextDeltas(Sequence[ChatStreamEvent]):
    """
    `text_delta` events that arrived together.

    A burst of an answer has hundreds of events, and most callers need only their lines and their text.  So the
    event objects are made only when they are read.

    Args:
        bodies: The text of each event as JSON without its quotes, in the form of `encode_line`; an empty text is
            no event.

    Attributes:
        characters: About how many characters the text of all events has; those that JSON escapes count as more.
    """

    __slots__ = ("_bodies", "characters")

    def __init__(self, bodies: list[str]) -> None:
        self._bodies = bodies if all(bodies) else [body for body in bodies if body]
        self.characters = sum(map(len, bodies))

    def __len__(self) -> int:
        return len(self._bodies)

    @overload
    def __getitem__(self, index: int) -> ChatStreamEvent: ...

    @overload
    def __getitem__(self, index: slice) -> "TextDeltas": ...

    def __getitem__(self, index: int | slice) -> "ChatStreamEvent | TextDeltas":
        found = self._bodies[index]
        return text_delta(_unquoted(found)) if isinstance(found, str) else TextDeltas(found)

    def __iter__(self) -> Iterator[ChatStreamEvent]:
        return (text_delta(_unquoted(body)) for body in self._bodies)

    def text(self) -> str:
        """Return the text of all events."""
        return _unquoted("".join(self._bodies))

    def lines(self, first_seq: int, attempt: int) -> list[str]:
        """Return the events' lines; see `encode_line`."""
        start, middle, end = f'{_DELTA_START}"', f'"{_DELTA_END},"seq":', f',"attempt":{attempt}}}\n'
        return [f"{start}{body}{middle}{seq}{end}" for seq, body in enumerate(self._bodies, first_seq)]


def _unquoted(body: str) -> str:
    """Decode the inside of a JSON string."""
    text: str = json.loads(f'"{body}"') if "\\" in body else body
    return text


@dataclass(slots=True)
class TextAssembly:
    """
    The answer's text, assembled part by part from the events of one attempt.

    Deltas append to their part, a cumulative ``part.text`` replaces that part only, reasoning and tool parts
    are no text, and a ``result`` says the whole (otherwise: C8 in docs/reference/agent-runtime.md).

    Attributes:
        size: Bytes of text in UTF-8 that were added so far.
    """

    size: int = 0
    _parts: dict[str, list[str]] = field(default_factory=dict)
    _whole: str | None = None

    def add(self, event: ChatStreamEvent) -> None:
        """Add the text of *event*; an event without text changes nothing."""
        data = event.data
        if data is None:
            return
        if data.get("part") is _TEXT_PART and event.type == MESSAGE_PART:  # the most frequent case
            self._add_delta("text", data.get("delta"))
        elif is_answer(event):
            self._add_part(data)
        elif event.type == "result" and isinstance(whole := data.get("finalText"), str):
            self._whole = whole
            self.size += _bytes(whole)

    def add_all(self, events: Iterable[ChatStreamEvent]) -> None:
        """Add the text of *events* in their order."""
        if type(events) is TextDeltas:
            self._add_delta("text", events.text())
            return
        for event in events:
            self.add(event)

    def text(self) -> str:
        """Return the text so far: the parts in the order of their first appearance."""
        if self._whole is not None:
            return self._whole
        return "".join("".join(pieces) for pieces in self._parts.values())

    def _add_part(self, data: dict[str, Any]) -> None:
        part = data.get("part")
        if not isinstance(part, dict):
            part = _TEXT_PART
        key = str(part.get("id", "text"))
        if not self._add_delta(key, data.get("delta")) and isinstance(cumulative := part.get("text"), str):
            self._parts[key] = [cumulative]
            self.size = max(self.size, _bytes(cumulative))

    def _add_delta(self, key: str, delta: object) -> bool:
        if not delta or not isinstance(delta, str):
            return False
        pieces = self._parts.get(key)
        if pieces is None:
            pieces = self._parts[key] = []
        pieces.append(delta)
        self.size += len(delta) if delta.isascii() else _bytes(delta)
        return True


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
