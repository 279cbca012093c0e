"""What of wrangler's output is worth a developer's screen."""

import re
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Final

# wrangler's tables of modules and bindings, its start-up notices, and what is said to `Screen`.
_NOISE: Final = re.compile(
    r"""
      ^[┌├└│]
    | ^(Using\ secrets|Your\ Worker\ has\ access|Binding\ |env\.|Attaching\ additional|⎔|chatturn:\ sources\ \w)
    | Ready\ on\ http | GET\ /healthz | GET\ /cdn-cgi/ | Logs\ were\ written\ to
    | ^\s+at\ .*(wasm://|/pyodide\.)  # Frames of the interpreter; Python's own traceback is above them.
    """,
    re.VERBOSE,
)
_STARTED: Final = re.compile(r"chatturn: sources (\w+)")
# wrangler says it itself; a line of the Worker that quotes it is none of this form.
_CRASHED: Final = re.compile(r"^\W*\[[\w:]+\]\W+The Workers runtime crashed unexpectedly")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


def worth_showing(lines: Iterable[str]) -> Iterable[str]:
    """Yield the lines that say something, and never two empty ones in a row."""
    blank = True
    for line in lines:
        plain = _COLOUR.sub("", line).rstrip()
        if _NOISE.search(plain) or (blank and not plain):
            continue
        blank = not plain
        yield plain


class Screen:
    """
    Prints, in the background, what wrangler says; knows which sources the running Worker started with.

    Attributes:
        crashes: How often a process of workerd has ended by itself, of which wrangler starts another one.
    """

    def __init__(self, source: IO[bytes], *, to: IO[str]) -> None:
        self.crashes = 0
        self._source = source
        self._to = to
        self._digest = ""
        self._changed = threading.Condition()
        threading.Thread(target=self._relay, daemon=True).start()

    def shows_start_of(self, digest: str, *, seconds: float) -> bool:
        """Wait until the last Worker that started has the sources of *digest*; return whether it did in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._digest == digest, seconds)

    def _relay(self) -> None:
        lines = (line.decode("utf-8", "replace") for line in self._source)
        for line in worth_showing(self._heard(lines)):
            print(line, file=self._to, flush=True)

    def _heard(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            if found := _STARTED.search(line):
                with self._changed:
                    self._digest = found[1]
                    self._changed.notify_all()
            if _CRASHED.search(_COLOUR.sub("", line)):
                self.crashes += 1
            yield line
