"""
Cloudflare Workflows: an instance and its steps, over the SDK's step object and the raw binding.

A product that runs a task on Workflows exports a class beside `Default` from ``entry.py``::

    class Research(WorkflowEntrypoint):
        async def run(self, event: Any, step: Any) -> Any:
            instance = WorkflowInstance(event, step, binding=import_from_javascript("cloudflare:workers").env.RESEARCH)
            return await run_on_workflow_step(
                instance,
                RunOnWorkflowStepInput(
                    workflow_name="research",
                    instance_id=instance.id,
                    task_fn=lambda context: research(context, instance.payload),
                ),
            )

and names it in ``wrangler.toml``: ``[[workflows]]`` with ``name``, ``binding`` and ``class_name``.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

import js
from pyodide.ffi import JsException, JsProxy

import chatturn.workerd.stdlib_imports  # noqa: F401 - for what it imports
from chatturn.durable.workflows.step import ReceivedEvent, WorkflowStepConfig, WorkflowStepFailed, event_type
from chatturn.errors import DurableRunError, RunNotFound, StoreUnavailable
from chatturn.jsontext.canonical import canonical_json
from chatturn.timestamps import timestamp
from chatturn.workerd.ffi import js_object

__all__ = ["WorkflowInstance", "emit_workflow_event"]

_DEADLINE_S: Final = 30.0
"""The deadline for the platform to accept an event."""

_TIMEOUTS: Final = ("WorkflowTimeoutError", "Error: WorkflowTimeoutError", "Error: Execution timed out after ")
"""How the engine's error begins if a try or a wait took too long; after a replay, which drops the error's name, too."""


class WorkflowInstance:
    """
    `WorkflowStepLike` for one instance.

    Args:
        event: What the SDK gave to ``run`` as its event.
        step: What the SDK gave to ``run`` as its step object.
        binding: The Workflow's raw binding.

    Attributes:
        id: The instance's id.
        payload: The JSON value that the instance was created with.
    """

    def __init__(self, event: Any, step: Any, *, binding: JsProxy) -> None:
        self.id = str(event["instanceId"])
        self.payload = _plain(event.get("payload"))
        self._step = step
        self._binding = binding

    async def do(self, name: str, config: WorkflowStepConfig, run: Callable[[], Awaitable[str]]) -> str:
        """Run a step; see `WorkflowStepLike.do`."""
        try:
            return str(await self._step.do(name, config=config or None)(run)())
        except (JsException, TypeError, ValueError) as error:  # the SDK's exceptions for a rejected promise
            raise (TimeoutError if _is_timeout(error) else WorkflowStepFailed)(str(error)) from error

    async def sleep(self, name: str, duration: str) -> None:
        """Let the platform wait."""
        await self._step.sleep(name, duration)

    async def wait_for_event(self, name: str, *, type: str, timeout: str) -> ReceivedEvent:  # noqa: A002, ASYNC109
        """Take an event; see `WorkflowStepLike.wait_for_event`."""
        try:
            event = await self._step.wait_for_event(name, type, timeout=timeout)
        except JsException as error:
            if _is_timeout(error):
                raise TimeoutError(str(error)) from error
            raise
        received_at: datetime = event["timestamp"]  # naive: the SDK's, in the zone of this process
        return ReceivedEvent(payload=_plain(event.get("payload")), received_at=timestamp(received_at))

    async def send_event(self, type: str, payload: Any) -> None:  # noqa: A002 - the platform's words
        """Send this instance an event."""
        await _send(self._binding, self.id, type, payload)


async def emit_workflow_event(binding: JsProxy, instance_id: str, key: str, payload: Any) -> None:
    """
    Emit an event for a task that runs on Workflows, from any request; the first under its key wins.

    Args:
        binding: The Workflow's raw binding.
        instance_id: The instance's id.
        key: The event's key, which the task awaits.
        payload: JSON.

    Raises:
        TypeError: JSON cannot carry the payload to JavaScript; nothing was sent.
        RunNotFound: There is no such instance.
        DurableRunError: The instance has ended.
        StoreUnavailable: The platform did not accept the event.
    """
    await _send(binding, instance_id, event_type(key), payload)


async def _send(binding: JsProxy, instance_id: str, type_: str, payload: Any) -> None:
    event = js_object({"type": type_, "payload": js.JSON.parse(canonical_json(payload))})
    try:
        async with asyncio.timeout(_DEADLINE_S):
            await (await binding.get(instance_id)).sendEvent(event)
    except JsException as error:
        raise _translated(str(error), instance_id) from error
    except TimeoutError as error:
        message = f"no reply within {_DEADLINE_S:.0f} s"
        raise StoreUnavailable(message) from error


def _translated(message: str, instance_id: str) -> DurableRunError | StoreUnavailable:
    if "instance.not_found" in message:
        return RunNotFound("there is no such instance", run_id=instance_id)
    if "(instance." in message:
        return DurableRunError(message, run_id=instance_id)
    return StoreUnavailable(message)


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, JsException) and f"{error.name}: {error.message}".startswith(_TIMEOUTS)


def _plain(value: Any) -> Any:
    """Convert the SDK's dicts to plain ones, because canonical JSON does not accept subclasses."""
    return json.loads(json.dumps(value))
