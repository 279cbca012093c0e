"""
The names of spans and of their attributes.

Message content is noted only where the deployment asks for it.

Source:
    OpenTelemetry semantic conventions for generative AI (development status), agent and inference spans; for
    ``error.*``, ``http.*``, ``server.*`` and ``service.*`` the general ones.  What they have no name for is
    under ``chatturn.``.
"""

from typing import Final

__all__ = [
    "AGENT_NAME",
    "CHAT",
    "CONTEXT_LEFT_OUT",
    "CONTEXT_SHORTENED",
    "CONTEXT_SPAN",
    "CONTEXT_TURNS",
    "CONVERSATION_ID",
    "D1_BATCHES",
    "DB_BATCH_SIZE",
    "DB_OPERATION_NAME",
    "DB_SYSTEM_NAME",
    "ERROR_TYPE",
    "EXECUTE_TOOL",
    "HTTP_RESEND_COUNT",
    "HTTP_STATUS",
    "INPUT_MESSAGES",
    "INVOKE_AGENT",
    "LINK_REASON",
    "OPERATION_NAME",
    "OUTPUT_MESSAGES",
    "PROVIDER_NAME",
    "REQUEST_MODEL",
    "REQUEST_STREAM",
    "RESPONSE_FINISH_REASONS",
    "RESPONSE_ID",
    "RESPONSE_MODEL",
    "RESPONSE_TIME_TO_FIRST_CHUNK",
    "SERVER_ADDRESS",
    "SERVICE_NAME",
    "STEP_INTENT",
    "STEP_KIND",
    "STEP_REPLAYED",
    "TOOL_CALL_ARGUMENTS",
    "TOOL_CALL_ID",
    "TOOL_CALL_RESULT",
    "TOOL_NAME",
    "TURN_ATTEMPT",
    "TURN_INDEX",
    "TURN_LOST_ATTEMPTS",
    "TURN_OUTCOME",
    "TURN_REPLAYED",
    "TURN_RUN_ID",
    "TURN_TENANT_ID",
    "USAGE_CACHE_READ_INPUT_TOKENS",
    "USAGE_INPUT_TOKENS",
    "USAGE_OUTPUT_TOKENS",
    "USAGE_REASONING_OUTPUT_TOKENS",
    "span_name",
]

# Operations: the values of OPERATION_NAME, and the first word of a span's name.

INVOKE_AGENT: Final = "invoke_agent"  # a turn; internal
CHAT: Final = "chat"  # one try of a model call; client
EXECUTE_TOOL: Final = "execute_tool"  # internal


def span_name(operation: str, subject: str | None) -> str:
    """Return ``<operation> <subject>``: the agent, the model, the tool; without one, the operation alone."""
    return f"{operation} {subject}" if subject else operation


OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"  # the session

REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"  # seconds, a float

USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"  # the cached ones included
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"  # those of reasoning included
USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"

ERROR_TYPE: Final = "error.type"
HTTP_RESEND_COUNT: Final = "http.request.resend_count"  # noted only above 0
HTTP_STATUS: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVICE_NAME: Final = "service.name"

DB_SYSTEM_NAME: Final = "db.system.name"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_BATCH_SIZE: Final = "db.operation.batch.size"  # statements

# Message content, only where the deployment asks for it: text, or JSON if it has parts.
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"

STEP_INTENT: Final = "chatturn.step.intent"
STEP_KIND: Final = "chatturn.step.kind"
STEP_REPLAYED: Final = "chatturn.step.replayed"  # replayed from the record: no call was made
D1_BATCHES: Final = "chatturn.d1.batches"  # of one attempt, including batches without a span
LINK_REASON: Final = "chatturn.link.reason"
TURN_OUTCOME: Final = "chatturn.turn.outcome"
TURN_LOST_ATTEMPTS: Final = "chatturn.turn.lost_attempts"  # directly before this attempt

CONTEXT_SPAN: Final = "context"  # where the model is not shown the whole conversation
CONTEXT_TURNS: Final = "chatturn.context.turns"  # shown
CONTEXT_LEFT_OUT: Final = "chatturn.context.left_out"  # turns, at least
CONTEXT_SHORTENED: Final = "chatturn.context.shortened"  # of the turns that are shown
TURN_TENANT_ID: Final = "chatturn.tenant.id"
TURN_RUN_ID: Final = "chatturn.run.id"
TURN_INDEX: Final = "chatturn.turn.index"
TURN_ATTEMPT: Final = "chatturn.turn.attempt"
TURN_REPLAYED: Final = "chatturn.turn.replayed"
