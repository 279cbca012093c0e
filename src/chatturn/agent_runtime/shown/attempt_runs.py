"""
Stores each attempt at a turn as a run of agent-runtime's ledger, if a product has `ChatTurnHooks.runtime_runs`.

The run has the model calls that the attempt's usage has, so the sums of both are equal.
"""

from chatturn.agent_runtime.shown.run_ledger import start_runtime_run
from chatturn.agent_runtime.shown.runs import (
    RuntimeRunCompleteInput,
    RuntimeRunOptions,
    RuntimeRunPersistenceAdapter,
    RuntimeRunStatus,
)
from chatturn.agent_runtime.values.events import LlmCallEvent
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.chat.hooks.hooks import ChatTurnHooks, EndedAttempt
from chatturn.durable.ends import Cancelled, Completed, End, Failed, Suspended, code_of
from chatturn.errors import LeaseLost
from chatturn.timestamps import epoch_ms
from chatturn.usage.money import usd

__all__ = ["keep_runtime_runs"]


async def keep_runtime_runs(hooks: ChatTurnHooks, attempt: EndedAttempt) -> None:
    """
    Store the row of *attempt*, if the product has an adapter: one of `Deployment.attempt_listeners`.

    Raises:
        Exception: What the product's adapter raises.
    """
    adapter: RuntimeRunPersistenceAdapter | None = hooks.runtime_runs
    if adapter is None:
        return
    ended_ms, manifest = epoch_ms(attempt.ended_at) or 0, attempt.manifest
    moments = iter((ended_ms - attempt.duration_ms, ended_ms))
    handle = start_runtime_run(
        RuntimeRunOptions(
            workspace_id=manifest.tags["tenant_id"],
            task_spec=AgentTaskSpec.of(manifest.task),
            now_ms=lambda: next(moments, ended_ms),
            session_id=manifest.tags["session_id"],
            agent_id=manifest.project_id,
            scenario_id=manifest.scenario_id,
            id=f"{attempt.run_id}/{attempt.attempt}",
            adapter=adapter,
        )
    )
    for call in attempt.calls:
        cost = call.cost_micro_usd
        handle.observe(
            LlmCallEvent(
                model=call.model or "",
                tokens_in=call.tokens_in,
                tokens_out=call.tokens_out,
                cost_usd=None if cost is None else usd(cost),
                latency_ms=call.duration_ms,
                finish_reason=call.finish_reason,
            )
        )
    handle.complete(_completion(attempt.end))
    await handle.persist()


def _completion(end: End | None) -> RuntimeRunCompleteInput:
    match end:
        case None:
            return RuntimeRunCompleteInput(status=RuntimeRunStatus.FAILED, error=LeaseLost.code)
        case Failed(error):
            return RuntimeRunCompleteInput(status=RuntimeRunStatus.FAILED, error=code_of(error))
        case Cancelled():
            return RuntimeRunCompleteInput(status=RuntimeRunStatus.CANCELLED)
        case Suspended():
            return RuntimeRunCompleteInput(status=RuntimeRunStatus.COMPLETED, metadata={"suspended": True})
        case Completed():
            return RuntimeRunCompleteInput(status=RuntimeRunStatus.COMPLETED)
