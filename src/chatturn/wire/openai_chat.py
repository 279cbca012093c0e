"""
A turn's log as an OpenAI chat completion: a stream of chunks, or one object.

The format has no cursor and no way to take anything back, so text that was sent stays sent:

* where another attempt begins the answer anew, its text is compared with the text sent, and only what follows is sent.
  If the model continues the text or says the same again, the reader loses nothing but time;
* where its text differs, the stream ends with an error, ``answer_restarted``: the same request, sent again under the
  same key, gets the whole answer;
* the answer of a product that redacts is held back until it has been redacted.

Where the turn waits for the client's tools, their calls are sent together, and the completion ends with them.  The
completion of the request that brings their results begins after those results.  So a turn whose client runs tools is
several completions, each the same at every replay.

An answer that is not whole is never sent as a whole one: a turn that was cancelled, or that waits for an approval, ends
with an error that says so.

Source:
    The packages ``openai`` 3.57.0 (PyPI: _streaming.py) and 7.59.0 (npm: core/streaming.js): ``data: {"error": …}``
    raises, and a clean end without ``[DONE]`` raises nothing.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chatturn.events import MESSAGE_PART, TOOL_OUTCOMES
from chatturn.wire.lines import (
    PING_FRAME,
    PING_START,
    QUEUED,
    Line,
    add_usage,
    attempt_of_piece,
    encode,
    last_seq,
    piece_of_answer,
    queued_frame,
    quoted,
    read_line,
    unquoted,
)
from chatturn.wire.passages import ROUND_ENDS, TEXT, PartKey, Passage, part_of, with_whole

__all__ = ["ANSWER_RESTARTED", "ChatCompletion", "ChatCompletionChunks", "CompletionHead", "Failure", "error_members"]

_DONE: Final = "data: [DONE]\n\n"
_DELTA: Final = ',"choices":[{"index":0,"delta":'
_FIRST_DELTA: Final = '{"role":"assistant","content":""}'
_FINISH_REASONS: Final[Mapping[str, str]] = {"length": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    Why there is no whole answer.

    Attributes:
        code: A stable code for programs, as in ``cancelled``.
        message: A sentence for the reader.
        retryable: Whether the same request may get a whole answer later.
    """

    code: str
    message: str
    retryable: bool = False


ANSWER_RESTARTED: Final = Failure(
    code="answer_restarted",
    message="The answer was begun anew and differs from what was sent. Send the same request again to get the whole.",
    retryable=True,
)
_CANCELLED: Final = Failure(code="cancelled", message="The turn was cancelled. What it had said by then is kept.")
_SUSPENDED: Final = Failure(
    code="suspended",
    message="The turn, or one before it, waits for an approval or a tool's result. Send the request again after it.",
)


def error_members(code: str, message: str, *, kind: str = "server_error", param: str | None = None) -> dict[str, Any]:
    """Return an error's JSON in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionHead:
    """
    The members that every chunk repeats.

    Attributes:
        id: The completion's id; the same at every replay.
        created: When the turn was begun, in seconds since the epoch.
        model: The model's name, as in the request.
    """

    id: str
    created: int
    model: str

    def members(self, kind: str) -> dict[str, Any]:
        """Return the members for an object of the type *kind*, as in ``chat.completion.chunk``."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def text(self, kind: str) -> str:
        """Return the same as JSON, without the brace at its end."""
        return f'{{"id":{encode(self.id)},"object":"{kind}","created":{self.created},"model":{encode(self.model)}'


@dataclass(slots=True, kw_only=True)
class _Reader:
    """
    Reads the log's lines; the subclasses write them as a stream or as one object.

    Attributes:
        attempt: The latest attempt; text of earlier attempts is left out.
        answered: The calls whose results the client has given; lines before these results are left out.
        calls: The calls that the client is to run; the completion ends with them.
        usage: What the model calls of the attempt consumed.
        beside: Citations and images, by the member of a message that holds them.
        passages: The attempt's text so far, after the last result that the client has given.
        ended: Whether the completion is over.
        failure: Why there is no whole answer.
        waits_for: The seq of the last line that was stored when the client came: no text is sent before it, since a
            stored line may take it back.  None once that line has come, and for a client that reads no stored log.
    """

    attempt: int = 1
    answered: Collection[str] = ()
    calls: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, list[Any]] = field(default_factory=dict)
    passages: list[Passage] = field(default_factory=list)
    ended: bool = False
    failure: Failure | None = None
    waits_for: int | None = None
    _due: set[str] = field(default_factory=set)
    _asked: dict[str, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._due = set(self.answered)

    @property
    def broken(self) -> bool:
        """Whether the body must be broken off: never, since the format has a form for every end."""
        return False

    def begin_attempt(self, attempt: int, stored_to: int) -> None:
        """Set the latest attempt, and how far the log is stored, before the first line."""
        self.attempt, self.waits_for = attempt, stored_to

    def take(self, text: str) -> None:
        """Take whole lines of the log."""
        for line in text.split("\n"):
            if not line or self.ended:
                continue
            if (piece := piece_of_answer(line)) is not None:
                if self.attempt == 1 or attempt_of_piece(line) >= self.attempt:
                    self._piece(TEXT, piece)
            elif line.startswith(PING_START):
                self.ping()
            else:
                self._take(read_line(line))

    def _take(self, line: Line) -> None:
        if line.attempt is not None and line.attempt != self.attempt:
            if line.attempt < self.attempt:
                return
            self.attempt = line.attempt
            self.usage, self._due, self._asked, self.beside, self.passages = {}, set(self.answered), {}, {}, []
            self.begin_anew()
        if (handler := _HANDLERS.get(line.type)) is not None:
            handler(self, line)

    # What the subclasses do with the answer.

    def say(self, piece: str) -> None:
        """Take a piece of the answer, a JSON string without its quotes."""
        raise NotImplementedError

    def think(self, text: str) -> None:
        """Take a piece of the reasoning."""
        raise NotImplementedError

    def say_whole(self, text: str) -> None:
        """Take the whole answer, in place of the pieces so far."""
        raise NotImplementedError

    def begin_anew(self) -> None:
        """Learn that another attempt begins, whose answer replaces the pieces so far."""
        raise NotImplementedError

    def ping(self) -> None:
        """Learn that nothing has happened for a while."""

    def queue(self, line: Line) -> None:
        """Learn that the turn waits behind other turns."""

    def end(self, failure: Failure | None) -> None:
        """Take the end of the turn."""
        self.ended, self.failure = True, failure

    # Lines.

    def _piece(self, key: PartKey, piece: str) -> None:
        if not self.passages or self.passages[-1].key != key:
            self.passages.append(Passage(key, []))
        self.passages[-1].pieces.append(piece)
        if not self._due:
            self.say(piece)

    def _part(self, line: Line) -> None:
        key, delta, whole = part_of(line.data)
        if key[0] == "text" and whole is not None:
            self.passages = with_whole(self.passages, key, whole)
            if not self._due:
                self.say_whole(self._text())
        elif key[0] == "text" and delta:
            self._piece(key, quoted(delta))
        elif key[0] == "reasoning" and delta and not self._due:
            self.think(delta)

    def _text(self) -> str:
        """Return the text so far after the results that the client has given; "" before all of these have come."""
        return "" if self._due else "".join(unquoted(each.pieces) for each in self.passages)

    def _citations(self, line: Line) -> None:
        found = [] if self._due else line.data.get("citations")
        self.beside.setdefault("annotations", []).extend(map(_annotation, found if isinstance(found, list) else []))

    def _images(self, line: Line) -> None:
        found = [] if self._due else line.data.get("images")
        urls = [each.get("url") for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls if url]
        self.beside.setdefault("images", []).extend(images)

    @property
    def beside_members(self) -> dict[str, Any]:
        """The members of a message besides its text."""
        return {name: items for name, items in self.beside.items() if items}

    def _count(self, line: Line) -> None:
        if not self._due:
            add_usage(self.usage, line)

    def _client_tool(self, line: Line) -> None:
        self._asked[str(line.data.get("toolCallId"))] = line

    def _outcome(self, line: Line) -> None:
        """Take a call's result; if this client has not given it, end the completion with the calls then open."""
        id_ = str(line.data.get("toolCallId"))
        if id_ in self._asked and id_ not in self.answered:
            self._call_client()
        self._asked.pop(id_, None)
        if self._due:
            self._due.discard(id_)
            self.passages = []
        elif self.passages:
            self.passages.append(ROUND_ENDS)

    def _suspended(self, _line: Line) -> None:
        open_calls = self._asked.keys() - set(self.answered)
        if open_calls:
            self._call_client()
        elif not self._due:
            self.end(_SUSPENDED)

    def _call_client(self) -> None:
        self.calls = [_call(id_, line) for id_, line in self._asked.items() if id_ not in self.answered]
        self.end(None)

    def _completed(self, _line: Line) -> None:
        self.end(ANSWER_RESTARTED if self._due else None)

    def _result(self, line: Line) -> None:
        if isinstance(text := line.data.get("finalText"), str):
            self._due, self.passages = set(), [Passage(TEXT, [quoted(text)])]
            self.say_whole(text)

    def _failed(self, line: Line) -> None:
        data = line.data
        if line.seq is None and data.get("retryable"):
            return  # not the end of the log: the worker that takes over the turn adds lines
        self.end(
            Failure(
                code=str(data.get("code", "internal")),
                message=str(data.get("message", "The turn failed.")),
                retryable=bool(data.get("retryable")),
            )
        )

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        if self.calls:
            return "tool_calls"
        return _FINISH_REASONS.get(str(self.usage.get("finishReason")), "stop")

    def usage_members(self) -> dict[str, Any] | None:
        """Return the usage in OpenAI's form; None if the model gave none."""
        tokens_in, tokens_out = self.usage.get("tokensIn"), self.usage.get("tokensOut")
        if not isinstance(tokens_in, int) or not isinstance(tokens_out, int):
            return None
        members: dict[str, Any] = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }
        if isinstance(cached := self.usage.get("tokensCached"), int):
            members["prompt_tokens_details"] = {"cached_tokens": cached}
        if isinstance(reasoning := self.usage.get("tokensReasoning"), int):
            members["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return members


def _annotation(citation: Any) -> dict[str, Any]:
    """Return a citation in OpenAI's form, whose members have other names."""
    members = dict(citation) if isinstance(citation, dict) else {"value": citation}
    kind = str(members.pop("type", "url_citation"))
    for ours, theirs in (("startIndex", "start_index"), ("endIndex", "end_index")):
        if ours in members:
            members[theirs] = members.pop(ours)
    return {"type": kind, kind: members}


def _call(id_: str, line: Line) -> dict[str, Any]:
    """Return a call of the client's tool in OpenAI's form."""
    function = {"name": str(line.data.get("toolName")), "arguments": encode(line.data.get("args"))}
    return {"id": id_, "type": "function", "function": function}


_HANDLERS: Final[Mapping[str, Callable[[_Reader, Line], None]]] = {
    MESSAGE_PART: _Reader._part,  # noqa: SLF001 - the class's own table
    "answer.citations": _Reader._citations,  # noqa: SLF001
    "answer.images": _Reader._images,  # noqa: SLF001
    QUEUED: lambda reader, line: reader.queue(line),
    "usage": _Reader._count,  # noqa: SLF001
    "result": _Reader._result,  # noqa: SLF001
    "tool.client": _Reader._client_tool,  # noqa: SLF001
    **dict.fromkeys(sorted(TOOL_OUTCOMES), _Reader._outcome),  # noqa: SLF001
    "session.run.completed": _Reader._completed,  # noqa: SLF001
    "session.run.cancelled": lambda reader, _line: reader.end(_CANCELLED),
    "session.run.suspended": _Reader._suspended,  # noqa: SLF001
    "session.run.failed": _Reader._failed,  # noqa: SLF001
}


class ChatCompletionChunks(_Reader):
    """
    Writes the completion as a stream of chunks.

    Args:
        head: The members that every chunk repeats.
        attempt: The latest attempt when the client came.
        answered: The calls whose results the client brings.
        include_usage: Whether the client wants the usage, in a chunk of its own.
        hold: Whether nothing of the answer may be sent before its whole text is known, as when it is redacted.
        stored_to: The seq of the last line that was stored when the client came; None for one that reads no stored log.
    """

    def __init__(
        self,
        head: CompletionHead,
        *,
        attempt: int = 1,
        answered: Collection[str] = (),
        include_usage: bool = False,
        hold: bool = False,
        stored_to: int | None = None,
    ) -> None:
        super().__init__(attempt=attempt, answered=answered, waits_for=stored_to)
        self._head = head
        self._include_usage = include_usage
        self._hold = hold
        self._out: list[str] = []
        self._sent: list[str] = []  # pieces of a JSON string without its quotes
        self._sent_text = ""  # the text of `_sent`, while the text of another attempt is compared with it
        self._resaid: int | None = None  # how many characters of `_sent_text` another attempt has repeated
        self._thought = False
        self._start = f"data: {head.text('chat.completion.chunk')}{_DELTA}"
        self._tail = ',"finish_reason":null}]}\n\n'
        self._before = False

    def feed(self, text: str) -> str:
        """Return the chunks for *text*, whole lines of the log."""
        self._out = []
        if not self._before:
            self._before = True
            self._out.append(f"{self._start}{_FIRST_DELTA}{self._tail}")
        self.take(text)
        if self.waits_for is not None and (seq := last_seq(text)) is not None and seq >= self.waits_for:
            self._say_what_waits()
        return "".join(self._out)

    def _say_what_waits(self) -> None:
        self.waits_for = None
        if text := self._text():
            self.say(quoted(text))

    def _chunk(self, delta: Mapping[str, Any]) -> None:
        self._out.append(f"{self._start}{encode(delta)}{self._tail}")

    def say(self, piece: str) -> None:
        """Send a piece of the answer, unless it was sent before."""
        if self._resaid is not None:
            self._compare(self._resaid, unquoted([piece]))
        elif not self._hold and self.waits_for is None:
            self._sent.append(piece)
            self._out.append(f'{self._start}{{"content":"{piece}"}}{self._tail}')

    def think(self, text: str) -> None:
        """Send a piece of the reasoning as ``reasoning_content``, the name that most servers use."""
        if not self._hold and self._resaid is None:
            self._thought = True
            self._chunk({"reasoning_content": text})

    def say_whole(self, text: str) -> None:
        """Send what is new of the whole answer."""
        self._hold = False
        self._sent_text = unquoted(self._sent)
        self._compare(0, text)

    def begin_anew(self) -> None:
        """Compare the text that follows with the text sent."""
        if self._sent or self._thought:
            self._sent_text = unquoted(self._sent)
            self._resaid = 0

    def _compare(self, at: int, text: str) -> None:
        """Compare *text* with the text sent from character *at* on; send what follows it, or end if they differ."""
        due = len(self._sent_text) - at
        if not self._sent_text.startswith(text[:due], at):
            self.end(ANSWER_RESTARTED)
        elif len(text) < due:
            self._resaid = at + len(text)
        else:
            self._resaid = None
            if behind := text[due:]:
                self.say(quoted(behind))

    def ping(self) -> None:
        """Send a comment."""
        self._out.append(PING_FRAME)

    def queue(self, line: Line) -> None:
        """Send a comment."""
        self._out.append(queued_frame(line))

    def end(self, failure: Failure | None) -> None:
        """Send the last chunks."""
        if self.waits_for is not None:
            self._say_what_waits()
        if self._resaid is not None and failure is None and self._resaid < len(self._sent_text):
            failure = ANSWER_RESTARTED  # the other attempt's text is shorter than the text sent
        super().end(failure)
        if failure is not None:
            self._out.append(f"data: {encode(error_members(failure.code, failure.message))}\n\n")
            return
        if self.beside_members:
            self._chunk(self.beside_members)
        if self.calls:
            self._chunk({"tool_calls": [{"index": at, **call} for at, call in enumerate(self.calls)]})
        self._out.append(f'{self._start}{{}},"finish_reason":"{self.finish_reason}"}}]}}\n\n')
        if self._include_usage:
            members = {**self._head.members("chat.completion.chunk"), "choices": [], "usage": self.usage_members()}
            self._out.append(f"data: {encode(members)}\n\n")
        self._out.append(_DONE)


class ChatCompletion(_Reader):
    """
    Writes the completion as one object.

    Args:
        head: The object's first members.
        attempt: The latest attempt when the client came.
        answered: The calls whose results the client brings.
    """

    def __init__(self, head: CompletionHead, *, attempt: int = 1, answered: Collection[str] = ()) -> None:
        super().__init__(attempt=attempt, answered=answered)
        self._head = head
        self._said: list[str] = []
        self._thought: list[str] = []

    def feed(self, text: str) -> str:
        """Take whole lines of the log; there is nothing to send before the end."""
        self.take(text)
        return ""

    def say(self, piece: str) -> None:
        """Take a piece of the answer."""
        self._said.append(piece)

    def think(self, text: str) -> None:
        """Take a piece of the reasoning."""
        self._thought.append(text)

    def say_whole(self, text: str) -> None:
        """Take the whole answer."""
        self._said = [quoted(text)]

    def begin_anew(self) -> None:
        """Forget the pieces so far."""
        self._said, self._thought = [], []

    def members(self) -> dict[str, Any]:
        """Return the completion, once the turn is over and did not fail."""
        message: dict[str, Any] = {"role": "assistant", "content": unquoted(self._said), "refusal": None}
        if self.calls:
            message |= {"content": message["content"] or None, "tool_calls": self.calls}
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        message |= self.beside_members
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        members = {**self._head.members("chat.completion"), "choices": [choice]}
        usage = self.usage_members()
        return members if usage is None else {**members, "usage": usage}
