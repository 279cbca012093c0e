"""The metrics of an attempt, which are counted whether its trace is kept or not."""

from collections.abc import Mapping

from chatturn.telemetry import conventions
from chatturn.telemetry.attempt_facts import AttemptEnd, AttemptStart, CallFacts
from chatturn.telemetry.otlp.metrics import Metrics
from chatturn.telemetry.tracer import AttributeValue

__all__ = ["measure"]

_TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 - an attribute's name


def measure(
    metrics: Metrics, start: AttemptStart, end: AttemptEnd, duration_s: float, about: Mapping[str, AttributeValue]
) -> None:
    """
    Count an attempt.

    Args:
        metrics: The isolate's metrics.
        start: What the attempt's claim found.
        end: How the attempt ended.
        duration_s: The attempt's duration in seconds.
        about: Attributes of the turn; only the agent's name is used, since every id would make a new series.
    """
    agent = {conventions.AGENT_NAME: about.get(conventions.AGENT_NAME)}
    if start.replayed:
        metrics.count("chatturn.replays", 1, agent)
        return
    how = {**agent, conventions.TURN_OUTCOME: end.outcome, conventions.ERROR_TYPE: end.error_type}
    metrics.count("chatturn.turns", 1, how)
    metrics.count("chatturn.takeovers", 1 if start.lost else 0, agent)
    metrics.record(
        "gen_ai.invoke_agent.duration",
        max(0.0, duration_s),
        {conventions.OPERATION_NAME: conventions.INVOKE_AGENT, **how},
    )
    for call in end.calls:
        _measure_call(metrics, end, call)


def _measure_call(metrics: Metrics, end: AttemptEnd, call: CallFacts) -> None:
    asked = {
        conventions.OPERATION_NAME: conventions.CHAT,
        conventions.PROVIDER_NAME: end.provider,
        conventions.REQUEST_MODEL: call.request_model,
        conventions.RESPONSE_MODEL: call.response_model,
    }
    for kind, tokens in (("input", call.tokens_in), ("output", call.tokens_out)):
        metrics.record("gen_ai.client.token.usage", tokens, {**asked, _TOKEN_TYPE: kind})
        if not end.delivered:
            metrics.count("chatturn.tokens.wasted", tokens or 0, {**asked, _TOKEN_TYPE: kind})
    answered = {**asked, conventions.ERROR_TYPE: call.error_type}
    metrics.record("gen_ai.client.operation.duration", call.duration_s, answered)
    metrics.record("gen_ai.client.operation.time_to_first_chunk", call.first_chunk_s, asked)
