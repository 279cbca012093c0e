"""Requests about sessions as people's data, limited to the sessions that `SESSION_OWNER` lets a user see."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatturn.chat.deployment import Deployment
from chatturn.chat.sessions.deletion import delete_session, delete_sessions
from chatturn.chat.sessions.export import ExportQuery, export
from chatturn.chat.sessions.sessions import (
    Feedback,
    SessionPage,
    SessionQuery,
    list_sessions,
    rate_answer,
    rename_session,
)
from chatturn.chat.sessions.sql import read_session
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.thread.session_sql import read_owner
from chatturn.settings import Plan

__all__ = ["DELETED_AT_ONCE", "Sessions"]

DELETED_AT_ONCE: Final[Mapping[Plan, int]] = {"paid": 60, "free": 2}
"""How many sessions one request deletes, by plan; each is one transaction."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """
    The sessions of one deployment.

    Attributes:
        deployment: The deployment, with its settings and its database.
    """

    deployment: Deployment

    @property
    def owned_by_subject(self) -> bool:
        """Whether a user knows only of their own sessions."""
        return self.deployment.settings.session_owner == "subject"

    async def may_see(self, tenant_id: str, session_id: str, user_id: str) -> bool:
        """
        Say whether a user may know of a session: every user of its tenant may, or only its owner (`SESSION_OWNER`).

        Anybody may know of a session without a turn.
        """
        if not self.owned_by_subject:
            return True
        # Read each time: a session may be deleted, and somebody else may begin one of the same name.
        [found] = await self.deployment.database.batch([read_owner(tenant_id, session_id)])
        return found.rows[0]["owner_id"] in {None, user_id}

    async def exists(self, tenant_id: str, session_id: str, user_id: str) -> bool:
        """Say whether there is such a session that the user may see."""
        found, owner = await self.deployment.database.batch(
            [read_session(tenant_id, session_id), read_owner(tenant_id, session_id)]
        )
        owner_id = owner.rows[0]["owner_id"]
        return bool(found.rows) and (not self.owned_by_subject or owner_id == user_id)

    async def list(self, query: SessionQuery) -> SessionPage:
        """
        Return one page of sessions.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """
        return await list_sessions(self.deployment.database, query)

    async def rename(
        self, tenant_id: str, session_id: str, user_id: str, title: str | None
    ) -> Mapping[str, Any] | None:
        """Give a session a title, or none; None if this user has no such session."""
        owner_id = user_id if self.owned_by_subject else None
        return await rename_session(self.deployment.database, tenant_id, session_id, owner_id, title)

    async def rate(self, identity: ChatTurnIdentity, feedback: Feedback) -> Mapping[str, Any] | None:
        """Record what a user thinks of an answer; None if there is none that they may see."""
        if not await self.may_see(identity.tenant_id, identity.session_id, identity.user_id):
            return None
        return await rate_answer(self.deployment.database, identity, feedback)

    async def delete(self, tenant_id: str, session_id: str, user_id: str) -> bool:
        """Delete a session at once; return whether this user had it."""
        owner_id = user_id if self.owned_by_subject else None
        return await delete_session(self.deployment.database, tenant_id, session_id, owner_id)

    async def delete_all(self, tenant_id: str, user_id: str) -> bool:
        """
        Delete all that a user, or with an empty user the tenant, has now; the cron deletes what is too much here.

        Returns:
            Whether all of it is deleted.

        Raises:
            FilesUnavailable: The store of files does not answer; the cron goes on with it.
        """
        most = DELETED_AT_ONCE[self.deployment.settings.workers_plan]
        return await delete_sessions(self.deployment.database, self.deployment.files, tenant_id, user_id, most)

    def export(self, query: ExportQuery) -> AsyncIterator[str]:
        """Yield what an export has, some lines at a time; see `chatturn.chat.sessions.export.export`."""
        deployment = self.deployment
        return export(deployment.database, deployment.files, query, deployment.settings.workers_plan)
