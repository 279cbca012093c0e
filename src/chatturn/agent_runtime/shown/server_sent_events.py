"""Sanitized runtime events as server-sent events, one frame for each event."""

from typing import Unpack

from chatturn.agent_runtime.shown.sanitize import (
    NOTHING_ASKED,
    RuntimeTelemetryOptions,
    sanitize_knowledge_readiness_report,
    sanitize_runtime_stream_event,
)
from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.events import RuntimeStreamEvent
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport
from chatturn.sse_frames import ServerSentEventOptions, encode_server_sent_event

__all__ = ["readiness_server_sent_event", "runtime_stream_server_sent_event"]


def readiness_server_sent_event(
    report: KnowledgeReadinessReport,
    telemetry: RuntimeTelemetryOptions = NOTHING_ASKED,
    **options: Unpack[ServerSentEventOptions],
) -> str:
    """Return the frame that tells how ready a task is."""
    readiness = to_json(sanitize_knowledge_readiness_report(report, telemetry))
    return encode_server_sent_event({"type": "readiness", "readiness": readiness}, **options)


def runtime_stream_server_sent_event(
    event: RuntimeStreamEvent,
    /,
    telemetry: RuntimeTelemetryOptions = NOTHING_ASKED,
    **options: Unpack[ServerSentEventOptions],
) -> str:
    """Return the frame of *event*: without the text of the answer, unless *telemetry* asks for it."""
    return encode_server_sent_event(sanitize_runtime_stream_event(event, telemetry), **options)
