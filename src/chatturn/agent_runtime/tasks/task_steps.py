"""
The steps of a task, which are recorded if the task is durable, and how an abort ends the running step.

Without a store a step is a call.  With one it is a step of a durable run (`chatturn.durable`): what it returns is
JSON, recorded before the task goes on, and a later attempt reads the record instead of doing the step again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.given import require_text
from chatturn.agent_runtime.values.unsaid import Unsaid
from chatturn.durable.context import DurableContext
from chatturn.durable.records import StepKind
from chatturn.durable.runner import default_sources
from chatturn.durable.steps import words_of
from chatturn.durable.store import DurableRunStore
from chatturn.errors import HookError, ValidationError
from chatturn.product_calls import unlogged

__all__ = ["DurableTask", "HookFailed", "TaskAborted", "TaskSteps"]

T = TypeVar("T")
R = TypeVar("R")


class TaskAborted(Exception):
    """The caller asked the task to stop."""


class HookFailed(Exception):
    """
    The product's own code raised, not the store or the run.

    Attributes:
        error: What it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(words_of(error))
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableTask:
    """
    What makes a task durable.

    Attributes:
        store: Where it is recorded.
        run_id: The run's id: the same on every attempt, and another one for every task.
        project_id: The product.
        scenario_id: The thread, or None.
        lease_ms: Milliseconds that the worker may be silent before others may take the run over; at least 1.

    Raises:
        ValidationError: An id is no text, *run_id* is empty, or *lease_ms* is no whole number from 1.
    """

    store: DurableRunStore
    run_id: str
    project_id: str
    scenario_id: str | None = None
    lease_ms: int = 30_000

    def __post_init__(self) -> None:
        if not require_text(self.run_id, "run_id"):
            raise ValidationError("run_id must not be empty")
        for name in ("project_id", "scenario_id"):
            if (value := getattr(self, name)) is not None or name == "project_id":
                require_text(value, name)
        if type(self.lease_ms) is not int or self.lease_ms < 1:
            raise ValidationError(f"lease_ms must be a whole number from 1, not {self.lease_ms!r:.40}")


@dataclass(slots=True, kw_only=True)
class TaskSteps:
    """
    The steps of one attempt.

    Attributes:
        context: Records them; None where nothing is recorded.
        abort: Set by a caller that wants the task to stop: the step that runs is cancelled.
        now: Returns the current time, as a timestamp.
        at: When the latest step ended; if it was replayed, when it first ended.
        unsaid: Credentials that no record of the attempt may quote: a user's answers, resume tokens.
    """

    context: DurableContext | None = None
    abort: asyncio.Event | None = None
    now: Callable[[], str] = field(default_factory=lambda: default_sources().now)
    at: str = ""
    unsaid: Unsaid = field(default_factory=Unsaid)
    _said: Unsaid = field(default_factory=Unsaid)

    def __post_init__(self) -> None:
        self.at = self.now()

    async def begin(self) -> None:
        """Set `at` to the time at which the task began: in a durable task the same on every attempt."""
        self.at = self.now() if self.context is None else await self.context.now()

    def hide(self, value: str, mark: str) -> None:
        """Record *mark* instead of *value* from now on, wherever a step quotes it; `do` puts the value back."""
        self.unsaid.add(value, instead=mark)
        self._said.add(mark, instead=value)

    async def do(
        self,
        intent: str,
        run: Callable[[], Awaitable[T]],
        *,
        kind: str = StepKind.LOGIC,
        read: Callable[[Any], T] | None = None,
    ) -> T:
        """
        Call *run* once, record the result, and return it; in a durable task *read* makes it from its JSON.

        The record of a result or an error has a mark in the place of each credential in `unsaid`.

        Raises:
            TaskAborted: The caller asked the task to stop before the step was over.
            HookFailed: *run* raised.
            TypeError, StepTooLarge: The result cannot be recorded.
        """
        if self.context is None:
            result = await self.unrecorded(run)
            self.at = self.now()
            return result
        context = self.context
        told = await self._called(
            lambda: self._discreet(intent, run),
            lambda call: context.step(intent, lambda: self._recorded(call), kind=kind),
        )
        self.at, value = told["at"], self._said.cleaned(told["value"])
        return read(value) if read is not None else value

    async def unrecorded(self, run: Callable[[], Awaitable[T]]) -> T:
        """Call *run*, and record nothing.  Raises `TaskAborted` and `HookFailed`."""
        return await self._called(run, lambda call: call())

    async def _called(
        self,
        run: Callable[[], Awaitable[T]],
        step: Callable[[Callable[[], Coroutine[Any, Any, T]]], Coroutine[Any, Any, R]],
    ) -> R:
        """Do a *step* that calls *run*; only an error of *run* becomes a `HookFailed`."""
        caught: list[Exception] = []

        async def call() -> T:
            try:
                return await run()
            except Exception as error:
                caught.append(error)
                raise

        try:
            return await self._or_aborted(step(call))
        except Exception as error:
            if caught and error is caught[-1]:
                raise HookFailed(error) from error
            raise

    def step_key(self, intent: str) -> str:
        """Return the key of the next step, *intent*, for a service to deduplicate by; "" if nothing is recorded."""
        return "" if self.context is None else self.context.step_key(intent)

    async def next_intent(self) -> str | None:
        """Return the intent of the next step if an earlier attempt has begun it; None if nothing is recorded."""
        return None if self.context is None else await self.context.next_intent()

    async def _discreet(self, intent: str, run: Callable[[], Awaitable[T]]) -> T:
        try:
            return await run()
        except Exception as error:
            words = words_of(error)
            if (clean := self.unsaid.cleaned(words)) == words:
                raise
            raise HookError(clean, hook=intent) from None

    async def _recorded(self, run: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        return {"value": self.unsaid.cleaned(to_json(await run())), "at": self.now()}

    async def _or_aborted(self, step: Coroutine[Any, Any, T]) -> T:
        if self.abort is None:
            return await step
        if self.abort.is_set():
            step.close()
            raise TaskAborted
        task, abort = unlogged(asyncio.ensure_future(step)), asyncio.ensure_future(self.abort.wait())
        try:
            await asyncio.wait({task, abort}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            abort.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if self.abort.is_set() and (task.cancelled() or isinstance(task.exception(), Exception)):
            raise TaskAborted
        if task.cancelled():
            raise RuntimeError("it was cancelled by itself")
        return task.result()
