"""
One deployment: what its settings come to, built once per isolate and used by every request.

Only plain Python is kept between requests, and what the platform gives the isolate, its ``env``: JavaScript
objects of one request must not be touched by another.
"""

import functools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pyodide.ffi import JsException, JsProxy
from workers import import_from_javascript

from chatturn.agent_runtime.attempt_runs import keep_runtime_runs
from chatturn.backends.api import AgentExecutionBackend
from chatturn.backends.echo import create_echo_backend
from chatturn.backends.providers import Provider, parse_providers, prices_of
from chatturn.backends.routing import Means, create_backend, provider_of_settings
from chatturn.chat.deployment import Deployment
from chatturn.chat.files import FileStore
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import Sweep
from chatturn.errors import ChatTurnError, ConfigurationError, KeysUnavailable
from chatturn.http.application import Application
from chatturn.http.auth import Authenticator, authenticator_for
from chatturn.http.cors import Cors, read_origins
from chatturn.http.rates import AskedRate, IsolateRate, Rate, Rates
from chatturn.http.tickets import Tickets, tickets_for
from chatturn.http.token_keys import PublishedKeys
from chatturn.settings import Settings, setting_names
from chatturn.telemetry.operator_log import OperatorLog, print_log
from chatturn.telemetry.otlp.setup import Telemetry, make_telemetry
from chatturn.usage.prices import PriceTable, parse_prices
from chatturn.workerd.ai import BindingTransport
from chatturn.workerd.d1 import D1Database
from chatturn.workerd.fetch import FetchTransport
from chatturn.workerd.ffi import RequestAlarm, js_object, read_env, read_other_env, settled, started
from chatturn.workerd.lifetime import outlive
from chatturn.workerd.owner import SessionObjects, SessionWatch
from chatturn.workerd.r2 import R2Files
from chatturn.workerd.signatures import verify_signature
from chatturn.workerd.sync_http import enable_sync_http
from chatturn.workerd.timers import use_cancellable_timers

__all__ = ["application", "flush_logs", "service", "sweep", "watch"]

HooksMaker: TypeAlias = Callable[[str, Mapping[str, str]], ChatTurnHooks]
"""Makes a product's hooks, by its name and with its own vars and secrets."""

_NO_HEADERS: Final[Mapping[str, str]] = {}
_RANDOM_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Isolate:
    """What is kept between the requests of one isolate."""

    chat: Deployment
    authenticator: Authenticator
    tickets: Tickets
    cors: Cors
    rates: Rates
    telemetry: Telemetry | None


def application(
    make_hooks: HooksMaker, request: JsProxy, headers: Mapping[str, str], *, owned: bool = False
) -> Application:
    """
    Make what the routes work with, for one request.

    Args:
        make_hooks: Makes what the product adds.
        request: The raw request.
        headers: Its headers.
        owned: Whether this is the session's own object, which runs turns itself.
    """
    try:
        isolate = _isolate(make_hooks)
        chat = service(make_hooks, headers)
    except ConfigurationError as error:
        return Application.unconfigured(error, log=functools.partial(_log_failure, print_log))
    owner = None if owned else _owner(request)
    log = functools.partial(_log_failure, isolate.chat.log)
    return Application(
        authenticator=isolate.authenticator,
        service=chat,
        log=log,
        tickets=isolate.tickets,
        cors=isolate.cors,
        rates=None if owned else isolate.rates,  # who forwards a request to the session's object has counted it
        body_within_s=isolate.chat.settings.body_timeout_ms / 1000 or None,
        owner=owner,
    )


def service(make_hooks: HooksMaker, headers: Mapping[str, str] = _NO_HEADERS) -> DurableChatService:
    """
    Make the chat service, for one request.

    Args:
        make_hooks: Makes what the product adds.
        headers: The request's, if there is one: ``traceparent`` says whose trace its spans belong to.

    Raises:
        ConfigurationError: A setting or the D1 binding is missing or wrong.
    """
    isolate = _isolate(make_hooks)
    telemetry = isolate.telemetry
    return DurableChatService(
        deployment=isolate.chat,
        tracing=None if telemetry is None else telemetry.request(headers.get("traceparent")),
    )


def watch(make_hooks: HooksMaker, state: JsProxy) -> SessionWatch:
    """
    Make the alarm of a session's object.

    Args:
        make_hooks: Makes what the product adds.
        state: The object's raw state.

    Raises:
        ConfigurationError: As for `service`.
    """
    chat = service(make_hooks)
    return SessionWatch(state, chat.deployment.settings.lease_ms, chat.look_after)


async def sweep(make_hooks: HooksMaker) -> None:
    """
    Sweep once; see `Sweep.run`.

    Raises:
        ConfigurationError: As for `service`.
        StoreError: The database does not answer, or refuses; the next sweep does what is left.
    """
    await Sweep(service=service(make_hooks)).run()


def flush_logs(make_hooks: HooksMaker, context: Any) -> None:
    """
    Let log records be sent that no turn takes along.

    Args:
        make_hooks: Makes what the product adds.
        context: The request's.
    """
    with suppress(ConfigurationError):
        telemetry = _isolate(make_hooks).telemetry
        if telemetry is not None and telemetry.outbound.has_records:
            outlive(telemetry.outbound.flush(), context)


def _isolate(make_hooks: HooksMaker) -> _Isolate:
    isolate = _outcome(make_hooks)
    if isinstance(isolate, ConfigurationError):
        raise isolate.with_traceback(None)
    return isolate


@functools.cache
def _outcome(make_hooks: HooksMaker) -> _Isolate | ConfigurationError:
    """Build it once, whatever comes of it: an isolate's settings do not change."""
    try:
        return _build(make_hooks)
    except ConfigurationError as error:
        return error


def _build(make_hooks: HooksMaker) -> _Isolate:
    use_cancellable_timers()
    settings = Settings.from_env(read_env(_env(), setting_names()))
    telemetry = _telemetry(settings)
    log = print_log if telemetry is None else telemetry.log
    providers = _providers(settings)
    chat = Deployment(
        settings=settings,
        hooks=_hooks(make_hooks, settings.product),
        backend=_backend(settings, providers, log),
        database=_database(),
        log=log,
        prices=PriceTable({**prices_of(providers), **parse_prices(settings.prices)}),
        alarm=RequestAlarm,
        file_store=_file_store(),
        attempt_listeners={"runtime_runs": keep_runtime_runs},
    )
    return _Isolate(
        chat=chat,
        authenticator=authenticator_for(settings, now=time.time, published=functools.partial(_published_keys, log)),
        tickets=tickets_for(settings, now=time.time),
        cors=Cors(read_origins(settings.cors_origins)),
        rates=_rates(settings, log),
        telemetry=telemetry,
    )


def _hooks(make_hooks: HooksMaker, product: str) -> ChatTurnHooks:
    try:
        hooks = make_hooks(product, read_other_env(_env(), setting_names()))
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError("PRODUCT", "its hooks cannot be made; the log says why") from error
    if hooks.sync_http:
        enable_sync_http()
    return hooks


def _providers(settings: Settings) -> tuple[Provider, ...]:
    """Return who answers: nobody but us where ``BACKEND`` is ``echo``."""
    if settings.backend == "echo":
        return ()
    if settings.providers:
        return parse_providers(settings.providers, read_other_env(_env(), ()))
    if not settings.openai_api_key:
        raise ConfigurationError("OPENAI_API_KEY", "is required by BACKEND=openai")
    return (provider_of_settings(settings),)


def _backend(settings: Settings, providers: Sequence[Provider], log: OperatorLog) -> AgentExecutionBackend:
    if not providers:
        return create_echo_backend()
    binding: JsProxy | None = getattr(_env(), "AI", None)
    means = Means(
        transport=FetchTransport(), binding=BindingTransport(binding), uniform=random.uniform, now=time.time, log=log
    )
    return create_backend(settings, providers, means)


def _rates(settings: Settings, log: OperatorLog) -> Rates:
    def rate(binding_name: str, per_minute: int) -> Rate:
        binding: JsProxy | None = getattr(_env(), binding_name, None)
        if binding is None:
            return IsolateRate(per_minute, now=time.time)
        return AskedRate(allows=functools.partial(_allows, binding, log))

    return Rates(
        subject=rate("RATE_SUBJECT", settings.rate_subject_per_minute),
        tenant=rate("RATE_TENANT", settings.rate_tenant_per_minute),
    )


async def _allows(binding: JsProxy, log: OperatorLog, key: str) -> bool:
    """Ask the platform's rate limiter; where it does not answer, nobody is refused."""
    try:
        outcome = await settled(started(binding.limit.bind(binding, js_object({"key": key}))))
    except JsException as error:
        log("rates.not_counted", {"error": error})
        return True
    return bool(outcome.success)


def _published_keys(log: OperatorLog, url: str) -> PublishedKeys:
    def report(error: KeysUnavailable) -> None:
        log("auth.keys_failed", {"error": error})

    return PublishedKeys(url, transport=FetchTransport(), verify=verify_signature, now=time.time, report=report)


def _telemetry(settings: Settings) -> Telemetry | None:
    if not settings.otel_exporter_otlp_endpoint:
        return None
    return make_telemetry(
        FetchTransport(),
        settings,
        console=print_log,
        now_ns=time.time_ns,
        new_id=_Ids().take,
    )


class _Ids:
    """Random ids, of which many are made at once: each look at the platform's randomness is a call of JavaScript."""

    def __init__(self) -> None:
        self._left = ""

    def take(self, size: int) -> str:
        """Return *size* random bytes in lower-case hex."""
        if len(self._left) < 2 * size:
            self._left = os.urandom(_RANDOM_BYTES).hex()
        taken, self._left = self._left[: 2 * size], self._left[2 * size :]
        return taken


def _owner(request: JsProxy) -> SessionObjects | None:
    namespace: JsProxy | None = getattr(_env(), "SESSIONS", None)
    return None if namespace is None else SessionObjects(namespace, request)


def _database() -> D1Database:
    binding: JsProxy | None = getattr(_env(), "DB", None)
    if binding is None:
        raise ConfigurationError("DB", "is not bound: there is no D1 database")
    return D1Database(binding)


def _file_store() -> FileStore | None:
    bucket: JsProxy | None = getattr(_env(), "FILES", None)
    return None if bucket is None else R2Files(bucket)


def _env() -> Any:
    return import_from_javascript("cloudflare:workers").env


def _log_failure(log: OperatorLog, what: str, error: BaseException) -> None:
    event = "request.failed" if isinstance(error, ChatTurnError) else "request.crashed"
    log(event, {"request": what, "error": error})
