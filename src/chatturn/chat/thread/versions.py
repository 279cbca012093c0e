"""
Which version of a turn a request is about.  Pure.

Each version is a run of its own.  The first version's run has the turn's id; a later version is made by a request that
replaces the version that counts, or at the place of a detached turn.  The same request sent again is about the version
that it made, unless the replaced version counts again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from chatturn.errors import DurableRunInputMismatchError, SessionBusy, VersionConflict

__all__ = ["Choice", "Replace", "ReplaceKind", "at_line", "version_for"]

ReplaceKind = Literal["regenerate", "edit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """
    What a request replaces.

    Attributes:
        kind: ``regenerate``: the same question anew; ``edit``: another question.
        version: The version that it takes the place of, from 1: the one that counts.  None: whichever counts.
        anew: Whether it is a wish, and not a request that may be sent twice.  A version that has failed is tried again,
            and where the same is asked already, or nothing counts, there is nothing to replace.
    """

    kind: ReplaceKind
    version: int | None
    anew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """
    Which version a request is about.

    Attributes:
        version: Its number, from 1.
        replaces: What it takes the place of; None for nothing that counts.
        kind: How it replaces: ``regenerate`` or ``edit``; None if it replaces nothing.
        is_new: Whether it is made by this request.
        counts: The version that counts; None for none.
    """

    version: int
    replaces: int | None = None
    kind: str | None = None
    is_new: bool = False
    counts: int | None = None

    @property
    def fills_its_place(self) -> bool:
        """Whether no version counts at the turn's place, and this one replaces none."""
        return self.replaces is None and self.counts is None


_THEIR_LOG_ENDS: Final = 2
"""The seq of the last line of agent-runtime's log, which is not stored and always has the lines 0, 1 and 2."""


def at_line(rows: Sequence[Mapping[str, Any]], shown: int) -> int:
    """
    Return the version with whose log a reader goes on.

    That is *shown*; or, where the reader's last line lies behind the end of its log, the version that has that line.

    Args:
        rows: As `chatturn.chat.thread.version_sql.read_lines` read them.
        shown: The version that is shown to a reader who has no line yet.
    """
    ends = {int(row["version"]): row["ends"] for row in rows}
    end = ends.get(shown, _THEIR_LOG_ENDS)
    said = max((row for row in rows if row["begins"] is not None), key=lambda row: int(row["begins"]), default=None)
    return shown if said is None or end is None or int(said["begins"]) <= end else int(said["version"])


def version_for(
    state: Mapping[str, Any], run_id: str, turn_index: int, replace: Replace | None, *, supersede: bool
) -> Choice:
    """
    Choose the version.

    Args:
        state: As `chatturn.chat.thread.version_sql.read_version_state` read it.
        run_id: The turn's.
        turn_index: The turn's place in the session.
        replace: What the request replaces; None for a plain request.
        supersede: Whether a plain request may replace a version with another question.

    Raises:
        VersionConflict: The version to be replaced does not count, or the thread ends before this turn.
        SessionBusy: A version of the turn is being answered, or waits.
        DurableRunInputMismatchError: A ``regenerate`` has another question; or another question is open at this place.
    """
    state = _with_theirs(state)
    counts, detached_from = state["counts"], state["detached_from"]
    follows_open = state["behind_open"] and replace is None
    if detached_from is not None and detached_from < turn_index and not follows_open:
        raise VersionConflict(f"the thread ends before turn {detached_from}", run_id=run_id)
    if replace is not None:
        return _replaced(state, run_id, replace)
    if detached_from is not None:
        again = state["again"] if detached_from == turn_index else None
        there = _there(state, again) or _there(state, state["open"])
        if there is None and state["busy"] is not None and not supersede:
            raise DurableRunInputMismatchError("another message is open there", run_id=run_id)
        return there or _new_if_idle(state, run_id, None, None)
    standing = state["standing"]
    if supersede and standing is not None and state["asked"] != standing:
        return _there(state, state["asked"]) or _new_if_idle(state, run_id, standing, "edit")
    if standing is not None and not state["counts_same"] and state["open"] is not None:
        return Choice(version=int(state["open"]), counts=counts)  # it is being answered, or waits for an approval
    if standing is None and state["stopped"] and not state["busy"]:  # before it began: its place is free
        return _there(state, state["asked"]) or _new(state, None, None)
    return Choice(version=int(standing or state["latest"] or 1), counts=counts)


def _with_theirs(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add ``standing``: the version that counts, or 1 where none does and agent-runtime has answered the turn."""
    if state["counts"] is not None or state["theirs"] is None:
        return {**state, "standing": state["counts"]}
    theirs = state["theirs"]
    same = theirs if state["same"] is None else state["same"]
    known = {"standing": 1, "latest": state["latest"] or 1, "same": same, "counts_same": theirs}
    return {**state, **known, **({"asked": 1} if theirs else {})}


def _replaced(state: Mapping[str, Any], run_id: str, replace: Replace) -> Choice:
    standing = state["standing"]
    replaced = standing if replace.version is None else replace.version
    if replace.anew and (there := _without_replacing(state, replace.kind, replaced)) is not None:
        return there
    made = _there(state, state["made"])
    if made is not None and not (standing == replaced and state["made_is_over"]):
        return made
    _require_idle(state, run_id)
    failed = standing is None and state["latest"] == replaced and state["replaced_failed"]
    if (standing != replaced and not failed) or state["detached_from"] is not None:
        counts = "none" if standing is None else standing
        raise VersionConflict(f"version {counts} counts, not {replaced}", run_id=run_id)
    if replace.kind == "regenerate" and not state["same"]:
        raise DurableRunInputMismatchError("to regenerate is to ask the same", run_id=run_id)
    return _new(state, replaced, replace.kind)


def _without_replacing(state: Mapping[str, Any], kind: ReplaceKind, replaced: int | None) -> Choice | None:
    """Return the version that a wish is about where there is nothing to replace."""
    counts, standing = state["counts"], state["standing"]
    may_be_asked = kind == "edit" or state["asked"] is not None
    if standing is None and state["passed"] and state["latest"] is not None and state["busy"] is None and may_be_asked:
        return _new(state, int(state["latest"]), kind)  # later turns, answered without it, will be detached
    if standing is None:
        return Choice(version=int(state["latest"] or 1))
    if kind == "edit" and state["counts_same"] and state["detached_from"] is None:
        return Choice(version=int(standing), counts=counts)
    if standing != replaced and state["same"] and state["replaced_failed"]:
        return Choice(version=int(replaced or 1), counts=counts)
    return None


def _there(state: Mapping[str, Any], version: Any) -> Choice | None:
    return None if version is None else Choice(version=int(version), counts=state["counts"])


def _require_idle(state: Mapping[str, Any], run_id: str) -> None:
    """Refuse while a version of the turn is open: its answer would count by then, and be replaced unseen."""
    if state["busy"] is not None:
        raise SessionBusy("a version of it is open", run_id=_run_id(run_id, int(state["busy"])))


def _new_if_idle(state: Mapping[str, Any], run_id: str, replaces: int | None, kind: str | None) -> Choice:
    _require_idle(state, run_id)
    return _new(state, replaces, kind)


def _new(state: Mapping[str, Any], replaces: int | None, kind: str | None) -> Choice:
    latest = int(state["latest"] or 0)
    return Choice(version=latest + 1, replaces=replaces, kind=kind, is_new=True, counts=state["counts"])


def _run_id(run_id: str, version: int) -> str:
    return run_id if version == 1 else f"{run_id}~{version}"
