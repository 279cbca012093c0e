"""Manifests and claims as tests need them."""

from typing import Any

from chatturn.durable.records import Claim, DurableRunManifest, Lease, TaskSpec
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Begin

__all__ = ["LEASE_MS", "STEP", "claim", "lease_of", "manifest"]

LEASE_MS = 30_000
STEP = Begin(step_index=0, intent="turn", kind="llm", input_hash="h")


def manifest(value: Any = 1) -> DurableRunManifest:
    """Return a manifest whose input is *value*."""
    task = TaskSpec(id="task-1", intent="unit-test", domain="test")
    return DurableRunManifest(project_id="test-project", scenario_id="scenario-1", task=task, input={"x": value})


async def claim(store: SqlRunStore, run_id: str = "run-1", worker_id: str = "worker-1", **options: Any) -> Claim:
    """Claim a run."""
    defaults: dict[str, Any] = {"manifest": manifest(), "lease_ms": LEASE_MS}
    return await store.start_or_resume(run_id=run_id, worker_id=worker_id, **{**defaults, **options})


async def lease_of(store: SqlRunStore, run_id: str = "run-1", worker_id: str = "worker-1", **options: Any) -> Lease:
    """Claim a run and return the lease."""
    lease = (await claim(store, run_id, worker_id, **options)).lease
    assert lease is not None
    return lease
