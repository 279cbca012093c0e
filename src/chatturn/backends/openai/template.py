"""
Reading frames by comparing them with the one before, instead of parsing them.

The frames of an answer mostly differ in nothing but the text of ``"content"``.  What stands before and after
that text is learnt from two such frames in a row; a further frame with the same beginning and end then has
only its text decoded, which takes an eighth of the time of a parse.

The result is that of a parse: the beginning ends inside the string that is the content's value, which the probe in
`FrameTemplate.learn` makes sure of.  From there the string is decoded to its closing quote by the JSON
parser's own scanner.  If the end that was learnt begins exactly there, a parser would be in the same state as
it was in the frame learnt from, and the rest of the characters are the same.

In a burst many such frames arrive at once, with the same characters between any two texts.  Then all frames are cut at
these characters, and one match makes sure that each piece is the inside of a JSON string.  Most pieces are escaped as
our own lines are, so nothing is decoded, and a piece costs a hundredth of a parse.
"""

import json
import re
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in the stubs; the parser's own
from json.encoder import encode_basestring
from typing import Any, Final

__all__ = ["FrameTemplate"]

_CONTENT: Final = re.compile(r'"content"\s*:\s*"')
_PROBE: Final = "probe"
# The insides of JSON strings, one a line, without halves of surrogate pairs.
_BODIES: Final = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})|\n)*+')
_OWN_WAY: Final = re.compile(r"\\[u/]")  # escapes that our own lines never have, or write otherwise
_MAX_MISSES: Final = 16  # servers that pad frames with random text never send two alike


class FrameTemplate:
    """
    What the frames of one answer have in common.

    Args:
        parse: The JSON parser whose results are to be met.
    """

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse
        self._before, self._after = "", ""  # as learnt; empty before
        self._first, self._last = "", ""  # the same of a whole frame, if it is one line
        self._candidate = ("", "")
        self._misses = 0

    @property
    def is_learnt(self) -> bool:
        """Whether it is known what frames have in common."""
        return bool(self._first)

    def text_of(self, data: str) -> str | None:
        """Return the content's text in *data*, if *data* is otherwise as learnt; else None: parse it."""
        before, after = self._before, self._after
        if not before or not data.startswith(before) or not data.endswith(after):
            return None
        try:
            text, end = scanstring(data, len(before))
        except json.JSONDecodeError:
            return None
        return text if end - 1 + len(after) == len(data) else None

    def bodies_of(self, frames: str) -> tuple[list[str], str]:
        """
        Take those *frames* from the beginning that are as learnt.

        Args:
            frames: Each ended by a blank line.

        Returns:
            The content of each as JSON without its quotes, as `encode_basestring` writes it; and the other frames.
            If one of the first frames does not qualify, all frames are returned as others.
        """
        first, last = self._first, self._last
        end = frames.rfind(last) if first and frames.startswith(first) else -1
        if end < 0:
            return [], frames
        start, stop = len(first), -len(self._after)
        bodies = [frame[start:stop] for frame in frames[: end + len(self._after)].split("\n\n")]
        # A separator of several hundred characters would find the same, but `split` is slow with long ones.
        alike = first + (last + first).join(bodies) + last == frames[: end + len(last)]
        lines = "\n".join(bodies)
        if not alike or lines.count("\n") != len(bodies) - 1 or not _BODIES.fullmatch(lines):
            return [], frames
        if _OWN_WAY.search(lines):
            bodies = [encode_basestring(scanstring(f'{body}"', 0)[0])[1:-1] for body in bodies]
        return bodies, frames[end + len(last) :]

    def learn(self, data: str, message: dict[str, Any]) -> None:
        """
        Learn from a frame that had to be parsed, if it is of the same make as the last such one.

        Args:
            data: The frame; all that it says is the content of its first choice's delta.
            message: What it parses to; it is changed.
        """
        if self._misses > _MAX_MISSES or (start := _CONTENT.search(data)) is None:
            return
        self._misses += 1
        candidate = data[: start.end()], data[scanstring(data, start.end())[1] - 1 :]
        if candidate == self._candidate and self._holds(candidate, message):
            self._before, self._after = before, after = candidate
            self._misses = 0
            one_line = "\n" not in before + after
            self._first, self._last = (f"data: {before}", f"{after}\n\n") if one_line else ("", "")
        self._candidate = candidate

    def _holds(self, candidate: tuple[str, str], message: dict[str, Any]) -> bool:
        before, after = candidate
        message["choices"][0]["delta"]["content"] = _PROBE
        return bool(self._parse(f"{before}{_PROBE}{after}") == message)
