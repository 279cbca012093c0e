"""
The SQL of what a product is told of turns that are detached or come back.

Only the transaction that lets another version count knows these turns.  So it records the call, in two parts around the
change: first where the thread ended, then what is told.  If the change concerns no turn, no record stays.  The call's
name has the session's revision, which differs for each change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chatturn.chat.hooks.thread_changes import ON_THREAD_CHANGED
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.thread.version_sql import ACTIVATES, activation
from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.runs import HELD, MOMENT

__all__ = ["Around", "around_activation", "around_finish", "read_changes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """
    The statements around those that let another version count.

    Attributes:
        before: Before them, once the session's revision has risen.
        behind: Behind them.
    """

    before: Sequence[Statement] = ()
    behind: Sequence[Statement] = ()


# ``{run}``, ``{tenant}``, ``{session}`` and ``{index}`` say which turn, ``{holds}`` whether it changes.
_NAME: Final = f"""
'{ON_THREAD_CHANGED}/' || (SELECT revision FROM chat_sessions WHERE tenant_id = {{tenant}} AND session_id = {{session}})
"""
_ENDS: Final = """
coalesce((SELECT min(turn_index) FROM chat_messages INDEXED BY idx_chat_messages_breaks
  WHERE tenant_id = {tenant} AND session_id = {session} AND breaks = 1), 9223372036854775807)
"""
_BEGIN: Final = f"""
INSERT INTO chat_outbox (run_id, hook, attempt, status, next_call_at, created_at, payload_json)
SELECT run_id, {_NAME}, epoch, 'pending', {MOMENT.format("{now}, {held}")}, {MOMENT.format("{now}")},
  json_object('ended', {_ENDS})
FROM durable_runs WHERE run_id = {{run}} AND {{holds}}
"""
_CONCERNED: Final = """
FROM chat_messages WHERE tenant_id = {tenant} AND session_id = {session}
  AND turn_index >= max({index} + 1, min(ended, ends)) AND turn_index < max(ended, ends)
"""
_END: Final = f"""
UPDATE chat_outbox SET payload_json = (
  SELECT json_object('change', CASE WHEN ends < ended THEN 'detached' ELSE 'returned' END,
    'first', (SELECT min(turn_index) {_CONCERNED}), 'last', (SELECT max(turn_index) {_CONCERNED}))
  FROM (SELECT chat_outbox.payload_json ->> '$.ended' AS ended, {_ENDS} AS ends))
WHERE run_id = {{run}} AND hook = {_NAME} AND payload_json ->> '$.ended' IS NOT NULL AND {{holds}}
"""
_UNLESS_NOBODY: Final = f"""
DELETE FROM chat_outbox WHERE run_id = {{run}} AND hook = {_NAME} AND payload_json ->> '$.change' IS NOT NULL
  AND payload_json ->> '$.first' IS NULL AND {{holds}}
"""

_AT_FINISH: Final = {"run": "?1", "tenant": "?4", "session": "?5", "index": "?6", "holds": HELD}
_BEGIN_AT_FINISH: Final = _BEGIN.format(now="?6", held="?7", **_AT_FINISH)
_END_AT_FINISH: Final = _END.format(**_AT_FINISH)
_UNLESS_NOBODY_AT_FINISH: Final = _UNLESS_NOBODY.format(**_AT_FINISH)

# Behind the activation the row itself says that there was one.
_AT_ACTIVATION: Final = {"tenant": "?1", "session": "?2"}
_BEGIN_AT_ACTIVATION: Final = _BEGIN.format(run="?4", holds=ACTIVATES, now="?7", held="?8", **_AT_ACTIVATION)
_END_AT_ACTIVATION: Final = _END.format(run="?4", index="?3", holds="true", **_AT_ACTIVATION)
_UNLESS_NOBODY_AT_ACTIVATION: Final = _UNLESS_NOBODY.format(run="?3", holds="true", **_AT_ACTIVATION)

_READ: Final = f"""
SELECT o.hook, o.attempt AS call_attempt, o.payload_json, r.*, t.tenant_id, t.session_id, t.user_id, t.turn_index,
  t.version
FROM chat_outbox AS o JOIN durable_runs AS r ON r.run_id = o.run_id JOIN chat_turns AS t ON t.run_id = o.run_id
WHERE o.run_id = ?1 AND o.hook > '{ON_THREAD_CHANGED}/' AND o.hook < '{ON_THREAD_CHANGED}0'
  AND o.status = 'pending' AND o.failures = 0
ORDER BY o.created_at, length(o.hook), o.hook
"""


def around_finish(identity: ChatTurnIdentity, held_for: str) -> Around:
    """
    Record the call in the finish's batch, under the turn's lease.

    Args:
        identity: The version that counts from then on.
        held_for: How long the call is left to who records it, as a modifier of SQLite's time functions.
    """
    session, index = (identity.tenant_id, identity.session_id), identity.turn_index
    return Around(
        before=[Statement(_BEGIN_AT_FINISH, (*session, NOW, held_for))],
        behind=[Statement(_END_AT_FINISH, (*session, index)), Statement(_UNLESS_NOBODY_AT_FINISH, session)],
    )


def around_activation(identity: ChatTurnIdentity, held_for: str) -> Around:
    """Record the call in the activation's batch; as `around_finish`."""
    params = activation(identity)
    tenant_id, session_id, index, run_id, *_ = params
    return Around(
        before=[Statement(_BEGIN_AT_ACTIVATION, (*params, NOW, held_for))],
        behind=[
            Statement(_END_AT_ACTIVATION, (tenant_id, session_id, index, run_id)),
            Statement(_UNLESS_NOBODY_AT_ACTIVATION, (tenant_id, session_id, run_id)),
        ],
    )


def read_changes(run_id: str) -> Statement:
    """Read what is to be told since a version counts, and was not told yet."""
    return Statement(_READ, (run_id,))
