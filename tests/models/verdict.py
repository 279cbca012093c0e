"""
Whether a turn came out as a case wants it.

A want may say: ``last``, the type of the last line · ``text``, the answer · ``code``, those that the error may have ·
``retryable`` · ``reasoning``, what is in it · ``calls``, the arguments of the tool calls in their order, and ``tools``,
the tools that they name · ``no_effect``: no tool has run · ``requests``, the least and the most calls of the model · ``usage``, members of a report ·
``told``, a word of the last line, of a replay and of the session's messages · ``ids_differ``: each tool call has an id
of its own · ``log``, words of the operator's log · ``any``, several of which one is enough.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Outcome", "differences", "in_words"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """
    What came of a turn.

    Attributes:
        lines: As the client got them.
        requests: Calls of the model.
        log: What the operator's log says.
        replay: The same turn, asked for again.
        messages: The session's messages.
    """

    lines: Sequence[Mapping[str, Any]]
    requests: int
    log: str = ""
    replay: str = ""
    messages: str = ""

    def data(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the data of the lines of a type."""
        return [line["data"] for line in self.lines if line["type"] == kind]

    @property
    def last(self) -> str:
        """The type of the last line."""
        return str(self.lines[-1]["type"]) if self.lines else ""

    @property
    def error(self) -> Mapping[str, Any]:
        """The error's data."""
        return next(iter(self.data("error")), {})

    def text(self) -> str:
        """Return the answer: what was said behind the last tool."""
        text = ""
        for line in self.lines:
            data = line.get("data") or {}
            if line["type"] in {"tool.result", "tool.error"}:
                text = ""
            elif line["type"] == "result":
                text = data["finalText"]
            elif line["type"] == "message.part.updated" and data["part"]["type"] == "text":
                text = data["part"].get("text", text) + data.get("delta", "")
        return text

    def reasoning(self) -> str:
        """Return the model's reasoning."""
        pieces = self.data("message.part.updated")
        return "".join(str(data["delta"]) for data in pieces if data["part"]["type"] == "reasoning")


def differences(want: Mapping[str, Any], got: Outcome) -> list[str]:
    """Say in which ways *got* is not as *want* has it."""
    if "any" in want:
        tries = [differences(each, got) for each in want["any"]]
        return [] if [] in tries else tries[0]
    return [words for kind, value in want.items() for words in _CHECKS[kind](value, got)]


def _differs(what: str, got: object, wanted: object) -> Iterator[str]:
    if got != wanted:
        yield f"{what} is {got!r}, not {wanted!r}"


def _lacks(what: str, words: str, text: str) -> Iterator[str]:
    if words not in text:
        yield f"{what} does not have {words!r}"


def _code(codes: Sequence[str], got: Outcome) -> Iterator[str]:
    code = got.error.get("code")
    if codes and code not in codes:
        yield f"the code is {code!r}, none of {', '.join(codes)}"


def _requests(limits: tuple[int, int], got: Outcome) -> Iterator[str]:
    least, most = limits
    if not least <= got.requests <= most:
        yield f"{got.requests} calls of the model, not {least} to {most}"


def _usage(members: Mapping[str, Any], got: Outcome) -> Iterator[str]:
    reports = got.data("usage")
    for name, value in members.items():
        if value not in [report.get(name) for report in reports]:
            yield f"no report has {name} {value}: {reports}"


def _told(word: str, got: Outcome) -> Iterator[str]:
    places = {"the last line": str(got.lines[-1:]), "the replay": got.replay, "the messages": got.messages}
    for what, text in places.items():
        yield from _lacks(what, word, text)


def _ids_differ(_: object, got: Outcome) -> Iterator[str]:
    ids = [call["toolCallId"] for call in got.data("tool.call")]
    yield from _differs("the number of ids", len(set(ids)), len(ids))


_CHECKS: Mapping[str, Any] = {
    "last": lambda want, got: _differs("the last line", got.last, want),
    "text": lambda want, got: _differs("the text", got.text(), want),
    "code": _code,
    "retryable": lambda want, got: _differs("retryable", got.error.get("retryable"), want),
    "reasoning": lambda want, got: _lacks("the reasoning", want, got.reasoning()),
    "calls": lambda want, got: _differs("the calls", [call["args"] for call in got.data("tool.call")], want),
    "tools": lambda want, got: _differs("the tools", [call["toolName"] for call in got.data("tool.call")], want),
    "no_effect": lambda _, got: _differs("what the tools did", got.data("tool.result"), []),
    "requests": _requests,
    "usage": _usage,
    "told": _told,
    "ids_differ": _ids_differ,
    "log": lambda want, got: _lacks("the log", want, got.log),
}


def in_words(want: Mapping[str, Any]) -> str:
    """Say what *want* has."""
    if "any" in want:
        return ", or ".join(map(in_words, want["any"]))
    return " · ".join(_WORDS[kind](value) for kind, value in want.items() if value not in ([], True) or kind in _FLAGS)


def _code_of(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


_FLAGS = frozenset({"no_effect", "ids_differ"})
_WORDS: Mapping[str, Callable[[Any], str]] = {
    "last": lambda want: want.removeprefix("session.run."),
    "text": _code_of,
    "code": lambda want: " or ".join(f"`{code}`" for code in want),
    "retryable": lambda want: "retryable" if want else "not retryable",
    "reasoning": lambda want: f"reasoning {_code_of(want)}",
    "calls": lambda want: f"calls {', '.join(map(_code_of, want))}",
    "tools": lambda want: f"of {', '.join(f'`{name}`' for name in want)}",
    "no_effect": lambda _: "no tool runs",
    "requests": lambda want: f"{want[0]} to {want[1]} requests" if want[0] != want[1] else f"{want[0]} request",
    "usage": lambda want: f"usage {_code_of(want)}",
    "told": lambda want: f"`{want}` is told, live and later",
    "ids_differ": lambda _: "each call has an id of its own",
    "log": lambda want: f"the log has {_code_of(want)}",
}
