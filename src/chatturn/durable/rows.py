"""Rows of agent-runtime's tables as records: one function a table, and the only place that knows columns."""

import json
from typing import Any

from chatturn.database.api import Row, Value
from chatturn.durable.failures import error_from_json
from chatturn.durable.records import EventRecord, RunOutcome, RunRecord, RunStatus, StepRecord, StepStatus

__all__ = ["event_from_row", "run_from_row", "step_from_row"]


def run_from_row(row: Row) -> RunRecord:
    """Read a row of ``durable_runs``."""
    outcome = _json(row["outcome_json"])
    return RunRecord(
        run_id=str(row["run_id"]),
        manifest_hash=str(row["manifest_hash"]),
        project_id=str(row["project_id"]),
        scenario_id=_text(row["scenario_id"]),
        status=RunStatus(str(row["status"])),
        created_at=str(row["created_at"]),
        updated_at=str(row["updated_at"]),
        completed_at=_text(row["completed_at"]),
        lease_holder_id=_text(row["lease_holder_id"]),
        lease_expires_at=_text(row["lease_expires_at"]),
        outcome=None if outcome is None else RunOutcome.from_json(outcome),
        step_count=int(row["step_count"] or 0),
        epoch=int(row["epoch"] or 0),
        idle_attempts=int(row["idle_attempts"] or 0),
        attempts=int(row["attempts"] or 0),
        key_part=_text(row["key_part"]),
    )


def step_from_row(row: Row) -> StepRecord:
    """Read a row of ``durable_steps``."""
    error = _json(row["error_json"])
    return StepRecord(
        run_id=str(row["run_id"]),
        step_index=int(row["step_index"] or 0),
        intent=str(row["intent"]),
        kind=str(row["kind"]),
        input_hash=str(row["input_hash"]),
        status=StepStatus(str(row["status"])),
        attempts=int(row["attempts"] or 0),
        result=_json(row["result_json"]),
        error=None if error is None else error_from_json(error),
        started_at=_text(row["started_at"]),
        completed_at=_text(row["completed_at"]),
    )


def event_from_row(row: Row) -> EventRecord:
    """Read a row of ``durable_events``."""
    return EventRecord(
        run_id=str(row["run_id"]),
        key=str(row["key"]),
        payload=_json(row["payload_json"]),
        emitted_at=str(row["emitted_at"]),
    )


def _text(value: Value) -> str | None:
    return None if value is None else str(value)


def _json(value: Value) -> Any:
    return None if value is None else json.loads(str(value))
