"""Results of the tools that a client does: which turn has asked for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatturn.chat.agent.tool_calls import CLIENT_CALL, TOOL_PREFIX
from chatturn.chat.turn.sql import give, read_asked_runs
from chatturn.database.api import Database, Statement
from chatturn.jsontext.stored import json_text

__all__ = ["Given", "find_asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """
    What a client gives a turn.

    Attributes:
        run_id: The run that has asked for the calls.
        session_id: Its session.
        results: The outcome of each call by its id: ``{"result": …}`` or ``{"error": …}``.
    """

    run_id: str
    session_id: str
    results: Mapping[str, Any]

    @property
    def statements(self) -> Sequence[Statement]:
        """The statements that record the results; a result that the turn has, or does not want, changes nothing."""
        return [
            give(self.run_id, f"{TOOL_PREFIX}{id_}", json_text(result, "a result"))
            for id_, result in self.results.items()
        ]


async def find_asked(database: Database, tenant_id: str, results: Mapping[str, Any]) -> Given | None:
    """
    Find the turn that has asked for *results*; None if none of this tenant's has.

    A client may also send results of calls that no turn here has asked for; the last known call decides the turn.
    """
    keys = {f"{TOOL_PREFIX}{id_}": id_ for id_ in results if id_.startswith(CLIENT_CALL)}
    if not keys:
        return None
    [found] = await database.batch([read_asked_runs(list(keys), tenant_id)])
    asked = {keys[str(row["key"])]: row for row in found.rows}
    last = next((asked[id_] for id_ in reversed(keys.values()) if id_ in asked), None)
    if last is None:
        return None
    own = {id_: results[id_] for id_ in results if id_ in asked and asked[id_]["run_id"] == last["run_id"]}
    return Given(run_id=str(last["run_id"]), session_id=str(last["session_id"]), results=own)
