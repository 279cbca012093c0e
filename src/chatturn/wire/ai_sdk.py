"""
A turn's log as a UI message stream of the AI SDK, version 1.

The projection is a pure function of the log's lines::

    start, start-step ─▶ parts: text, reasoning, tools ─▶ finish-step, finish ─▶ [DONE]
                          ▲                        │
                          └── reset-step ◀─────────┘  the worker was lost: another attempt begins the answer anew

A turn is one step, however many model calls it has: ``reset-step`` clears only the current step, and a takeover must
be able to clear everything.  The message's id is the run's id, the same at every replay, so that a client replaces the
message that it holds.

The client's own tool calls are sent at the stream's end, because a client runs a tool as soon as it is told of the
call.  A call whose result is in the log already is sent as run by the server, so that it never runs twice.

Cursors.  A client of this kind counts chunks (``startIndex``).  Its count means something only within one attempt:

* in attempt 1, the client gets the chunks after the counted ones;
* in any later attempt, it gets ``reset-step``, and then everything but ``start`` and ``start-step``.  That is right
  whatever the client holds;
* with the count 0, it gets ``start``, ``reset-step``, and then everything.  It may hold the message already: it has
  approved a tool in it, and was cut off before the first chunk that followed.  If it holds nothing, there is nothing to
  clear;
* if the log was stored without its texts, because its product redacts them, or was given up for its answer, because it
  is old, it gets the same as in a later attempt.

Source:
    The package ``ai`` 7.0.173: src/ui-message-stream/ui-message-chunks.ts, src/ui/process-ui-message-stream.ts.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
from chatturn.wire.passages import ROUND_ENDS, TEXT, PartKey, Passage, part_of, said_of, with_whole

__all__ = ["NEWEST", "UiMessageStream"]

_DONE: Final = "data: [DONE]\n\n"
_START_STEP: Final = 'data: {"type":"start-step"}\n\n'
_RESET_STEP: Final = 'data: {"type":"reset-step"}\n\n'
_KINDS: Final = ("text", "reasoning")

NEWEST: Final = 7
_RESETS: Final = 7
_APPROVES: Final = 6

# The chunks `start` and `start-step`: a client that has not seen both has nothing to reset.
_HEAD: Final = 2

_STARTED: Final = "session.run.started"


class UiMessageStream:
    """
    The chunks of one turn, for one client.

    Args:
        message_id: The message's id, which is the run's.
        version: The version of the turn, for the message's metadata.
        seen: How many chunks the client has seen, if it counts; None for a client that gets all chunks.
        attempt: The latest attempt when the client came; text of earlier attempts is left out.
        sdk: The client's major version.  From 7 on it knows ``reset-step``, from 6 on approvals; an older one
            throws an error at these chunks.
        stored_to: The seq of the last line that was stored when the client came; None for one that reads no stored log.
        given: The ids of the calls that the client has just approved, denied or run; then it holds a part of this
            message already.  The step is begun anew or, for a client without ``reset-step``, sent from the first
            outcome of these calls on.

    Attributes:
        ended: Whether the last chunk was written.
        broken: Whether the rest cannot be sent to this client: its body must be broken off, so that it reconnects.
    """

    def __init__(
        self,
        message_id: str,
        *,
        version: int = 1,
        seen: int | None = None,
        attempt: int = 1,
        sdk: int = NEWEST,
        stored_to: int | None = None,
        given: Collection[str] = (),
    ) -> None:
        self.ended = False
        self.broken = False
        named = f'"messageId":{encode(message_id)},"messageMetadata":{{"version":{version}}}'
        self._start = f'data: {{"type":"start",{named}}}\n\n'
        self._resets = sdk >= _RESETS
        self._approves = sdk >= _APPROVES
        self._given = given
        self._held = bool(given) and not self._resets  # whether the client already holds the chunks to send
        self._attempt = attempt
        self._out: list[str] = []
        self._begun = False
        self._may_hold = bool(given) or (seen is not None and self._resets)
        self._seen = seen or 0
        self._waits_for = self._wait_for(stored_to)  # nothing is sent before the line of this seq
        self._skip = self._seen  # how many chunks are still to be left out
        self._skipped: list[str] | None = [] if seen else None  # kept until it is certain that the client has them
        self._parts = 0
        self._open: PartKey | None = None  # the part being sent
        self._open_id = ""
        self._pieces: list[str] = []  # of the part being sent
        self._step: list[Passage] = []  # the step so far; a passage without a part holds chunks
        self._tool_ids: dict[str, list[str]] = {}
        self._tools_called: dict[str, int] = {}
        self._usage: dict[str, Any] = {}
        self._asked: dict[str, Mapping[str, Any]] = {}  # calls that the client is to run

    def feed(self, text: str) -> str:
        """Return the chunks for *text*, whole lines of the log."""
        self._out = []
        for line in text.split("\n"):
            if not line or self.ended or self.broken:
                continue
            if (piece := piece_of_answer(line)) is not None:
                if self._attempt == 1 or attempt_of_piece(line) >= self._attempt:
                    self._say_piece(TEXT, piece)
            elif line.startswith(PING_START):
                self._out.append(PING_FRAME)
            else:
                self._take(read_line(line))
        if self._waits_for is not None and (seq := last_seq(text)) is not None and seq >= self._waits_for:
            self._say_what_waits()
        return "".join(self._out)

    def begin_attempt(self, attempt: int, stored_to: int) -> None:
        """Set the latest attempt, and how far the log is stored, before the first line."""
        self._attempt = attempt
        self._waits_for = self._wait_for(stored_to)

    def _wait_for(self, stored_to: int | None) -> int | None:
        return None if self._resets or self._given or self._seen else stored_to

    def _say_what_waits(self) -> None:
        """Send the text as the stored lines leave it: this client could not take back what a later line replaces."""
        self._waits_for = None
        if self._begun:
            self._say_frame(self._start)
            self._say_frame(_START_STEP)
            self._say_step(self._step)
            if self._usage:
                self._say_usage()

    # One line.

    def _take(self, line: Line) -> None:
        if line.attempt is not None and line.attempt != self._attempt:
            if line.attempt < self._attempt:
                return
            self._begin_attempt_anew(line.attempt)
        if line.type == QUEUED:
            self._out.append(queued_frame(line))
            return
        # The log of attempt 1 begins with seq 0, unless it was given up for its answer, which has the last seqs.
        self._begin(counted=self._attempt == 1 and not (line.type == _STARTED and line.seq))
        handler = _HANDLERS.get(line.type)
        if handler is not None:
            handler(self, line)
        elif not line.type.startswith("session."):
            self._end_part()
            self._say_other({"type": f"data-{line.type}", "data": line.data})

    def _begin(self, *, counted: bool) -> None:
        """Begin the message; where the chunks are not those that the client has *counted*, from its beginning."""
        if self._begun:
            return
        self._begun = True
        if self._seen and not counted:
            self._come_back_to_another()
            return
        if self._held:
            self._out.append(self._start)
            return
        self._say_frame(self._start)
        self._say_frame(_RESET_STEP if self._may_hold else _START_STEP)

    def _begin_attempt_anew(self, attempt: int) -> None:
        """Begin another attempt; clear the chunks of the attempt whose worker was lost."""
        self._attempt = attempt
        if not self._begun:
            return
        was_empty = not self._step
        self._forget_step()
        if self._skip:
            self._come_back_to_another()
        elif not was_empty:
            self._say_reset()

    # The cursor.

    def _come_back_to_another(self) -> None:
        """Begin the step anew, because the client's chunks differ from those that follow."""
        self._skip, self._skipped = 0, None
        if self._resets or self._seen >= _HEAD:
            self._say_reset()
        else:
            self._say_frame(_START_STEP)

    def _say_reset(self) -> None:
        if self._resets:
            self._say_frame(_RESET_STEP)
        elif not self._held and self._waits_for is None:
            self.broken = True

    def _prove_or_reset(self, *, readable: bool) -> None:
        """At the first text that is left out: begin the step anew if the log has lost that text (not *readable*)."""
        if self._skipped is None:
            return
        said, self._skipped = self._skipped[_HEAD:], None
        if not readable:
            self._come_back_to_another()
            self._out += said

    def _say(self, chunk: Mapping[str, Any]) -> None:
        self._say_frame(f"data: {encode(chunk)}\n\n")

    def _say_frame(self, frame: str) -> None:
        if self._held or self.broken or self._waits_for is not None:
            return
        if not self._skip:
            self._out.append(frame)
            return
        self._skip -= 1
        if self._skipped is not None:
            self._skipped.append(frame)

    # Parts.

    def _open_part(self, key: PartKey) -> None:
        self._begin(counted=self._attempt == 1)
        self._end_part()
        self._parts += 1
        self._open, self._open_id = key, str(self._parts)
        self._pieces = []
        self._step.append(Passage(key, self._pieces))
        self._say({"type": f"{key[0]}-start", "id": self._open_id})

    def _end_part(self) -> None:
        if self._open is not None:
            self._say({"type": f"{self._open[0]}-end", "id": self._open_id})
            self._open = None

    def _say_piece(self, key: PartKey, piece: str) -> None:
        """Send a piece of a part; *piece* is a JSON string without its quotes."""
        if self._open != key:
            self._open_part(key)
        if self._skip:
            self._prove_or_reset(readable=bool(piece))
        self._pieces.append(piece)
        frame = f'data: {{"type":"{key[0]}-delta","id":"{self._open_id}","delta":"{piece}"}}\n\n'
        if self._resets and not self._skip:  # nearly always
            self._out.append(frame)
        else:
            self._say_frame(frame)

    def _part(self, line: Line) -> None:
        key, delta, whole = part_of(line.data)
        if key[0] not in _KINDS:
            self._end_part()
            self._say_other({"type": f"data-{key[0]}", "data": line.data})
            return
        if whole is not None:
            self._say_whole(key, whole)
        else:
            self._say_piece(key, quoted(delta or ""))

    def _say_whole(self, key: PartKey, whole: str) -> None:
        """Send what is new in a part's whole text; if its text so far differs, send the step anew."""
        said = said_of(self._step, key)
        if whole.startswith(said):
            self._say_piece(key, quoted(whole[len(said) :]))
        else:
            self._say_anew(with_whole(self._step, key, whole))

    def _say_anew(self, step: Sequence[Passage]) -> None:
        """Clear the step, and send *step* in its place."""
        self._say_reset()
        self._say_step(step)

    def _say_step(self, step: Sequence[Passage]) -> None:
        self._open, self._step = None, []
        for passage in step:
            if passage.key is None:
                self._step.append(passage)
                for frame in passage.pieces:
                    self._say_frame(frame)
            elif text := "".join(passage.pieces):
                self._say_piece(passage.key, text)
                self._pieces[:] = passage.pieces
                self._end_part()

    def _forget_step(self) -> None:
        self._open, self._step = None, []
        self._tool_ids, self._tools_called, self._usage, self._asked = {}, {}, {}, {}

    def _result(self, line: Line) -> None:
        """Take the whole answer, and send it if it differs from the text so far."""
        whole = line.data.get("finalText")
        said = "".join(unquoted(each.pieces) for each in self._step if each.is_answer)
        if not isinstance(whole, str) or whole == said:
            return
        if said:
            others = [each for each in self._step if not each.is_answer]
            self._say_anew([*others, Passage(TEXT, [quoted(whole)])])
        else:
            self._say_piece(TEXT, quoted(whole))

    # Tools.

    def _tool_call(self, line: Line) -> None:
        self._end_part()
        if (id_ := self._new_tool_id(line)) is None:
            return
        self._say_other(
            {
                "type": "tool-input-available",
                "toolCallId": id_,
                "toolName": str(line.data.get("toolName", "tool")),
                "input": line.data.get("args"),
                **_RUN_HERE,
            }
        )

    def _tool_approval(self, line: Line) -> None:
        if (id_ := self._tool_id(line)) is None:
            return
        asked = {"approvalId": str(line.data.get("key")), "toolCallId": id_}
        if self._approves:
            self._say_other({"type": "tool-approval-request", **asked})
        else:
            self._say_other({"type": f"data-{line.type}", "data": asked})

    def _client_tool(self, line: Line) -> None:
        id_ = str(line.data.get("toolCallId"))
        self._asked[id_] = {
            "type": "tool-input-available",
            "toolCallId": id_,
            "toolName": str(line.data.get("toolName", "tool")),
            "input": line.data.get("args"),
        }

    def _tool_outcome(self, line: Line) -> None:
        id_ = str(line.data.get("toolCallId"))
        if (asked := self._asked.pop(id_, None)) is not None:
            self._tool_ids.setdefault(id_, []).append(id_)
            self._say_client_tool({**asked, "providerExecuted": True})
            self._say_outcome(line, {"providerExecuted": True})
        else:
            self._say_outcome(line, _RUN_HERE)
        if self._step:
            self._end_part()
            self._step.append(ROUND_ENDS)

    def _say_client_tool(self, chunk: Mapping[str, Any]) -> None:
        self._end_part()
        self._say_other(chunk)

    def _say_outcome(self, line: Line, executed: Mapping[str, bool]) -> None:
        if (id_ := self._tool_id(line)) is None:
            return
        self._tool_ids[str(line.data["toolCallId"])].pop(0)
        if self._held and id_ in self._given:
            self._held, self._open = False, None
        if line.type == "tool.result":
            chunk = {"type": "tool-output-available", "toolCallId": id_, "output": line.data.get("result"), **executed}
        elif line.data.get("code") == "denied" and self._approves:
            chunk = {"type": "tool-output-denied", "toolCallId": id_}
        else:
            text = str(line.data.get("message", "the tool failed"))
            chunk = {"type": "tool-output-error", "toolCallId": id_, "errorText": text, **executed}
        self._say_other(chunk)

    def _say_other(self, chunk: Mapping[str, Any]) -> None:
        frame = f"data: {encode(chunk)}\n\n"
        self._step.append(Passage(None, [frame]))
        self._say_frame(frame)

    def _new_tool_id(self, line: Line) -> str | None:
        """Return an id that is unique in this message, since a model may use one twice; None for a redacted line."""
        given = line.data.get("toolCallId")
        if not isinstance(given, str):
            if self._skip:
                self._prove_or_reset(readable=False)
            return None
        times = self._tools_called[given] = self._tools_called.get(given, 0) + 1
        id_ = given if times == 1 else f"{given}#{times}"
        self._tool_ids.setdefault(given, []).append(id_)
        return id_

    def _tool_id(self, line: Line) -> str | None:
        """Return the id of the call that a line is about; None for a redacted line."""
        waiting = self._tool_ids.get(str(line.data.get("toolCallId")))
        return waiting[0] if waiting else None

    # Citations and images.

    def _citations(self, line: Line) -> None:
        """Send citations with a web address as sources, and others as data."""
        for at, each in enumerate(self._list(line, "citations")):
            url, title = (each.get("url"), each.get("title")) if isinstance(each, dict) else (None, None)
            if isinstance(url, str) and url.startswith(_WEB):
                named = {"title": title} if isinstance(title, str) else {}
                self._say_other({"type": "source-url", "sourceId": str(at + 1), "url": url, **named})
            else:
                self._say_other({"type": f"data-{line.type}", "data": {"citations": [each]}})

    def _list(self, line: Line, name: str) -> list[Any]:
        """Return the list *name* of a line; [] for a redacted line, whose live version had more chunks."""
        self._end_part()
        found = line.data.get(name)
        if isinstance(found, list):
            return found
        if self._skip:
            self._prove_or_reset(readable=False)
        return []

    def _images(self, line: Line) -> None:
        """Send images with an address as files, and others as data."""
        for each in self._list(line, "images"):
            url = each.get("url") if isinstance(each, dict) else None
            if isinstance(url, str) and url.startswith((*_WEB, _INLINE_IMAGE)):
                media_type = url[5:].partition(";")[0] if url.startswith(_INLINE_IMAGE) else "image/*"
                self._say_other({"type": "file", "url": url, "mediaType": media_type})
            else:
                self._say_other({"type": f"data-{line.type}", "data": {"images": [each]}})

    # Usage and the end.

    def _count(self, line: Line) -> None:
        add_usage(self._usage, line)
        self._say_usage()

    def _say_usage(self) -> None:
        self._say({"type": "message-metadata", "messageMetadata": {"usage": dict(self._usage)}})

    def _completed(self, line: Line) -> None:
        del line
        self._finish(_FINISH_REASONS.get(str(self._usage.get("finishReason")), "stop"))

    def _cancelled(self, line: Line) -> None:
        self._finish("other", {"type": "abort", "reason": str(line.data.get("reason", "requested"))})

    def _suspended(self, line: Line) -> None:
        if "turnIndex" in line.data:  # the turn that waits is another one
            self._finish("error", {"type": "error", "errorText": _BEHIND_A_WAIT})
            return
        self._end_part()
        self._held = False
        for chunk in self._asked.values():
            self._say_client_tool(chunk)
        self._finish("tool-calls")

    def _failed(self, line: Line) -> None:
        if line.seq is None and line.data.get("retryable"):
            return  # not the end of the log: the worker that takes over the turn adds lines
        self._finish("error", {"type": "error", "errorText": str(line.data.get("message", "the turn failed"))})

    def _finish(self, reason: str, first: Mapping[str, Any] | None = None) -> None:
        self._end_part()
        if self._waits_for is not None:
            self._say_what_waits()
        self._held = False
        self._skip = 0
        self._skipped = None
        if first is not None:
            self._say(first)
        self._say({"type": "finish-step"})
        self._say({"type": "finish", "finishReason": reason})
        self._out.append(_DONE)
        self.ended = True


_RUN_HERE: Final[Mapping[str, bool]] = {"dynamic": True, "providerExecuted": True}
"""Marks a call as the server's; without it the client takes the call for its own."""

_WEB: Final = ("https://", "http://")
"""Only addresses of these schemes are sent as addresses, because a page may make links of them."""

_INLINE_IMAGE: Final = "data:image/"

_BEHIND_A_WAIT: Final = (
    "A turn before this one waits for an approval, or for the result of a tool. This one is answered after it."
)
"""The error of a turn that is not answered yet, because it waits for a suspended turn."""

_FINISH_REASONS: Final[Mapping[str, str]] = {"length": "length", "content_filter": "content-filter"}


def _nothing(stream: UiMessageStream, line: Line) -> None:
    """Leave a line out."""
    del stream, line


_HANDLERS: Final[Mapping[str, Callable[[UiMessageStream, Line], None]]] = {
    _STARTED: _nothing,
    "context": _nothing,
    "session.run.restarted": _nothing,  # the line's attempt number has begun the new attempt
    MESSAGE_PART: UiMessageStream._part,  # noqa: SLF001 - the class's own table
    "tool.call": UiMessageStream._tool_call,  # noqa: SLF001
    "tool.approval": UiMessageStream._tool_approval,  # noqa: SLF001
    "tool.client": UiMessageStream._client_tool,  # noqa: SLF001
    **dict.fromkeys(sorted(TOOL_OUTCOMES), UiMessageStream._tool_outcome),  # noqa: SLF001
    "answer.citations": UiMessageStream._citations,  # noqa: SLF001
    "answer.images": UiMessageStream._images,  # noqa: SLF001
    "usage": UiMessageStream._count,  # noqa: SLF001
    "result": UiMessageStream._result,  # noqa: SLF001
    "error": _nothing,  # the terminal line says the same
    "session.run.completed": UiMessageStream._completed,  # noqa: SLF001
    "session.run.cancelled": UiMessageStream._cancelled,  # noqa: SLF001
    "session.run.suspended": UiMessageStream._suspended,  # noqa: SLF001
    "session.run.failed": UiMessageStream._failed,  # noqa: SLF001
}
