"""
Waiting for a session to change: one look at its revision serves all requests that wait for it in this isolate.

A tag names one state of a session for good: its revision, and when the session was begun, since a deleted session of
the same name had the same revisions.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from chatturn.chat.deployment import Deployment
from chatturn.chat.log.live import wait_for_ring
from chatturn.chat.log.polls import RevisionPoll
from chatturn.chat.log.query_budget import REVISION_LOOK_EVERY_S
from chatturn.chat.thread.identity import session_run_ids
from chatturn.chat.thread.session_sql import read_revision
from chatturn.database.api import Row
from chatturn.timestamps import epoch_ms

__all__ = ["LONGEST_WAIT_S", "NOT_BEGUN", "changed", "tag_of"]

LONGEST_WAIT_S: Final = 30
"""How long a request may wait for a change."""

NOT_BEGUN: Final = "0"
"""The tag of a session without a turn."""


def tag_of(rows: Sequence[Row]) -> str | None:
    """Return the tag of the state that `chatturn.chat.thread.session_sql.read_revision` read; None for no row."""
    return f"{epoch_ms(str(rows[0]['created_at']))}.{rows[0]['revision']}" if rows else None


async def changed(
    deployment: Deployment, tenant_id: str, session_id: str, known: Callable[[str], bool], within_s: float
) -> bool:
    """
    Wait until a session is in another state than the reader knows; return whether it is.

    The first look is the reader's own; the others are shared by all who wait in this isolate.

    Args:
        deployment: The deployment that stores the session.
        tenant_id: The session's tenant.
        session_id: The session.
        known: Says whether the reader knows the state of a tag.
        within_s: How long to wait; 0 for one look.

    Raises:
        StoreError: The database does not answer, or refuses.
    """
    loop = asyncio.get_running_loop()
    poll = deployment.live.revisions.of(session_run_ids(tenant_id, session_id)[0])
    ends, every_s = loop.time() + within_s, REVISION_LOOK_EVERY_S[deployment.settings.workers_plan]
    tag = await _look(deployment, poll, tenant_id, session_id)
    while known(tag or NOT_BEGUN):
        now, looks = loop.time(), poll.looks
        if now >= ends:
            return False
        due_s = poll.looked_at + every_s - now
        if due_s <= 0 and poll.may_look(now):
            tag = await _look(deployment, poll, tenant_id, session_id)
        else:
            await wait_for_ring(poll, deployment.alarm(), min(due_s if due_s > 0 else every_s, ends - now))
            tag = poll.tag if poll.looks != looks else tag
    return True


async def _look(deployment: Deployment, poll: RevisionPoll, tenant_id: str, session_id: str) -> str | None:
    poll.begin_look(asyncio.get_running_loop().time())
    tag = poll.tag
    try:
        [found] = await deployment.database.batch([read_revision(tenant_id, session_id)])
        tag = tag_of(found.rows)
    finally:
        poll.end_look(tag)
    return tag
