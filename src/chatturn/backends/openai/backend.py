"""
A model behind an OpenAI-compatible chat completions API.

One call of `stream` is one model call: `connector` gets a response that can be read, `completions` reads it,
`deadlines` bounds every wait.  Here they are put together: the request, the loop over the network's chunks,
the span of each try.  Whatever ends the call, a cancellation above all, closes the connection at once.
"""

import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend, CallMeter, ChatMessage
from chatturn.backends.openai.completions import CompletionReader
from chatturn.backends.openai.connector import Connector
from chatturn.backends.openai.contents import with_contents
from chatturn.backends.openai.deadlines import Deadline, Watchdog
from chatturn.backends.openai.quirks import Quirks
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.backends.providers import Model, Provider
from chatturn.errors import (
    BackendProtocolError,
    BackendTimeout,
    BackendTransportError,
    ConfigurationError,
)
from chatturn.events import EventBatch
from chatturn.jsontext.canonical import canonical_hash
from chatturn.telemetry import conventions
from chatturn.telemetry.tracer import AttributeValue, Span, Tracer
from chatturn.transport import ADDRESS, Transport, TransportRequest, is_address

__all__ = ["OpenAICompatibleBackend", "create_openai_compatible_backend", "make_backend"]

_DEFAULT_RETRY: Final = BackendRetryPolicy()

_INSTRUCTING: Final = frozenset({"system", "developer"})
_LIMITS: Final = frozenset({"max_tokens", "max_completion_tokens"})
_ABOUT_TOOLS: Final = frozenset({"tool_choice", "parallel_tool_calls"})

_MADE_UP_CHARACTERS: Final = 9
"""Mistral takes ids of exactly 9 letters and digits."""

# How vLLM, SGLang and others are asked to go on with the last message instead of answering it.
# Source: docs.vllm.ai, OpenAI-compatible server, extra parameters of the chat API.
_CONTINUE: Final[Mapping[str, Any]] = {"continue_final_message": True, "add_generation_prompt": False}

# Some servers, and firewalls in front of others, refuse a request without a user-agent.
_HEADERS: Final[Mapping[str, str]] = {
    "user-agent": "chatturn",
    "content-type": "application/json",
    "accept": "text/event-stream",
}

# Once the answer is whole, only usage and [DONE] are missing: the client should not wait long for them.
_TRAILER: Final = Deadline("trailer_timeout_ms", 5_000, "usage or [DONE]")

# Some servers give a finish reason with every piece: a reason beside content may not be the end.
_DOUBTFUL_TRAILER: Final = Deadline("trailer_timeout_ms", 30_000, "more content, usage or [DONE]")


def create_openai_compatible_backend(
    *,
    transport: Transport,
    base_url: str,
    api_key: str,
    model: str,
    uniform: Callable[[float, float], float],
    now: Callable[[], float],
    kind: str = "openai",
    provider: str = "openai",
    retry: BackendRetryPolicy = _DEFAULT_RETRY,
    idle_timeout_ms: int = 300_000,
    total_timeout_ms: int = 900_000,
    continue_models: Collection[str] = (),
) -> AgentExecutionBackend:
    """
    Make the backend for a chat completions API.

    Args:
        transport: How to reach it.
        base_url: The API's address without ``/chat/completions``; one slash at its end is ignored.
        api_key: The API's key; "" sends none, as for a server on the operator's own machine.
        model: The model asked for when a request names none.
        uniform: Like `random.uniform`, for the jitter between tries.
        now: Seconds since the epoch, for a server's ``retry-after`` dates.
        kind: The backend's name in logs and errors.
        provider: Who runs the API, for ``gen_ai.provider.name``.
        retry: How often and how patiently to try, and how long a try waits for headers.
        idle_timeout_ms: The longest wait between two chunks of the answer; 0 for no limit.
        total_timeout_ms: The longest time of the whole call, tries and answer; 0 for no limit.
        continue_models: Models whose server continues an assistant's message; ``*`` for all.

    Raises:
        ConfigurationError: *base_url* is not an address.
        ValueError: A deadline is negative; the message begins with its name.
    """
    if not is_address(base_url):
        raise ConfigurationError("OPENAI_BASE_URL", f"must be {ADDRESS}")
    made = make_backend(
        Provider(
            name=provider,
            kind="openai",
            url=f"{base_url.removesuffix('/')}/chat/completions",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        ),
        Model(),
        transport=transport,
        uniform=uniform,
        now=now,
        retry=retry,
        idle_timeout_ms=idle_timeout_ms,
        total_timeout_ms=total_timeout_ms,
    )
    return replace(
        made,
        kind=kind,
        connector=replace(made.connector, kind=kind),
        model=model,
        continue_models=frozenset(continue_models),
    )


def make_backend(
    provider: Provider,
    model: Model,
    *,
    transport: Transport,
    uniform: Callable[[float, float], float],
    now: Callable[[], float],
    retry: BackendRetryPolicy,
    idle_timeout_ms: int,
    total_timeout_ms: int,
) -> "OpenAICompatibleBackend":
    """
    Make the backend for the models of *provider* that are asked as *model* says.

    The other arguments are those of `create_openai_compatible_backend`.

    Raises:
        ValueError: A deadline is negative; the message begins with its name.
    """
    return OpenAICompatibleBackend(
        kind=provider.name,
        connector=Connector(kind=provider.name, transport=transport, retry=retry, uniform=uniform, now=now),
        provider=provider,
        asked=model,
        until_bytes=Deadline("idle_timeout_ms", idle_timeout_ms, "further bytes of the answer"),
        until_end=Deadline("total_timeout_ms", total_timeout_ms, "end of the answer"),
        continue_models=frozenset({"*"} if model.continues else ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAICompatibleBackend:
    """
    Answers by way of a chat completions API.

    Attributes:
        kind: Its name in logs and errors.
        connector: Reaches the API.
        provider: The API's provider.
        asked: How its model is asked.
        model: The model for requests that name none.
        until_bytes, until_end: The deadlines of an answer.
        continue_models: The models that continue an answer; ``*`` for all.
    """

    kind: str
    connector: Connector
    provider: Provider
    asked: Model
    until_bytes: Deadline
    until_end: Deadline
    model: str = ""
    continue_models: frozenset[str] = frozenset()
    _learnt: dict[str, Quirks] = field(default_factory=dict)

    def continues(self, model: str | None) -> bool:
        """Say whether the deployment declares that the model's server continues an answer."""
        return "*" in self.continue_models or (model or self.model) in self.continue_models

    def takes(self, _model: str | None) -> frozenset[str]:
        """Say what its models take besides text."""
        return self.asked.takes

    async def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """
        Answer, with the events that arrived together in as few batches as can be.

        Raises:
            BackendRejected: The API refused the request; its reason is in ``detail``.
            BackendTransportError: No try got an answer that could be read.
            BackendTimeout: The deadline that the message names is over.
            BackendProtocolError: The answer broke off, or what came is no answer.
            BackendReportedError: The API reported an error inside the answer.
            ContentNotTaken: The user's message has what the model does not take.
            ConfigurationError: Neither the request nor the deployment names a model.
        """
        model = request.model or self.model
        if not model:
            raise ConfigurationError("MODEL", "is not set, and the request names none")
        with (
            context.meter.call(model, context.request_id) as call,
            closing(Watchdog(self.until_end, backend=self.kind)) as watchdog,
        ):
            exchange = await self.connector.connect(
                self._http_request(model, request, context),
                watchdog,
                partial(self._try, context.tracer, call, model, request.messages),
                partial(self._said_otherwise, model, request, context, tried={self._quirks(model): None}),
            )
            call.answered()
            async with exchange.stack:
                reader = CompletionReader(
                    model=model,
                    backend=self.kind,
                    make_id=partial(_made_up_id, context.request_id),
                    tools=_tool_names(request.options),
                    keeps=self.provider.quirks.later_turns,
                )
                exchange.stack.callback(_describe_answer, exchange.span, call, reader)
                chunks = exchange.response.chunks()
                chunk = await self._next_chunk(chunks, reader, watchdog)
                first_chunk_s = watchdog.elapsed_s() - exchange.began_s
                exchange.span.set(conventions.RESPONSE_TIME_TO_FIRST_CHUNK, first_chunk_s)
                while chunk is not None:
                    for batch in reader.feed(chunk):
                        call.said(batch)
                        yield batch
                    chunk = None if reader.done else await self._next_chunk(chunks, reader, watchdog)
                events = reader.finish(call.index)
                if kept := reader.kept():
                    context.keep({"provider": self.provider.name, "model": model, **kept})
                if events:
                    call.said(events)
                    yield events

    def _http_request(self, model: str, request: AgentBackendInput, context: AgentBackendContext) -> TransportRequest:
        body = self._quirks(model).applied(self._body(model, request), self.provider.name)
        return TransportRequest(
            url=self.provider.url_of(model),
            headers={**_HEADERS, **self.provider.headers, "idempotency-key": context.request_id},
            body=json.dumps(body, separators=(",", ":"), allow_nan=False),
        )

    def _quirks(self, model: str) -> Quirks:
        return self._learnt.get(model, self.provider.quirks)

    def _said_otherwise(
        self,
        model: str,
        request: AgentBackendInput,
        context: AgentBackendContext,
        status: int,
        words: str,
        *,
        tried: dict[Quirks, None],
    ) -> TransportRequest | None:
        """
        Learn from a refusal which quirks the API has; return the request changed to them, None if no change can help.

        What is learnt counts for later requests, too.

        Args:
            model: The model asked.
            request: What it was asked.
            context: For which attempt of a turn.
            status: The refusal's HTTP status.
            words: The refusal's text.
            tried: The quirks tried in this call, in order; each is tried once.
        """
        known = self._quirks(model)
        learnt = known.after(status, words, known.applied(self._body(model, request), self.provider.name))
        if learnt is None:
            return None
        if learnt in tried:  # none of the quirks tried has helped: return to the first
            self._learnt[model] = next(iter(tried))
            return None
        tried[learnt] = None
        self._learnt[model] = learnt
        return self._http_request(model, request, context)

    def _body(self, model: str, request: AgentBackendInput) -> dict[str, Any]:
        messages = with_contents(
            request.messages, self.asked.takes, form=self.provider.files_as, backend=self.provider.name
        )
        if self.asked.system and not any(message.get("role") in _INSTRUCTING for message in messages[:1]):
            messages.insert(0, {"role": "system", "content": self.asked.system})
        continuation: Mapping[str, Any] = {}
        if request.continue_from:
            messages.append({"role": "assistant", "content": request.continue_from})
            continuation = _CONTINUE
        return {
            "stream_options": {"include_usage": True},  # which `options` may replace, for servers that refuse it
            **{name: value for name, value in self.asked.defaults.items() if _is_open(name, request.options)},
            **continuation,
            **{name: value for name, value in request.options.items() if _has_subject(name, request.options)},
            "model": model,
            "stream": True,
            "messages": messages,
        }

    async def _next_chunk(
        self, chunks: AsyncIterator[bytes], reader: CompletionReader, watchdog: Watchdog
    ) -> bytes | None:
        """Wait for more of the body; return None at its end, or when a whole answer says no more."""
        answered = reader.finish_reason is not None
        after_reason = _TRAILER if reader.reason_stands_alone else _DOUBTFUL_TRAILER
        try:
            with watchdog.limit(after_reason if answered else self.until_bytes):
                return await anext(chunks, None)
        except BackendTransportError as error:
            if answered:
                return None
            raise BackendProtocolError("the connection broke inside the answer", backend=self.kind) from error
        except BackendTimeout:
            if answered:
                return None
            raise

    def _try(
        self, tracer: Tracer, call: CallMeter, model: str, messages: Sequence[ChatMessage], attempt: int
    ) -> AbstractContextManager[Span]:
        call.tried()
        attributes: dict[str, AttributeValue | None] = {
            conventions.OPERATION_NAME: conventions.CHAT,
            conventions.PROVIDER_NAME: self.provider.name,
            conventions.REQUEST_MODEL: model,
            conventions.REQUEST_STREAM: True,
            conventions.HTTP_RESEND_COUNT: attempt - 1 or None,
            conventions.INPUT_MESSAGES: tracer.content(messages),
        }
        return tracer.span(conventions.span_name(conventions.CHAT, model), kind="client", attributes=attributes)


def _is_open(name: str, options: Mapping[str, Any]) -> bool:
    """Say whether a parameter's default counts: the request sets no equivalent, and has the parameter's subject."""
    if name in _LIMITS:
        return not _LIMITS & set(options)
    return _has_subject(name, options)


def _has_subject(name: str, options: Mapping[str, Any]) -> bool:
    """Say whether a parameter has a subject: APIs refuse parameters about tools in a request without tools."""
    return name not in _ABOUT_TOOLS or bool(options.get("tools"))


def _tool_names(options: Mapping[str, Any]) -> frozenset[str]:
    functions = (tool.get("function") or {} for tool in options.get("tools", ()))
    return frozenset(function["name"] for function in functions if "name" in function)


def _made_up_id(request_id: str, position: int) -> str:
    """Return an id for a tool call without one, unique in the conversation and valid for every API."""
    return canonical_hash([request_id, position])[:_MADE_UP_CHARACTERS]


def _describe_answer(span: Span, call: CallMeter, reader: CompletionReader) -> None:
    counts = reader.counts()
    call.reported(reader.usage())
    span.set(conventions.RESPONSE_ID, reader.response_id)
    span.set(conventions.RESPONSE_MODEL, reader.model)
    span.set(conventions.RESPONSE_FINISH_REASONS, reader.finish_reason and (reader.finish_reason,))
    span.set(conventions.USAGE_INPUT_TOKENS, counts.get("tokensIn"))
    span.set(conventions.USAGE_OUTPUT_TOKENS, counts.get("tokensOut"))
    span.set(conventions.USAGE_CACHE_READ_INPUT_TOKENS, counts.get("tokensCached"))
    span.set(conventions.USAGE_REASONING_OUTPUT_TOKENS, counts.get("tokensReasoning"))
