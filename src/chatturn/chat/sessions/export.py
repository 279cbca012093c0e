"""
All data of a session, a user or a tenant, as lines of JSON: a few turns in memory at a time, resumed by a cursor.

The lines are a session's ``session``, then a ``turn`` for each version of each of its turns, each followed by its
``feedback`` and by a ``file`` for each stored file that its message names; at last ``end``, or ``more`` with a cursor
where the export is longer than one response may be.  A text without either broke off.
"""

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from chatturn.chat.files import Files
from chatturn.chat.parts import file_ids_of
from chatturn.chat.requests import CANCELLED
from chatturn.chat.sessions import sql
from chatturn.chat.sessions.sessions import shown_feedback
from chatturn.chat.thread.identity import session_run_ids
from chatturn.database.api import Database, Row
from chatturn.durable.run_lists import decode_cursor, encode_cursor
from chatturn.errors import InvalidField
from chatturn.settings import Plan

__all__ = ["ExportQuery", "export"]

_READS: Final[Mapping[Plan, int]] = {"paid": 300, "free": 15}
"""How many pages and files one response reads, by plan: each takes 2 or 3 of an invocation's 1,000 or 50 queries."""

_SESSIONS_AT_ONCE: Final = 50

_PIECE_BYTES: Final = 196_608
"""How much of a file is encoded at once; 3 divides it, so that the pieces in base64 are one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """
    Whose data is exported.

    Attributes:
        tenant_id: The tenant.
        user_id: Only this user's sessions; None for all of the tenant's.
        session_id: Only this session; None for all.
        after: The cursor of an earlier response that ended with ``more``.
    """

    tenant_id: str
    user_id: str | None = None
    session_id: str | None = None
    after: str | None = None


def export(database: Database, files: Files, query: ExportQuery, plan: Plan) -> AsyncIterator[str]:
    """
    Yield the lines, some at a time; a line with a file in pieces.

    A session that is deleted meanwhile is left out from there on, also if somebody begins one of the same name.

    Raises:
        InvalidField: The cursor is not one of an export.
        StoreError: The database does not answer, or refuses.
        FilesUnavailable: The store of files does not answer.
    """
    return _Export(database=database, files=files, query=query, reads=_READS[plan]).text()


class _Turn(NamedTuple):
    """A turn as lines, with its feedback; and the stored files that its message names."""

    run_id: str
    user_id: str
    lines: str
    file_ids: Sequence[str]


@dataclass(slots=True, kw_only=True)
class _Export:
    """
    One response of an export.

    Attributes:
        database: Where the sessions are.
        files: Where their files are.
        query: Whose data is exported.
        reads: How many pages and files may still be read.
    """

    database: Database
    files: Files
    query: ExportQuery
    reads: int

    async def text(self) -> AsyncIterator[str]:
        current, place = self._read_cursor()
        some = False
        async for name in self._names(current):
            session = await self._session(name)
            if session is None:
                continue
            first, last = session_run_ids(self.query.tenant_id, name)
            if name != current:
                place = first
                yield _lines([self._described(session)])
            async for turn in self._turns(session, place, last):
                if turn is None or (some and len(turn.file_ids) > self.reads):
                    yield _lines([{"type": "more", "after": encode_cursor("x", [name, place])}])
                    return
                yield turn.lines
                for file_id in turn.file_ids:
                    async for piece in self._file(turn, file_id):
                        yield piece
                place, some = turn.run_id, True
        yield _lines([{"type": "end"}])

    def _read_cursor(self) -> tuple[str, str]:
        """
        Return the session and the run that were exported last; empty for none.

        It may lead to a session that the export does not have, or no longer: the export goes on behind it.

        Raises:
            InvalidField: The cursor is not one of an export.
        """
        if self.query.after is None:
            return "", ""
        session_id, run_id = map(str, decode_cursor(self.query.after, "x", ["", ""]))
        first, last = session_run_ids(self.query.tenant_id, session_id)
        if not first <= run_id < last or self.query.session_id not in {None, session_id}:
            raise InvalidField("after is not a cursor of this export", field="after")
        return session_id, run_id

    async def _names(self, current: str) -> AsyncIterator[str]:
        """Yield the names of the sessions from *current* on."""
        query = self.query
        if query.session_id is not None:
            yield query.session_id
            return
        if current:
            yield current
        while True:
            names = sql.read_names(query.tenant_id, query.user_id, current, _SESSIONS_AT_ONCE)
            [found] = await self.database.batch([names])
            for row in found.rows:
                current = str(row["session_id"])
                yield current
            if len(found.rows) < _SESSIONS_AT_ONCE:
                return

    async def _session(self, name: str) -> Row | None:
        """Read a session; None if it is not there, or not of whom the export is."""
        [found] = await self.database.batch([sql.read_session(self.query.tenant_id, name)])
        row = found.rows[0] if found.rows else None
        return None if row is None or self.query.user_id not in {None, row["owner_id"]} else row

    def _described(self, session: Row) -> Mapping[str, Any]:
        return {
            "type": "session",
            "tenantId": self.query.tenant_id,
            "sessionId": session["session_id"],
            "userId": session["owner_id"],
            "title": session["title"],
            "createdAt": session["created_at"],
            "lastActivityAt": session["active_at"],
        }

    async def _turns(self, session: Row, after: str, last: str) -> AsyncIterator[_Turn | None]:
        """Yield the turns behind a run, as long as it is the same session; None where no further page may be read."""
        of_session = sql.read_session(self.query.tenant_id, str(session["session_id"]))
        while True:
            if self.reads <= 0:
                yield None
                return
            self.reads -= 1
            now, found = await self.database.batch([of_session, sql.read_turns(after, last)])
            if not found.rows or [session["created_at"]] != [row["created_at"] for row in now.rows]:
                return
            [rated] = await self.database.batch([sql.read_feedback([str(row["run_id"]) for row in found.rows])])
            for row in found.rows:
                yield _turn_of(row, [each for each in rated.rows if each["run_id"] == row["run_id"]])
            if len(found.rows) < sql.TURNS_AT_ONCE:
                return
            after = str(found.rows[-1]["run_id"])

    async def _file(self, turn: _Turn, file_id: str) -> AsyncIterator[str]:
        """Yield the line of a stored file in pieces; a file that is not there any more has no address."""
        self.reads -= 1
        named = {"type": "file", "runId": turn.run_id, "file": file_id}
        found = None
        if self.files.store is not None:
            found = await self.files.content(self.query.tenant_id, turn.user_id, file_id)
        if found is None:
            yield _lines([{**named, "mediaType": None, "name": None, "bytes": None, "url": None}])
            return
        facts, data = found
        known = {"mediaType": facts.media_type, "name": facts.name, "bytes": facts.size}
        yield _lines([{**named, **known, "url": f"data:{facts.media_type};base64,"}]).removesuffix('"}\n')
        for at in range(0, len(data), _PIECE_BYTES):
            yield b64encode(data[at : at + _PIECE_BYTES]).decode()
        yield '"}\n'


def _turn_of(row: Row, rated: Sequence[Row]) -> _Turn:
    turn = _turn(row)
    feedback = [{"type": "feedback", "userId": each["user_id"], **shown_feedback(each)} for each in rated]
    return _Turn(str(row["run_id"]), str(row["user_id"]), _lines([turn, *feedback]), file_ids_of(turn["parts"] or []))


def _turn(row: Row) -> Mapping[str, Any]:
    return {
        "type": "turn",
        "turnIndex": row["turn_index"],
        "version": row["version"],
        "counts": bool(row["counts"]),
        "runId": row["run_id"],
        "userId": row["user_id"],
        "message": row["user_message"],
        "parts": _read(row["parts_json"]),
        "model": row["model"],
        "metadata": _read(row["metadata_json"]),
        "parameters": _read(row["parameters_json"]),
        "history": _read(row["history_json"]),
        "status": CANCELLED if row["cancelled"] else row["status"],
        "answer": row["answer"],
        "finishReason": row["finish_reason"],
        "replaces": row["replaces"],
        "replaceKind": row["replace_kind"],
        "parentIndex": row["parent_index"],
        "parentVersion": row["parent_version"],
        "createdAt": row["created_at"],
        "completedAt": row["completed_at"],
    }


def _read(text: object) -> Any:
    return None if text is None else json.loads(str(text))


def _lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(line, ensure_ascii=False, separators=(',', ':'))}\n" for line in lines)
