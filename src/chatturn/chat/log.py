"""
The log of a turn: every line that it says, numbered, on its way to the reader and to the database.

A line gets its ``seq`` when it is said.  Stored, consecutive lines are one row of NDJSON text, so that
whoever reads the log later copies strings and parses nothing.
"""

from collections.abc import Sequence
from typing import Final

from chatturn.databases import Statement
from chatturn.durable.statements import HELD
from chatturn.events import STORED_AS_SAID, ChatStreamEvent, encode_line, is_answer, text_delta

__all__ = ["MAX_LOG_CHARACTERS", "TurnLog"]

_APPEND: Final = f"""
INSERT INTO chat_segments (run_id, first_seq, last_seq, attempt, lines) SELECT ?1, ?4, ?5, ?6, ?7 WHERE {HELD}
"""

_SEGMENT_CHARACTERS: Final = 400_000
"""At most about this many in one row: in UTF-8 they stay below D1's 2,000,000 bytes, whatever the script."""


MAX_LOG_CHARACTERS: Final = 20_000_000
"""Of one attempt: what is waiting for its last write must fit the isolate's memory beside everything else."""


class TurnLog:
    """
    The lines of one attempt, from `first_seq` on.

    Pings are no lines of the log and have no seq.

    A log may be *redacting*: then nothing is stored that the product's `transform_final_text` has not seen.
    Every line keeps its place and type; the first piece of the answer holds the whole transformed text, and
    what else a producer said is stored without its data.
    """

    def __init__(self, *, first_seq: int, attempt: int, redacting: bool = False) -> None:
        self.attempt = attempt
        self._first_seq = first_seq
        self._redacting = redacting
        self._lines: list[str] = []
        self._size = 0
        self._text_at: int | None = None

    @property
    def next_seq(self) -> int:
        """The seq of the next line."""
        return self._first_seq + len(self._lines)

    def extend(self, events: Sequence[ChatStreamEvent]) -> str:
        """
        Number *events*, keep their lines and return them as one text.

        Raises:
            TypeError, ValueError: One of them is not JSON in UTF-8, or they are too long to be stored; none was
                kept.
        """
        lines = self.preview(events)
        text = "".join(lines)
        if not text.isascii():
            text.encode()  # UnicodeEncodeError is a ValueError
        self._size += len(text)
        if self._size > MAX_LOG_CHARACTERS:
            message = f"the turn's lines have more than {MAX_LOG_CHARACTERS} characters"
            raise ValueError(message)
        self._lines += self._storable(events, lines) if self._redacting else lines
        return text

    def preview(self, events: Sequence[ChatStreamEvent]) -> list[str]:
        """Return the lines that *events* would be if they were said next; keep nothing."""
        seq, attempt = self.next_seq, self.attempt
        lines = [encode_line(event, seq + offset, attempt) for offset, event in enumerate(events)]
        longest = max(map(len, lines), default=0)
        if longest > _SEGMENT_CHARACTERS:
            message = f"an event's line has {longest} characters, but at most {_SEGMENT_CHARACTERS} can be stored"
            raise ValueError(message)
        return lines

    def _storable(self, events: Sequence[ChatStreamEvent], lines: Sequence[str]) -> list[str]:
        """Return the lines of *events* as a redacting log stores them, and remember where the answer begins."""
        storable = list(lines)
        for offset, event in enumerate(events):
            if event.type in STORED_AS_SAID:
                continue
            seq = self.next_seq + offset
            if self._text_at is None and is_answer(event):
                self._text_at = seq - self._first_seq
            storable[offset] = encode_line(ChatStreamEvent(event.type), seq, self.attempt)
        return storable

    def statements(self, tail: Sequence[str], final_text: str | None) -> list[Statement]:
        """
        Return the fenced statements that store the log, as companions of a settlement.

        Args:
            tail: Lines to store after those said so far, which are said once they are stored.
            final_text: The answer as it is stored, or None if there is none; for a redacting log.
        """
        if self._text_at is not None and final_text is not None:
            seq = self._first_seq + self._text_at
            self._lines[self._text_at] = encode_line(text_delta(final_text), seq, self.attempt)
        statements: list[Statement] = []
        chunk: list[str] = []
        size, first = 0, self._first_seq
        for line in (*self._lines, *tail):
            if chunk and size + len(line) > _SEGMENT_CHARACTERS:
                statements.append(self._segment(first, chunk))
                first += len(chunk)
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        if chunk:
            statements.append(self._segment(first, chunk))
        return statements

    def _segment(self, first_seq: int, lines: list[str]) -> Statement:
        return Statement(_APPEND, (first_seq, first_seq + len(lines) - 1, self.attempt, "".join(lines)))
