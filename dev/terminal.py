"""What of wrangler's output is worth a developer's screen."""

import re
import threading
from collections.abc import Iterable
from typing import IO, Final

# wrangler's tables of modules and bindings, its start-up notices, and cron's reminder.
_NOISE: Final = re.compile(
    r"""
      ^[┌├└│]
    | ^(Using\ secrets|Your\ Worker\ has\ access|Binding\ |env\.|Attaching\ additional|⎔)
    | Scheduled\ Workers\ are\ not\ automatically
    | ^\ \ (To\ manually\ trigger|\ \ curl\ |For\ more\ details)
    | Ready\ on\ http | GET\ /healthz | Logs\ were\ written\ to
    | ^\s+at\ .*(wasm://|/pyodide\.)  # Frames of the interpreter; Python's own traceback is above them.
    """,
    re.VERBOSE,
)
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


def relay(source: IO[bytes], *, to: IO[str]) -> threading.Thread:
    """Print, from now on and in the background, what *source* says."""

    def copy() -> None:
        lines = (line.decode("utf-8", "replace") for line in source)
        for line in worth_showing(lines):
            print(line, file=to, flush=True)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread
