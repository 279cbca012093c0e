"""What a product adds to a turn: its model call, and what happens to the answer."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from chatturn.backends.api import NULL_METER, AgentExecutionBackend, ChatMessage, Meter
from chatturn.chat.hooks.thread_changes import ThreadChange
from chatturn.chat.hooks.tool import Tool
from chatturn.chat.thread.history import PastTurn, ShownHistory, recent
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.usage.calls import ModelCall
from chatturn.durable.context import DurableContext
from chatturn.durable.ends import End
from chatturn.durable.records import DurableRunManifest, RunRecord
from chatturn.errors import HookError
from chatturn.events import ChatStreamEvent, EventBatch
from chatturn.telemetry.operator_log import OperatorLog, print_log
from chatturn.telemetry.tracer import NULL_TRACER, Tracer

__all__ = ["ChatTurnHooks", "DurableTurnProducer", "EndedAttempt", "FinishedTurn", "ModelRequest", "TurnContext"]

E_co = TypeVar("E_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """
    What a turn asks of its model: `ChatTurnHooks.shape_request` takes it, and returns the request to send.

    Attributes:
        system: Said before the conversation; "" for nothing.
        messages: The conversation, the user's message last, each as the chat completions API has it.
        model: Which model; None for the deployment's.
        parameters: How it is to answer: temperature, max_tokens …; sent as they are.
        tools: The tools that the model may use.
    """

    messages: Sequence[ChatMessage]
    system: str = ""
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Tool] = ()

    @property
    def conversation(self) -> list[ChatMessage]:
        """The messages, behind what is said before them."""
        instructions: list[ChatMessage] = [{"role": "system", "content": self.system}] if self.system else []
        return [*instructions, *self.messages]


async def _as_it_is(request: ModelRequest, _context: "TurnContext") -> ModelRequest:
    return request


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnContext:
    """
    What `ChatTurnHooks.produce` may use.

    Attributes:
        identity: The turn.
        user_message: What the user said; of a message with images or files, its text.
        user_content: The same with images and files: a list of parts as the chat completions API has them, files
            loaded; None for a message of text alone.
        model: The model asked for, or the deployment's; None for the backend's default.
        history: The session's finished turns before this one, oldest first, as user and assistant messages.
        metadata: The request's.
        parameters: How the request wants the model to answer: temperature, max_tokens … (see the page HTTP).
        attempt: From 1.
        replaces: The version of the turn whose place this one, `version`, is to take; None for none.
        request_id: Stable for this attempt of this turn; an idempotency key for what the hook calls.
        behind: What stands behind the user's message in a request that brings its own conversation: calls of its
            client's tools, and their results.
        continue_from: What an attempt whose worker died had said, if the backend can go on from there; "" for a
            turn that begins at its beginning.
        backend: The deployment's backend.
        durable: The turn's run, for steps of the producer's own: positions 1, 2, … after the turn itself.
        tracer: Takes spans.
        log: Takes failures that nobody else hears of.
        meter: Keeps account of the model calls; see `report_call`.
        shape: The product's `ChatTurnHooks.shape_request`; see `request`.
    """

    identity: ChatTurnIdentity
    user_message: str
    user_content: Any = None
    model: str | None
    history: Sequence[ChatMessage]
    metadata: Mapping[str, Any]
    attempt: int
    request_id: str
    backend: AgentExecutionBackend
    durable: DurableContext
    behind: Sequence[ChatMessage] = ()
    continue_from: str = ""
    replaces: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tracer: Tracer = NULL_TRACER
    log: OperatorLog = print_log
    meter: Meter = NULL_METER
    shape: Callable[[ModelRequest, "TurnContext"], Awaitable[ModelRequest]] = _as_it_is

    async def request(self, *, system: str = "", tools: Sequence[Tool] = ()) -> ModelRequest:
        """
        Return what is to be asked of the model, as the product's hook wants it.

        Args:
            system: Said before the conversation.
            tools: What the model may do.

        Raises:
            HookError: The hook returned no request, or one with tools for a product that has none.
        """
        asked = ModelRequest(
            system=system,
            messages=[*self.history, self.question, *self.behind],
            model=self.model,
            parameters=self.parameters,
            tools=tools,
        )
        shaped = await self.shape(asked, self)
        if not isinstance(shaped, ModelRequest) or not shaped.messages:
            raise HookError("returned no request with messages", hook="shape_request")
        if shaped.tools and not tools:
            raise HookError("adds tools to those of a product that has none", hook="shape_request")
        return shaped

    def report_call(
        self,
        *,
        model: str | None = None,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        tokens_cached: int | None = None,
        tokens_reasoning: int | None = None,
        cost_usd: float | None = None,
        finish_reason: str | None = None,
    ) -> int | None:
        """
        Put a model call on record that the product has made by itself, and not through `backend`.

        What is not given is not known, and no zero.  Without *cost_usd* the cost is that of the model's price.

        Returns:
            The call's index, for the member ``call`` of a ``usage`` event; None where nobody keeps account, or more
            calls were reported than are kept.
        """
        usage = {
            "model": model,
            "tokensIn": tokens_in,
            "tokensOut": tokens_out,
            "tokensCached": tokens_cached,
            "tokensReasoning": tokens_reasoning,
            "costUsd": cost_usd,
            "finishReason": finish_reason,
        }
        return self.meter.report(usage)

    @property
    def question(self) -> ChatMessage:
        """What the user said, as a message of the conversation."""
        return {"role": "user", "content": self.user_message if self.user_content is None else self.user_content}

    @property
    def version(self) -> int:
        """Which version of the turn is answered, from 1."""
        return self.identity.version

    @property
    def traceparent(self) -> str | None:
        """The W3C header that puts what others do for this turn below its innermost span; None: nobody traces it."""
        return self.tracer.traceparent()


class DurableTurnProducer(Protocol[E_co]):
    """The live side of a turn."""

    @property
    def stream(self) -> AsyncGenerator[E_co, None]:
        """The turn's events.  Closed as soon as the turn ends for any reason."""

    def final_text(self) -> str | None:
        """Return the answer; asked once, after `stream` has drained.  None: take what was accumulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTurn:
    """
    A turn whose answer is stored.

    Attributes:
        identity: The turn.
        final_text: The answer as it is stored: after `ChatTurnHooks.transform_final_text`.
        idempotency_key: The same at every call of one hook for one turn: a hook is called again until it
            succeeds, and by then may have done its work already.
        record: The run.
        cancelled: Whether the turn was stopped, and the text is what it had said by then.
        finish_reason: Why the answer ended: ``stop``, or it is not whole; see the protocol's terminal lines.
        replaces: The version of the turn that it takes the place of; None for none.
    """

    identity: ChatTurnIdentity
    final_text: str
    idempotency_key: str
    cancelled: bool = False
    finish_reason: str | None = None
    replaces: int | None = None
    record: RunRecord = field(compare=False)

    @property
    def version(self) -> int:
        """Which version of the turn it is, from 1."""
        return self.identity.version


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAttempt:
    """
    One attempt at a turn, when its reader has everything.

    Attributes:
        run_id: The turn's run.
        attempt: Which attempt it was, from 1.
        manifest: What was asked.
        end: How it ended, as it is stored; None if that is not known, or the turn is another worker's by now.
        calls: The model calls that it made.
        ended_at: When it ended, as a timestamp.
        duration_ms: Since it was claimed.
    """

    run_id: str
    attempt: int
    manifest: DurableRunManifest
    end: End | None
    calls: Sequence[ModelCall]
    ended_at: str
    duration_ms: int


class ChatTurnHooks:
    """
    A product's hooks: subclass it, and override what the product needs.

    A hook that is not overridden costs nothing.  Those that run after the answer is stored are recorded in
    the same write as the answer and called until they succeed.

    Args:
        variables: The deployment's vars and secrets that are not chatturn's own settings.

    Attributes:
        variables: The same.
        tools: What the model may do.  With tools, `chatturn.chat.agent.agent.AgentProducer` answers in place of
            `produce`, and each model call and each tool call is a durable step.
        instructions: Said to the model before the conversation, by that producer, and where `produce` is not
            overridden.
        client_tools: Whether a request may bring tools of its own, which its client does; that producer answers such a
            request.  Not of a product that redacts: what a client is to do cannot be told before it was said.
        runtime_runs: Takes a row of agent-runtime's run ledger for each attempt, after the reader has everything: a
            `chatturn.agent_runtime.shown.runs.RuntimeRunPersistenceAdapter`, or None.  What it raises is logged.
        sync_http: Whether hooks use `urllib.request` or `requests`, which need `fetch` put underneath; that
            costs the first request of an isolate 0.1 s, or half a second where `requests` is vendored.
    """

    sync_http: ClassVar[bool] = False
    client_tools: ClassVar[bool] = False
    tools: Sequence[Tool] = ()
    instructions: str = ""
    runtime_runs: Any = None

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self.variables: Mapping[str, str] = {} if variables is None else variables

    def produce(self, context: TurnContext) -> DurableTurnProducer[EventBatch]:
        """
        Build the turn's producer.  Called once per attempt, never for a replay.

        A product that does not override it lets the deployment's model answer, under its `instructions`.
        """
        raise NotImplementedError

    async def shape_request(self, request: ModelRequest, context: TurnContext) -> ModelRequest:
        """
        Change what the model is asked: what is said before the conversation, messages, model, parameters, tools.

        Called once per attempt, before the first model call of `answer`, or of a product with `tools`; what takes
        long belongs into a step of `TurnContext.durable`.  Of the tools some may be left out, and others added.

        Returns:
            The request as it shall be, ``replace(request, …)``, or *request* itself.
        """
        del context
        return request

    def show_history(self, turns: Sequence[PastTurn], most_characters: int) -> ShownHistory:
        """
        Choose what of the turns before the model is shown; see `recent`, which does it by default.

        Must depend on nothing else, and must not wait.  A line of the log says what was left out or shortened.

        Args:
            turns: The latest answered ones, oldest first, `HISTORY_TURNS` at most.
            most_characters: `HISTORY_CHARACTERS`.
        """
        return recent(turns, most_characters)

    async def transform_final_text(self, text: str) -> str:
        """Change the answer before anything is stored (redaction); the live stream is not altered."""
        return text

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        """Write the answer to the product's own store, after it is stored here."""

    async def on_attempt_end(self, attempt: EndedAttempt) -> None:
        """See how each attempt has ended, after the reader has everything; a failure is logged, and not made up for."""

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """Post-process: proposals, citations, metering.  Called after `persist_assistant_message` succeeded."""

    async def on_thread_changed(self, change: ThreadChange) -> None:
        """Hear which turns left their thread, or came back, because another version of an earlier turn counts now."""

    def on_event(self, identity: ChatTurnIdentity, event: ChatStreamEvent) -> None:
        """See every event as it goes out, the lifecycle's too; a failure is logged and changes nothing."""
