"""
The text of an answer in passages: the text of one part may stand in several places, with tools and data between them.

A part's whole text replaces the text of the part so far.  The pieces that the whole text begins with stay where they
are: the words before a tool stay before it, even if the model after the tool begins anew.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from chatturn.wire.lines import quoted, unquoted

__all__ = ["TEXT", "PartKey", "Passage", "part_of", "said_of", "with_whole"]

PartKey: TypeAlias = tuple[str, str]
"""The kind of a part, and its name in the log."""

TEXT: Final[PartKey] = ("text", "text")
"""The part that a piece without a part of its own belongs to: nearly all of an answer."""


class Passage(NamedTuple):
    """
    A stretch of one part.

    Attributes:
        key: The part; None for tools and data.
        pieces: The pieces of its text, which together are a JSON string without its quotes.
    """

    key: PartKey | None
    pieces: list[str]

    @property
    def is_answer(self) -> bool:
        """Whether it is text of the answer."""
        return self.key is not None and self.key[0] == "text"


def part_of(data: dict[str, Any]) -> tuple[PartKey, str | None, str | None]:
    """Return the part that a line's *data* are about, a further piece of it or None, and its whole text or None."""
    part = data.get("part")
    described = part if isinstance(part, dict) else {}
    key = (str(described.get("type", "text")), str(described.get("id", "text")))
    delta, whole = data.get("delta"), described.get("text")
    if not (isinstance(delta, str) and delta) and isinstance(whole, str):
        return key, None, whole
    return key, delta if isinstance(delta, str) else "", None


def said_of(passages: Iterable[Passage], key: PartKey) -> str:
    """Return the text of a part."""
    return "".join(unquoted(passage.pieces) for passage in passages if passage.key == key)


def with_whole(passages: Sequence[Passage], key: PartKey, whole: str) -> list[Passage]:
    """Return *passages* with *whole* as the text of the part *key*; what is new in it stands at the end."""
    said = (unquoted([piece]) for passage in passages if passage.key == key for piece in passage.pieces)
    kept, new = _begun(said, whole)
    left: list[Passage] = []
    for passage in passages:
        if passage.key != key:
            left.append(passage)
        elif kept:
            left.append(Passage(key, passage.pieces[:kept]))
            kept -= min(kept, len(passage.pieces))
    return [*left, Passage(key, [quoted(new)])] if new else left


def _begun(texts: Iterable[str], whole: str) -> tuple[int, str]:
    """Return how many of *texts*, one after another, *whole* begins with, and the rest of *whole*."""
    count = 0
    for text in texts:
        if not whole.startswith(text):
            break
        count, whole = count + 1, whole[len(text) :]
    return count, whole
