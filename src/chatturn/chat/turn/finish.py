"""How a turn ends: its last words, and what is written with them, in one transaction."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chatturn.chat.hooks.outbox import Outbox
from chatturn.chat.log.log import TurnLog
from chatturn.chat.thread.history import ShownHistory
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.thread.queue_sql import Front
from chatturn.chat.thread.version_sql import mark_breaks, order_parallel
from chatturn.chat.turn import sql as chat_sql
from chatturn.chat.turn.retries import retry_after_ms
from chatturn.database.api import Statement
from chatturn.durable.ends import Cancelled, Completed, End, Failed, Suspended, answer_of
from chatturn.durable.states import ENDS
from chatturn.errors import ChatTurnError, TurnAborted
from chatturn.events import ChatStreamEvent, encode_line

__all__ = [
    "FINISH_REASONS",
    "Finish",
    "context_event",
    "ending_words",
    "failure_words",
    "finish_reason_of",
    "kind_of",
    "queued_words",
    "started_words",
    "unlogged",
    "waiting_words",
]

FINISH_REASONS: Final = ("stop", "length", "content_filter", "tool_calls", "cancelled")
"""Why an answer ended: only after ``stop`` is the answer whole."""


@dataclass(slots=True, kw_only=True)
class Finish:
    """
    The end of one attempt.

    Attributes:
        identity: The turn.
        log: The attempt's log.
        outbox: Where its hook calls are recorded.
        redacting: Whether the product redacts.
        idle_attempts: How many attempts in a row have come no further, this attempt included.
        threaded: Whether turns have versions.
        words: The attempt's last events, once it is known how it ends.
        lines: The lines of `words`.
        finish_reason: Why the answer has ended, one of `FINISH_REASONS`; None without an answer.
    """

    identity: ChatTurnIdentity
    log: TurnLog
    outbox: Outbox
    redacting: bool
    idle_attempts: int = 1
    threaded: bool = False
    words: list[ChatStreamEvent] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    finish_reason: str | None = None

    def statements(
        self, end: End, *, checkpoints: bool, finish_reason: str | None, kept_json: str | None = None
    ) -> list[Statement]:
        """
        Make the statements of the last write: the log with its terminal line, messages, hook calls.

        Args:
            end: How the turn ends.
            checkpoints: Whether it has steps on the way to its answer.
            finish_reason: Why the model stopped, as far as it said so.
            kept_json: What the answer's API wants back with it in later turns.
        """
        self.finish_reason = reason = finish_reason_of(end, finish_reason)
        wait_ms = retry_after_ms(end.error, self.idle_attempts) if isinstance(end, Failed) else 0
        self.words = ending_words(self.identity, end, finish_reason=reason, wait_ms=wait_ms)
        text = answer_of(end)
        if self.redacting and text is not None:
            # The log of a product that redacts has no text before this line: the redactor sees only the whole answer.
            self.words.insert(0, ChatStreamEvent("result", {"finalText": text}))
        self.lines = self.log.preview(self.words)
        return [
            *self.log.last_statements(self.lines),
            *chat_sql.end_turn(end, reason, wait_ms, kept_json),
            *self._messages(text),
            *(self.outbox.statements(self.log.attempt) if text else []),
            *([chat_sql.forget_checkpoints()] if checkpoints and self.redacting and text is not None else []),
        ]

    def _messages(self, text: str | None) -> list[Statement]:
        # A version that was stopped before it said anything leaves the version that counts as it is.
        if text is None or (not text and self.identity.version > 1):
            return []
        if not self.threaded:
            return [chat_sql.record_messages(text)]
        around = self.outbox.around_finish(self.identity)
        return [
            *around.before,
            *order_parallel(self.identity),
            chat_sql.record_messages(text),
            mark_breaks(self.identity),
            *around.behind,
        ]


def finish_reason_of(end: End, said: str | None) -> str | None:
    """
    Return why an answer ended, in one of `FINISH_REASONS`; None where there is none.

    Args:
        end: How the turn ends.
        said: What the last model call said; a product's own model may say anything, or nothing.
    """
    match end:
        case Completed():
            return said if said in FINISH_REASONS else "stop"
        case Cancelled():
            return "cancelled"
        case _:
            return None


def ending_words(
    identity: ChatTurnIdentity,
    end: End,
    *,
    replayed: bool = False,
    finish_reason: str | None = None,
    wait_ms: int = 0,
) -> list[ChatStreamEvent]:
    """Return the last events of a turn that ended with *end*."""
    known = {} if finish_reason is None else {"finishReason": finish_reason}
    match end:
        case Completed():
            return [_last(Completed, identity, {"replayed": replayed, **known})]
        case Cancelled(reason=reason):
            return [_last(Cancelled, identity, {"reason": reason, "replayed": replayed, "finishReason": "cancelled"})]
        case Suspended(wait):
            return [_last(Suspended, identity, {"key": wait.key, "wakeAt": wait.wake_at})]
        case Failed(error):
            return failure_words(identity, kind_of(error), wait_ms)


def context_event(shown: ShownHistory) -> ChatStreamEvent:
    """Return the event that says which part of the conversation the model is not shown."""
    data = {"turns": shown.turns, "leftOut": shown.left_out, "shortened": list(shown.shortened)}
    return ChatStreamEvent("context", data)


def queued_words(identity: ChatTurnIdentity, position: int) -> list[ChatStreamEvent]:
    """Return the event that says that a turn waits, and for how many others."""
    data = {"sessionId": identity.session_id, "turnIndex": identity.turn_index, "position": position}
    return [ChatStreamEvent("session.run.queued", data)]


def waiting_words(identity: ChatTurnIdentity, front: Front) -> list[ChatStreamEvent]:
    """Return the last events for a turn that waits behind a suspended turn: the events of the suspended turn."""
    data = {"turnIndex": front.turn_index, "key": front.key, "wakeAt": front.wake_at}
    return [_last(Suspended, identity, data)]


def started_words(identity: ChatTurnIdentity) -> list[ChatStreamEvent]:
    """Return the first words of a turn."""
    data = {"sessionId": identity.session_id, "tenantId": identity.tenant_id, "turnIndex": identity.turn_index}
    return [ChatStreamEvent("session.run.started", data)]


def failure_words(identity: ChatTurnIdentity, kind: type[ChatTurnError], wait_ms: int = 0) -> list[ChatStreamEvent]:
    """Return the last words of a turn that failed with this kind of error: its code and fixed sentence."""
    wait = {"retryAfterMs": wait_ms} if wait_ms else {}
    reason = {"code": kind.code, "message": kind.public, "retryable": kind.retryable}
    return [ChatStreamEvent("error", reason), _last(Failed, identity, {**reason, **wait})]


def kind_of(error: BaseException | None) -> type[ChatTurnError]:
    """Return the error class that clients are told; for an error of foreign code never its class or text."""
    if isinstance(error, ChatTurnError):
        return type(error)
    return TurnAborted if isinstance(error, asyncio.CancelledError | GeneratorExit) else ChatTurnError


def unlogged(events: Sequence[ChatStreamEvent], attempt: int) -> str:
    """Return lines that are in no log, and so have no place in it."""
    return "".join(encode_line(event, None, attempt) for event in events)


def _last(end: type[End], identity: ChatTurnIdentity, members: dict[str, Any]) -> ChatStreamEvent:
    return ChatStreamEvent(ENDS[end].line, {"sessionId": identity.session_id, "version": identity.version, **members})
