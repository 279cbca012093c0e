"""Runs one attack against one Worker, and measures the Worker meanwhile."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dev import paths
from tests.support.http import http
from tests.support.worker import Worker, running_worker

__all__ = ["Attack", "Cost", "Target", "table", "tried"]

_MB: Final = 1_048_576
_PAGE_BYTES: Final = 4_096
_LOOK_EVERY_S: Final = 0.1
_LOOKS_BEFORE: Final = 10


@dataclass
class Target:
    """
    What is attacked.

    Attributes:
        worker: The Worker.
        wrong: What the attack got, and may not.
    """

    worker: Worker
    wrong: list[str] = field(default_factory=list)

    def expect(self, *, holds: bool, what: str) -> None:
        """Note *what* unless it *holds*."""
        if not holds:
            self.wrong.append(what)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """
    One attack.

    Attributes:
        title: What it does, in the table.
        prepare: What has to be there before; not measured.
        run: The attack.
        variables: Settings of the Worker.
        products: Products of the Worker.
        deployment: Its `wrangler.toml`.
        most_mb: How much more memory it may take.
        most_health_ms: How long `/healthz` may take others at worst.
    """

    title: str
    run: Callable[[Target], None]
    prepare: Callable[[Target], None] = lambda _target: None
    variables: Mapping[str, str] = field(default_factory=dict)
    products: Mapping[str, Path] = field(default_factory=dict)
    deployment: Path = paths.DEPLOYMENT_CONFIG
    most_mb: float
    most_health_ms: float


@dataclass(kw_only=True)
class Cost:
    """What an attack costs the Worker: memory in MB, and the time of `/healthz` in ms."""

    name: str
    title: str
    before_mb: float
    worst_mb: float
    before_ms: float
    median_ms: float
    worst_ms: float
    seconds: float
    wrong: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return its members."""
        return vars(self)


class _Watch:
    """Looks at memory and asks for `/healthz` all the time, from a thread of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self.megabytes: list[float] = []
        self.milliseconds: list[float] = []

    @contextmanager
    def looking(self) -> Iterator["_Watch"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()

    def look(self) -> None:
        asked = time.monotonic()
        status = http.get(f"{self._worker.url}/healthz", timeout=120).status_code
        assert status == 200, status
        self.milliseconds.append((time.monotonic() - asked) * 1000)
        self.megabytes.append(memory_mb(self._worker))

    def _look_on(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self.look()


def memory_mb(worker: Worker) -> float:
    """Return the resident memory of the workerd that holds Python."""
    pid = worker.pids()[0]
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_BYTES / _MB


def tried(name: str, attack: Attack) -> Cost:
    """Run an attack against a Worker of its own, which is there a moment later, too."""
    with running_worker(variables=attack.variables, products=attack.products, deployment=attack.deployment) as worker:
        target = Target(worker)
        attack.prepare(target)
        before = _Watch(worker)
        for _ in range(_LOOKS_BEFORE):
            before.look()
        began = time.monotonic()
        with _Watch(worker).looking() as watch:
            attack.run(target)
            watch.look()
        seconds = time.monotonic() - began
        cost = Cost(
            name=name,
            title=attack.title,
            before_mb=max(before.megabytes),
            worst_mb=max(watch.megabytes),
            before_ms=statistics.median(before.milliseconds),
            median_ms=statistics.median(watch.milliseconds),
            worst_ms=max(watch.milliseconds),
            seconds=seconds,
            wrong=target.wrong,
        )
    more = cost.worst_mb - cost.before_mb
    target.expect(holds=more <= attack.most_mb, what=f"{more:.0f} MB more, {attack.most_mb:.0f} at most")
    target.expect(
        holds=cost.worst_ms <= attack.most_health_ms,
        what=f"/healthz took {cost.worst_ms:.0f} ms, {attack.most_health_ms:.0f} at most",
    )
    return cost


def table(costs: Sequence[Cost]) -> str:
    """Return the costs as a table of Markdown."""
    head = "| Attack | memory before, at worst, MB | `/healthz` before, median, worst, ms | s |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {cost.title} | {cost.before_mb:.0f}, {cost.worst_mb:.0f} "
        f"| {cost.before_ms:.0f}, {cost.median_ms:.0f}, {cost.worst_ms:.0f} | {cost.seconds:.0f} |\n"
        for cost in costs
    )
