"""
A turn's log in agent-runtime's vocabulary: chat events in, `RuntimeStreamEvent`s out.

::

    session.run.started ─────▶ task_start, session_created or session_resumed, backend_start
    message.part.updated ────▶ text_delta, reasoning_delta
    tool.call, tool.client ──▶ tool_call
    tool.result, tool.error ─▶ tool_result
    tool.approval ───────────▶ proposal_created, pending
    usage ───────────────────▶ llm_call
    session.run.restarted ───▶ backend_error, session_resumed, backend_start
    error ───────────────────▶ backend_error
    session.run.completed, .failed, .cancelled, .suspended ─▶ (backend_end,) task_end, final

The events are in the order of `event_order`, wherever in a log the feed begins.  A ``result`` has the whole answer
again: only the part that was not told before becomes a `text_delta`, so no answer is told twice (O6 in
docs/reference/agent-runtime.md).  If a product redacts, text that was told cannot be taken back; the text of `final` is
the answer.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, Final, TypeAlias

from chatturn.agent_runtime.values.chat_events import SAID, UNKNOWN_MODEL, Data, count_in, llm_call, text_in
from chatturn.agent_runtime.values.event_order import PHASES, Phase
from chatturn.agent_runtime.values.events import (
    BackendEndEvent,
    BackendErrorEvent,
    BackendStartEvent,
    FinalEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TaskEndEvent,
    TaskStartEvent,
    TextDeltaEvent,
    filled_in,
)
from chatturn.agent_runtime.values.fixed_words import BACKEND_COMPLETED, SUSPENDED, WORKER_LOST
from chatturn.agent_runtime.values.tasks import (
    AgentTaskSpec,
    AgentTaskStatus,
    BackendErrorDetail,
    RuntimeSession,
    SessionStatus,
)
from chatturn.errors import BackendTimeout, BackendTransportError, TurnAborted, error_class
from chatturn.events import MESSAGE_PART, ChatStreamEvent, TextAssembly, is_answer
from chatturn.jsontext.depth import nests_deeper
from chatturn.timestamps import iso_timestamp

__all__ = ["RuntimeEventMapper"]

_Events: TypeAlias = Iterator[RuntimeStreamEvent]

_MAX_LINE_DEPTH: Final = 100
_ENDS_SAYING: Final = frozenset({"tool.result", "tool.error"})
_SESSION_STATUS: Final = {
    AgentTaskStatus.COMPLETED: SessionStatus.COMPLETED,
    AgentTaskStatus.BLOCKED: SessionStatus.ACTIVE,
    AgentTaskStatus.FAILED: SessionStatus.FAILED,
    AgentTaskStatus.ABORTED: SessionStatus.ABORTED,
}


class RuntimeEventMapper:
    """
    Maps the events of one turn, attempt after attempt, in their order.

    If it is fed from the start of a log, it tells every model call once: a call that a later attempt replays from its
    record is not told again.

    Args:
        task: What the turn is for.
        session_id: The thread.
        backend: The kind of backend that answers.
        now_ms: Returns milliseconds since the epoch, because the lines of a log have no time.
        model: The model of calls whose usage names none.
    """

    def __init__(
        self,
        *,
        task: AgentTaskSpec,
        session_id: str,
        backend: str,
        now_ms: Callable[[], int],
        model: str = UNKNOWN_MODEL,
    ) -> None:
        self._task = task
        self._backend = backend
        self._now_ms = now_ms
        self._model = model
        self._moment_ms: int | None = None
        self._moment = ""
        self._phase = Phase.NEW
        self._session = RuntimeSession(
            id=session_id, backend=backend, status=SessionStatus.ACTIVE, created_at="", updated_at=""
        )
        self._attempt = 1
        self._calls: dict[int, int] = {}  # the number of calls told, by the attempt that paid for them
        self._calls_again: dict[int, int] = {}  # the same, of the events of the current attempt
        self._answer = TextAssembly()
        self._failure: BackendErrorDetail | None = None

    def feed(self, event: ChatStreamEvent, *, attempt: int | None = None) -> list[RuntimeStreamEvent]:
        """
        Take the turn's next event; return agent-runtime's events for it, none if it has no counterpart.

        Args:
            event: The chat event.
            attempt: The attempt that it belongs to, if known.
        """
        handle = self._HANDLERS.get(event.type, RuntimeEventMapper._say if event.type in SAID else None)
        if handle is None:
            return []
        self._look_at_the_clock()
        if self._phase is Phase.OVER:
            self._phase = Phase.NEW
            self._attempt += 1  # unless *attempt* is given
        self._attempt = attempt or self._attempt
        data: Data = event.data or {}
        return [*self._in_order(self._open(data)), *self._in_order(handle(self, event, data))]

    def feed_line(self, line: str) -> list[RuntimeStreamEvent]:
        """
        Take the next line of the turn's log.

        Raises:
            ValueError: It is no line of a log.
        """
        if nests_deeper(line, _MAX_LINE_DEPTH):
            raise ValueError(f"a line of a log nests no deeper than {_MAX_LINE_DEPTH} levels")
        members = json.loads(line)
        if not isinstance(members, dict) or not isinstance(members.get("type"), str):
            raise ValueError("a line of a log is a JSON object with a type")  # noqa: TRY004  whatever it is instead
        data = members.get("data")
        event = ChatStreamEvent(members["type"], data if isinstance(data, dict) else None)
        return self.feed(event, attempt=count_in(members, "attempt"))

    def _look_at_the_clock(self) -> None:
        now_ms = self._now_ms()
        if now_ms != self._moment_ms:
            self._moment_ms, self._moment = now_ms, iso_timestamp(now_ms)

    def _in_order(self, events: Iterable[RuntimeStreamEvent]) -> _Events:
        for event in events:
            self._phase = PHASES[self._phase][event.type]
            yield filled_in(event, task=self._task, session=self._session, timestamp=self._moment)

    # The lifecycle.

    def _open(self, data: Data) -> _Events:
        """Begin the task, unless it has begun: a client that comes back is sent ``session.run.started`` again."""
        if self._phase is Phase.NEW:
            yield TaskStartEvent(task=self._task, timestamp=self._moment)
            yield from self._begin(SessionResumedEvent if data.get("turnIndex") else SessionCreatedEvent)

    def _begin(self, kind: type[SessionCreatedEvent | SessionResumedEvent]) -> _Events:
        self._answer = TextAssembly()
        self._failure = None
        self._calls_again.clear()
        session = self._session = self._session_as(SessionStatus.ACTIVE)
        yield kind(task=self._task, session=session, timestamp=self._moment)
        yield BackendStartEvent(task=self._task, session=session, backend=self._backend, timestamp=self._moment)

    def _session_as(self, status: SessionStatus) -> RuntimeSession:
        session = self._session
        return RuntimeSession(
            id=session.id,
            backend=session.backend,
            status=status,
            created_at=session.created_at or self._moment,
            updated_at=self._moment,
        )

    def _started(self, _: ChatStreamEvent, __: Data) -> _Events:
        yield from ()

    def _restarted(self, _: ChatStreamEvent, data: Data) -> _Events:
        self._attempt = count_in(data, "attempt") or self._attempt + 1
        yield self._broken(BackendErrorDetail(kind="backend", message=WORKER_LOST), recoverable=True)
        yield from self._begin(SessionResumedEvent)

    def _error(self, _: ChatStreamEvent, data: Data) -> _Events:
        kind = error_class(text_in(data, "code"))
        unreached = issubclass(kind, BackendTransportError | BackendTimeout)
        message = text_in(data, "message") or kind.public
        self._failure = BackendErrorDetail(kind="transport" if unreached else "backend", message=message)
        yield self._broken(self._failure, recoverable=kind is not TurnAborted)

    def _broken(self, detail: BackendErrorDetail, *, recoverable: bool) -> RuntimeStreamEvent:
        return BackendErrorEvent(
            task=self._task,
            session=self._session,
            backend=self._backend,
            message=detail.message,
            recoverable=recoverable,
            error=detail,
            timestamp=self._moment,
        )

    def _completed(self, _: ChatStreamEvent, data: Data) -> _Events:
        self._failure = None
        yield from self._end(AgentTaskStatus.COMPLETED, BACKEND_COMPLETED, data)

    def _failed(self, event: ChatStreamEvent, data: Data) -> _Events:
        if self._failure is None:
            yield from self._error(event, data)
        code = text_in(data, "code") or error_class(None).code
        status = AgentTaskStatus.ABORTED if code == TurnAborted.code else AgentTaskStatus.FAILED
        yield from self._end(status, code, data)

    def _cancelled(self, _: ChatStreamEvent, data: Data) -> _Events:
        yield from self._end(AgentTaskStatus.ABORTED, text_in(data, "reason") or "requested", data)

    def _suspended(self, _: ChatStreamEvent, data: Data) -> _Events:
        yield from self._end(AgentTaskStatus.BLOCKED, SUSPENDED, data)

    def _end(self, status: AgentTaskStatus, reason: str, data: Data) -> _Events:
        """Yield the last events; the other members of the terminal line are the metadata."""
        session = self._session = self._session_as(_SESSION_STATUS[status])
        if self._phase is not Phase.BROKEN:
            yield BackendEndEvent(task=self._task, session=session, backend=self._backend, timestamp=self._moment)
        yield TaskEndEvent(task=self._task, status=status, reason=reason, timestamp=self._moment)
        metadata = {name: value for name, value in data.items() if name not in {"sessionId", "message"}}
        yield FinalEvent(
            task=self._task,
            session=session,
            status=status,
            reason=reason,
            text=self._answer.text() or None,
            metadata=metadata or None,
            error=self._failure,
            timestamp=self._moment,
        )

    # What the turn says.

    def _part(self, event: ChatStreamEvent, data: Data) -> _Events:
        part = data.get("part")
        if is_answer(event):
            yield from self._text(event, data)
        elif isinstance(part, dict) and part.get("type") == "reasoning" and (delta := text_in(data, "delta")):
            yield self._delta(ReasoningDeltaEvent, delta)

    def _text(self, event: ChatStreamEvent, data: Data) -> _Events:
        """Yield what *event* adds to the answer: its delta, or else the text beyond the answer so far."""
        delta = text_in(data, "delta")
        before = "" if delta else self._answer.text()
        self._answer.add(event)
        if not delta and (after := self._answer.text()).startswith(before):
            delta = after[len(before) :]
        if delta:
            yield self._delta(TextDeltaEvent, delta)

    def _delta(self, kind: type[TextDeltaEvent | ReasoningDeltaEvent], text: str) -> RuntimeStreamEvent:
        # There is one delta for each token: all members are given here, so that `filled_in` makes no copy.
        return kind(text=text, task=self._task, session=self._session, timestamp=self._moment)

    def _usage(self, _: ChatStreamEvent, data: Data) -> _Events:
        """Tell a model call, unless it is a call of an earlier attempt, which was told when it was made."""
        paid = count_in(data, "attempt") or self._attempt
        number = self._calls_again[paid] = self._calls_again.get(paid, 0) + 1
        if number > self._calls.get(paid, 0):
            self._calls[paid] = number
            yield llm_call(data, self._model)

    def _say(self, event: ChatStreamEvent, data: Data) -> _Events:
        if event.type in _ENDS_SAYING:
            self._answer = TextAssembly()  # text before a tool's result is no part of the answer
        said = SAID[event.type](data)
        if said is not None:
            yield said

    _HANDLERS: ClassVar[Mapping[str, Callable[["RuntimeEventMapper", ChatStreamEvent, Data], _Events]]] = {
        "session.run.started": _started,
        "session.run.restarted": _restarted,
        "session.run.completed": _completed,
        "session.run.failed": _failed,
        "session.run.cancelled": _cancelled,
        "session.run.suspended": _suspended,
        "error": _error,
        MESSAGE_PART: _part,
        "result": _text,
        "usage": _usage,
    }
