"""
A chat completion as it streams in: bytes of the body in, chat events out.  No I/O, no clock.

What is understood is OpenAI's streaming format with the liberties that compatible servers take.  An answer
counts as complete only if the model said so, by a finish reason or ``[DONE]``.  An error object in the stream
fails it, and so does a frame that is not JSON, which is never shown as text.  Other frames are skipped.

Nearly every frame is one piece of text, so that path is short: a `template` match, of many frames or of one, or
one JSON parse.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from chatturn.backends.openai.model_json import parse_frame
from chatturn.backends.openai.sse import MAX_EVENT_BYTES, EventTooLong, ServerSentEvent, SSEDecoder
from chatturn.backends.openai.template import FrameTemplate
from chatturn.backends.openai.tool_calls import ToolCallAssembler
from chatturn.errors import BackendError, BackendProtocolError, BackendReportedError
from chatturn.events import ChatStreamEvent, TextDeltas, pieces_of, reasoning_delta, text_delta, usage_event

__all__ = ["MAX_DETAIL_BYTES", "CompletionReader", "WholeCompletionReader", "shortened"]

MAX_DETAIL_BYTES: Final = 2_048
_MAX_COUNT: Final = 2**53 - 1  # what JSON numbers carry exactly everywhere
_MAX_NAME: Final = 200
_DONE: Final = "[DONE]"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# Where servers put the counts of a `usage` object: what we call it, then the paths to look at.
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


def shortened(text: bytes | str) -> str:
    """Return at most 2 KiB of *text*, in UTF-8: what an error's ``detail`` may hold."""
    body = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return body[:MAX_DETAIL_BYTES].decode("utf-8", "replace").rstrip("\ufffd")


class CompletionReader:
    """
    Reads one answer.

    Attributes:
        response_id: The API's id of the answer, None until it is known.
        model: Who answers; the model asked for until the API says otherwise.
        finish_reason: Why the answer ended, None while it goes on: afterwards only usage and ``[DONE]`` come.
        done: Nothing more is to be read: the model said ``[DONE]``, or what came cannot be an answer.
    """

    def __init__(self, *, model: str, backend: str) -> None:
        self.response_id: str | None = None
        self.model = model
        self.finish_reason: str | None = None
        self.done = False
        self._backend = backend
        self._complete = False  # without a finish reason: by [DONE], or because it came as a whole
        self._failure: BackendError | None = None
        self._identified = False
        self._begun = False
        self._decoder = SSEDecoder()
        self._text, self._reasoning = _Mender(), _Mender()
        self._template = FrameTemplate(parse_frame)
        self._tools = ToolCallAssembler()
        self._usage: dict[str, Any] = {}

    def feed(self, chunk: bytes) -> list[Sequence[ChatStreamEvent]]:
        """Take the next bytes of the stream; return what they say, in batches.  A failure waits for `finish`."""
        batches: list[Sequence[ChatStreamEvent]] = []
        events: list[ChatStreamEvent] = []
        try:
            frames = self._decoder.complete(chunk)
            if not self._text.held:
                bodies, frames = self._template.bodies_of(frames)
                if any(bodies):
                    batches.append(TextDeltas(bodies))
            for frame in self._decoder.events(frames):
                self._read_frame(frame, events)
                if self.done:
                    break
        except EventTooLong as error:
            self._fail(BackendProtocolError(str(error), backend=self._backend))
        except BackendError as error:
            self._fail(error)
        if events:
            batches.append(events)
        return batches

    def finish(self) -> list[ChatStreamEvent]:
        """
        End the answer; return its last events: the tool calls not sent yet, then usage.

        Raises:
            BackendReportedError: The API reported an error.
            BackendProtocolError: The answer is none, or it broke off.
        """
        if self._failure is None and self.finish_reason is None and not self._complete:
            self._fail(BackendProtocolError("ended with neither finish reason nor [DONE]", backend=self._backend))
        if self._failure is not None:
            raise self._failure
        events = self._tools.flush()
        counts = self.counts()
        if counts or self.finish_reason is not None:
            events.append(usage_event(model=self.model, **counts, finishReason=self.finish_reason))
        return events

    def counts(self) -> dict[str, int]:
        """Return what the answer consumed, as far as the API said; a count that is no count is left out."""
        if not self._usage:
            return {}
        found = {name: _first(self._usage, paths, _is_count) for name, paths in _COUNTS.items()}
        return {name: count for name, count in found.items() if count is not None}

    def usage(self) -> dict[str, Any]:
        """
        Return the same as the API gave it, with who answered, why it ended, and what it cost where the API says so.

        What is no count is in it as well, for whoever keeps account of that.
        """
        given = {name: _first(self._usage, paths, _is_given) for name, paths in _COUNTS.items()}
        cost = self._usage.get("cost")  # in dollars; where it is an object, it has parts that nobody has defined
        known = {"costUsd": cost} if type(cost) in {int, float} else {}
        return {"model": self.model, **given, **self.counts(), **known, "finishReason": self.finish_reason}

    def _fail(self, error: BackendError) -> None:
        self._failure = error
        self.done = True

    def _read_frame(self, frame: ServerSentEvent, events: list[ChatStreamEvent]) -> None:
        data = frame.data
        if (text := self._template.text_of(data)) is not None and frame.event != "error":
            self._say(text, events)
            return
        if data == _DONE:
            self.done = self._complete = True
            return
        try:
            message = parse_frame(data)
        except ValueError as error:
            self._read_bare(frame, error)
            return
        if type(message) is not dict:
            return
        if message.get("error") or frame.event == "error":
            raise BackendReportedError("the API reported an error", backend=self._backend, detail=shortened(data))
        if self._read_message(message, events):
            self._template.learn(data, message)

    def _read_bare(self, frame: ServerSentEvent, cause: Exception) -> None:
        text = frame.data.strip()
        detail = shortened(text)
        if frame.event == "error":
            raise BackendReportedError("the API reported an error", backend=self._backend, detail=detail) from cause
        if text and text != _DONE:
            raise BackendProtocolError("a frame is not JSON", backend=self._backend, detail=detail) from cause
        self.done = self._complete = bool(text)

    def _read_message(self, message: dict[str, Any], events: list[ChatStreamEvent]) -> bool:
        """Read a frame's object; return whether all that it said was a piece of text."""
        if not self._identified:
            self._identify(message)
        usage = message.get("usage")
        if type(usage) is dict:
            self._usage = usage
        choices = message.get("choices")
        if not choices or type(choices) is not list or type(choice := choices[0]) is not dict:
            return False
        if choice.get("index"):
            return False  # a second answer that was asked for beside the first; the turn has only one
        delta = choice.get("delta")
        if delta is None and not self._begun:
            delta = choice.get("message")  # the whole of it: after deltas it would say everything twice
        self._begun = True
        only_text = type(delta) is dict and self._read_delta(delta, events)
        if reason := choice.get("finish_reason"):
            self._read_finish(reason, events)
            return False
        return only_text and choice.get("delta") is delta and not usage

    def _read_delta(self, delta: dict[str, Any], events: list[ChatStreamEvent]) -> bool:
        content = delta.get("content")
        if len(delta) == 1 and type(content) is str:
            self._say(content, events)
            return True
        if reasoning := self._reasoning.mended(_plain(delta.get("reasoning_content") or delta.get("reasoning"))):
            events.extend(map(reasoning_delta, pieces_of(reasoning)))
        self._say(_plain(content or delta.get("refusal")), events)
        if pieces := delta.get("tool_calls"):
            self._tools.add(pieces)
        return False

    def _say(self, text: str, events: list[ChatStreamEvent]) -> None:
        if not text.isascii() or self._text.held:
            text = self._text.mended(text)
        events.extend(map(text_delta, pieces_of(text)))

    def _read_finish(self, reason: object, events: list[ChatStreamEvent]) -> None:
        self.finish_reason = _sendable(str(reason))
        if reason == "error":
            raise BackendReportedError("the API gave 'error' as its finish reason", backend=self._backend)
        events.extend(self._tools.flush())

    def _identify(self, message: dict[str, Any]) -> None:
        model, response_id = message.get("model"), message.get("id")
        if type(response_id) is str and response_id:
            self.response_id = _sendable(response_id)
        if type(model) is str and model:  # the first frame of some servers has none
            self.model = _sendable(model)
            self._identified = True


class WholeCompletionReader(CompletionReader):
    """Reads an answer that comes as one JSON document, from servers that cannot stream or will not."""

    def __init__(self, *, model: str, backend: str) -> None:
        super().__init__(model=model, backend=backend)
        self._body = bytearray()

    def feed(self, chunk: bytes) -> list[Sequence[ChatStreamEvent]]:
        """Take the next bytes of the body.  They say nothing before they are all there."""
        self._body += chunk
        if len(self._body) > MAX_EVENT_BYTES:
            self._fail(BackendProtocolError(f"a body of more than {MAX_EVENT_BYTES} bytes", backend=self._backend))
        return []

    def finish(self) -> list[ChatStreamEvent]:
        """Read the body; return all that it says.  Raises what `CompletionReader.finish` raises."""
        events: list[ChatStreamEvent] = []
        if not self.done:
            self._read_frame(ServerSentEvent(self._body.decode("utf-8", "replace")), events)
            self._complete = bool(events)
        return events + super().finish()


class _Mender:
    """Puts characters together again of which a server escaped each half in another delta."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""

    def mended(self, text: str) -> str:
        """Return *text* as far as it can be sent; halves without their other half are replaced."""
        if not self.held and not _SURROGATE.search(text):
            return text
        text = self.held + text
        self.held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        whole = text[: len(text) - len(self.held)]
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _plain(content: object) -> str:
    """Return the text of *content*, a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


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


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _is_given(value: object) -> bool:
    return value is not None
