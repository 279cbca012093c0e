"""One step: its retry policy, its limits, and the encoding of its result and its input."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from chatturn.errors import DurableRunDivergenceError, StepTooLarge
from chatturn.jsontext.canonical import canonical_hash
from chatturn.jsontext.depth import nests_deeper
from chatturn.jsontext.stored import json_text

__all__ = [
    "MAX_STEP_BYTES",
    "MAX_STEP_DEPTH",
    "MAX_WAIT_MS",
    "OpenStep",
    "OpenWait",
    "StepRetry",
    "elapsed_ms",
    "fingerprint",
    "inside_step",
    "require_number",
    "require_outside_steps",
    "result_text",
    "words_of",
]

MAX_STEP_BYTES: Final = 1_000_000
"""Bytes of a step's result or input as JSON in UTF-8; D1 takes 2 MB in a row."""

MAX_STEP_DEPTH: Final = 64
"""Levels of arrays and objects in a step's result or input."""

MAX_WAIT_MS: Final = 1_000 * 365 * 86_400_000
"""1,000 years: no wait may end after the year 9999, where the calendar ends."""

_MAX_SAFE_INTEGER: Final = 2**53 - 1

_running: Final[ContextVar[tuple[object, str] | None]] = ContextVar("chatturn_step", default=None)


def require_number(name: str, value: float, *, least: int = 0) -> None:
    """
    Refuse a value that can be no count and no number of milliseconds.

    Raises:
        ValueError: *value* is no number from *least* to `MAX_WAIT_MS`; the message names both bounds.
    """
    if isinstance(value, bool) or not (isinstance(value, int | float) and least <= value <= MAX_WAIT_MS):
        message = f"{name} must be a number from {least} to {MAX_WAIT_MS}, and not {value!r}"
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetry:
    """
    How often a step is tried, and how long the pauses between the tries are.

    Attributes:
        max_attempts: Tries within one attempt of the run.
        attempts_in_all: Tries over all attempts of the run, after which the step fails for good; None, no cap.
        initial_backoff_ms: The pause before the second try; it doubles for each further try.
        max_backoff_ms: The longest pause.
        retryable: Whether a failure is worth another try.
    """

    max_attempts: int = 1
    attempts_in_all: int | None = None
    initial_backoff_ms: int = 1_000
    max_backoff_ms: int = 30_000
    retryable: Callable[[Exception], bool] = lambda _error: True

    def __post_init__(self) -> None:
        for name in ("max_attempts", "initial_backoff_ms", "max_backoff_ms"):
            require_number(name, getattr(self, name), least=1)

    def delay_ms(self, attempt: int, error: Exception) -> int | None:
        """Return how long to wait after failed try *attempt*, from 1, or None to give up."""
        if attempt >= self.max_attempts or not self.retryable(error):
            return None
        doubled: int = self.initial_backoff_ms * 2 ** (attempt - 1)
        return min(doubled, self.max_backoff_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStep:
    """
    A step whose work the caller does itself, because it yields while it works.

    Attributes:
        complete: Records the result; await it once, unless the step is replayed.  A step that is never completed
            leaves no record: the next attempt does it again.
        replayed: Whether an earlier attempt completed the step: then there is nothing to do.
        result: The recorded result of a replayed step.
    """

    complete: Callable[[Any], Awaitable[None]]
    replayed: bool = False
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWait:
    """
    A wait for an event that is on record.

    Attributes:
        payload: Waits and returns the event's payload, as `DurableContext.await_event` does; awaited once.
    """

    payload: Callable[[], Awaitable[Any]]


def result_text(value: Any, intent: str, run_id: str) -> str:
    """
    Encode a step's result.

    Raises:
        TypeError: The result is not JSON; the message names the step.
        StepTooLarge: The result is longer than `MAX_STEP_BYTES` or nests deeper than `MAX_STEP_DEPTH`.
    """
    try:
        text = json_text(value, f"the result of step {intent!r}")
    except TypeError as error:
        what_to_do = "return what is: of a dataclass dataclasses.asdict(it), of bytes their text, of a set a list"
        raise TypeError(f"{error}; {what_to_do}") from None
    _check_size(text, f"the result of step {intent!r}", run_id)
    return text


def fingerprint(value: Any, intent: str, run_id: str) -> str:
    """
    Return the hash of a step's input, by which a later attempt with another input is recognised.

    Raises:
        TypeError, StepTooLarge: As for a result; also TypeError for an input without a canonical text.
    """
    what = f"the input of step {intent!r}"
    _check_size(json_text(value, what), what, run_id)
    try:
        return canonical_hash(_spelled(value))
    except TypeError as error:
        message = f"{what} cannot be compared: {error}"
        raise TypeError(message) from error


def elapsed_ms(started: float | None) -> int:
    """Return the milliseconds since *started* by the event loop's clock; 0 for None."""
    return 0 if started is None else max(0, round((asyncio.get_running_loop().time() - started) * 1000))


def words_of(error: BaseException) -> str:
    """Return the error's message, or its class's name if the message is empty."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - whatever a foreign exception does when it is asked
        return type(error).__name__


# Steps inside steps.
#
# An inner step takes a position while the outer one runs.  On a replay the outer step does not run, so nobody asks for
# the inner one, and every later step would have another position.  So an inner step is refused at once.


@contextmanager
def inside_step(context: object, intent: str) -> Iterator[None]:
    """Mark a ``with`` block, and the asyncio tasks that it starts, as the inside of a step of *context*."""
    token = _running.set((context, intent))
    try:
        yield
    finally:
        _running.reset(token)


def require_outside_steps(context: object, run_id: str) -> None:
    """
    Refuse a call inside one of *context*'s own steps; a call inside another run's step is allowed.

    Raises:
        DurableRunDivergenceError: Names the outer step.
    """
    running = _running.get()
    if running is not None and running[0] is context:
        message = f"a step was asked for inside step {running[1]!r}; it would not be asked for on a replay"
        raise DurableRunDivergenceError(message, run_id=run_id)


def _spelled(value: Any) -> Any:
    """
    Replace ints beyond ±(2**53 - 1) by agent-runtime's ``{"__bigint": "…"}``, so that every digit is hashed.

    Models pass ids of this size to their tools.  JSON carries them, but the canonical text does not.
    """
    if isinstance(value, dict):
        return {name: _spelled(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return {"__bigint": str(value)} if type(value) is int and abs(value) > _MAX_SAFE_INTEGER else value


def _check_size(text: str, what: str, run_id: str) -> None:
    if len(text) > MAX_STEP_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_STEP_BYTES:
        raise StepTooLarge(f"{what} has more than {MAX_STEP_BYTES} bytes as JSON", run_id=run_id)
    if nests_deeper(text, MAX_STEP_DEPTH):
        raise StepTooLarge(f"{what} nests deeper than {MAX_STEP_DEPTH} levels", run_id=run_id)
