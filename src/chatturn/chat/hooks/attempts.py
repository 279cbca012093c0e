"""Telling a product how each attempt at a turn has ended."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from chatturn.chat.hooks.hooks import ChatTurnHooks, EndedAttempt
from chatturn.chat.hooks.outbox import HOOK_TIMEOUT_MS, overrides
from chatturn.product_calls import awaited
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["AttemptListener", "tell_attempt_end"]

AttemptListener: TypeAlias = Callable[[ChatTurnHooks, EndedAttempt], Awaitable[None]]
"""Does what the hooks want of an ended attempt, if they want it."""


async def tell_attempt_end(
    hooks: ChatTurnHooks, others: Mapping[str, AttemptListener], attempt: EndedAttempt, log: OperatorLog
) -> None:
    """
    Tell the product, and others in its name; each has as long as a hook may take, and failures are logged.

    Args:
        hooks: The product's.
        others: The deployment's listeners, by the member of the hooks that they serve.
        attempt: The ended attempt.
        log: Takes the failures.
    """
    listeners = {"on_attempt_end": _own} if overrides(hooks, "on_attempt_end") else {}
    for name, listen in {**listeners, **others}.items():
        try:
            await awaited(listen(hooks, attempt), HOOK_TIMEOUT_MS)
        except Exception as error:  # noqa: BLE001 - a product's code, and the turn is over
            log("hook.failed", {"run_id": attempt.run_id, "hook": name, "error": error})


async def _own(hooks: ChatTurnHooks, attempt: EndedAttempt) -> None:
    await hooks.on_attempt_end(attempt)
