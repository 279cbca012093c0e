"""
An attempt as a run of agent-runtime's ledger, for a product that keeps those.

Its calls are those of the attempt's account, so that both ledgers add up to the same.
"""

from collections.abc import Callable, Sequence

from chatturn.agent_runtime.events import LlmCallEvent
from chatturn.agent_runtime.run_ledger import start_runtime_run
from chatturn.agent_runtime.runs import (
    RuntimeRunCompleteInput,
    RuntimeRunOptions,
    RuntimeRunPersistenceAdapter,
    RuntimeRunStatus,
)
from chatturn.agent_runtime.tasks import AgentTaskSpec
from chatturn.chat.usage.calls import ModelCall
from chatturn.durable.records import DurableRunManifest
from chatturn.durable.settling import TurnEnd, code_of
from chatturn.errors import LeaseLost
from chatturn.timestamps import epoch_ms
from chatturn.usage.money import usd

__all__ = ["AttemptRun"]


class AttemptRun:
    """
    One attempt of a turn, from its claim to its row.

    Args:
        adapter: Stores the row.
        manifest: The turn's.
        run_id: Its run.
        attempt: Which one it is, from 1.
        now: Returns the time as a timestamp.
    """

    def __init__(
        self,
        adapter: RuntimeRunPersistenceAdapter,
        manifest: DurableRunManifest,
        *,
        run_id: str,
        attempt: int,
        now: Callable[[], str],
    ) -> None:
        self._handle = start_runtime_run(
            RuntimeRunOptions(
                workspace_id=manifest.tags["tenant_id"],
                task_spec=AgentTaskSpec.of(manifest.task),
                now_ms=lambda: epoch_ms(now()) or 0,
                session_id=manifest.tags["session_id"],
                agent_id=manifest.project_id,
                scenario_id=manifest.scenario_id,
                id=f"{run_id}/{attempt}",
                adapter=adapter,
            )
        )

    async def end(self, end: TurnEnd | None, calls: Sequence[ModelCall]) -> None:
        """
        End the run and have its row stored.

        Args:
            end: How the attempt has ended; None if the turn is another worker's by now.
            calls: What it has called.

        Raises:
            Exception: What the adapter raises.
        """
        for call in calls:
            cost = call.cost_micro_usd
            self._handle.observe(
                LlmCallEvent(
                    model=call.model or "",
                    tokens_in=call.tokens_in,
                    tokens_out=call.tokens_out,
                    cost_usd=None if cost is None else usd(cost),
                    latency_ms=call.duration_ms,
                    finish_reason=call.finish_reason,
                )
            )
        self._handle.complete(_completion(end))
        await self._handle.persist()


def _completion(end: TurnEnd | None) -> RuntimeRunCompleteInput:
    if end is None:
        return RuntimeRunCompleteInput(status=RuntimeRunStatus.FAILED, error=LeaseLost.code)
    if end.error is not None:
        return RuntimeRunCompleteInput(status=RuntimeRunStatus.FAILED, error=code_of(end.error))
    if end.cancelled is not None:
        return RuntimeRunCompleteInput(status=RuntimeRunStatus.CANCELLED)
    metadata = None if end.wait is None else {"suspended": True}
    return RuntimeRunCompleteInput(status=RuntimeRunStatus.COMPLETED, metadata=metadata)
