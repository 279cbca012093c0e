"""
The text of an answer where it stands: a part may be said in several places, with tools and data between them.

A part's whole text takes the place of what was said of the part.  What of that begins the whole stays where it is: the
words before a tool stay before it, when the model behind the tool begins anew.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from chatturn.wire.lines import quoted, unquoted

__all__ = ["TEXT", "PartKey", "Passage", "part_of", "said_of", "with_whole"]

PartKey: TypeAlias = tuple[str, str]
"""The kind of a part, and its name in the log."""

TEXT: Final[PartKey] = ("text", "text")
"""The part that nearly all of an answer is."""


class Passage(NamedTuple):
    """
    A stretch of one part.

    Attributes:
        key: The part; None for what is no text.
        pieces: Its text, as JSON without its quotes.
    """

    key: PartKey | None
    pieces: list[str]

    @property
    def is_answer(self) -> bool:
        """Whether it is text of the answer."""
        return self.key is not None and self.key[0] == "text"


def part_of(data: dict[str, Any]) -> tuple[PartKey, str | None, str | None]:
    """Return which part the data of a line are about, and a further piece of it, or else its whole text."""
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
    """Return *passages* with *whole* as the text of the part *key*: what is new of it stands at the end."""
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
    """Return how many of *texts*, from the first on, *whole* begins with, and what follows them in it."""
    count = 0
    for text in texts:
        if not whole.startswith(text):
            break
        count, whole = count + 1, whole[len(text) :]
    return count, whole
