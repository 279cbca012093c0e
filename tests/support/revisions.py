"""A database that holds the law of revisions: no two states of a session that its readers can tell apart share one."""

from collections.abc import Sequence

from chatturn.chat.lists.lists import MessageQuery, list_messages
from chatturn.database.api import Database, Result, Statement

__all__ = ["WatchedDatabase"]

_ALL = MessageQuery(before=None, limit=200)


class WatchedDatabase:
    """
    A database that looks at one session after each batch, applied or not.

    Attributes:
        seen: What was shown, by its tag.
        broken: The tags that stand for two states; whoever was at work may have swallowed the error.
    """

    def __init__(self, database: Database, tenant_id: str = "acme", session_id: str = "thread-1") -> None:
        self._database = database
        self._session = tenant_id, session_id
        self.seen: dict[str | None, str] = {}
        self.broken: list[str | None] = []

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run the batch, and compare."""
        try:
            return await self._database.batch(statements)
        finally:
            await self.look()

    async def look(self) -> None:
        """Compare what is shown now with what was shown under the same tag."""
        page = await list_messages(self._database, *self._session, _ALL)
        shown = repr((page.messages, page.open_turns, page.next))
        if self.seen.setdefault(page.tag, shown) != shown:
            self.broken.append(page.tag)
