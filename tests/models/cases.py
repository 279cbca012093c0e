"""
What model APIs really send: recorded answers, each after a public report, and what a turn must make of them.

`cases.json` has them.  An answer's ``body`` is a list of chunks as they leave the server: a text, ``{"base64"}``,
``{"bytewise", "pause"}`` for a chunk per byte, or a number, the milliseconds before the next chunk.  With ``if`` an
answer is given only to a request for which that holds; others get ``else``.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = ["Case", "Recorded", "all_cases"]

_FILE: Final = Path(__file__).with_name("cases.json")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """
    One answer of a server.

    Attributes:
        status: The HTTP status.
        headers: Its headers.
        before_headers_ms: Until they come.
        chunks: The seconds before each chunk, and the chunk.
        chunked: Whether the body has HTTP's chunks, or ends with the connection.
        end: What follows the last chunk: ``close`` the body's end, ``fin`` none, ``rst`` a reset, ``hang`` silence.
        hang_ms: How long that silence lasts.
        condition: Which requests get it; the others get *otherwise*.
    """

    status: int
    headers: Mapping[str, str]
    before_headers_ms: int
    chunks: tuple[tuple[float, bytes], ...]
    chunked: bool
    end: str
    hang_ms: int
    condition: Mapping[str, str]
    otherwise: "Recorded | None"

    def for_request(self, headers: Mapping[str, str], body: str) -> "Recorded":
        """Return what a request gets; names of *headers* are in lower case."""
        if self.otherwise is None or all(_holds(*each, headers, body) for each in self.condition.items()):
            return self
        return self.otherwise

    def content(self) -> bytes:
        """Return the whole body."""
        return b"".join(chunk for _, chunk in self.chunks)


@dataclass(frozen=True, kw_only=True)
class Case:
    """
    One kind of answer.

    Attributes:
        name: Is the model's name in its requests, too.
        tools: What the model may use: ``none``, ``notes``, or ``wipe``, a tool without arguments.
        message: What the user says.
        sources: Where it was reported.
        want: What should come of it; see `tests.models.verdict`.
        answers: To the first request, the second, and so on; the last to all further ones.
    """

    name: str
    tools: str
    message: str
    sources: tuple[str, ...]
    want: Mapping[str, Any]
    answers: tuple[Recorded, ...]

    def answer(self, number: int) -> Recorded:
        """Return the answer to request *number*, counted from 0."""
        return self.answers[min(number, len(self.answers) - 1)]


@cache
def all_cases() -> tuple[Case, ...]:
    """Return every case on record."""
    pack = json.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(_case(case, pack["shared"]) for case in pack["cases"])


def _holds(kind: str, words: str, headers: Mapping[str, str], body: str) -> bool:
    if kind == "header":
        return words in headers
    return (words in body) is (kind == "body_has")


def _case(case: dict[str, Any], shared: Mapping[str, Any]) -> Case:
    answers = [shared[answer] if isinstance(answer, str) else answer for answer in case.pop("answers")]
    return Case(**{**case, "sources": tuple(case["sources"])}, answers=tuple(map(_recorded, answers)))


def _recorded(answer: Mapping[str, Any]) -> Recorded:
    return Recorded(
        status=answer.get("status", 200),
        headers=answer.get("headers", {"Content-Type": "text/event-stream; charset=utf-8"}),
        before_headers_ms=answer.get("before_headers_ms", 0),
        chunks=tuple(_chunks(answer["body"])),
        chunked=answer.get("chunked", True),
        end=answer.get("end", "close"),
        hang_ms=answer.get("hang_ms", 0),
        condition=answer.get("if", {}),
        otherwise=_recorded(answer["else"]) if "else" in answer else None,
    )


def _chunks(body: list[Any]) -> Iterator[tuple[float, bytes]]:
    pause_s = 0.0
    for part in body:
        if isinstance(part, int):
            pause_s = part / 1000
        elif isinstance(part, str):
            yield pause_s, part.encode()
            pause_s = 0.0
        elif "base64" in part:
            yield pause_s, base64.b64decode(part["base64"])
            pause_s = 0.0
        else:
            yield from ((part["pause"] / 1000, bytes([byte])) for byte in part["bytewise"].encode())
