"""
Deleting what belongs to people: a session at once, a user's or a tenant's sessions one after another.

A wish to delete many sessions is on record before the first is deleted, and the cron goes on with it, so that it is
done even if a worker dies.  The costs of a deleted session's calls stay in the ledger, under names that lead nowhere.
"""

from typing import Final

from chatturn.chat.files import Files
from chatturn.chat.sessions import sql
from chatturn.database.api import Database
from chatturn.durable.identifiers import derive_worker_id

__all__ = ["EVERYBODY", "delete_session", "delete_sessions", "go_on_deleting"]

EVERYBODY: Final = ""
"""Stands in place of a user's id for all users of the tenant."""


async def delete_session(database: Database, tenant_id: str, session_id: str, owner_id: str | None) -> bool:
    """
    Delete a session: turns and their logs, messages, feedback, events, and hook calls that have not been made.

    All in one transaction.  A worker that is answering a turn of the session loses its lease, and writes nothing more.

    Args:
        database: Where.
        tenant_id: The tenant.
        session_id: The session.
        owner_id: The required owner; None for any owner.

    Returns:
        Whether there was such a session.
    """
    *_, found = await database.batch(sql.forget_session(tenant_id, session_id, _nobody(), owner_id=owner_id))
    return bool(found.rows)


async def delete_sessions(database: Database, files: Files, tenant_id: str, user_id: str, most: int) -> bool:
    """
    Delete all that a user, or with `EVERYBODY` the tenant, has now: *most* sessions here, the cron deletes the rest.

    Files go last; where the store of files does not answer, the wish stays on record.

    Returns:
        Whether all of it is deleted.

    Raises:
        FilesUnavailable: The store of files does not answer.
    """
    await database.batch([sql.adopt_latest(), sql.ask_for_deletion(tenant_id, user_id)])
    return await _delete_some(database, files, tenant_id, user_id, most)


async def go_on_deleting(database: Database, files: Files, most: int) -> None:
    """
    Go on with the wish that has waited longest, for at most *most* sessions.

    Raises:
        FilesUnavailable: The store of files does not answer.
    """
    [found] = await database.batch([sql.read_deletions()])
    for row in found.rows:
        await _delete_some(database, files, str(row["tenant_id"]), str(row["user_id"]), most)


async def _delete_some(database: Database, files: Files, tenant_id: str, user_id: str, most: int) -> bool:
    found, asked = await database.batch(
        [sql.read_sessions_to_delete(tenant_id, user_id, most + 1), sql.read_when_asked(tenant_id, user_id)]
    )
    for row in found.rows[:most]:
        await database.batch(
            sql.forget_session(
                tenant_id,
                str(row["session_id"]),
                _nobody(),
                begun_until=str(row["asked_at"]),
                tenant_too=user_id == EVERYBODY,
            )
        )
    asked_at = str(asked.rows[0]["asked_at"]) if asked.rows else ""
    # Where sessions are left it would read all of their calls in the ledger, each time.
    nameless = user_id != EVERYBODY or (
        len(found.rows) <= most and await _forget_tenant(database, tenant_id, asked_at, max(1, most - len(found.rows)))
    )
    if not await files.forget(tenant_id, user_id, asked_at) or not nameless:
        return False
    _, done = await database.batch(
        [sql.forget_allowances(tenant_id, user_id), sql.deletion_done(tenant_id, user_id, asked_at)]
    )
    return bool(done.rows)


async def _forget_tenant(database: Database, tenant_id: str, asked_at: str, most: int) -> bool:
    """
    Take the names off what the ledger has of turns that were deleted before: with their session, or by retention.

    Returns:
        Whether the ledger has none left, after at most *most* round trips.
    """
    names: dict[str, str] = {}
    for _ in range(most):
        *_, found = await database.batch([sql.forget_deleted(tenant_id, names), sql.read_deleted(tenant_id, asked_at)])
        if not found.rows:
            return True
        nobody = _nobody()
        names = {str(row["run_id"]): f"{nobody}{number}" for number, row in enumerate(found.rows)}
    return False


def _nobody() -> str:
    return derive_worker_id().replace("worker-", "deleted:") + ":"
