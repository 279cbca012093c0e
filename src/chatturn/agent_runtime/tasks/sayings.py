"""
What a backend yields, as events of a stream.

A backend may yield events of a stream, chat events (as chatturn's own backends do), and JSON objects with a ``type``
(as sandboxes do).  What has no place in a stream is left out.  A ``result`` has the whole answer again: only the part
that was not told before is told (O6 in docs/reference/agent-runtime.md).

Source:
    docs/reference/agent-runtime.md, A model's API; `chat_events`.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from chatturn.agent_runtime.tasks.sessions import event_text
from chatturn.agent_runtime.tasks.task_backends import BackendOutput
from chatturn.agent_runtime.values.chat_events import SAID, Data, llm_call, text_in
from chatturn.agent_runtime.values.events import (
    BackendErrorEvent,
    BackendMadeEvent,
    FinalEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolResultEvent,
)
from chatturn.errors import BackendProtocolError, BackendReportedError, ValidationError
from chatturn.events import MESSAGE_PART, ChatStreamEvent, TextAssembly, is_answer, text_delta

__all__ = ["SayingMapper"]

_HALF: Final = re.compile("[\ud800-\udfff]")

# Types that agent-runtime's mapper takes, and chatturn's types for the same events.
_ALSO: Final[Mapping[str, str]] = {"tool_call": "tool.call", "tool_result": "tool.result"}


class SayingMapper:
    """
    Maps what one backend yields in one answer.

    Args:
        backend: The backend's kind, for errors.
        model: The model of calls whose usage names none.
    """

    def __init__(self, backend: str, model: str = "unknown") -> None:
        self._backend = backend
        self._model = model
        self._answer = TextAssembly()
        self._half: TextDeltaEvent | ReasoningDeltaEvent | None = None
        """A piece that is the first half of a surrogate pair; the second half may come with the next piece."""

    def text(self) -> str:
        """Return the answer so far: the text since the latest tool's result, or the text of a ``result``."""
        return _whole_characters(self._answer.text())

    def feed(self, output: BackendOutput) -> list[RuntimeStreamEvent]:
        """
        Return the events of *output*.

        Raises:
            BackendReportedError: *output* reports that the backend failed.
            BackendProtocolError: *output* is no event, or one that only the runtime may tell.
        """
        try:
            return list(self._joined(self._events(output)))
        except RecursionError as error:
            raise BackendProtocolError("what it tells has no end", backend=self._backend) from error

    def finish(self) -> list[RuntimeStreamEvent]:
        """Return what was held back, since the backend yields nothing more."""
        half, self._half = self._half, None
        return [] if half is None else [half]

    def _joined(self, events: Iterable[RuntimeStreamEvent]) -> Iterator[RuntimeStreamEvent]:
        """Join surrogate pairs that are split over two pieces, as a producer that counts in UTF-16 splits them."""
        for each in events:
            event, half = each, self._half
            if half is not None:
                self._half = None
                if type(event) is not type(half):
                    yield half
                elif isinstance(event, TextDeltaEvent | ReasoningDeltaEvent):
                    event = replace(event, text=half.text + event.text)
            if isinstance(event, TextDeltaEvent | ReasoningDeltaEvent) and _HALF.search(event.text):
                text, begun = _pairs_joined(event.text)
                if begun:
                    self._half = replace(event, text=begun)
                    if not text:
                        continue
                event = replace(event, text=text)
            yield event

    def _characters(self, text: str, *, goes_on: bool = False) -> str:
        """Return a whole *text* with its surrogate pairs joined; if it *goes_on*, without a half at its end."""
        joined, begun = _pairs_joined(text)
        if _HALF.search(joined) or (begun and not goes_on):
            raise BackendProtocolError("a text has half a surrogate pair", backend=self._backend)
        return joined

    def _events(self, output: Any) -> Iterator[RuntimeStreamEvent]:
        if isinstance(output, ChatStreamEvent):
            data: Any = output.data or {}
            if not isinstance(data, Mapping):
                raise BackendProtocolError("an event's data are no object", backend=self._backend)
            yield from self._chat_event(self._kind(output.type), data)
        elif isinstance(output, Mapping):
            kind, data = self._kind(output.get("type")), output.get("data")
            yield from self._chat_event(kind, {**output, **data} if isinstance(data, Mapping) else output)
        elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
            for each in output:
                yield from self._events(each)
        else:
            yield from self._own_event(output)

    def _kind(self, kind: object) -> str:
        if not isinstance(kind, str):
            raise BackendProtocolError("an event has no type", backend=self._backend)
        return kind

    def _own_event(self, event: Any) -> Iterator[Any]:
        if isinstance(event, TextDeltaEvent | ReasoningDeltaEvent):
            self._require_piece(event)
        match event:
            case TextDeltaEvent(text=text):
                self._answer.add(text_delta(text))
                yield event
            case FinalEvent(text=text):
                yield from self._whole(text if isinstance(text, str) else "")
            case BackendMadeEvent() | BackendErrorEvent():
                if isinstance(event, ToolResultEvent):
                    self._answer = TextAssembly()
                yield event
            case _:
                name = getattr(type(event), "type", type(event).__name__)
                raise BackendProtocolError(f"a backend cannot tell {name!s:.60}", backend=self._backend)

    def _require_piece(self, event: TextDeltaEvent | ReasoningDeltaEvent) -> None:
        """Refuse a malformed piece of text; halves of surrogate pairs in it are joined later."""
        said: object = event.text
        if not isinstance(said, str):
            raise BackendProtocolError("a piece of text is none", backend=self._backend)
        if event.task or event.session or event.timestamp:
            try:
                event_text(replace(event, text=""), most=sys.maxsize)
            except ValidationError as error:
                raise BackendProtocolError(f"it told what is no event: {error}", backend=self._backend) from error

    def _chat_event(self, kind: str, data: Data) -> Iterator[RuntimeStreamEvent]:
        match kind:
            case "message.part.updated":
                yield from self._part(data)
            case "text_delta" | "delta":
                yield from self._delta(text_in(data, "delta", "text"))
            case "reasoning_delta":
                if text := text_in(data, "delta", "text"):
                    yield ReasoningDeltaEvent(text=text)
            case "result" | "final":
                yield from self._whole(text_in(data, "finalText", "text", "result") or "")
            case "usage" | "llm_call":
                yield llm_call(data, self._model)
            case "backend_error" if data.get("recoverable") is True:
                return  # the backend goes on
            case "error" | "backend_error":
                detail = text_in(data, "message") or ""
                raise BackendReportedError("it reported an error", backend=self._backend, detail=detail[:2_048])
            case _:
                yield from self._other(_ALSO.get(kind, kind), data)

    def _part(self, data: Data) -> Iterator[RuntimeStreamEvent]:
        part, delta = data.get("part"), text_in(data, "delta", "text")
        if not delta and isinstance(part, Mapping) and isinstance(so_far := part.get("text"), str):
            part = {**part, "text": self._characters(so_far, goes_on=True)}
        event = ChatStreamEvent(MESSAGE_PART, {"part": part, "delta": delta} if delta else {"part": part})
        if is_answer(event):
            yield from self._added(event)
        elif isinstance(part, Mapping) and part.get("type") == "reasoning" and delta:
            yield ReasoningDeltaEvent(text=delta)

    def _delta(self, text: str | None) -> Iterator[RuntimeStreamEvent]:
        if text:
            self._answer.add(text_delta(text))
            yield TextDeltaEvent(text=text)

    def _whole(self, text: str) -> Iterator[RuntimeStreamEvent]:
        if text:
            yield from self._added(ChatStreamEvent("result", {"finalText": self._characters(text)}))

    def _added(self, event: ChatStreamEvent) -> Iterator[RuntimeStreamEvent]:
        """Yield the text that *event* adds to the answer; nothing if it changes text that was told."""
        delta = text_in(event.data or {}, "delta")
        before = "" if delta else self.text()
        self._answer.add(event)
        if not delta:
            self._half = None  # the whole text has it again
            after = self.text()
            delta = after[len(before) :] if after.startswith(before) else None
        if delta:
            yield TextDeltaEvent(text=delta)

    def _other(self, kind: str, data: Data) -> Iterator[RuntimeStreamEvent]:
        made = SAID.get(kind)
        if made is None:
            return
        if kind in {"tool.result", "tool.error"}:
            self._answer = TextAssembly()  # text before a tool's result is no part of the answer
            data = data if "result" in data or "output" not in data else {**data, "result": data["output"]}
        elif kind == "tool.call":
            data = {**data, "toolName": text_in(data, "toolName", "name") or "tool"}
            data = data if "args" in data or "input" not in data else {**data, "args": data["input"]}
        event = made(data)
        if event is not None:
            yield event


def _pairs_joined(text: str) -> tuple[str, str]:
    """Return *text* with its surrogate pairs joined, and the first half of a pair that it ends with."""
    if not _HALF.search(text):
        return text, ""
    begun = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    joined = text[: len(text) - len(begun)].encode("utf-16-le", "surrogatepass")
    return joined.decode("utf-16-le", "surrogatepass"), begun


def _whole_characters(text: str) -> str:
    """Return *text* with its surrogate pairs joined, and without single halves."""
    if not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
