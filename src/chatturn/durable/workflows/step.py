"""The interface to Cloudflare Workflows, and the names and durations in the platform's form.  Pure."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal, NotRequired, Protocol, TypedDict

from chatturn.durable.steps import StepRetry

__all__ = [
    "ReceivedEvent",
    "WorkflowRetries",
    "WorkflowStepConfig",
    "WorkflowStepFailed",
    "WorkflowStepLike",
    "duration_words",
    "event_type",
    "platform_retries",
    "step_name",
]

# Source: developers.cloudflare.com/workflows/build/workers-api; the engine in miniflare 4 (validators).
_MAX_NAME_UNITS: Final = 256
_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f]")
_EVENT_TYPE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_NOT_IN_EVENT_TYPE: Final = re.compile(r"[^A-Za-z0-9_-]")


class WorkflowRetries(TypedDict):
    """
    The platform's retries, in its own shape.

    Attributes:
        limit: Tries after the first.
        delay: Before the first retry: milliseconds, or words like ``"10 seconds"``.
        backoff: How the delay grows; ``"exponential"`` by default.
    """

    limit: int
    delay: int | str
    backoff: NotRequired[Literal["constant", "linear", "exponential"]]


class WorkflowStepConfig(TypedDict, total=False):
    """
    How the platform tries a step, in its own shape; a missing member means the platform's default.

    Attributes:
        retries: By default 5, with a delay that doubles.
        timeout: Of each try: milliseconds, or words; by default ``"10 minutes"``.
    """

    retries: WorkflowRetries
    timeout: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedEvent:
    """
    An event that came for an instance.

    Attributes:
        payload: Plain JSON.
        received_at: When the platform received it, as a timestamp.
    """

    payload: Any
    received_at: str


class WorkflowStepFailed(Exception):
    """The last try of a step failed, in this life of the instance or in an earlier one."""


class WorkflowStepLike(Protocol):
    """
    One instance of a Workflow, as its steps see it: the platform's ``step`` and the instance's ``sendEvent``.

    The platform finds its records by the names.  `workerd.workflows.WorkflowInstance` implements it.
    """

    async def do(self, name: str, config: WorkflowStepConfig, run: Callable[[], Awaitable[str]]) -> str:
        """
        Return what *run* returned, now or in an earlier life of the instance.

        Args:
            name: At most 256 UTF-16 units, no control characters.
            config: The retries and the timeout of a try.
            run: One try; an exception fails it.

        Raises:
            TimeoutError: The last try took longer than *config* says, now or in an earlier life.
            WorkflowStepFailed: The last try failed; the message is the platform's version of its error.
        """

    async def sleep(self, name: str, duration: str) -> None:
        """Wait, from the first time that this step is reached; *duration* is like ``"10 seconds"``."""

    async def wait_for_event(self, name: str, *, type: str, timeout: str) -> ReceivedEvent:  # noqa: A002, ASYNC109
        """
        Take the oldest event of a type that was not taken yet, waiting for one if necessary.

        Raises:
            TimeoutError: No event came in time, now or in an earlier life.
        """

    async def send_event(self, type: str, payload: Any) -> None:  # noqa: A002 - the platform's words
        """Send this instance an event; *payload* is JSON."""


def step_name(workflow_name: str, position: int, intent: str) -> str:
    """Return a step's name in the form the platform accepts: at most 256 UTF-16 units, no control characters."""
    name = _CONTROL_CHARACTER.sub(" ", f"{workflow_name}/{position}:{intent}")
    return name.encode("utf-16-le", "replace")[: 2 * _MAX_NAME_UNITS].decode("utf-16-le", "ignore")


def event_type(key: str) -> str:
    """
    Return the platform's event type for an event's key: the key itself, if it is a valid type.

    Types are up to 100 letters, digits, ``-`` and ``_``.  For any other key the type is made of the key and its hash.
    """
    if _EVENT_TYPE.fullmatch(key):
        return key
    digest = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"event_{_NOT_IN_EVENT_TYPE.sub('_', key)[:50]}_{digest[:32]}"


def platform_retries(retry: StepRetry) -> WorkflowRetries:
    """Return a policy in the platform's form, which has no upper bound for a doubling delay."""
    tries = retry.max_attempts if retry.attempts_in_all is None else min(retry.max_attempts, retry.attempts_in_all)
    grows = retry.initial_backoff_ms < retry.max_backoff_ms
    return {
        "limit": max(0, tries - 1),
        "delay": min(retry.initial_backoff_ms, retry.max_backoff_ms),
        "backoff": "exponential" if grows else "constant",
    }


def duration_words(duration_ms: int) -> str:
    """Return a duration in words and whole seconds, as ``"10 seconds"``: a bare number's unit is not documented."""
    return f"{max(0, -(-duration_ms // 1000))} seconds"
