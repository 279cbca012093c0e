"""
One deployment on the platform: made once per isolate, and used by every request.

Between requests only plain Python and the isolate's ``env`` are kept: JavaScript objects of one request must not be
touched by another.
"""

import functools
import gc
import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pyodide.ffi import JsException, JsProxy
from workers import import_from_javascript

from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import Sweep
from chatturn.errors import ChatTurnError, ConfigurationError
from chatturn.http.application import Application
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.isolate import HooksMaker, Isolate, Platform, make_isolate
from chatturn.telemetry.operator_log import OperatorLog, print_log
from chatturn.workerd.ai import BindingTransport
from chatturn.workerd.d1 import D1Database
from chatturn.workerd.fetch import FetchTransport
from chatturn.workerd.ffi import RequestAlarm, js_object, read_env, settled, started
from chatturn.workerd.lifetime import outlive
from chatturn.workerd.owner import SessionObjects, SessionWatch
from chatturn.workerd.r2 import R2Files
from chatturn.workerd.signatures import verify_signature
from chatturn.workerd.sweep_parts import answer_part, hand_out
from chatturn.workerd.sync_http import enable_sync_http
from chatturn.workerd.timers import use_cancellable_timers

__all__ = ["application", "flush_logs", "run_part", "service", "sweep", "watch"]

_NO_HEADERS: Final[Mapping[str, str]] = {}
_RANDOM_BYTES: Final = 512


def application(
    make_hooks: HooksMaker, request: JsProxy, headers: Mapping[str, str], *, owned: bool = False
) -> Application:
    """
    Make the application that answers one request.

    Args:
        make_hooks: Makes what the product adds.
        request: The raw request.
        headers: Its headers.
        owned: Whether this is the session's Durable Object, which runs turns itself.
    """
    try:
        isolate = _isolate(make_hooks)
        chat = service(make_hooks, headers)
    except ConfigurationError as error:
        origins = read_env(_env()).get("CORS_ORIGINS", "")
        return Application.unconfigured(error, log=functools.partial(_log_failure, print_log), origins=origins)
    owner = None if owned else _owner(request)
    log = functools.partial(_log_failure, isolate.chat.log)
    return Application(
        authenticator=isolate.authenticator,
        service=chat,
        log=log,
        tickets=isolate.tickets,
        cors=isolate.cors,
        rates=None if owned else isolate.rates,  # the forwarding Worker has counted the request
        bodies=isolate.bodies,
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
    Make the alarm of a session's Durable Object.

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
    chat = service(make_hooks)
    binding: JsProxy | None = getattr(_env(), "SWEEP", None)
    parts = None if binding is None else functools.partial(hand_out, binding, chat.deployment.log)
    await Sweep(service=chat, hand_out=parts).run()


async def run_part(make_hooks: HooksMaker, request: HttpRequest) -> HttpResponse:
    """
    Continue the turns that a sweep has handed out; see `Sweep.run_turns`.

    Raises:
        ConfigurationError: As for `service`.
        StoreError: As for `sweep`.
    """
    return await answer_part(Sweep(service=service(make_hooks)), request)


def flush_logs(make_hooks: HooksMaker, context: Any) -> None:
    """
    Send the log records that no turn has sent.

    Args:
        make_hooks: Makes what the product adds.
        context: The request's.
    """
    with suppress(ConfigurationError):
        telemetry = _isolate(make_hooks).telemetry
        if telemetry is not None and telemetry.outbound.has_records:
            outlive(telemetry.outbound.flush(), context)


def _isolate(make_hooks: HooksMaker) -> Isolate:
    isolate = _outcome(make_hooks)
    if isinstance(isolate, ConfigurationError):
        raise isolate.with_traceback(None)
    return isolate


@functools.cache
def _outcome(make_hooks: HooksMaker) -> Isolate | ConfigurationError:
    """Build the isolate's objects once, and keep the error if that fails: an isolate's settings do not change."""
    try:
        return _build(make_hooks)
    except ConfigurationError as error:
        return error


def _build(make_hooks: HooksMaker) -> Isolate:
    use_cancellable_timers()
    isolate = make_isolate(make_hooks, _platform())
    if isolate.chat.hooks.sync_http:
        enable_sync_http()
    # The 43,000 objects that modules have made stay.  A full collection would look at them for 100 ms or more, while
    # nothing else runs.
    gc.freeze()
    return isolate


def _platform() -> Platform:
    env = _env()
    database, binding, bucket = (getattr(env, name, None) for name in ("DB", "AI", "FILES"))
    return Platform(
        variables=read_env(env),
        database=None if database is None else D1Database(database),
        transport=FetchTransport(),
        binding=None if binding is None else BindingTransport(binding),
        limiters={
            name: functools.partial(_allows, getattr(env, name))
            for name in ("RATE_SUBJECT", "RATE_TENANT")
            if getattr(env, name, None) is not None
        },
        alarm=RequestAlarm,
        file_store=None if bucket is None else R2Files(bucket),
        verify=verify_signature,
        console=print_log,
        uniform=random.uniform,
        now=time.time,
        now_ns=time.time_ns,
        new_id=_Ids().take,
    )


async def _allows(binding: JsProxy, log: OperatorLog, key: str) -> bool:
    """Ask the platform's rate limiter; if it does not answer, allow the request."""
    try:
        outcome = await settled(started(binding.limit.bind(binding, js_object({"key": key}))))
    except JsException as error:
        log("rates.not_counted", {"error": error})
        return True
    return bool(outcome.success)


class _Ids:
    """Makes random ids from 512 random bytes at a time, because each read of random bytes is a call of JavaScript."""

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


def _env() -> Any:
    return import_from_javascript("cloudflare:workers").env


def _log_failure(log: OperatorLog, what: str, error: BaseException) -> None:
    event = "request.failed" if isinstance(error, ChatTurnError) else "request.crashed"
    log(event, {"request": what, "error": error})
