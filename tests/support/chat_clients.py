"""
What the AI SDK's and OpenAI's clients make of a stream, as strict as they are.

Read from their sources: ``ai`` 7.0.173, src/ui/process-ui-message-stream.ts; ``openai`` 3.57.0, _streaming.py.
"""

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["CompletionView", "UiMessageView", "frames_of"]


def frames_of(text: str) -> list[str]:
    """Return the data of the whole events in *text*; what is cut off at its end is dropped, comments are ignored."""
    frames = text.split("\n\n")[:-1]
    return [frame.removeprefix("data: ") for frame in frames if not frame.startswith(":")]


class UiMessageView:
    """
    An assistant's message, built chunk by chunk.

    Attributes:
        parts: Its parts, as a user sees them.
        chunks: How many chunks came: where WorkflowChatTransport goes on.
        to_do: What the client was told to do itself, by the calls' ids: the tool, and what it is given.
        finished: Whether ``finish`` came.
        error: What an ``error`` said.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.parts: list[dict[str, Any]] = []
        self.chunks = 0
        self.to_do: dict[str, tuple[str, Any]] = {}
        self.finished = False
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.done = False
        self._active: dict[tuple[str, str], dict[str, Any]] = {}
        self._replaying = False

    def asks_again(self) -> None:
        """Send the thread again, with what the turn waits for: the message stays, and the chunks count from 0."""
        self.finished = self.done = False
        self.chunks = 0

    def resume_from_the_start(self) -> None:
        """Take the next stream for a replay: its first ``start`` clears the message."""
        self._replaying = True

    def read(self, text: str) -> None:
        """Take the whole events of *text*."""
        for frame in frames_of(text):
            if frame == "[DONE]":
                self.done = True
                continue
            chunk = json.loads(frame)
            self.chunks += 1
            getattr(self, "_" + chunk["type"].split("-")[0])(chunk)

    @property
    def text(self) -> str:
        """Everything said as text."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def _start(self, chunk: dict[str, Any]) -> None:
        if chunk["type"] == "start-step":
            self.parts.append({"type": "step-start"})
            return
        assert chunk["type"] == "start"
        if self._replaying:
            self.parts, self._active, self._replaying = [], {}, False
        self.id = chunk["messageId"]

    def _reset(self, chunk: dict[str, Any]) -> None:
        assert chunk["type"] == "reset-step"
        self._active = {}
        while self.parts and self.parts[-1]["type"] != "step-start":
            self.parts.pop()

    def _text(self, chunk: dict[str, Any]) -> None:
        kind, _, what = chunk["type"].partition("-")
        key = (kind, chunk["id"])
        if what == "start":
            self._active[key] = {"type": kind, "text": ""}
            self.parts.append(self._active[key])
        elif what == "delta":
            self._active[key]["text"] += chunk["delta"]  # KeyError: the client throws
        else:
            assert what == "end"
            del self._active[key]

    _reasoning = _text

    def _tool(self, chunk: dict[str, Any]) -> None:
        what = chunk["type"].removeprefix("tool-")
        if what == "input-available":
            executed, dynamic = chunk.get("providerExecuted", False), chunk.get("dynamic", False)
            part = next((part for part in self._tools() if part["id"] == chunk["toolCallId"]), None)
            if part is None:
                kind = "dynamic-tool" if dynamic else f"tool-{chunk['toolName']}"
                part = {"type": kind, "id": chunk["toolCallId"]}
                self.parts.append(part)
            part.update(name=chunk["toolName"], input=chunk["input"], state=what, executed=executed)
            if not executed:
                self.to_do[chunk["toolCallId"]] = (chunk["toolName"], chunk["input"])  # onToolCall
            return
        [part] = [part for part in self._tools() if part["id"] == chunk["toolCallId"]]  # ValueError: the client throws
        assert what in {"approval-request", "output-available", "output-error", "output-denied"}
        part.update(state=what, executed=chunk.get("providerExecuted", part["executed"]))
        if what == "approval-request":
            part["approval"] = chunk["approvalId"]

    def _tools(self) -> list[dict[str, Any]]:
        return [part for part in self.parts if part["type"].partition("-")[0] in {"tool", "dynamic"}]

    def _message(self, chunk: dict[str, Any]) -> None:
        assert chunk["type"] == "message-metadata"

    def _data(self, chunk: dict[str, Any]) -> None:
        self.parts.append({"type": chunk["type"], "data": chunk["data"]})

    def _source(self, chunk: dict[str, Any]) -> None:
        assert chunk["type"] == "source-url"
        self.parts.append(chunk)

    def _file(self, chunk: dict[str, Any]) -> None:
        assert chunk["url"]
        assert chunk["mediaType"]
        self.parts.append(chunk)

    def _abort(self, chunk: dict[str, Any]) -> None:
        assert chunk["type"] == "abort"

    def _error(self, chunk: dict[str, Any]) -> None:
        self.error = chunk["errorText"]

    def _finish(self, chunk: dict[str, Any]) -> None:
        if chunk["type"] == "finish":
            self.finished = True
            self.finish_reason = chunk["finishReason"]

    def shown(self) -> list[dict[str, Any]]:
        """Return what a user sees of it: texts that follow each other are one, where a step begins is not seen."""
        shown: list[dict[str, Any]] = []
        for part in self.parts:
            if part["type"] == "step-start" or part.get("text") == "":
                continue
            if part["type"] in {"text", "reasoning"} and shown and shown[-1]["type"] == part["type"]:
                shown[-1] = {**part, "text": shown[-1]["text"] + part["text"]}
            else:
                shown.append(dict(part))
        return shown


class CompletionView:
    """
    A streamed chat completion.

    Attributes:
        text: Its content.
        calls: Those of the client's tools, by their index.
        error: The error that the client raises.
        finish_reason: Why it ended.
        done: Whether ``[DONE]`` came.
    """

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.role: str | None = None
        self.error: dict[str, Any] | None = None
        self.calls: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.done = False
        self.ids: set[str] = set()

    def read(self, text: str) -> None:
        """Take the whole events of *text*."""
        for frame in frames_of(text):
            assert not self.done
            assert self.error is None
            if frame == "[DONE]":
                self.done = True
                continue
            members = json.loads(frame)
            if "error" in members:
                self.error = members["error"]
                continue
            self.ids.add(members["id"])
            self._choices(members["choices"], members)

    def _choices(self, choices: Sequence[dict[str, Any]], members: dict[str, Any]) -> None:
        if not choices:
            self.usage = members["usage"]
            return
        [choice] = choices
        assert self.finish_reason is None
        delta = choice["delta"]
        self.role = delta.get("role", self.role)
        self.text += delta.get("content", "")
        self.reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            known = self.calls.setdefault(call["index"], {"id": call["id"], "type": "function", "function": {}})
            for name, piece in call["function"].items():
                known["function"][name] = known["function"].get(name, "") + piece
        self.finish_reason = choice["finish_reason"]
