"""
The text of an answer in passages: the text of one part may stand in several places, with tools and data between them.

A part's whole text replaces the text of the part since the last result of a tool, since the answer begins anew there:
the words before a tool stay before it, even if the model behind the tool begins anew.  The pieces that the whole text
begins with stay where they are.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from chatturn.wire.lines import quoted, unquoted

__all__ = ["ROUND_ENDS", "TEXT", "PartKey", "Passage", "part_of", "said_of", "with_whole"]

PartKey: TypeAlias = tuple[str, str]
"""The kind of a part, and its name in the log."""

TEXT: Final[PartKey] = ("text", "text")
"""The part that a piece without a part of its own belongs to: nearly all of an answer."""


class Passage(NamedTuple):
    """
    A stretch of one part.

    Attributes:
        key: The part; None for tools and data, and for `ROUND_ENDS`.
        pieces: The pieces of its text, which together are a JSON string without its quotes.
    """

    key: PartKey | None
    pieces: list[str]

    @property
    def is_answer(self) -> bool:
        """Whether it is text of the answer."""
        return self.key is not None and self.key[0] == "text"


ROUND_ENDS: Final = Passage(None, [])
"""Stands behind each result of a tool: what is said from there on is another text."""


def part_of(data: dict[str, Any]) -> tuple[PartKey, str | None, str | None]:
    """Return the part that a line's *data* are about, a further piece of it or None, and its whole text or None."""
    part = data.get("part")
    described = part if isinstance(part, dict) else {}
    key = (str(described.get("type", "text")), str(described.get("id", "text")))
    delta, whole = data.get("delta"), described.get("text")
    if not (isinstance(delta, str) and delta) and isinstance(whole, str):
        return key, None, whole
    return key, delta if isinstance(delta, str) else "", None


def said_of(passages: Sequence[Passage], key: PartKey) -> str:
    """Return the text of a part since the last result of a tool."""
    return "".join(unquoted(passage.pieces) for passage in _parted(passages)[1] if passage.key == key)


def with_whole(passages: Sequence[Passage], key: PartKey, whole: str) -> list[Passage]:
    """Return *passages* with *whole* as the text of the part *key*; what is new in it stands at the end."""
    left, latest = _parted(passages)
    said = (unquoted([piece]) for passage in latest if passage.key == key for piece in passage.pieces)
    kept, new = _begun(said, whole)
    for passage in latest:
        if passage.key != key:
            left.append(passage)
        elif kept:
            left.append(Passage(key, passage.pieces[:kept]))
            kept -= min(kept, len(passage.pieces))
    return [*left, Passage(key, [quoted(new)])] if new else left


def _parted(passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """Return what stands up to the last result of a tool, and what stands behind it."""
    begins = max((at for at, passage in enumerate(passages, 1) if passage is ROUND_ENDS), default=0)
    return list(passages[:begins]), list(passages[begins:])


def _begun(texts: Iterable[str], whole: str) -> tuple[int, str]:
    """Return how many of *texts*, one after another, *whole* begins with, and the rest of *whole*."""
    count = 0
    for text in texts:
        if not whole.startswith(text):
            break
        count, whole = count + 1, whole[len(text) :]
    return count, whole
