"""
Names: a run's manifest and a step by hashes, the same on every worker; a lease's holder by a random token.

Source:
    docs/reference/agent-runtime.md, Hashes.
"""

import os
from collections.abc import Callable

from chatturn.durable.records import DurableRunManifest
from chatturn.jsontext.canonical import canonical_hash

__all__ = ["derive_worker_id", "manifest_hash", "step_id"]


def manifest_hash(manifest: DurableRunManifest) -> str:
    """
    Return a manifest's hash over project, scenario, task and input: two requests with one hash are the same run.

    Tags and the task's metadata are not part of the hash.  A task without a domain hashes as ``null``;
    agent-runtime refuses such a task, so no database of its own disagrees.

    Raises:
        TypeError: The input is not JSON.
    """
    return manifest.digest


def step_id(run_id: str, step_index: int, intent: str) -> str:
    """Return the id of a step: the same for every attempt of its run."""
    return canonical_hash({"intent": intent, "runId": run_id, "stepIndex": step_index})


def _random_token() -> str:
    return os.urandom(10).hex()


def derive_worker_id(token: Callable[[], str] = _random_token) -> str:
    """
    Return a new name for a lease's holder: ``worker-<token>``.

    Unlike agent-runtime's name it tells neither host nor process, so anybody may see it.

    Args:
        token: Returns another text at every call; by default 80 random bits in hex.
    """
    return f"worker-{token()}"
