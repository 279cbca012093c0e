"""
Hook calls that must still happen.

A call is recorded in the same write that stores the answer, so a crash can repeat it but never lose it; the
hook gets the same idempotency key every time.  It is made at once; what fails is tried again by `sweep`,
later and later, until it succeeds or is given up for an operator to see.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from chatturn.chat.hooks import thread_change_sql
from chatturn.chat.hooks.hooks import ChatTurnHooks, FinishedTurn
from chatturn.chat.hooks.thread_change_sql import Around
from chatturn.chat.hooks.thread_changes import ON_THREAD_CHANGED, change_from_row
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.database.api import NOW, Database, Row, Statement
from chatturn.durable.records import RunRecord
from chatturn.durable.rows import run_from_row
from chatturn.durable.sql.runs import HELD, MOMENT
from chatturn.errors import HookError, StoreError
from chatturn.product_calls import Late, awaited
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["HOOK_TIMEOUT_MS", "Outbox", "call_in_time", "finished_turn", "overrides"]

HOOK_TIMEOUT_MS: Final = 10_000
"""How long one call of a hook may take; a client may be waiting for the terminal line."""

_HOOKS: Final = ("persist_assistant_message", "on_turn_complete")
"""The hooks in their order: the second is called only after the first has succeeded."""

_HELD_FOR: Final = "+60 seconds"
"""How long a call is left to the worker that recorded or took it: 6 times `HOOK_TIMEOUT_MS`."""

_MOST_FAILURES: Final = 10
_RECORD: Final = f"""
INSERT INTO chat_outbox (run_id, hook, attempt, status, next_call_at, created_at)
SELECT ?1, ?4, ?5, 'pending', {MOMENT.format("?6, ?7")}, {MOMENT.format("?6")} WHERE {HELD}
ON CONFLICT (run_id, hook) DO UPDATE SET
  attempt = excluded.attempt, status = 'pending', failures = 0, next_call_at = excluded.next_call_at, last_error = NULL
"""

_FORGET: Final = f"DELETE FROM chat_outbox WHERE run_id = ?1 AND {HELD}"

# With the attempt: the end of a call for a superseded answer must not mark the call for the new answer.
_DONE: Final = """
UPDATE chat_outbox SET status = 'done', last_error = NULL
WHERE run_id = ?1 AND hook = ?2 AND attempt = ?3 AND status = 'pending'
RETURNING status
"""

_FAILED: Final = f"""
UPDATE chat_outbox
SET failures = failures + 1, last_error = ?4,
    status = CASE WHEN failures + 1 >= {_MOST_FAILURES} THEN 'given_up' ELSE 'pending' END,
    next_call_at = strftime('%Y-%m-%dT%H:%M:%fZ', ?5, '+' || (30 << min(failures, 10)) || ' seconds')
WHERE run_id = ?1 AND hook = ?2 AND attempt = ?3 AND status = 'pending'
RETURNING status
"""

# A call that must follow a call that was given up is given up, too.
_GIVE_UP_FOLLOWERS: Final = """
UPDATE chat_outbox SET status = 'given_up', last_error = 'persist_assistant_message was given up'
WHERE run_id = ?1 AND hook = 'on_turn_complete' AND status = 'pending' AND EXISTS (
  SELECT 1 FROM chat_outbox WHERE run_id = ?1 AND hook = 'persist_assistant_message' AND status = 'given_up')
"""

# The call on which it depends was made again, and has succeeded.
_REVIVE_FOLLOWERS: Final = f"""
UPDATE chat_outbox
SET status = 'pending', failures = 0, last_error = NULL, next_call_at = {MOMENT.format("?2")}
WHERE run_id = ?1 AND hook = 'on_turn_complete' AND status = 'given_up'
  AND last_error = 'persist_assistant_message was given up' AND EXISTS (
  SELECT 1 FROM chat_outbox WHERE run_id = ?1 AND hook = 'persist_assistant_message' AND status = 'done')
"""

# One call at a time, so that each is held from the moment of its call and not from the sweep's beginning.
_TAKE_DUE: Final = f"""
UPDATE chat_outbox SET next_call_at = {MOMENT.format("?1, ?2")}
WHERE (run_id, hook) IN (
  SELECT o.run_id, o.hook FROM chat_outbox AS o
  JOIN durable_runs AS r ON r.run_id = o.run_id AND r.status = 'completed'
  WHERE o.status = 'pending' AND o.next_call_at <= {MOMENT.format("?1")}
    AND NOT EXISTS (SELECT 1 FROM chat_outbox AS p WHERE p.run_id = o.run_id AND p.status <> 'done'
                    AND o.hook = 'on_turn_complete' AND p.hook = 'persist_assistant_message')
  ORDER BY o.next_call_at LIMIT 1)
RETURNING run_id, hook
"""

_READ_FINISHED: Final = """
SELECT o.hook, o.attempt AS call_attempt, o.payload_json, r.*, t.tenant_id, t.session_id, t.user_id, t.turn_index,
  t.version, t.replaces, t.finish_reason, s.result_json
FROM durable_runs AS r JOIN chat_turns AS t ON t.run_id = r.run_id
JOIN durable_steps AS s ON s.run_id = r.run_id AND s.step_index = 0
JOIN chat_outbox AS o ON o.run_id = r.run_id AND o.hook = ?2
WHERE r.run_id = ?1 AND r.status = 'completed'
"""


@dataclass(frozen=True, slots=True)
class _Called:
    """A call that was made, and what is to be written about it; nothing where none was made."""

    run_id: str
    hook: str
    marks: Sequence[Statement] = field(default_factory=list)
    succeeded: bool = False


def overrides(hooks: ChatTurnHooks, name: str) -> bool:
    """Say whether the product has its own hook *name*."""
    return getattr(type(hooks), name) is not getattr(ChatTurnHooks, name)


async def call_in_time(hooks: ChatTurnHooks, name: str, argument: Any) -> Any:
    """
    Call one asynchronous hook under the deadline.

    Raises:
        HookError: It raised, or took longer; from what it raised.
    """
    try:
        return await awaited(getattr(hooks, name)(argument), HOOK_TIMEOUT_MS)
    except Late as error:
        raise HookError(f"no result within {HOOK_TIMEOUT_MS} ms", hook=name) from error
    except Exception as error:
        # A product's code may raise anything; here it becomes a `HookError`.  Its text stays out of the database.
        raise HookError(f"raised {type(error).__name__}", hook=name) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """
    The hook calls of one product.

    Attributes:
        database: The database that records the calls.
        hooks: The product's hooks.
        log: Takes the failures of the hooks.
    """

    database: Database
    hooks: ChatTurnHooks
    log: OperatorLog

    def statements(self, attempt: int) -> list[Statement]:
        """Record the calls that the product wants in the finish's batch; none, if it has no such hook."""
        return [Statement(_RECORD, (hook, attempt, NOW, _HELD_FOR)) for hook in self._wanted()]

    async def deliver(self, turn: FinishedTurn, marks: list[Statement]) -> None:
        """
        Call the hooks of a turn whose answer has just been stored, in their order, until one fails.

        Args:
            turn: The turn.
            marks: Takes what is to be written about each call as it ends.  Until it is written, a sweep may
                call again.
        """
        for hook in self._wanted():
            mark, succeeded = await self._call(hook, turn)
            marks.append(mark)
            if not succeeded:
                break

    @staticmethod
    def forget() -> Statement:
        """Forget the calls of an answer that is superseded, as a statement of the claim's batch."""
        return Statement(_FORGET)

    async def sweep(self, may_call: Callable[[], bool] = lambda: True, *, at_once: int = 4) -> int:
        """
        Call what is due, some at the same time, and return how many calls succeeded.

        Each call is recorded in the round trip that takes the next one.  One that cannot be recorded is logged, and
        leaves the others alone.

        Args:
            may_call: Says before each call whether there is room for it.
            at_once: How many calls are made beside each other.
        """
        at_work, succeeded = 0, 0

        async def work() -> None:
            nonlocal at_work, succeeded
            at_work += 1
            called: _Called | None = None
            while True:
                taken, recorded = await self._record_and_take(called, take=may_call())
                succeeded += recorded and called is not None and called.succeeded
                if taken is None:
                    break
                if at_work < at_once:
                    workers.create_task(work())
                called = await self._call_again(*taken)
            at_work -= 1

        try:
            async with asyncio.TaskGroup() as workers:
                workers.create_task(work())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        return succeeded

    async def _record_and_take(self, called: "_Called | None", *, take: bool) -> tuple[tuple[str, str] | None, bool]:
        """
        Record a call, and take the next one that is due if *take*.

        Returns:
            The run and the hook of the next one; and whether this one is recorded: if not, it is made again.
        """
        marks = [] if called is None else called.marks
        taking = [Statement(_TAKE_DUE, (NOW, _HELD_FOR))] if take else []
        if not marks and not taking:
            return None, False
        try:
            results = await self.database.batch([*marks, *taking])
        except StoreError as error:
            if called is None or not marks:
                raise
            self.log("outbox.unmarked", {"run_id": called.run_id, "hook": called.hook, "error": error})
            next_one, _ = await self._record_and_take(None, take=take)
            return next_one, False
        if called is not None and marks and any(row["status"] == "given_up" for row in results[0].rows):
            particulars = {"level": "error", "run_id": called.run_id, "hook": called.hook, "calls": _MOST_FAILURES}
            self.log("hook.given_up", particulars)
        taken = results[-1].rows if take else []
        return (str(taken[0]["run_id"]), str(taken[0]["hook"])) if taken else None, bool(marks)

    async def _call_again(self, run_id: str, hook: str) -> "_Called":
        try:
            [found] = await self.database.batch([Statement(_READ_FINISHED, (run_id, hook))])
        except StoreError as error:
            self.log("outbox.unmarked", {"run_id": run_id, "hook": hook, "error": error})
            return _Called(run_id, hook)
        if not found.rows:  # superseded since it was taken
            return _Called(run_id, hook)
        row = found.rows[0]
        mark, succeeded = await (self._call(hook, _finished_turn(row)) if hook in _HOOKS else self._tell(row))
        followers = [Statement(_GIVE_UP_FOLLOWERS, (run_id,)), Statement(_REVIVE_FOLLOWERS, (run_id, NOW))]
        return _Called(run_id, hook, [mark, *followers], succeeded=succeeded)

    def around_finish(self, identity: ChatTurnIdentity) -> Around:
        """Record in the finish's batch which turns are detached or come back, if the product wants to hear of it."""
        if identity.version == 1 or not overrides(self.hooks, ON_THREAD_CHANGED):
            return Around()  # The first version takes nobody's place.
        return thread_change_sql.around_finish(identity, _HELD_FOR)

    def around_activation(self, identity: ChatTurnIdentity) -> Around:
        """Record the same in the batch of an activation; see `chatturn.chat.hooks.thread_change_sql`."""
        if not overrides(self.hooks, ON_THREAD_CHANGED):
            return Around()
        return thread_change_sql.around_activation(identity, _HELD_FOR)

    async def tell_changes(self, run_id: str) -> None:
        """
        Tell the product which turns were detached or came back when a version began to count.

        What fails is left to the sweep, and logged; nothing is raised but cancellation.
        """
        if not overrides(self.hooks, ON_THREAD_CHANGED):
            return
        try:
            [found] = await self.database.batch([thread_change_sql.read_changes(run_id)])
            marks = [(await self._tell(row))[0] for row in found.rows]
            if marks:
                await self.database.batch(marks)
        except StoreError as error:
            self.log("outbox.unmarked", {"run_id": run_id, "error": error})

    async def _tell(self, row: Row) -> tuple[Statement, bool]:
        change = change_from_row(row)
        return await self._made(str(row["hook"]), change, str(row["run_id"]), int(row["call_attempt"] or 1))

    def _wanted(self) -> Sequence[str]:
        return [hook for hook in _HOOKS if overrides(self.hooks, hook)]

    async def _call(self, hook: str, turn: FinishedTurn) -> tuple[Statement, bool]:
        told = replace(turn, idempotency_key=f"{turn.idempotency_key}/{hook}")
        return await self._made(hook, told, turn.record.run_id, turn.record.epoch)

    async def _made(self, hook: str, told: Any, run_id: str, attempt: int) -> tuple[Statement, bool]:
        """Make one call, and return how it is marked, and whether it succeeded."""
        try:
            await call_in_time(self.hooks, hook.partition("/")[0], told)
        except HookError as error:
            self.log("hook.failed", {"run_id": run_id, "hook": hook, "error": error})
            return Statement(_FAILED, (run_id, hook, attempt, str(error), NOW)), False
        return Statement(_DONE, (run_id, hook, attempt)), True


def finished_turn(
    identity: ChatTurnIdentity,
    final_text: str,
    record: RunRecord,
    *,
    cancelled: bool = False,
    finish_reason: str | None = None,
    replaces: int | None = None,
) -> FinishedTurn:
    """
    Describe a finished turn for its hooks.

    The key is of the answer, not of the turn: one that supersedes another is news to whoever gets it.
    """
    key = f"{record.key_name}/{record.epoch}"
    return FinishedTurn(
        identity=identity,
        final_text=final_text,
        idempotency_key=key,
        record=record,
        cancelled=cancelled,
        finish_reason=finish_reason,
        replaces=replaces,
    )


def _finished_turn(row: Row) -> FinishedTurn:
    identity = ChatTurnIdentity(
        tenant_id=str(row["tenant_id"]),
        session_id=str(row["session_id"]),
        user_id=str(row["user_id"]),
        turn_index=int(row["turn_index"] or 0),
        version=int(row["version"] or 1),
    )
    result = json.loads(str(row["result_json"]))
    reason = None if row["finish_reason"] is None else str(row["finish_reason"])
    cancelled = "cancelled" in result
    return finished_turn(
        identity,
        result["finalText"],
        run_from_row(row),
        cancelled=cancelled,
        finish_reason=reason,
        replaces=None if row["replaces"] is None else int(row["replaces"]),
    )
