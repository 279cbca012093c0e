"""
`TurnTrace`: one attempt's part of its turn's trace, or one replay's.

::

    (caller's span)
      └─ invoke_agent <project>      the turn: one span, sent by the first attempt whose end is on record
           ├─ attempt 1              its worker was lost: sent by the attempt that took over
           ├─ attempt 2 ──link──▶ attempt 1
           │    ├─ batch D1, step …, chat <model>, execute_tool <tool>
           └─ replay ──link──▶ attempt 2

The trace id and the turn's span id are stored with the turn, so every worker continues the same trace.  An attempt's
span id is computed from the turn's, so the next attempt knows it.  Whether a trace is kept is decided when an attempt
has ended: an attempt that failed, or that followed a lost one, is always kept.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from chatturn.database.api import Database
from chatturn.telemetry import conventions
from chatturn.telemetry.attempt_facts import AttemptEnd, AttemptStart
from chatturn.telemetry.otlp.database import TracedDatabase
from chatturn.telemetry.otlp.encoding import encode_span
from chatturn.telemetry.otlp.measuring import measure
from chatturn.telemetry.otlp.outbound import Outbound
from chatturn.telemetry.otlp.sending import Loss
from chatturn.telemetry.spans import FinishedSpan, SpanLink, SpanRecorder
from chatturn.telemetry.tracer import AttributeValue
from chatturn.telemetry.w3c import SAMPLED, TraceParent, parse_traceparent, sampled_at

__all__ = ["LEASE_LAPSED", "LINGER_S", "TurnTrace", "attempt_span_id"]

LEASE_LAPSED: Final = "lease_lapsed"
"""The error of an attempt whose worker was lost."""

LINGER_S: Final = 0.5
"""The pause between the end of a turn and the flush."""

_RANDOM: Final = 0x02


def attempt_span_id(turn: TraceParent, attempt: int) -> str:
    """Return the id of an attempt's span, computed from the turn's span and the attempt's number."""
    return hashlib.sha256(f"{turn.trace_id}-{turn.span_id}-{attempt}".encode()).hexdigest()[:16]


class TurnTrace:
    """
    The telemetry of one attempt.

    Args:
        outbound: The queue of items to send.
        about: Attributes of the turn.
        caller: The span of the request; None if it has none.
        ratio: The share of the traces beginning here that is kept, 0 to 1.
        shows_content: Whether spans carry message content.
        now_ns: Nanoseconds since the epoch.
        new_id: Takes a number of bytes; returns that many random ones in lower-case hex.

    Attributes:
        tracer: Takes the spans below the attempt's.
        turn: The turn's span; store it if the turn has none yet.
        caller_span_id: The parent of the turn's span; None if the turn's span is the first of the trace.
    """

    def __init__(
        self,
        outbound: Outbound,
        *,
        about: Mapping[str, AttributeValue],
        caller: TraceParent | None,
        ratio: float,
        shows_content: bool,
        now_ns: Callable[[], int],
        new_id: Callable[[int], str],
    ) -> None:
        trace_id = new_id(16) if caller is None else caller.trace_id
        sampled = sampled_at(ratio, trace_id) if caller is None else caller.sampled
        flags = (SAMPLED if sampled else 0) | (_RANDOM if caller is None else caller.flags & _RANDOM)
        self.turn = TraceParent(trace_id, new_id(8), flags)
        self.caller_span_id = None if caller is None else caller.span_id
        self._outbound = outbound
        self._about = about
        self._caller = caller
        self._now_ns = now_ns
        self._span_id = new_id(8)
        self._parent_id: str | None = self.caller_span_id
        self._start_ns = now_ns()
        self._start = AttemptStart(attempt=1)
        self._sends_turn = False
        self._end_ns = 0
        self._databases: list[TracedDatabase] = []
        self.tracer = SpanRecorder(
            now_ns=now_ns,
            new_id=new_id,
            parent=TraceParent(trace_id, self._span_id, flags),
            shows_content=shows_content,
        )

    def log(self, event: str, particulars: Mapping[str, object]) -> None:
        """Log what belongs to this attempt; see `OperatorLog`."""
        self._outbound.log_in(event, particulars, self.turn.trace_id, self._span_id)

    def around(self, database: Database) -> Database:
        """Return *database* with a span for each batch."""
        traced = TracedDatabase(database, self.tracer)
        self._databases.append(traced)
        return traced

    def claimed(self, start: AttemptStart) -> None:
        """Note what the claim found, and continue the stored trace, if there is one."""
        self._start = start
        stored = parse_traceparent(start.on_record.traceparent)
        if stored is None:
            return  # the turn has no trace yet: this attempt or replay begins one
        self.turn = stored
        self._parent_id = stored.span_id
        if not start.replayed:
            self._span_id = attempt_span_id(stored, start.attempt)
        self.tracer.join(TraceParent(stored.trace_id, self._span_id, stored.flags))

    def sends_turn(self, *, failed: bool) -> bool:
        """Say whether this attempt sends the turn's span; call it before the end is stored, and store the result."""
        self._sends_turn = self._start.on_record.traced_by is None and self._keeps(failed=failed)
        return self._sends_turn

    def ended(self, end: AttemptEnd) -> None:
        """Note how the attempt ended, and queue its spans for the next flush."""
        self._end_ns = self._now_ns()
        self._outbound.before_flush(partial(self._gather, end))

    async def flush(self) -> None:
        """
        Send all waiting items of the isolate, unless another turn does.

        It waits `LINGER_S` first, so that nothing is encoded while the last bytes of the answer are sent, and turns
        that end at about the same time share a flush.
        """
        await self._outbound.flush_within(LINGER_S)

    def _gather(self, end: AttemptEnd) -> None:
        duration_s = (self._end_ns - self._start_ns) / 1e9
        measure(self._outbound.metrics, self._start, end, duration_s, self._about)
        if not self._keeps(failed=end.failed):
            return
        spans = list(self.tracer.take())
        if end.outcome != "lost":
            # The span of an attempt that lost its lease is sent by the attempt that took over.
            spans += self._attempts(end)
        for span in spans:
            self._outbound.add("traces", encode_span(span))
        if self.tracer.dropped:
            self._outbound.lose(Loss("traces", "too_many_spans", self.tracer.dropped))

    def _keeps(self, *, failed: bool) -> bool:
        start = self._start
        if start.replayed:
            return self.turn.sampled
        return self.turn.sampled or failed or start.lost > 0 or start.on_record.traced_by is not None

    def _attempts(self, end: AttemptEnd) -> list[FinishedSpan]:
        """Return the spans of this attempt, of lost attempts before it, and of the turn."""
        start = self._start
        made = partial(FinishedSpan, trace_id=self.turn.trace_id, kind="internal", end_ns=self._end_ns)
        attributes: dict[str, AttributeValue] = {
            **self._about,
            conventions.TURN_ATTEMPT: start.attempt,
            conventions.TURN_OUTCOME: end.outcome,
            conventions.TURN_REPLAYED: start.replayed,
        }
        own = made(
            span_id=self._span_id,
            parent_span_id=self._parent_id,
            name="replay" if start.replayed else f"attempt {start.attempt}",
            start_ns=self._start_ns,
            attributes={**attributes, **_usage(end), **self._counts()},
            error_type=end.error_type,
            links=tuple(self._links()),
        )
        if start.replayed:
            return [own]
        began_ns = self._start_ns
        if start.attempt > start.first_attempt == 1:
            began_ns = min(began_ns, start.on_record.began_ns)  # the database's clock, which may be ahead
        lost = [
            made(
                span_id=attempt_span_id(self.turn, attempt),
                parent_span_id=self._parent_id,
                name=f"attempt {attempt}",
                start_ns=began_ns,
                attributes={**self._about, conventions.TURN_ATTEMPT: attempt, conventions.TURN_OUTCOME: "lost"},
                error_type=LEASE_LAPSED,
            )
            for attempt in range(start.attempt - start.lost, start.attempt)
        ]
        if not self._sends_turn:
            return [*lost, own]
        turn = made(
            span_id=self.turn.span_id,
            parent_span_id=start.on_record.caller_span_id,
            name=f"{conventions.INVOKE_AGENT} {self._about[conventions.AGENT_NAME]}",
            start_ns=began_ns,
            attributes={conventions.OPERATION_NAME: conventions.INVOKE_AGENT, **attributes, **self._said(end)},
            error_type=end.error_type,
        )
        return [*lost, own, turn]

    def _counts(self) -> Mapping[str, AttributeValue]:
        batches = sum(database.batches for database in self._databases)
        lost = self._start.lost
        return {conventions.D1_BATCHES: batches, **({conventions.TURN_LOST_ATTEMPTS: lost} if lost else {})}

    def _links(self) -> list[SpanLink]:
        start, caller, links = self._start, self._caller, []
        if start.on_record.traceparent is not None and (start.replayed or start.attempt > start.first_attempt):
            before = start.attempt if start.replayed else start.attempt - 1
            reason = "replay" if start.replayed else "takeover" if start.lost else "follows"
            links.append(SpanLink(self.turn.trace_id, attempt_span_id(self.turn, before), reason))
        known = {start.on_record.caller_span_id, self._parent_id}
        if caller is not None and (caller.trace_id != self.turn.trace_id or caller.span_id not in known):
            links.append(SpanLink(caller.trace_id, caller.span_id, "caller"))
        return links

    def _said(self, end: AttemptEnd) -> Mapping[str, AttributeValue]:
        messages = [
            (conventions.INPUT_MESSAGES, "user", end.question),
            (conventions.OUTPUT_MESSAGES, "assistant", end.answer),
        ]
        said = {
            name: self.tracer.content([{"role": role, "content": content}])
            for name, role, content in messages
            if content
        }
        return {name: text for name, text in said.items() if text is not None}


def _usage(end: AttemptEnd) -> Mapping[str, AttributeValue]:
    """Return the tokens that the attempt's calls consumed; a count unknown for any call is left out."""
    counts = {
        conventions.USAGE_INPUT_TOKENS: [call.tokens_in for call in end.calls],
        conventions.USAGE_OUTPUT_TOKENS: [call.tokens_out for call in end.calls],
    }
    known = {name: [count for count in all_ if count is not None] for name, all_ in counts.items()}
    return {name: sum(found) for name, found in known.items() if found and found == counts[name]}
