"""
The log of a turn: every line that it says, numbered, on its way to the reader and to the database.

A line gets its ``seq`` when it is said.  Stored, consecutive lines are one row of NDJSON text, so that
whoever reads the log later copies strings and parses nothing.

At most `position.MAX_AHEAD` lines are said before they are stored.  So an attempt that follows a lost worker skips
`MAX_AHEAD` numbers, and no two lines that anybody has seen have the same number.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from chatturn.chat.log.attempt_place import MAX_AHEAD, Place
from chatturn.chat.log.sql import append_segment
from chatturn.database.api import Statement
from chatturn.events import ChatStreamEvent, encode_lines, stored_event

__all__ = ["FLUSH_CHARACTERS", "MAX_LOG_CHARACTERS", "TurnLog"]

MAX_UNSTORED_CHARACTERS: Final = 4_000_000
"""The most characters of an attempt that are said and not yet stored: they are in the isolate's memory."""

MAX_LOG_CHARACTERS: Final = 100_000_000
"""The most characters of one attempt's log: a tool that never stops must not fill the database."""

FLUSH_CHARACTERS: Final = 64_000
"""When this many characters are not stored yet, they are stored without waiting for the next interval."""

_SEGMENT_CHARACTERS: Final = 400_000
"""About the most characters in one row: in UTF-8, at 4 bytes each, they stay below D1's 2,000,000 bytes."""

_KEPT_CHARACTERS: Final = 256_000
"""Characters of stored lines kept for followers in this isolate; a follower further behind reads the database."""


class TurnLog:
    """
    The lines of one attempt; only plain data, so that other requests may read it.

    Pings are no lines of the log and have no seq.

    A log may be *redacting*: then nothing is stored, and no follower is shown anything, that the product's
    `transform_final_text` has not seen.  Every line keeps its place and type; the answer comes as a ``result``.

    Args:
        place: Where the attempt's lines begin.
        attempt: The number of the attempt that says them.
        redacting: Whether the log is redacting.
        created_at: When the turn was begun, by which it is told from a deleted one of the same name.

    Attributes:
        attempt: The number of the attempt that says them.
        created_at: When the turn was begun.
        ended: Whether the attempt's last line was said, and stored.
        left: Whether nothing more is said here, though no last line was stored.
        cancel_requested: Whether somebody in this isolate asks to stop the turn.
        followers: How many read it here.
    """

    def __init__(
        self,
        place: Place = Place(),  # noqa: B008 - frozen
        attempt: int = 1,
        *,
        redacting: bool = False,
        created_at: str = "",
    ) -> None:
        self.attempt = attempt
        self.created_at = created_at
        self.ended = False
        self.left = False
        self.cancel_requested = False
        self.followers = 0
        self._watchers: list[Callable[[], object]] = []
        self._redacting = redacting
        self._follows = place.follows
        self._first_seq = place.first_seq
        self._kept_from = place.first_seq  # the seq of the first line in `_lines`
        self._stored_to = place.first_seq  # the seq of the first line that is not stored
        self._lines: list[str] = []
        self._size = 0
        self._unstored = 0

    # Saying.

    @property
    def next_seq(self) -> int:
        """The seq of the next line."""
        return self._kept_from + len(self._lines)

    @property
    def characters(self) -> int:
        """How many characters were said so far."""
        return self._size

    @property
    def unstored_characters(self) -> int:
        """How many characters were said and are not stored yet."""
        return self._unstored

    def has_room(self, lines: int) -> bool:
        """Say whether *lines* further lines may be said before earlier ones are stored."""
        ahead = self.next_seq - self._stored_to
        return not ahead or (ahead + lines <= MAX_AHEAD and self._unstored <= MAX_UNSTORED_CHARACTERS)

    def extend(self, events: Sequence[ChatStreamEvent]) -> str:
        """
        Number *events*, keep their lines and return them as one text, as the reader gets it.

        Raises:
            TypeError, ValueError: One of them is not JSON in UTF-8, or they are too long to be stored; none was
                kept.
        """
        lines = self.preview(events)
        longest = max(map(len, lines), default=0)
        if longest > _SEGMENT_CHARACTERS:
            message = f"an event's line has {longest} characters, but at most {_SEGMENT_CHARACTERS} can be stored"
            raise ValueError(message)
        text = "".join(lines)
        if not text.isascii():
            text.encode()  # UnicodeEncodeError is a ValueError
        self._size += len(text)
        if self._size > MAX_LOG_CHARACTERS:
            message = f"the turn's lines have more than {MAX_LOG_CHARACTERS} characters"
            raise ValueError(message)
        if self._redacting:
            lines = self.preview([stored_event(event) for event in events])
        self._lines += lines
        self._unstored += sum(map(len, lines)) if self._redacting else len(text)
        if self._watchers:
            self._tell()
        return text

    def preview(self, events: Sequence[ChatStreamEvent]) -> list[str]:
        """Return the lines that *events* would be if they were said next; keep nothing."""
        return encode_lines(events, self.next_seq, self.attempt)

    # Storing.

    def unstored(self) -> tuple[Statement | None, int]:
        """Return the statement that stores the next lines, None if all are stored, and the seq after its last line."""
        segments = self._segments(self._lines[self._stored_to - self._kept_from :])
        if not segments:
            return None, self._stored_to
        first, lines = segments[0]
        return append_segment(first, self.attempt, lines), first + len(lines)

    def stored(self, to_seq: int) -> None:
        """Take note that all lines below *to_seq* are stored; forget lines that no follower here needs."""
        newly = self._lines[self._stored_to - self._kept_from : to_seq - self._kept_from]
        self._unstored -= sum(map(len, newly))
        self._stored_to = to_seq
        self._forget()

    def last_statements(self, tail: Sequence[str]) -> list[Statement]:
        """
        Return the statements that store all that is not stored yet, as with_statements of a settlement.

        A line may be in one of these statements and in a write that is still on its way: the later of the two replaces
        the row of the earlier with the same lines and more, or finds the lease gone.

        Args:
            tail: The attempt's last lines, which its reader gets once they are stored.
        """
        segments = self._segments([*self._lines[self._stored_to - self._kept_from :], *tail])
        return [
            append_segment(first, self.attempt, lines, ended=number == len(segments))
            for number, (first, lines) in enumerate(segments, 1)
        ]

    def end(self, tail: Sequence[str]) -> None:
        """Take note that the attempt's last lines are said and stored."""
        self._lines += tail
        self.ended = True
        self._tell()

    def leave(self) -> None:
        """Take note that nothing more is said here, whether or not the attempt has ended."""
        self.left = not self.ended
        self._tell()

    def _segments(self, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
        """Cut lines into rows as long as a row may be: the same lines from the same seq are always cut the same."""
        ends = list(accumulate(map(len, lines)))
        segments: list[tuple[int, list[str]]] = []
        start = size = 0
        while start < len(lines):
            stop = max(start + 1, bisect_right(ends, size + _SEGMENT_CHARACTERS))
            segments.append((self._stored_to + start, list(lines[start:stop])))
            start, size = stop, ends[stop - 1]
        return segments

    def _forget(self) -> None:
        stored = self._stored_to - self._kept_from
        kept = 0
        for at in range(stored - 1, -1, -1):
            kept += len(self._lines[at])
            if kept > _KEPT_CHARACTERS:
                del self._lines[: at + 1]
                self._kept_from += at + 1
                return

    # Following.

    def watch(self, ring: Callable[[], object]) -> None:
        """Call *ring*, once, when there is more to read, or will be none."""
        self._watchers.append(ring)

    def unwatch(self, ring: Callable[[], object]) -> None:
        """Do not call *ring* any more, if it was not called yet."""
        if ring in self._watchers:
            self._watchers.remove(ring)

    def _tell(self) -> None:
        watchers, self._watchers = self._watchers, []
        for ring in watchers:
            ring()

    def after(self, seq: int) -> tuple[str, int] | None:
        """
        Return the lines behind *seq*, as one text, and the seq of the last; None if some are in the database only.

        *seq* is of a line that is stored, or was said here.
        """
        at = seq + 1 - self._kept_from
        if at < 0:
            if self._kept_from > self._first_seq or seq < self._follows:
                return None
            at = 0
        lines = self._lines[at:]
        return "".join(lines), self.next_seq - 1 if lines else seq
