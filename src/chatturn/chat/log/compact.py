"""
Lines of a log in a short form for storage: text that many lines share is written once.  Pure, and lossless.

A line has about 100 characters around a delta of about 4.  So consecutive lines that differ only in ``delta`` and
``seq`` become one block::

    ~1234                                  a compact text begins with this line, and with how many characters the lines
                                           have that it stands for; a line of a log begins with "{"
    {"type":"session.run.started",…}       any other line, as it is
    =12                                    a block: the seq of its first line, then
    {"type":…,"data":{…,"delta":"          what stands before each delta,
    "},"seq":                              between the delta and the seq,
    ,"attempt":1}                          and behind it,
    Hel"lo"                                and the deltas, as JSON has them, each ended by the quote that ends it there

What ends each of these lines in the database is a tab, which no line of a log has: an export of a text with line breaks
is imported with more of them, one for each that JSON has escaped.  Texts of an earlier version have line breaks, and no
number.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

__all__ = ["ROW_BYTES", "compact", "expand", "is_compact", "size_of_row"]

ROW_BYTES: Final = 80_000
"""A row's most bytes by `size_of_row`: an export writes a row as one statement, which D1 limits to 100 KB."""

_MARK: Final = "~"

_BLOCK: Final = "="
_LINE: Final = re.compile(
    r'(?P<before>\{.*?"delta":")(?P<delta>(?:[^"\\]|\\.)*)(?P<between>".*,"seq":)(?P<seq>\d+)(?P<behind>,"attempt":\d+\})'
)


class _Line(NamedTuple):
    """A line of a block: the text that it shares with the others, its seq, and its delta."""

    common: tuple[str, str, str]
    seq: int
    delta: str


def size_of_row(text: str) -> int:
    """Return how many bytes a text is in a statement: in UTF-8, with each quote twice."""
    return len(text.encode()) + text.count("'")


def is_compact(text: str) -> bool:
    """Say whether *text* is in the short form of `compact`."""
    return text.startswith(_MARK)


def compact(lines: str) -> str:
    """Return whole lines of a log in their short form, at most 9 characters longer; as they are, if one has a tab."""
    if "\t" in lines:
        return lines
    return f"{_MARK}{len(lines)}\n{''.join(_blocks(lines.split(chr(10))[:-1]))}".replace("\n", "\t")


def expand(text: str, without: int = 0) -> str:
    """Return the lines, byte for byte, that `compact` was given, or any other text, *without* the first lines."""
    if is_compact(text):
        end = "\n" if text.startswith(f"{_MARK}\n") else "\t"
        return "".join(_expanded(iter(text.split(end)[1:-1]), without))
    at = 0
    for _ in range(without):
        at = text.index("\n", at) + 1
    return text[at:]


def _blocks(lines: list[str]) -> Iterator[str]:
    parsed = map(_parse, lines)
    numbered = enumerate(zip(lines, parsed, strict=True))
    # Consecutive lines of a block have consecutive seqs: seq - position is the same for all of them.
    for key, group in groupby(numbered, lambda item: item[1][1] and (item[1][1].common, item[1][1].seq - item[0])):
        pairs = [pair for _, pair in group]
        if not key or len(pairs) == 1:
            yield from (f"{line}\n" for line, _ in pairs)
        else:
            found = [line for _, line in pairs if line is not None]
            deltas = "".join(f'{line.delta}"' for line in found)
            yield "\n".join((f"{_BLOCK}{found[0].seq}", *found[0].common, deltas, ""))


def _parse(line: str) -> _Line | None:
    found = _LINE.fullmatch(line)
    if found is None or (found["seq"] != "0" and found["seq"].startswith("0")):
        return None
    return _Line((found["before"], found["between"], found["behind"]), int(found["seq"]), found["delta"])


def _expanded(lines: Iterator[str], without: int) -> Iterator[str]:
    for line in lines:
        if not line.startswith(_BLOCK):
            if not without:
                yield f"{line}\n"
            without = max(0, without - 1)
            continue
        before, between, behind, deltas = next(lines), next(lines), next(lines), _deltas(next(lines))
        for seq, delta in enumerate(deltas[without:], int(line[1:]) + without):
            yield f"{before}{delta}{between}{seq}{behind}\n"
        without = max(0, without - len(deltas))


_DELTA: Final = re.compile(r'((?:[^"\\]|\\.)*)"')


def _deltas(text: str) -> list[str]:
    # A quote inside a delta stands behind a backslash; without any, the quotes are the deltas' ends.
    return _DELTA.findall(text) if "\\" in text else text.split('"')[:-1]
