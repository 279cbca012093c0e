"""
What one model call consumes, counted while it runs.

Every call is paid for, so a call that failed, or was stopped, is on record like a call that answered.  A count that is
not known is None, never 0; an estimate stands in an attribute of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from chatturn.backends.api import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    CallMeter,
    ChatMessage,
    Meter,
)
from chatturn.durable.ends import code_of
from chatturn.events import ChatStreamEvent, EventBatch, TextDeltas
from chatturn.usage.money import micro_usd
from chatturn.usage.prices import CHARACTERS_OF_A_TOKEN, PriceTable

__all__ = ["Budgets", "CallOutcome", "MeteredBackend", "ModelCall", "count"]

CallOutcome: TypeAlias = Literal["running", "completed", "failed", "cancelled", "lost"]

_MOST_TOKENS: Final = 1_000_000_000
_MOST_MICRO_USD: Final = 10**12
"""The most that one call can cost; a higher figure is wrong, and would make every sum wrong."""

_MOST_CHARACTERS: Final = 200
_COUNTS: Final = ("tokensIn", "tokensOut", "tokensCached", "tokensReasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """
    What may be spent, in micro-dollars; 0 is no limit.

    Attributes:
        turn: For all attempts of a turn.
        session: For all turns of a session.
        tenant: For all sessions of a tenant, from midnight to midnight UTC.
    """

    turn: int = 0
    session: int = 0
    tenant: int = 0

    def __bool__(self) -> bool:
        return bool(self.turn or self.session or self.tenant)


@dataclass(slots=True, kw_only=True)
class ModelCall:
    """
    One call of a model, as far as it is known: the `CallMeter` that its backend fills in.

    Attributes:
        attempt: Which attempt of the turn made it.
        index: The call's number in its attempt, from 0.
        model: The model that answered; until that is known, the model that was asked.
        asked: The model that was asked.
        request_id: The idempotency key of the call's requests.
        outcome: How the call ended, one of `CallOutcome`.
        tokens_in: Tokens of the conversation, cached ones included.
        tokens_out: Tokens of the answer, reasoning included.
        tokens_cached: Tokens of the conversation from the model's cache.
        tokens_reasoning: Tokens of reasoning.
        cost_micro_usd: The cost in micro-dollars.
        pieces: How many pieces of the answer have come.
        characters_out: How many characters of text these have, for estimates.
        tries: How many requests were sent for the call.
        headers_ms: Time until the headers of an answer had come, all tries included.
        first_token_ms: Time until the answer's first piece.
        duration_ms: Time until the answer's end.
        finish_reason: Why the answer ended.
        error_code: Why the call failed.
        characters_in: Characters of the conversation, for estimates.
        unusable: Names of the counts for which the model gave no usable number.
    """

    attempt: int
    index: int
    prices: PriceTable = field(repr=False)
    model: str | None = None
    request_id: str | None = None
    outcome: CallOutcome = "running"
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    cost_micro_usd: int | None = None
    pieces: int = 0
    tries: int | None = None
    headers_ms: int | None = None
    first_token_ms: int | None = None
    duration_ms: int | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    characters_in: int = 0
    characters_out: int = 0
    unusable: Sequence[str] = ()
    began_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    asked: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.model

    @property
    def estimated_tokens_out(self) -> int | None:
        """The number of pieces that have come, where `tokens_out` is not known; None without a piece."""
        return self.pieces or None if self.tokens_out is None else None

    @property
    def estimated_cost_micro_usd(self) -> int | None:
        """About what an ended call costs, for budgets; None where the cost is known, or where it failed silently."""
        if self.cost_micro_usd is not None or self.outcome == "running":
            return None
        if self.outcome == "failed" and not self.pieces and self.tokens_in is None:
            return None
        prices = (self.prices.for_budgets([name]) for name in (self.model, self.asked) if name)
        price = next((each for each in prices if each is not None), None)
        if price is None:
            return None
        # Some APIs send many tokens in one piece, others a piece for each token of a few characters.
        tokens_out = self.tokens_out or max(self.pieces, self.characters_out // CHARACTERS_OF_A_TOKEN)
        return price.estimate(self.characters_in, tokens_out, self.tokens_in)

    @property
    def in_vain(self) -> bool:
        """Whether no answer can use the call: it failed, or was stopped before its first piece."""
        return self.outcome == "failed" or (self.outcome == "cancelled" and not self.pieces)

    # What its backend tells, see `CallMeter`.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.duration_ms = self._elapsed_ms()
        if error is None:
            self.outcome = "completed"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.outcome = "cancelled"
        else:
            self.outcome, self.error_code = "failed", code_of(error)

    def tried(self) -> None:
        """Count a request."""
        self.tries = (self.tries or 0) + 1

    def answered(self) -> None:
        """Note when the headers came."""
        self.headers_ms = self._elapsed_ms()

    def said(self, events: Sequence[ChatStreamEvent]) -> None:
        """Count pieces of the answer."""
        if type(events) is TextDeltas:
            pieces = len(events)
            self.characters_out += events.characters
        else:
            pieces = sum(event.type != "usage" for event in events)
            self.characters_out += sum(map(_characters_of, events))
        if pieces and not self.pieces:
            self.first_token_ms = self._elapsed_ms()
        self.pieces += pieces

    def reported(self, usage: Mapping[str, Any]) -> None:
        """Take the model's report; a value that is no count, or no text, is not known."""
        self.model = _text(usage, "model") or self.model
        self.finish_reason = _text(usage, "finishReason")
        counts = {name: count(usage, name) for name in _COUNTS}
        self.tokens_in, self.tokens_out, self.tokens_cached, self.tokens_reasoning = counts.values()
        self.unusable = [name for name, found in counts.items() if found is None and usage.get(name) is not None]
        self.cost_micro_usd = self._cost(usage.get("costUsd"))

    def _cost(self, told: object) -> int | None:
        cost = micro_usd(told)
        if cost is not None and cost <= _MOST_MICRO_USD:
            return cost
        price = None if self.model is None else self.prices.price(self.model)
        if price is None or self.tokens_in is None or self.tokens_out is None:
            return None
        return price.of(self.tokens_in, self.tokens_out, self.tokens_cached or 0)

    def _elapsed_ms(self) -> int:
        return round((asyncio.get_running_loop().time() - self.began_s) * 1000)


def _forget(_kept: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class MeteredBackend:
    """
    A backend all of whose calls are metered.

    Attributes:
        backend: Who is asked.
        meter: Keeps account.
        keep: Is given what the API of each call wants back with its answer, and nothing as each begins.
    """

    backend: AgentExecutionBackend
    meter: Meter
    keep: Callable[[Mapping[str, Any]], None] = _forget

    @property
    def kind(self) -> str:
        """Its short name."""
        return self.backend.kind

    def continues(self, model: str | None) -> bool:
        """Say whether it can go on with an answer that broke off."""
        return self.backend.continues(model)

    def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """Answer; see `AgentExecutionBackend.stream`."""
        self.keep({})

        def keep(kept: Mapping[str, Any]) -> None:
            self.keep(kept)
            context.keep(kept)

        characters = len(request.continue_from) + sum(map(_characters, request.messages))
        asked = _Asked(self.meter, characters)
        return self.backend.stream(request, replace(context, meter=asked, keep=keep))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A meter that knows how long the conversation is."""

    meter: Meter
    characters: int

    def call(self, model: str | None, request_id: str) -> CallMeter:
        """Begin a call; see `Meter.call`."""
        call = self.meter.call(model, request_id)
        if isinstance(call, ModelCall):
            call.characters_in = self.characters
        return call

    def report(self, usage: Mapping[str, Any]) -> int | None:
        """Take a call that was made elsewhere; see `Meter.report`."""
        return self.meter.report(usage)


def _characters(message: ChatMessage) -> int:
    """Return how many characters of text a message has; images and files are not estimated."""
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else []
    return sum(len(str(part.get("text") or "")) for part in parts if isinstance(part, dict))


def _characters_of(event: ChatStreamEvent) -> int:
    """Return how many characters of text, reasoning or arguments an event adds to the answer."""
    data = event.data or {}
    said = data.get("delta") or data.get("args")
    return len(said) if isinstance(said, str) else 0 if said is None else len(str(said))


def count(usage: Mapping[str, Any], name: str) -> int | None:
    """Return a count of a ``usage`` event; None for what is none."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _text(usage: Mapping[str, Any], name: str) -> str | None:
    value = usage.get(name)
    return value[:_MOST_CHARACTERS].encode("utf-8", "replace").decode() if isinstance(value, str) else None
