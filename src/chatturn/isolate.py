"""
The objects that a deployment's settings describe, made once per isolate and used by every request.

The Worker makes them at its first request, and `make deploy-check` before anything is uploaded, so both check the same.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from chatturn.agent_runtime.shown.attempt_runs import keep_runtime_runs
from chatturn.backends.api import AgentExecutionBackend
from chatturn.backends.echo import create_echo_backend
from chatturn.backends.parameters import allowed_parameters
from chatturn.backends.providers import Provider, parse_providers, prices_of
from chatturn.backends.routing import Means, create_backend, provider_of_settings
from chatturn.chat.deployment import Deployment
from chatturn.chat.files import FileStore
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.log.live import Alarm
from chatturn.database.api import Database
from chatturn.database.fullness import MOST_BYTES, SizedDatabase
from chatturn.errors import ConfigurationError, KeysUnavailable
from chatturn.http.auth import Authenticator, authenticator_for
from chatturn.http.bodies import Bodies
from chatturn.http.cors import Cors, read_origins
from chatturn.http.rates import AskedRate, IsolateRate, Rate, Rates
from chatturn.http.tickets import Tickets, tickets_for
from chatturn.http.token_keys import PublishedKeys, VerifySignature
from chatturn.settings import Settings, setting_names
from chatturn.telemetry.operator_log import OperatorLog
from chatturn.telemetry.otlp.setup import Telemetry, make_telemetry
from chatturn.transport import Transport
from chatturn.usage.prices import PriceTable, parse_ceiling, parse_prices

__all__ = ["HooksMaker", "Isolate", "Limiter", "Platform", "make_isolate"]

HooksMaker: TypeAlias = Callable[[str, Mapping[str, str]], ChatTurnHooks]
"""Makes a product's hooks from its name and its own vars and secrets."""

Limiter: TypeAlias = Callable[[OperatorLog, str], Awaitable[bool]]
"""Counts a request by a key, and returns whether it may go on; tells the log if it cannot count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """
    What the platform gives to an isolate.

    Attributes:
        variables: All vars and secrets.  A product gets only those that are text.
        database: The binding ``DB``; None where it is not bound.
        transport: Sends HTTP requests.
        binding: Sends requests to the binding ``AI``; None where it is not bound.
        limiters: The bound rate limiters of the platform, by binding name.
        alarm: Makes the alarm that wakes a follower in this isolate.
        file_store: The binding ``FILES``; None where it is not bound.
        verify: Verifies signatures.
        console: The log that gets every line.
        uniform: Like `random.uniform`.
        now: Seconds since the epoch.
        now_ns: Nanoseconds since the epoch.
        new_id: Takes a number of bytes; returns that many random ones in lower-case hex.
    """

    variables: Mapping[str, object]
    database: Database | None
    transport: Transport
    binding: Transport | None
    limiters: Mapping[str, Limiter]
    alarm: Callable[[], Alarm]
    file_store: FileStore | None
    verify: VerifySignature
    console: OperatorLog
    uniform: Callable[[float, float], float]
    now: Callable[[], float]
    now_ns: Callable[[], int]
    new_id: Callable[[int], str]

    @property
    def texts(self) -> Mapping[str, str]:
        """The vars and secrets that are text."""
        return {name: value for name, value in self.variables.items() if isinstance(value, str)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolate:
    """
    The objects kept between the requests of one isolate.

    Attributes:
        chat: The product with its model and its database.
        authenticator: Identifies the caller; if its settings are wrong, its `check` says why.
        tickets: Signs the tickets of streams.
        cors: The origins whose pages may read responses.
        rates: The rate limits.
        bodies: The bodies of requests that are being read.
        telemetry: The telemetry; None where no collector is set.
    """

    chat: Deployment
    authenticator: Authenticator
    tickets: Tickets
    cors: Cors
    rates: Rates
    bodies: Bodies
    telemetry: Telemetry | None


def make_isolate(make_hooks: HooksMaker, platform: Platform) -> Isolate:
    """
    Make what the settings describe.

    Args:
        make_hooks: Makes the product's hooks.
        platform: What the platform gives.

    Raises:
        ConfigurationError: A setting or a binding is missing or wrong.
    """
    settings = Settings.from_env(platform.variables)
    telemetry = _telemetry(settings, platform)
    log = platform.console if telemetry is None else telemetry.log
    providers = _providers(settings, platform)
    allowed_parameters(settings.allow_parameters)
    chat = Deployment(
        settings=settings,
        hooks=_hooks(make_hooks, settings.product, platform),
        backend=_backend(settings, providers, platform, log),
        database=_database(platform, settings, telemetry, log),
        log=log,
        prices=PriceTable(
            {**prices_of(providers), **parse_prices(settings.prices)}, parse_ceiling(settings.unpriced_ceiling)
        ),
        alarm=platform.alarm,
        file_store=platform.file_store,
        attempt_listeners={"runtime_runs": keep_runtime_runs},
    )
    return Isolate(
        chat=chat,
        authenticator=authenticator_for(settings, now=platform.now, published=partial(_published_keys, platform, log)),
        tickets=tickets_for(settings, now=platform.now),
        cors=Cors(read_origins(settings.cors_origins)),
        rates=_rates(settings, platform, log),
        bodies=Bodies(platform.alarm, settings.body_timeout_ms / 1000 or None),
        telemetry=telemetry,
    )


def _hooks(make_hooks: HooksMaker, product: str, platform: Platform) -> ChatTurnHooks:
    own = {name: value for name, value in platform.texts.items() if name not in setting_names()}
    try:
        return make_hooks(product, own)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError("PRODUCT", "its hooks cannot be made; the log says why") from error


def _providers(settings: Settings, platform: Platform) -> Sequence[Provider]:
    """Return the providers of models; none where ``BACKEND`` is ``echo``."""
    if settings.backend == "echo":
        return ()
    if not settings.providers and not settings.openai_api_key:
        raise ConfigurationError("OPENAI_API_KEY", "is required by BACKEND=openai", lacks="OPENAI_API_KEY")
    if not settings.providers:
        return (provider_of_settings(settings),)
    providers = parse_providers(settings.providers, platform.texts)
    if platform.binding is None and any(provider.is_binding for provider in providers):
        raise ConfigurationError("AI", "is not bound, but PROVIDERS has one of the kind workers-ai")
    return providers


def _backend(
    settings: Settings, providers: Sequence[Provider], platform: Platform, log: OperatorLog
) -> AgentExecutionBackend:
    if not providers:
        return create_echo_backend()
    means = Means(
        transport=platform.transport,
        binding=platform.binding or platform.transport,
        uniform=platform.uniform,
        now=platform.now,
        log=log,
    )
    return create_backend(settings, providers, means)


def _database(platform: Platform, settings: Settings, telemetry: Telemetry | None, log: OperatorLog) -> Database:
    if platform.database is None:
        raise ConfigurationError("DB", "is not bound: there is no D1 database")
    most = MOST_BYTES[settings.workers_plan]

    def tell(size: int) -> None:
        if telemetry is not None:
            telemetry.outbound.metrics.set("chatturn.database.size", size)

    def warn(size: int) -> None:
        log("store.nearly_full", {"level": "warning", "bytes": size, "most_bytes": most})

    return SizedDatabase(platform.database, tell=tell, warn=warn, most=most)


def _rates(settings: Settings, platform: Platform, log: OperatorLog) -> Rates:
    def rate(binding: str, per_minute: int) -> Rate:
        limiter = platform.limiters.get(binding)
        if limiter is None:
            return IsolateRate(per_minute, now=platform.now)
        return AskedRate(allows=partial(limiter, log))

    return Rates(
        subject=rate("RATE_SUBJECT", settings.rate_subject_per_minute),
        tenant=rate("RATE_TENANT", settings.rate_tenant_per_minute),
    )


def _published_keys(platform: Platform, log: OperatorLog, url: str) -> PublishedKeys:
    def report(error: KeysUnavailable) -> None:
        log("auth.keys_failed", {"error": error})

    return PublishedKeys(url, transport=platform.transport, verify=platform.verify, now=platform.now, report=report)


def _telemetry(settings: Settings, platform: Platform) -> Telemetry | None:
    if not settings.otel_exporter_otlp_endpoint:
        return None
    return make_telemetry(
        platform.transport, settings, console=platform.console, now_ns=platform.now_ns, new_id=platform.new_id
    )
