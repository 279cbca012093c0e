"""
The deployment's backend: which provider is asked for a model, and which model is asked when one fails.

A model is named as its provider lists it, or behind the provider's name, ``home/qwen3``.  ``MODEL=a,b,c`` is a chain:
if a model is unreachable, overloaded, out of quota or too late before its first event, the next one is asked.  With
``FALLBACK_MIDWAY=on`` the next one is asked after the first event, too, and its answer replaces the text said so far.
A model that failed this way rests in this isolate for 30 s, or for 300 s if its quota is used up.  While it rests it
is not asked, unless every model of the chain rests.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from chatturn.backends.api import CONTENTS, AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.backends.openai.backend import make_backend
from chatturn.backends.openai.failures import PASSING_STATUSES
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.backends.providers import PRESETS, Model, Provider
from chatturn.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendReportedError,
    BackendTimeout,
    BackendTransportError,
    ConfigurationError,
    ContentNotTaken,
    ContextOverflow,
    QuotaExhausted,
)
from chatturn.events import EventBatch, text_so_far
from chatturn.settings import Settings
from chatturn.telemetry.operator_log import OperatorLog
from chatturn.transport import ADDRESS, Transport, is_address, is_header_value

__all__ = ["Means", "RoutingBackend", "create_backend", "provider_of_settings"]

_REST_S: Final = 30.0
_REST_WITHOUT_QUOTA_S: Final = 300.0
_PASSING: Final = (BackendTransportError, BackendTimeout, BackendProtocolError, BackendReportedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """
    What a backend needs from its deployment.

    Attributes:
        transport: Reaches servers over HTTP.
        binding: Reaches Workers AI through the Worker's binding.
        uniform: Like `random.uniform`.
        now: Seconds since the epoch.
        log: Takes a warning ``model.fell_back`` with the model that failed and the one asked instead.
    """

    transport: Transport
    binding: Transport
    uniform: Callable[[float, float], float]
    now: Callable[[], float]
    log: OperatorLog


@dataclass(frozen=True, slots=True)
class _Candidate:
    provider: Provider
    name: str
    model: Model


def provider_of_settings(settings: Settings) -> Provider:
    """
    Return the one provider that ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``CONTINUE_MODELS`` describe.

    Raises:
        ConfigurationError: The base URL is not an address, or no HTTP header can carry the key.
    """
    base_url = settings.openai_base_url
    if not is_address(base_url):
        raise ConfigurationError("OPENAI_BASE_URL", f"must be {ADDRESS}")
    if not is_header_value(settings.openai_api_key):
        raise ConfigurationError("OPENAI_API_KEY", "has a character that no header can carry")
    preset = PRESETS["openai"]
    continuing = {name.strip(): Model(continues=True) for name in settings.continue_models.split(",") if name.strip()}
    return Provider(
        name="openai",
        kind="openai",
        url=base_url.removesuffix("/") + preset.path,
        headers={preset.key_header: preset.key_prefix + settings.openai_api_key} if settings.openai_api_key else {},
        models=continuing,
        others=Model(continues="*" in continuing),
    )


def create_backend(settings: Settings, providers: Sequence[Provider], means: Means) -> "RoutingBackend":
    """
    Make the backend of a deployment.

    Raises:
        ConfigurationError: No provider has a model that ``MODEL`` names.
    """

    def make(provider: Provider, model: Model, *, hasty: bool) -> AgentExecutionBackend:
        def limit(name: str) -> int:
            own: int | None = getattr(model, name)
            return int(getattr(settings, name)) if own is None else own

        return make_backend(
            provider,
            model,
            transport=means.binding if provider.is_binding else means.transport,
            uniform=means.uniform,
            now=means.now,
            retry=BackendRetryPolicy(
                max_attempts=1 if hasty else settings.max_attempts, request_timeout_ms=limit("request_timeout_ms")
            ),
            idle_timeout_ms=limit("idle_timeout_ms"),
            total_timeout_ms=limit("total_timeout_ms"),
        )

    midway = settings.fallback_midway == "on"
    return RoutingBackend(providers, make, chain=settings.model, midway=midway, now=means.now, log=means.log)


class RoutingBackend:
    """
    Asks the provider that has the model.

    Args:
        providers: The deployment's; the first one that has a model is asked for it.
        make: Makes the backend for a model of a provider; with ``hasty=True`` it tries once.
        chain: Models, separated by commas (``a,b,c``), for requests that name none.
        midway: Whether the next model answers from the beginning if one fails after its first event.
        now: Returns the time in seconds, to measure how long a model rests.
        log: Takes a warning ``model.fell_back`` with the model that failed and the one asked instead.

    Raises:
        ConfigurationError: No provider has a model of the chain.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        make: Callable[..., AgentExecutionBackend],
        *,
        chain: str,
        midway: bool = False,
        now: Callable[[], float],
        log: OperatorLog,
    ) -> None:
        self._providers = providers
        self._make = make
        self._midway = midway
        self._now = now
        self._log = log
        self._made: dict[tuple[str, str, bool], AgentExecutionBackend] = {}
        self._rests_until: dict[tuple[str, str], float] = {}
        self._chain_text = chain
        self._chain = [self._candidate(name.strip()) for name in chain.split(",") if name.strip()]

    @property
    def kind(self) -> str:
        """The first provider's name."""
        return self._providers[0].name

    def continues(self, model: str | None) -> bool:
        """Say whether *model* can continue an answer that broke off; a chain of two or more models never can."""
        candidates = self._candidates(model)
        return len(candidates) == 1 and bool(candidates[0].model.continues)

    def takes(self, model: str | None) -> frozenset[str]:
        """
        Return what a model may be sent besides text; for a chain, all that any of its models may be sent.

        For a model that no provider has, return all of `CONTENTS`: `stream` then says that there is no such model.
        """
        try:
            candidates = self._candidates(model)
        except ConfigurationError:
            return CONTENTS
        return frozenset[str]().union(*(candidate.model.takes for candidate in candidates))

    def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """Answer; see `AgentExecutionBackend.stream`."""
        candidates = self._candidates(request.model)
        if len(candidates) == 1:
            return self._ask(candidates[0], request, context, hasty=False)
        return self._ask_in_turn(self._awake(candidates), request, context)

    async def _ask_in_turn(
        self, candidates: Sequence[_Candidate], request: AgentBackendInput, context: AgentBackendContext
    ) -> AsyncGenerator[EventBatch, None]:
        for candidate, following in zip(candidates, [*candidates[1:], None], strict=True):
            said = False
            answer = self._ask(candidate, request, context, hasty=following is not None)
            try:
                async with aclosing(cast("AsyncGenerator[EventBatch, None]", answer)) as batches:
                    async for batch in batches:
                        said = True
                        yield batch
            except BackendError as error:
                if not _may_pass(error):
                    raise
                if not isinstance(error, ContentNotTaken):
                    self._let_rest(candidate, error)
                if following is None or (said and not self._midway):
                    raise
                self._tell(candidate, following, error)
                if said:
                    yield text_so_far("")  # empties the answer: the next model begins anew
            else:
                self._rests_until.pop(_key(candidate), None)
                return

    def _ask(
        self, candidate: _Candidate, request: AgentBackendInput, context: AgentBackendContext, *, hasty: bool
    ) -> AsyncIterator[EventBatch]:
        provider, name = candidate.provider, candidate.name
        key = (provider.name, name if name in provider.models else "", hasty)
        if key not in self._made:
            self._made[key] = self._make(provider, candidate.model, hasty=hasty)
        return self._made[key].stream(replace(request, model=name), context)

    def _candidates(self, model: str | None) -> Sequence[_Candidate]:
        if model is None or model == self._chain_text:
            if not self._chain:
                raise ConfigurationError("MODEL", "is not set, and the request names none")
            return self._chain
        return [self._candidate(model)]

    def _candidate(self, model: str) -> _Candidate:
        """Return the provider that lists *model*, else the one named before its ``/``, else one for any model."""
        for provider in self._providers:
            if model in provider.models:
                return _Candidate(provider, model, provider.models[model])
        name, _, rest = model.partition("/")
        for provider in self._providers:
            if provider.name == name and rest and (found := provider.model(rest)) is not None:
                return _Candidate(provider, rest, found)
        for provider in self._providers:
            if provider.others is not None:
                return _Candidate(provider, model, provider.others)
        raise ConfigurationError("PROVIDERS", "has nobody with the model that is asked for")

    def _awake(self, candidates: Sequence[_Candidate]) -> Sequence[_Candidate]:
        now = self._now()
        awake = [each for each in candidates if self._rests_until.get(_key(each), 0.0) <= now]
        return awake or candidates

    def _let_rest(self, candidate: _Candidate, error: BackendError) -> None:
        rest_s = _REST_WITHOUT_QUOTA_S if isinstance(error, QuotaExhausted) else _REST_S
        self._rests_until[_key(candidate)] = self._now() + rest_s

    def _tell(self, candidate: _Candidate, following: _Candidate, error: BackendError) -> None:
        particulars: Mapping[str, Any] = {
            "level": "warning",
            "provider": candidate.provider.name,
            "model": candidate.name,
            "instead_provider": following.provider.name,
            "instead_model": following.name,
            "error": error,
        }
        self._log("model.fell_back", particulars)


def _key(candidate: _Candidate) -> tuple[str, str]:
    return candidate.provider.name, candidate.name


def _may_pass(error: BackendError) -> bool:
    """Say whether another model may answer after *error*; `x-should-retry: false` is only about the failed one."""
    if not isinstance(error, BackendRejected) or isinstance(error, QuotaExhausted | ContentNotTaken):
        return isinstance(error, _PASSING)
    return error.upstream_status in PASSING_STATUSES and not isinstance(error, ContextOverflow)
