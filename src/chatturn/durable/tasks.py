"""
What a task may do, whatever runs it: `TaskContext`, which `run_durable` and Cloudflare Workflows both implement.

A task is an ``async def task(context: TaskContext)``.  It must be deterministic between its steps; see
`chatturn.durable.context`.
"""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, Protocol, TypeVar

from chatturn.durable.records import EventRecord, StepKind
from chatturn.durable.steps import StepRetry, require_number
from chatturn.errors import StepTimeout
from chatturn.product_calls import Late, awaited

__all__ = ["DEFAULT_EVENT_TIMEOUT_MS", "NO_INPUT", "ContextSources", "StepCall", "TaskContext", "run_once"]

T = TypeVar("T")

DEFAULT_EVENT_TIMEOUT_MS: Final = 60_000

NO_INPUT: Final = object()
"""The default of a step's *input*: no input is given, so none is compared.  None is an input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """
    One step to run in parallel with others.

    Attributes:
        intent: What it does; the same at this position on every attempt.
        run: Does the work.
        kind: A `StepKind`'s value.
        input: What it is given, JSON; compared with what an earlier attempt gave.
        retry: How often it is tried; None for the engine's default, which for `run_durable` is one try.
        timeout_ms: The time of each try; 0 for no limit of the step's own.
    """

    intent: str
    run: Callable[[], Awaitable[Any]]
    kind: str = StepKind.LOGIC
    input: Any = NO_INPUT
    retry: StepRetry | None = None
    timeout_ms: int = 0

    def __post_init__(self) -> None:
        require_number("timeout_ms", self.timeout_ms)
        if not callable(self.run):
            if isinstance(self.run, Coroutine):
                self.run.close()
            message = f"step {self.intent!r} must be given an async function, and not {type(self.run).__name__!r}"
            raise TypeError(f"{message}: pass f or lambda: f(x), and not f(x)")


async def run_once(call: StepCall, run_id: str) -> Any:
    """
    Try a step once.

    Raises:
        StepTimeout: The try took longer than *timeout_ms*.
        TypeError: *run* is no async function.
        Exception: Whatever *run* raises.
    """
    running = call.run()
    if not isawaitable(running):
        message = (
            f"what step {call.intent!r} runs must be an async function: it has returned {type(running).__name__!r}"
        )
        raise TypeError(f"{message}, which cannot be awaited")
    try:
        return await awaited(running, call.timeout_ms)
    except Late as error:
        raise StepTimeout(f"step {call.intent!r} took longer than {call.timeout_ms} ms", run_id=run_id) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSources:
    """
    The sources of a context's undetermined values; each value is recorded, so a replay returns the same.

    Attributes:
        now: The current time, as a timestamp.
        uuid: A fresh UUID.
        random: A number from 0 to 1, 1 excluded.
    """

    now: Callable[[], str]
    uuid: Callable[[], str]
    random: Callable[[], float]


class TaskContext(Protocol):
    """
    The steps of one run.

    Everything is recorded under the position at which it was asked for; `DurableContext`'s methods say more.
    """

    @property
    def run_id(self) -> str:
        """The run."""

    @property
    def project_id(self) -> str:
        """Its product."""

    @property
    def scenario_id(self) -> str | None:
        """Its thread, or None."""

    def step(
        self,
        intent: str,
        run: Callable[[], Awaitable[T]],
        *,
        kind: str = StepKind.LOGIC,
        input: Any = NO_INPUT,  # noqa: A002 - agent-runtime's word
        retry: StepRetry | None = None,
        timeout_ms: int = 0,
    ) -> Coroutine[Any, Any, T]:
        """Do *run* once, and return its result as a replay returns it; the arguments are those of `StepCall`."""

    async def gather(self, *calls: StepCall) -> list[Any]:
        """Run steps at the same time and return their results, in the order given."""

    def step_key(self, intent: str) -> str:
        """Return the next step's key if it is *intent*: the same on every attempt, for others to deduplicate by."""

    async def now(self) -> str:
        """Return the time, as it was when this step first ran."""

    async def uuid(self) -> str:
        """Return a fresh UUID, the same one on every attempt."""

    async def random(self) -> float:
        """Return a random number from 0 to 1, the same one on every attempt."""

    async def emit_event(self, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """Emit an event of this run; return whether it is the first under its key, and the first event."""

    async def await_event(self, key: str, *, timeout_ms: int = DEFAULT_EVENT_TIMEOUT_MS) -> Any:
        """Return the first payload under *key*; raise `DurableAwaitEventTimeoutError` after *timeout_ms*."""

    async def sleep(self, duration_ms: int) -> None:
        """Wait *duration_ms* from the first time that this step is reached."""
