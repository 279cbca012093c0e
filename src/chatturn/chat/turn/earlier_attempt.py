"""What an earlier attempt of a turn had said, read back from its log."""

import json
from typing import Final

from chatturn.chat.log.compact import expand
from chatturn.chat.log.sql import read_attempt
from chatturn.database.api import Database
from chatturn.events import LIFECYCLE_PREFIX, MESSAGE_PART, TOOL_OUTCOMES, ChatStreamEvent, TextAssembly

__all__ = ["recall_text"]

_TEXT: Final = (f'{{"type":"{MESSAGE_PART}"', '{"type":"result"')
"""The beginnings of lines that may hold text; no other line is parsed."""

_SUSPENDED: Final = f'{{"type":"{LIFECYCLE_PREFIX}suspended"'

_OUTCOME: Final = tuple(f'{{"type":"{kind}"' for kind in TOOL_OUTCOMES)


async def recall_text(
    database: Database, run_id: str, before_attempt: int, *, after_tools: bool, waited: bool = False
) -> str:
    """
    Return the stored text of the latest attempt before *before_attempt* if that attempt broke off; "" for none.

    One page of its log is in memory at a time.

    Args:
        database: Where the log is.
        run_id: The turn's run.
        before_attempt: The attempt.
        after_tools: Whether only what was said behind the last tool's outcome is a part of the answer.
        waited: Whether what is wanted is the text of an attempt that ended in a wait, instead.

    Raises:
        StoreError: The database does not answer, or refuses.
    """
    assembly = TextAssembly()
    first_seq, last = 0, ""
    while True:
        [page] = await database.batch([read_attempt(run_id, before_attempt, first_seq, ended=waited)])
        for row in page.rows:
            first_seq = int(row["last_seq"] or 0) + 1
            for line in expand(str(row["lines"])).split("\n"):
                last = line or last
                if after_tools and line.startswith(_OUTCOME):
                    assembly = TextAssembly()
                elif line.startswith(_TEXT):
                    said = json.loads(line)
                    assembly.add(ChatStreamEvent(said["type"], said.get("data")))
        if not page.rows:
            return assembly.text() if not waited or last.startswith(_SUSPENDED) else ""
