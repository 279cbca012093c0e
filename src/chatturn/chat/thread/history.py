"""
Which part of a session the model is shown: its latest answered turns, as far as they fit.  Pure.

Nothing is left out silently: `ShownHistory` counts what was left out or shortened, and the engine says so in a line of
the log and in the trace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from chatturn.backends.api import ChatMessage
from chatturn.chat.parts import Part, content_of, with_notes

__all__ = ["PastTurn", "ShownHistory", "recent", "shortened_in_the_middle"]

_MARK: Final = " […{} characters left out…] "
_LEAST_CHARACTERS: Final = 2 * len(_MARK)
"""The fewest characters of a shortened text: with fewer, little but the mark would be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTurn:
    """
    An answered turn before the turn that is asked.

    Attributes:
        turn_index: Its place in the session.
        question: What the user said.
        answer: What was answered.
        finish_reason: Why the answer ended: ``stop``; or ``length``, ``content_filter``, ``tool_calls``, ``cancelled``:
            then it is not whole; None where that is not on record.
        parts: The question's parts, where it was more than text.
        lacks_parts: Whether its images and files are too large to be shown again.
        kept: What the API that answered wants back with the answer; its characters do not count.
    """

    turn_index: int
    question: str
    answer: str
    finish_reason: str | None = None
    parts: Sequence[Part] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    lacks_parts: bool = False

    @property
    def size(self) -> int:
        """Its characters, those of images and files in the message itself among them."""
        return len(self.question) + len(self.answer) + sum(len(part.get("url", "")) for part in self.parts)

    @property
    def without_parts(self) -> "PastTurn":
        """The same turn, with notes in place of images and files."""
        return replace(self, question=with_notes(self.parts), parts=()) if self.parts else self


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownHistory:
    """
    What the model is shown of the earlier turns.

    Attributes:
        messages: Oldest first.
        turns: How many turns `messages` has.
        left_out: How many turns are left out; at least this many, where more turns exist than were read.
        shortened: The indexes of the turns that are not whole.
    """

    messages: Sequence[ChatMessage] = ()
    turns: int = 0
    left_out: int = 0
    shortened: Sequence[int] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.left_out and not self.shortened


def recent(turns: Sequence[PastTurn], most_characters: int) -> ShownHistory:
    """
    Show the latest turns that have no more than *most_characters* together.

    Where the turns do not all fit, a turn longer than *most_characters* / 2 loses its images and files, and its middle
    is cut until it has that length, so that one long turn does not push out all others; the rest stay whole.

    Args:
        turns: Oldest first.
        most_characters: 0 for none at all.
    """
    fits = sum(turn.size for turn in turns) <= most_characters
    kept: list[PastTurn] = []
    shortened: list[int] = []
    left = most_characters
    for turn in reversed(turns):
        shown = turn if fits or 2 * turn.size <= most_characters else _reduced(turn, most_characters // 2)
        if shown is None or shown.size > left:
            break
        left -= shown.size
        kept.insert(0, shown)
        if shown is not turn or turn.lacks_parts:
            shortened.insert(0, turn.turn_index)
    return ShownHistory(
        messages=[message for turn in kept for message in _messages(turn)],
        turns=len(kept),
        left_out=len(turns) - len(kept),
        shortened=shortened,
    )


def shortened_in_the_middle(text: str, characters: int) -> str:
    """Return *text* with *characters* characters at most: its beginning, how many were left out, and its end."""
    if len(text) <= characters:
        return text
    mark = _MARK.format(len(text))
    kept = max(0, characters - len(mark))
    mark = _MARK.format(len(text) - kept)
    return text[: kept - kept // 2] + mark + text[len(text) - kept // 2 :]


def _reduced(turn: PastTurn, characters: int) -> PastTurn | None:
    """Leave out a turn's images and files, and shorten its texts if that is not enough."""
    text = turn.without_parts
    return text if text.size <= characters else _shortened(text, characters)


def _shortened(turn: PastTurn, characters: int) -> PastTurn | None:
    """Shorten the longer of a turn's texts, and both where each has more than half; None if nothing would be left."""
    if characters < 2 * _LEAST_CHARACTERS:
        return None
    of_question = max(characters // 2, characters - len(turn.answer))
    question = shortened_in_the_middle(turn.question, of_question)
    answer = shortened_in_the_middle(turn.answer, characters - len(question))
    return replace(turn, question=question, answer=answer, kept={})


def _messages(turn: PastTurn) -> tuple[ChatMessage, ChatMessage]:
    question: Any = content_of(turn.parts) if turn.parts else turn.question
    kept = {"kept": turn.kept} if turn.kept else {}
    return {"role": "user", "content": question}, {"role": "assistant", "content": turn.answer, **kept}
