"""Checks the law of a turn's log on its lines, from any server."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

__all__ = ["TERMINAL", "assert_law", "text_of"]

TERMINAL: Final = frozenset({"session.run.completed", "session.run.failed", "session.run.cancelled"})
"""The types of a log's last line."""

Line = Mapping[str, Any]


def assert_law(log: Sequence[Line], seen: Sequence[Line] = ()) -> None:
    """
    Check that *log* is one valid log, and that the lines in *seen* belong to it.

    A log begins with ``session.run.started``, ends with one terminal line and has no other.  ``attempt`` never falls;
    ``seq`` rises by 1 from line to line, and by more only at ``session.run.restarted``.  A client has seen each line at
    most once, in the log's order; lines of an attempt whose worker died may be in no log.

    Args:
        log: The whole log of a finished turn, as ``GET …/stream`` returns it, pings left out.
        seen: The lines sent to a client over all its connections; lines without ``seq`` are ignored.  If the product
            redacts its log, clients have seen other lines than the log's: pass none.

    Raises:
        AssertionError: Names the line that breaks the law.
    """
    kinds = [line["type"] for line in log]
    assert kinds, "the log is empty"
    assert kinds[0] == "session.run.started", f"it begins with {kinds[0]}"
    assert kinds.count("session.run.started") == 1, "it has started twice"
    ends = [kind for kind in kinds if kind in TERMINAL]
    assert ends == kinds[-1:], f"its terminal lines are {ends}, its last line is {kinds[-1]}"
    for before, line in pairwise(log):
        assert line["attempt"] >= before["attempt"], f"seq {line['seq']}: attempt {line['attempt']} is an earlier one"
        step = line["seq"] - before["seq"]
        lawful = step >= 1 if line["type"] == "session.run.restarted" else step == 1
        assert lawful, f"seq {line['seq']} follows on seq {before['seq']}"
    _assert_seen(log, [line for line in seen if "seq" in line])


def _assert_seen(log: Sequence[Line], seen: Sequence[Line]) -> None:
    stored = {line["seq"]: line for line in log}
    for before, line in pairwise(seen):
        assert line["seq"] > before["seq"], f"a client has seen seq {line['seq']} after seq {before['seq']}"
    for line in seen:
        if line["seq"] in stored:
            assert line == stored[line["seq"]], f"a client has seen another line of seq {line['seq']}"
        else:
            assert line["attempt"] < log[-1]["attempt"], f"seq {line['seq']} is lost, but its attempt is the last"


def text_of(lines: Sequence[Line]) -> str:
    """Return the answer that a reader builds from *lines*, all lines of the turn, by the rules of the wire."""
    text, attempt = "", 0
    for line in lines:
        kind, data = line["type"], line.get("data", {})
        if kind == "session.run.restarted" or line.get("attempt", 0) > attempt or kind in {"tool.result", "tool.error"}:
            text = ""
        attempt = max(attempt, line.get("attempt", 0))
        if kind == "result":
            text = data["finalText"]
        elif kind == "message.part.updated" and data["part"]["type"] == "text":
            text = data["part"].get("text", text + data.get("delta", ""))
    return text
