"""
A chat completion as it comes in: bytes of the body in, chat events out.  No I/O, no clock.

It reads OpenAI's streaming format with the liberties that servers take.  The body itself, not its content type, says
whether it is a stream or one JSON document.  An answer is whole only if the model said so, by a finish reason that
`ends` knows, or by ``[DONE]`` if nothing contradicts it; a finish reason followed by more content does not count.
An error fails the answer wherever `failures` finds it, and so does a frame that is not JSON, which is never shown as
text.  Frames of other shapes are skipped.

Nearly every frame is one piece of text, so that path is short: a `template` match, of many frames or of one, or
one JSON parse.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from chatturn.backends.openai.besides import KNOWN, Besides
from chatturn.backends.openai.ends import End, end_of, may_be_replaced, reason_in
from chatturn.backends.openai.failures import Complaint, complaint_in, complaint_within, shortened
from chatturn.backends.openai.kept import Keeper
from chatturn.backends.openai.model_json import parse_frame, parse_values
from chatturn.backends.openai.sse import DONE, MAX_EVENT_BYTES, EventTooLong, ServerSentEvent, SSEDecoder
from chatturn.backends.openai.template import FrameTemplate
from chatturn.backends.openai.texts import SAID_AS_TEXT, Mender, parts_of, plain_text, reasoning_of
from chatturn.backends.openai.tool_calls import ToolCallAssembler
from chatturn.errors import AnswerWithheld, BackendError, BackendProtocolError, BackendReportedError
from chatturn.events import ChatStreamEvent, TextDeltas, pieces_of, reasoning_delta, text_deltas, usage_event

__all__ = ["CompletionReader"]

_MAX_COUNT: Final = 2**53 - 1  # the largest whole number that every JSON parser reads exactly
_MAX_NAME: Final = 200
_MAX_STRAY_CHARACTERS: Final = 2_000
_MAX_HELD: Final = 16
_FRAMES_TO_LEARN_FROM: Final = 4  # the role, and text twice; what comes then at once may be read at once
_MOST_DIGITS: Final = 9
_DATA: Final = "data:"
_DONE_WORDS: Final = frozenset({"DONE", "END", "EOS"})
_BOM: Final = b"\xef\xbb\xbf"
_DOCUMENT: Final = (b"{", b"[", b"<")
"""How a body begins that is a document and no stream."""

_SIGNS_OF_LIFE: Final = frozenset({"ping", "heartbeat", "keepalive", "keep-alive", "comment"})
"""Types of events that only keep the connection alive."""

_OF_A_CHUNK: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "provider"}
)
"""Members of a frame that are no sign of an error."""

# Where servers put the counts of a `usage` object: our name, then the paths to look at.
_COUNTS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "tokensIn": (("prompt_tokens",), ("input_tokens",)),
    "tokensOut": (("completion_tokens",), ("output_tokens",)),
    "tokensCached": (
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("prompt_cache_hit_tokens",),
    ),
    "tokensReasoning": (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
    ),
}


class CompletionReader:
    """
    Reads one answer.

    Args:
        model: Who is asked.
        backend: The backend's name, for errors.
        make_id: Makes the id of a tool call that has none; see `ToolCallAssembler`.
        tools: Names of the tools that the model was told of.
        keeps: Whether the API wants back what it said besides text with later turns, too.

    Attributes:
        response_id: The API's id of the answer, None until it is known.
        model: The model that answers; the one asked for until the API names another.
        finish_reason: Why the answer ended, in the API's word; None while it goes on.
        reason_stands_alone: Whether that came without content beside it, as it does from servers that say it once:
            afterwards only usage and ``[DONE]`` come.
        done: Nothing more is to be read: the model said ``[DONE]``, or what came cannot be an answer.
    """

    def __init__(
        self,
        *,
        model: str,
        backend: str,
        make_id: Callable[[int], str] = "call_{}".format,
        tools: Collection[str] = (),
        keeps: bool = False,
    ) -> None:
        self.response_id: str | None = None
        self.model = model
        self.finish_reason: str | None = None
        self.reason_stands_alone = False
        self.done = False
        self._backend = backend
        self._streaming = False
        self._opening = b""  # until it is known whether the body is a stream
        self._document: bytearray | None = None
        self._complete = False  # whole without a finish reason: by [DONE], or as one document
        self._failure: BackendError | None = None
        self._identified = False
        self._begun = False
        self._spoke = False
        self._stray = ""  # lines that are no fields of an event
        self._told: str | None = ""  # the text of whole messages; None once pieces have come
        self._choice: Any = None  # the index of the choice that is the answer; None until known
        self._held: list[dict[str, Any]] = []  # messages of other choices, until the answer's is known
        self._decoder = SSEDecoder(lenient=True)
        self._text, self._reasoning = Mender(), Mender()
        self._template = FrameTemplate(parse_frame)
        self._tools = ToolCallAssembler(make_id, tools)
        self._kept = Keeper() if tools or keeps else None
        self._keeps = keeps
        self._besides = Besides()
        self._usage: dict[str, Any] = {}
        self._counts: dict[str, int] | None = {}

    def feed(self, chunk: bytes) -> list[Sequence[ChatStreamEvent]]:
        """Take the next bytes of the body; return what they say, in batches.  A failure waits for `finish`."""
        if not self._streaming:
            chunk = self._opened(chunk)
            if not self._streaming:
                return []
        batches: list[Sequence[ChatStreamEvent]] = []
        try:
            frames = self._decoder.complete(chunk)
            if not frames:
                self._read_events(self._decoder.ahead(), batches)
            elif not self._template.is_learnt:
                first, frames = _cut(frames, _FRAMES_TO_LEARN_FROM)
                self._read_events(self._decoder.events(first), batches)
            if frames and not self._text.held and not self._decoder.in_event and not self.done:
                bodies, frames = self._template.bodies_of(frames)
                if any(bodies):
                    self._spoke, self.finish_reason = True, None
                    batches.append(TextDeltas(bodies))
            if frames:
                self._read_events(self._decoder.events(frames), batches)
        except EventTooLong as error:
            self._fail(BackendProtocolError(str(error), backend=self._backend))
        except BackendError as error:
            self._fail(error)
        return batches

    def finish(self, call: int | None = None) -> list[ChatStreamEvent]:
        """
        End the answer; return its last events: what came without an end, the tool calls, then usage.

        Args:
            call: Which of its attempt's calls this is.

        Raises:
            BackendRejected: The API refused the request, in the body of an answer.
            BackendReportedError: The API reported an error, or gave a finish reason that is none of a whole answer.
            BackendProtocolError: What came is no answer, or the answer broke off.
            AnswerWithheld: It ended at a limit or by a filter before anything was said.
        """
        if self._failure is not None:
            raise self._failure
        events: list[ChatStreamEvent] = []
        self._read_rest(events)
        end = self._end()
        if not self._spoke:
            self._say(self._besides.transcript or ("[image]" if self._besides.has_images else ""), events)
        if end.is_whole:
            events.extend(self._tools.flush())
        elif not self._spoke:
            raise AnswerWithheld(f"ended with {self.finish_reason!r} and no text", backend=self._backend)
        events.extend(self._besides.events())
        counts = self.counts()
        if counts or self.finish_reason is not None:
            events.append(usage_event(model=self.model, **counts, finishReason=self._told_reason(), call=call))
        return events

    def kept(self) -> dict[str, Any]:
        """Return what the API wants back with its answer, ``{"message", "calls"}``; call it after `finish`."""
        if self._kept is None or not (len(self._tools) or self._keeps):
            return {}
        kept = {"message": self._kept.members(), "calls": self._tools.kept()}
        return kept if kept["message"] or any(kept["calls"]) else {}

    def counts(self) -> Mapping[str, int]:
        """Return what the answer consumed, as far as the API said; a count that is no count is left out."""
        if self._counts is None:
            found = {name: _first(self._usage, paths, _is_count) for name, paths in _COUNTS.items()}
            self._counts = {name: int(count) for name, count in found.items() if count is not None}
        return self._counts

    def usage(self) -> dict[str, Any]:
        """
        Return the usage as the API gave it, with the model, the finish reason, and the cost if the API tells it.

        What is no count is in it as well, for whoever keeps account of that.
        """
        counts = self.counts()
        given = {
            name: counts[name] if name in counts else _first(self._usage, paths, _is_given)
            for name, paths in _COUNTS.items()
        }
        cost = self._usage.get("cost")  # in dollars; where it is an object, it has parts that nobody has defined
        known = {"costUsd": cost} if type(cost) in {int, float} else {}
        return {"model": self.model, **given, **known, "finishReason": self._told_reason()}

    def _told_reason(self) -> str | None:
        """Return why the answer ended, in OpenAI's words; in the API's own where that is no end of an answer."""
        if self.finish_reason is None:
            return None
        end = end_of(self.finish_reason)
        return self.finish_reason if end.is_failure else end.value

    # How it begins and ends

    def _opened(self, chunk: bytes) -> bytes:
        """Find out whether the body is a stream; return what of it is to be read, or collect it."""
        if self._document is not None:
            self._document += chunk
            self._check_size(self._document)
            return b""
        opening = self._opening + chunk
        begins = opening.removeprefix(_BOM).lstrip()
        if begins.startswith(_DOCUMENT):
            self._document = bytearray(begins)
            self._check_size(begins)
            return b""
        self._streaming = bool(begins) and not _BOM.startswith(opening)
        self._opening = b"" if self._streaming else opening
        self._check_size(self._opening)
        return opening

    def _check_size(self, body: bytes | bytearray) -> None:
        if len(body) > MAX_EVENT_BYTES:
            self._fail(BackendProtocolError(f"a body of more than {MAX_EVENT_BYTES} bytes", backend=self._backend))

    def _read_rest(self, events: list[ChatStreamEvent]) -> None:
        if self._document is not None:
            self._read_document(self._document.decode("utf-8", "replace"), events)
        if not self.done:
            self._read_frames(self._decoder.finish(), events)
        for message in self._take_held():
            self._read_choices(message, events)

    def _read_document(self, text: str, events: list[ChatStreamEvent]) -> None:
        """Read a body that is one JSON document; or frames without ``data:``, or whatever lines it has."""
        try:
            values, rest = parse_values(text)
        except ValueError:
            values, rest = [], text
        if len(values) == 1 and not rest:
            self._read_whole(values[0], text, events)
            return
        for value in values:
            self._read_value(value, events)
        if self._told and self.finish_reason is None:
            self._complete = True  # a whole message is one without a reason, too
        for line in rest.split("\n\n"):
            self._read_frames(self._decoder.feed(f"{line}\n\n".encode()), events)

    def _read_whole(self, message: Any, text: str, events: list[ChatStreamEvent]) -> None:
        if (complaint := complaint_in(message)) is not None:
            raise complaint.error(self._backend, instead_of_answer=True)
        for part in message if isinstance(message, list) else [message]:
            if isinstance(part, dict):
                self._read_message(part, events)
        self._complete = self._begun
        if not self._begun:
            self._stray = text[:_MAX_STRAY_CHARACTERS]

    def _end(self) -> End:
        """
        Return how the answer ended.

        Raises:
            BackendError: It broke off, or with a reason that makes it none.
        """
        if self.finish_reason is None and (not self._complete or self._stray):
            if (complaint := complaint_within(self._stray)) is not None:
                raise complaint.error(self._backend, instead_of_answer=not self._spoke)
            missing = "neither finish reason nor [DONE]" if not self._complete else "no finish reason but an error"
            raise BackendProtocolError(f"ended with {missing}", backend=self._backend, detail=shortened(self._stray))
        if self.finish_reason is None:
            if self._tools.is_cut:
                raise BackendProtocolError("ended inside a tool call", backend=self._backend)
            return End.STOP
        end = end_of(self.finish_reason)
        if end.is_failure:
            unknown = ", which nobody knows" if end is End.UNKNOWN else ""
            raise BackendReportedError(
                f"the API gave {self.finish_reason!r} as its finish reason{unknown}",
                backend=self._backend,
                detail=self.finish_reason,
            )
        return end

    def _fail(self, error: BackendError) -> None:
        self._failure = error
        self.done = True

    # Frames

    def _read_events(self, frames: Sequence[ServerSentEvent], batches: list[Sequence[ChatStreamEvent]]) -> None:
        """Read frames; what those before a failure say is not lost."""
        events: list[ChatStreamEvent] = []
        try:
            self._read_frames(frames, events)
        finally:
            if events:
                batches.append(events)

    def _read_frames(self, frames: Sequence[ServerSentEvent], events: list[ChatStreamEvent]) -> None:
        for frame in frames if not self.done else ():
            self._read_frame(frame, events)
            if self.done:
                break

    def _read_frame(self, frame: ServerSentEvent, events: list[ChatStreamEvent]) -> None:
        data = frame.data
        if (text := self._template.text_of(data)) is not None and frame.event != "error":
            self.finish_reason = self.finish_reason if not text else None
            self._say(text, events)
            return
        if data == DONE and frame.event != "error":
            self._read_done()
            return
        try:
            message = parse_frame(data)
        except ValueError as error:
            self._read_bare(frame, error, events)
            return
        if frame.event == "error":
            raise (complaint_in(message) or Complaint(words=data)).error(self._backend)
        is_plain = type(message) is dict and _OF_A_CHUNK.issuperset(message) and '"error' not in data
        if self._read_value(message, events, is_plain=is_plain):
            self._template.learn(data, message)
        elif type(message) is dict and _says_nothing_known(message) and frame.event not in _SIGNS_OF_LIFE:
            self._note(data)

    def _read_value(self, message: Any, events: list[ChatStreamEvent], *, is_plain: bool = False) -> bool:
        """Read one JSON value of the answer, which may be an error; return whether all it said was a piece of text."""
        if not is_plain and (complaint := complaint_in(message)) is not None:
            raise complaint.error(self._backend)
        if type(message) is dict:
            return self._read_message(message, events)
        if message == DONE:
            self._read_done()
        for part in message if type(message) is list else ():
            if type(part) is dict:
                self._read_message(part, events)
        return False

    def _note(self, text: str) -> None:
        """Keep what nobody understands: if no reason comes, the answer may have failed there."""
        self._stray = f"{self._stray}{text}\n"[:_MAX_STRAY_CHARACTERS]

    def _read_done(self) -> None:
        self.done = self._complete = True

    def _read_bare(self, frame: ServerSentEvent, cause: Exception, events: list[ChatStreamEvent]) -> None:
        """Read data that is no JSON, or a line that is no field."""
        text = frame.data.strip()
        if frame.event == "error":
            raise Complaint(words=text).error(self._backend) from cause
        if text.strip("[]").upper() in _DONE_WORDS:
            self._read_done()
        elif frame.event == "line":
            self._note(text)
        elif text.startswith(_DATA):  # a proxy has put frames into frames
            self._read_frame(ServerSentEvent(text.removeprefix(_DATA).lstrip(), frame.event), events)
        elif text and not text.startswith(":") and not {frame.event, text.lower()} & _SIGNS_OF_LIFE:
            raise BackendProtocolError("a frame is not JSON", backend=self._backend, detail=shortened(text)) from cause

    # Messages

    def _read_message(self, message: dict[str, Any], events: list[ChatStreamEvent]) -> bool:
        """Read a frame's object; return whether all that it said was a piece of text."""
        if not self._identified:
            self._identify(message)
        self._read_usage(message.get("usage"))
        if type(groq := message.get("x_groq")) is dict:
            self._read_usage(groq.get("usage"))
        if "citations" in message or "search_results" in message:
            self._besides.add_citations(message.get("search_results") or message.get("citations"))
        return self._read_choices(message, events) and not message.get("usage")

    def _read_choices(self, message: dict[str, Any], events: list[ChatStreamEvent]) -> bool:
        choices = message.get("choices") or _native_choices(message)
        if not choices or type(choices) is not list:
            return False
        if (reason := reason_in(message)) is not None:
            choices = [{**choice, "finish_reason": reason} for choice in choices if type(choice) is dict]
        if len(choices) == 1 and type(choice := choices[0]) is dict and (choice.get("index") or 0) == self._choice:
            return self._read_choice(choice, events)
        if (chosen := self._chosen(choices)) is not None:
            return bool(chosen) and self._read_choice(chosen, events)
        self._held.append(message)
        if len(self._held) > _MAX_HELD:
            for held in self._take_held():
                self._read_choices(held, events)
        return False

    def _chosen(self, choices: list[Any]) -> dict[str, Any] | None:
        """
        Return the choice that is the answer's; an empty one if none is; None if that is not known yet.

        It is the one with index 0, or none at all.  Only if that does not come the others are looked at: some servers
        give their only choice another number.
        """
        by_index = {_index(choice): choice for choice in reversed(choices) if type(choice) is dict}
        if self._choice is None and 0 in by_index:
            self._choice = 0
            self._held.clear()
        return by_index.get(self._choice, {}) if self._choice is not None or not by_index else None

    def _take_held(self) -> list[dict[str, Any]]:
        held, self._held = self._held, []
        if held:
            self._choice = _index(next(choice for choice in held[0]["choices"] if type(choice) is dict))
        return held

    def _read_choice(self, choice: dict[str, Any], events: list[ChatStreamEvent]) -> bool:
        delta = choice.get("delta")
        whole = type(delta) is not dict
        if whole:
            delta = self._further(choice)
        self._begun = True
        only_text, spoke = self._read_delta(delta, events, whole=whole) if type(delta) is dict else (False, False)
        if spoke and not whole:
            self._told = None
        if choice.get("logprobs"):
            only_text = False
            self._besides.add_logprobs(choice["logprobs"])
        if "usage" in choice:
            only_text = False
            self._read_usage(choice["usage"])
        if spoke:
            self.finish_reason = None
        reason = reason_in(choice, delta)
        if reason is None:
            return only_text and not whole
        if self.finish_reason is None or may_be_replaced(self.finish_reason, alone=self.reason_stands_alone):
            self.finish_reason = _sendable(str(reason))
        self.reason_stands_alone = not spoke
        return False

    def _further(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """
        Return what a choice without a delta says, as one: a message, or a text.

        A message that comes after deltas says everything again; after others it says all so far, or what is new.
        """
        message = choice.get("message")
        if type(message) is not dict:
            return {"content": choice["text"]} if type(choice.get("text")) is str else None
        if self._told is None:
            return None
        before, content = self._told, plain_text(message.get("content"))
        self._told = content if content.startswith(before) else before + content
        return {**message, "content": self._told[len(before) :]} if before else message

    def _read_usage(self, usage: object) -> None:
        """Take counts; each frame may have some of them, or all so far, or at the end zeros."""
        if type(usage) is dict:
            self._usage |= {name: value for name, value in usage.items() if value or name not in self._usage}
            self._counts = None

    def _read_delta(self, delta: dict[str, Any], events: list[ChatStreamEvent], *, whole: bool) -> tuple[bool, bool]:
        """Read a delta; return whether there is nothing but text in it, and whether it says anything."""
        content = delta.get("content")
        if len(delta) == 1 and type(content) is str:
            self._say(content, events)
            return True, bool(content)
        if type(content) is dict or type(content) is list:
            delta = {**delta, "content": (content := parts_of(content))}
        before = len(events)
        if reasoning := self._reasoning.mended(reasoning_of(delta)):
            events.extend(map(reasoning_delta, pieces_of(reasoning)))
        self._say(plain_text(content or delta.get("refusal")), events)
        pieces = delta.get("tool_calls")
        pieces = [pieces] if type(pieces) is dict and pieces else pieces
        if not pieces and type(function := delta.get("function_call")) is dict and function:
            pieces = [{"index": "function_call", "function": function}]
        if pieces:
            self._tools.add(pieces, whole=whole)
        if self._kept is not None:
            self._keep(self._kept, delta)
        if not KNOWN.issuperset(delta):
            self._besides.add(delta)
        if type(content) is list:
            self._add_parts(content)
        return False, bool(pieces) or len(events) > before

    def _keep(self, kept: Keeper, delta: dict[str, Any]) -> None:
        kept.add(delta)
        content = delta.get("content")
        if type(content) is list:
            kept.add_parts(content)

    def _add_parts(self, content: list[Any]) -> None:
        for part in content:
            if type(part) is not dict or part.get("type") in SAID_AS_TEXT:
                continue
            self._besides.add_part(part)

    def _say(self, text: str, events: list[ChatStreamEvent]) -> None:
        if not text.isascii() or self._text.held:
            text = self._text.mended(text)
        if text:
            self._spoke = True
            events += text_deltas(text)

    def _identify(self, message: dict[str, Any]) -> None:
        model, response_id = message.get("model"), message.get("id")
        if type(response_id) is str and response_id:
            self.response_id = _sendable(response_id)
        if type(model) is str and model:  # the first frame of some servers has none
            self.model = _sendable(model)
            self._identified = True


def _cut(frames: str, number: int) -> tuple[str, str]:
    """Cut *frames* behind the first *number* of them, each of which a blank line ends."""
    end = 0
    for _ in range(number):
        end = frames.find("\n\n", end) + 2
        if end < len("\n\n"):
            return frames, ""
    return frames[:end], frames[end:]


def _native_choices(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a message of Workers AI's own format says, as choices; nothing of others."""
    said = message["result"] if type(message.get("result")) is dict else message
    text, calls = said.get("response"), said.get("tool_calls")
    if "response" not in said or (text is None and not calls):
        return []
    pieces = [{"index": at, **call} for at, call in _objects(calls)]
    if type(text) is dict or type(text) is list:  # as it was asked to, in JSON
        text = json.dumps(text, ensure_ascii=False)
    return [{"index": 0, "delta": {"content": text, **({"tool_calls": pieces} if pieces else {})}}]


def _says_nothing_known(message: Mapping[str, Any]) -> bool:
    """Say whether a frame is of no kind that answers have."""
    return bool(message) and not {"choices", "usage", "object", "type", "response", "result", "citations"} & set(
        message
    )


def _objects(items: object) -> list[tuple[int, dict[str, Any]]]:
    return [(at, item) for at, item in enumerate(items if type(items) is list else []) if type(item) is dict]


def _index(choice: Mapping[str, Any]) -> Any:
    index = choice.get("index")
    if isinstance(index, str) and index.isdecimal() and len(index) <= _MOST_DIGITS:
        index = int(index)
    return index if isinstance(index, int) and index else 0


def _sendable(text: str) -> str:
    """Return a name as it can be sent: no API has longer ones, and telemetry shows names where it shows no text."""
    return text[:_MAX_NAME].encode("utf-8", "replace").decode()


def _first(usage: Mapping[str, Any], paths: tuple[tuple[str, ...], ...], accept: Callable[[Any], bool]) -> Any:
    """Return the first value at one of *paths* that is acceptable; None if there is none."""
    for path in paths:
        value: Any = usage
        for name in path:
            value = value.get(name) if type(value) is dict else None
        if accept(value):
            return value
    return None


def _is_count(value: Any) -> bool:
    return type(value) in {int, float} and 0 <= value <= _MAX_COUNT and value == int(value)


def _is_given(value: object) -> bool:
    return value is not None
