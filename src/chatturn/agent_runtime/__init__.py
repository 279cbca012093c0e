"""
agent-runtime, the TypeScript package, in Python: all of its names, from one place.

    from chatturn.agent_runtime import RunAgentTaskStreamOptions, run_agent_task_stream

docs/reference/agent-runtime-names.md has each name, what is better here, and the test that shows it.  Nothing else of
chatturn needs this package.

A name's module is imported when the name is first used: two of the stores need sqlite3, which the Worker lacks, a third
needs D1, which CPython lacks, and neither should load what it does not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # the table below, for type checkers; a test compares the two
    from chatturn.agent_runtime.agents.intents import ClassifyIntentOptions as ClassifyIntentOptions
    from chatturn.agent_runtime.agents.intents import ClassifyIntentResult as ClassifyIntentResult
    from chatturn.agent_runtime.agents.intents import SubagentMatcher as SubagentMatcher
    from chatturn.agent_runtime.agents.intents import classify_intent as classify_intent
    from chatturn.agent_runtime.agents.profiles import ConformanceIssue as ConformanceIssue
    from chatturn.agent_runtime.agents.profiles import ConformanceOptions as ConformanceOptions
    from chatturn.agent_runtime.agents.profiles import ConformanceResult as ConformanceResult
    from chatturn.agent_runtime.agents.profiles import assert_profile_conformance as assert_profile_conformance
    from chatturn.agent_runtime.agents.sandbox_turn import AuthHeader as AuthHeader
    from chatturn.agent_runtime.agents.sandbox_turn import ChatTurnMessage as ChatTurnMessage
    from chatturn.agent_runtime.agents.sandbox_turn import ChatTurnOverlay as ChatTurnOverlay
    from chatturn.agent_runtime.agents.sandbox_turn import ChatTurnSandbox as ChatTurnSandbox
    from chatturn.agent_runtime.agents.sandbox_turn import HttpSandbox as HttpSandbox
    from chatturn.agent_runtime.agents.sandbox_turn import RunChatTurnOptions as RunChatTurnOptions
    from chatturn.agent_runtime.agents.sandbox_turn import SandboxConnection as SandboxConnection
    from chatturn.agent_runtime.agents.sandbox_turn import compose_turn_profile as compose_turn_profile
    from chatturn.agent_runtime.agents.sandbox_turn import run_chat_turn as run_chat_turn
    from chatturn.agent_runtime.agents.sandbox_turn import sandbox_as_chat_turn_target as sandbox_as_chat_turn_target
    from chatturn.agent_runtime.shown.collectors import RuntimeEventCollector as RuntimeEventCollector
    from chatturn.agent_runtime.shown.collectors import RuntimeStreamEventCollector as RuntimeStreamEventCollector
    from chatturn.agent_runtime.shown.collectors import RuntimeStreamEventSink as RuntimeStreamEventSink
    from chatturn.agent_runtime.shown.collectors import RuntimeStreamEventSummary as RuntimeStreamEventSummary
    from chatturn.agent_runtime.shown.collectors import create_runtime_event_collector as create_runtime_event_collector
    from chatturn.agent_runtime.shown.collectors import (
        create_runtime_stream_event_collector as create_runtime_stream_event_collector,
    )
    from chatturn.agent_runtime.shown.run_ledger import RuntimeRunHandle as RuntimeRunHandle
    from chatturn.agent_runtime.shown.run_ledger import start_runtime_run as start_runtime_run
    from chatturn.agent_runtime.shown.runs import RuntimeRunCompleteInput as RuntimeRunCompleteInput
    from chatturn.agent_runtime.shown.runs import RuntimeRunCost as RuntimeRunCost
    from chatturn.agent_runtime.shown.runs import RuntimeRunOptions as RuntimeRunOptions
    from chatturn.agent_runtime.shown.runs import RuntimeRunPersistenceAdapter as RuntimeRunPersistenceAdapter
    from chatturn.agent_runtime.shown.runs import RuntimeRunRow as RuntimeRunRow
    from chatturn.agent_runtime.shown.runs import RuntimeRunStatus as RuntimeRunStatus
    from chatturn.agent_runtime.shown.sanitize import (
        SanitizedKnowledgeReadinessReport as SanitizedKnowledgeReadinessReport,
    )
    from chatturn.agent_runtime.shown.sanitize import SanitizedKnowledgeRequirement as SanitizedKnowledgeRequirement
    from chatturn.agent_runtime.shown.sanitize import sanitize_agent_runtime_event as sanitize_agent_runtime_event
    from chatturn.agent_runtime.shown.sanitize import (
        sanitize_knowledge_readiness_report as sanitize_knowledge_readiness_report,
    )
    from chatturn.agent_runtime.shown.sanitize import sanitize_runtime_stream_event as sanitize_runtime_stream_event
    from chatturn.agent_runtime.shown.server_sent_events import (
        readiness_server_sent_event as readiness_server_sent_event,
    )
    from chatturn.agent_runtime.shown.server_sent_events import (
        runtime_stream_server_sent_event as runtime_stream_server_sent_event,
    )
    from chatturn.agent_runtime.shown.telemetry_options import RuntimeTelemetryOptions as RuntimeTelemetryOptions
    from chatturn.agent_runtime.shown.trace_bridge import TraceBridge as TraceBridge
    from chatturn.agent_runtime.shown.trace_bridge import TraceBridgeOptions as TraceBridgeOptions
    from chatturn.agent_runtime.shown.trace_bridge import create_trace_bridge as create_trace_bridge
    from chatturn.agent_runtime.shown.trace_bridge import to_agent_eval_trace as to_agent_eval_trace
    from chatturn.agent_runtime.tasks.readiness import KnowledgeHooks as KnowledgeHooks
    from chatturn.agent_runtime.tasks.readiness import assess_knowledge as assess_knowledge
    from chatturn.agent_runtime.tasks.readiness import decide_knowledge_readiness as decide_knowledge_readiness
    from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore as SqlRuntimeSessionStore
    from chatturn.agent_runtime.tasks.sessions import InMemoryRuntimeSessionStore as InMemoryRuntimeSessionStore
    from chatturn.agent_runtime.tasks.sessions import RuntimeSessionStore as RuntimeSessionStore
    from chatturn.agent_runtime.tasks.sessions import StoredRuntimeEvent as StoredRuntimeEvent
    from chatturn.agent_runtime.tasks.task_backends import AgentBackendContext as AgentBackendContext
    from chatturn.agent_runtime.tasks.task_backends import AgentBackendInput as AgentBackendInput
    from chatturn.agent_runtime.tasks.task_backends import AgentExecutionBackend as AgentExecutionBackend
    from chatturn.agent_runtime.tasks.task_backends import create_iterable_backend as create_iterable_backend
    from chatturn.agent_runtime.tasks.task_backends import (
        create_sandbox_prompt_backend as create_sandbox_prompt_backend,
    )
    from chatturn.agent_runtime.tasks.task_loop import AgentTaskRunResult as AgentTaskRunResult
    from chatturn.agent_runtime.tasks.task_loop import AgentTaskRunSummary as AgentTaskRunSummary
    from chatturn.agent_runtime.tasks.task_loop import RunAgentTaskOptions as RunAgentTaskOptions
    from chatturn.agent_runtime.tasks.task_loop import TaskView as TaskView
    from chatturn.agent_runtime.tasks.task_loop import run_agent_task as run_agent_task
    from chatturn.agent_runtime.tasks.task_loop import summarize_agent_task_run as summarize_agent_task_run
    from chatturn.agent_runtime.tasks.task_steps import DurableTask as DurableTask
    from chatturn.agent_runtime.tasks.task_stream import RunAgentTaskStreamOptions as RunAgentTaskStreamOptions
    from chatturn.agent_runtime.tasks.task_stream import run_agent_task_stream as run_agent_task_stream
    from chatturn.agent_runtime.turns.chat_engine import ChatTurnResult as ChatTurnResult
    from chatturn.agent_runtime.turns.chat_engine import DurableChatTurnEngine as DurableChatTurnEngine
    from chatturn.agent_runtime.turns.chat_engine import RunChatTurnInput as RunChatTurnInput
    from chatturn.agent_runtime.turns.chat_engine import durable_chat_turn_engine as durable_chat_turn_engine
    from chatturn.agent_runtime.turns.d1 import D1DatabaseLike as D1DatabaseLike
    from chatturn.agent_runtime.turns.d1 import D1PreparedStatementLike as D1PreparedStatementLike
    from chatturn.agent_runtime.turns.d1 import as_d1 as as_d1
    from chatturn.agent_runtime.turns.durable_turn import DurableTurnHandle as DurableTurnHandle
    from chatturn.agent_runtime.turns.durable_turn import DurableTurnProducer as DurableTurnProducer
    from chatturn.agent_runtime.turns.durable_turn import RunDurableTurnOptions as RunDurableTurnOptions
    from chatturn.agent_runtime.turns.durable_turn import run_durable_turn as run_durable_turn
    from chatturn.agent_runtime.turns.mapping import RuntimeEventMapper as RuntimeEventMapper
    from chatturn.agent_runtime.values.codec import decode_runtime_event as decode_runtime_event
    from chatturn.agent_runtime.values.codec import encode_runtime_event as encode_runtime_event
    from chatturn.agent_runtime.values.control import AgentRuntimeEvent as AgentRuntimeEvent
    from chatturn.agent_runtime.values.control import ControlActionOutcome as ControlActionOutcome
    from chatturn.agent_runtime.values.control import ControlDecision as ControlDecision
    from chatturn.agent_runtime.values.control import ControlEvalResult as ControlEvalResult
    from chatturn.agent_runtime.values.control import ControlRunResult as ControlRunResult
    from chatturn.agent_runtime.values.control import ControlStep as ControlStep
    from chatturn.agent_runtime.values.events import RuntimeStreamEvent as RuntimeStreamEvent
    from chatturn.agent_runtime.values.knowledge import DataAcquisitionPlan as DataAcquisitionPlan
    from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessDecision as KnowledgeReadinessDecision
    from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport as KnowledgeReadinessReport
    from chatturn.agent_runtime.values.knowledge import KnowledgeRequirement as KnowledgeRequirement
    from chatturn.agent_runtime.values.knowledge import UserQuestion as UserQuestion
    from chatturn.agent_runtime.values.tasks import AgentTaskSpec as AgentTaskSpec
    from chatturn.agent_runtime.values.tasks import AgentTaskStatus as AgentTaskStatus
    from chatturn.agent_runtime.values.tasks import RuntimeSession as RuntimeSession
    from chatturn.backends.openai.backend import create_openai_compatible_backend as create_openai_compatible_backend
    from chatturn.backends.openai.retry import BackendRetryPolicy as BackendRetryPolicy
    from chatturn.chat.hooks.hooks import ChatTurnHooks as ChatTurnHooks
    from chatturn.chat.thread.identity import ChatTurnIdentity as ChatTurnIdentity
    from chatturn.database.schema import DURABLE_SCHEMA_SQL as DURABLE_SCHEMA_SQL
    from chatturn.database.schema import DURABLE_SCHEMA_VERSION as DURABLE_SCHEMA_VERSION
    from chatturn.durable.context import DurableContext as DurableContext
    from chatturn.durable.identifiers import derive_worker_id as derive_worker_id
    from chatturn.durable.identifiers import manifest_hash as manifest_hash
    from chatturn.durable.identifiers import step_id as step_id
    from chatturn.durable.local_stores import FileSystemDurableRunStore as FileSystemDurableRunStore
    from chatturn.durable.local_stores import InMemoryDurableRunStore as InMemoryDurableRunStore
    from chatturn.durable.records import DurableRunManifest as DurableRunManifest
    from chatturn.durable.records import EventRecord as EventRecord
    from chatturn.durable.records import RunOutcome as RunOutcome
    from chatturn.durable.records import RunStatus as RunStatus
    from chatturn.durable.records import StepError as StepError
    from chatturn.durable.records import StepKind as StepKind
    from chatturn.durable.records import StepRecord as StepRecord
    from chatturn.durable.records import StepStatus as StepStatus
    from chatturn.durable.runner import RunDurableInput as RunDurableInput
    from chatturn.durable.runner import RunDurableResult as RunDurableResult
    from chatturn.durable.runner import run_durable as run_durable
    from chatturn.durable.store import DurableRunStore as DurableRunStore
    from chatturn.durable.workflows.context import RunOnWorkflowStepInput as RunOnWorkflowStepInput
    from chatturn.durable.workflows.context import run_on_workflow_step as run_on_workflow_step
    from chatturn.durable.workflows.step import WorkflowStepConfig as WorkflowStepConfig
    from chatturn.durable.workflows.step import WorkflowStepLike as WorkflowStepLike
    from chatturn.errors import AgentEvalError as AgentEvalError
    from chatturn.errors import BackendTransportError as BackendTransportError
    from chatturn.errors import ChatTurnError as ChatTurnError
    from chatturn.errors import DurableAwaitEventTimeoutError as DurableAwaitEventTimeoutError
    from chatturn.errors import DurableRunDivergenceError as DurableRunDivergenceError
    from chatturn.errors import DurableRunError as DurableRunError
    from chatturn.errors import DurableRunInputMismatchError as DurableRunInputMismatchError
    from chatturn.errors import DurableRunLeaseHeldError as DurableRunLeaseHeldError
    from chatturn.errors import RuntimeRunStateError as RuntimeRunStateError
    from chatturn.errors import SessionMismatchError as SessionMismatchError
    from chatturn.errors import ValidationError as ValidationError
    from chatturn.events import ChatStreamEvent as ChatStreamEvent
    from chatturn.jsontext.canonical import canonical_hash as canonical_hash
    from chatturn.jsontext.canonical import canonical_json as canonical_json
    from chatturn.sse_frames import ServerSentEventOptions as ServerSentEventOptions
    from chatturn.sse_frames import encode_server_sent_event as encode_server_sent_event
    from chatturn.workerd.stores import D1DurableRunStore as D1DurableRunStore

_HOMES: Final = {
    "chatturn.agent_runtime.values.codec": (
        "decode_runtime_event",
        "encode_runtime_event",
    ),
    "chatturn.agent_runtime.shown.collectors": (
        "RuntimeEventCollector",
        "RuntimeStreamEventCollector",
        "RuntimeStreamEventSink",
        "RuntimeStreamEventSummary",
        "create_runtime_event_collector",
        "create_runtime_stream_event_collector",
    ),
    "chatturn.agent_runtime.values.control": (
        "AgentRuntimeEvent",
        "ControlActionOutcome",
        "ControlDecision",
        "ControlEvalResult",
        "ControlRunResult",
        "ControlStep",
    ),
    "chatturn.agent_runtime.turns.d1": (
        "D1DatabaseLike",
        "D1PreparedStatementLike",
        "as_d1",
    ),
    "chatturn.agent_runtime.values.events": ("RuntimeStreamEvent",),
    "chatturn.agent_runtime.agents.intents": (
        "ClassifyIntentOptions",
        "ClassifyIntentResult",
        "SubagentMatcher",
        "classify_intent",
    ),
    "chatturn.agent_runtime.values.knowledge": (
        "DataAcquisitionPlan",
        "KnowledgeReadinessDecision",
        "KnowledgeReadinessReport",
        "KnowledgeRequirement",
        "UserQuestion",
    ),
    "chatturn.agent_runtime.turns.mapping": ("RuntimeEventMapper",),
    "chatturn.agent_runtime.agents.profiles": (
        "ConformanceIssue",
        "ConformanceOptions",
        "ConformanceResult",
        "assert_profile_conformance",
    ),
    "chatturn.agent_runtime.tasks.readiness": (
        "KnowledgeHooks",
        "assess_knowledge",
        "decide_knowledge_readiness",
    ),
    "chatturn.agent_runtime.shown.run_ledger": (
        "RuntimeRunHandle",
        "start_runtime_run",
    ),
    "chatturn.agent_runtime.shown.runs": (
        "RuntimeRunCompleteInput",
        "RuntimeRunCost",
        "RuntimeRunOptions",
        "RuntimeRunPersistenceAdapter",
        "RuntimeRunRow",
        "RuntimeRunStatus",
    ),
    "chatturn.agent_runtime.agents.sandbox_turn": (
        "AuthHeader",
        "ChatTurnMessage",
        "ChatTurnOverlay",
        "ChatTurnSandbox",
        "HttpSandbox",
        "RunChatTurnOptions",
        "SandboxConnection",
        "compose_turn_profile",
        "run_chat_turn",
        "sandbox_as_chat_turn_target",
    ),
    "chatturn.agent_runtime.shown.sanitize": (
        "SanitizedKnowledgeReadinessReport",
        "SanitizedKnowledgeRequirement",
        "sanitize_agent_runtime_event",
        "sanitize_knowledge_readiness_report",
        "sanitize_runtime_stream_event",
    ),
    "chatturn.agent_runtime.shown.server_sent_events": (
        "readiness_server_sent_event",
        "runtime_stream_server_sent_event",
    ),
    "chatturn.agent_runtime.tasks.session_sql": ("SqlRuntimeSessionStore",),
    "chatturn.agent_runtime.tasks.sessions": (
        "InMemoryRuntimeSessionStore",
        "RuntimeSessionStore",
        "StoredRuntimeEvent",
    ),
    "chatturn.agent_runtime.tasks.task_backends": (
        "AgentBackendContext",
        "AgentBackendInput",
        "AgentExecutionBackend",
        "create_iterable_backend",
        "create_sandbox_prompt_backend",
    ),
    "chatturn.agent_runtime.tasks.task_loop": (
        "AgentTaskRunResult",
        "AgentTaskRunSummary",
        "RunAgentTaskOptions",
        "TaskView",
        "run_agent_task",
        "summarize_agent_task_run",
    ),
    "chatturn.agent_runtime.tasks.task_steps": ("DurableTask",),
    "chatturn.agent_runtime.tasks.task_stream": (
        "RunAgentTaskStreamOptions",
        "run_agent_task_stream",
    ),
    "chatturn.agent_runtime.values.tasks": (
        "AgentTaskSpec",
        "AgentTaskStatus",
        "RuntimeSession",
    ),
    "chatturn.agent_runtime.shown.telemetry_options": ("RuntimeTelemetryOptions",),
    "chatturn.agent_runtime.shown.trace_bridge": (
        "TraceBridge",
        "TraceBridgeOptions",
        "create_trace_bridge",
        "to_agent_eval_trace",
    ),
    "chatturn.backends.openai.backend": ("create_openai_compatible_backend",),
    "chatturn.backends.openai.retry": ("BackendRetryPolicy",),
    "chatturn.agent_runtime.turns.chat_engine": (
        "ChatTurnResult",
        "DurableChatTurnEngine",
        "RunChatTurnInput",
        "durable_chat_turn_engine",
    ),
    "chatturn.chat.hooks.hooks": ("ChatTurnHooks",),
    "chatturn.chat.thread.identity": ("ChatTurnIdentity",),
    "chatturn.database.schema": (
        "DURABLE_SCHEMA_SQL",
        "DURABLE_SCHEMA_VERSION",
    ),
    "chatturn.durable.context": ("DurableContext",),
    "chatturn.durable.local_stores": (
        "FileSystemDurableRunStore",
        "InMemoryDurableRunStore",
    ),
    "chatturn.durable.records": (
        "DurableRunManifest",
        "EventRecord",
        "RunOutcome",
        "RunStatus",
        "StepError",
        "StepKind",
        "StepRecord",
        "StepStatus",
    ),
    "chatturn.durable.runner": (
        "RunDurableInput",
        "RunDurableResult",
        "run_durable",
    ),
    "chatturn.durable.store": ("DurableRunStore",),
    "chatturn.agent_runtime.turns.durable_turn": (
        "DurableTurnHandle",
        "DurableTurnProducer",
        "RunDurableTurnOptions",
        "run_durable_turn",
    ),
    "chatturn.durable.workflows.context": (
        "RunOnWorkflowStepInput",
        "run_on_workflow_step",
    ),
    "chatturn.durable.workflows.step": (
        "WorkflowStepConfig",
        "WorkflowStepLike",
    ),
    "chatturn.errors": (
        "AgentEvalError",
        "BackendTransportError",
        "ChatTurnError",
        "DurableAwaitEventTimeoutError",
        "DurableRunDivergenceError",
        "DurableRunError",
        "DurableRunInputMismatchError",
        "DurableRunLeaseHeldError",
        "RuntimeRunStateError",
        "SessionMismatchError",
        "ValidationError",
    ),
    "chatturn.events": ("ChatStreamEvent",),
    "chatturn.durable.identifiers": (
        "derive_worker_id",
        "manifest_hash",
        "step_id",
    ),
    "chatturn.jsontext.canonical": (
        "canonical_hash",
        "canonical_json",
    ),
    "chatturn.sse_frames": (
        "ServerSentEventOptions",
        "encode_server_sent_event",
    ),
    "chatturn.workerd.stores": ("D1DurableRunStore",),
}
_HOME: Final = {name: module for module, names in _HOMES.items() for name in names}

# Stores of one platform: they are not in `__all__`, so that ``import *`` works on both.
_PLATFORM: Final = {
    "D1DurableRunStore": "inside the Worker; elsewhere there are FileSystemDurableRunStore and InMemoryDurableRunStore",
    "FileSystemDurableRunStore": "outside the Worker, which has no sqlite3; in it there is D1DurableRunStore",
    "InMemoryDurableRunStore": "outside the Worker, which has no sqlite3; in it there is D1DurableRunStore",
}

__all__ = sorted(_HOME.keys() - _PLATFORM.keys())  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_HOME[name])
    except ModuleNotFoundError as error:
        if name not in _PLATFORM:
            raise
        raise ImportError(f"{name} can be imported only {_PLATFORM[name]}") from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
