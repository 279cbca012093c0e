"""
Every error that chatturn raises on purpose.

``(r)`` marks what may be tried again unchanged.  The message of an instance is for the log; what a client
sees is its ``code`` and its class's fixed ``public`` sentence.

* ChatTurnError                          500 internal
  x RequestError                         the caller must change the request
    + MalformedRequest                     400 malformed_request
    + Unauthenticated                      401 unauthenticated
    + Forbidden                            403 forbidden
    + NotFound                             404 not_found
    + MethodNotAllowed                     405 method_not_allowed
    + PayloadTooLarge                      413 payload_too_large
    + UnsupportedMediaType                 415 unsupported_media_type
    + InvalidField                         422 invalid_field
  x ConfigurationError                   503 misconfigured: the operator must change a setting
  x DurableRunError                      the run is not this caller's to continue
    + DurableRunLeaseHeldError             409 turn_in_flight (r)
    + DurableRunInputMismatchError         422 input_mismatch
    + DurableRunDivergenceError            409 step_divergence
      - StepInputMismatch                    409 step_input_mismatch
    + DurableAwaitEventTimeoutError        408 await_event_timeout
    + StepTooLarge                         413 step_too_large
    + StepTimeout                          504 step_timeout (r)
    + AttemptsExhausted                    500 attempts_exhausted
    + BudgetExceeded                       402 budget_exceeded
    + LeaseLost                            409 lease_lost (r)
    + RunNotFound                          404 not_found
    + TurnAborted                          499 aborted (r)
    + TurnCancelled                        409 cancelled: ends a turn, and is never told as an error
  x StoreError                           500 store_rejected: the database refused a statement
    + StoreUnavailable                     503 store_unavailable (r)
    + SchemaOutdated                       503 schema_outdated
  x BackendError                         502 backend_error: the model's side failed
    + BackendTransportError                502 backend_unavailable (r)
      - BackendRejected                      502 backend_rejected
    + BackendTimeout                       504 backend_timeout (r)
    + BackendProtocolError                 502 backend_protocol (r)
    + BackendReportedError                 502 backend_reported (r)
    + EmptyAnswer                          502 empty_answer (r)
  x OwnerUnavailable                     503 owner_unavailable (r): the session's Durable Object
  x HookError                            500 hook_failed: a product's hook raised
"""

from chatturn.errors.backends import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendReportedError,
    BackendTimeout,
    BackendTransportError,
    EmptyAnswer,
)
from chatturn.errors.base import (
    ChatTurnError,
    ConfigurationError,
    HookError,
    OwnerUnavailable,
)
from chatturn.errors.requests import (
    Forbidden,
    InvalidField,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestError,
    Unauthenticated,
    UnsupportedMediaType,
)
from chatturn.errors.runs import (
    AttemptsExhausted,
    BudgetExceeded,
    DurableAwaitEventTimeoutError,
    DurableRunDivergenceError,
    DurableRunError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    LeaseLost,
    RunNotFound,
    StepInputMismatch,
    StepTimeout,
    StepTooLarge,
    TurnAborted,
    TurnCancelled,
)
from chatturn.errors.stores import (
    SchemaOutdated,
    StoreError,
    StoreUnavailable,
)

__all__ = [
    "AttemptsExhausted",
    "BackendError",
    "BackendProtocolError",
    "BackendRejected",
    "BackendReportedError",
    "BackendTimeout",
    "BackendTransportError",
    "BudgetExceeded",
    "ChatTurnError",
    "ConfigurationError",
    "DurableAwaitEventTimeoutError",
    "DurableRunDivergenceError",
    "DurableRunError",
    "DurableRunInputMismatchError",
    "DurableRunLeaseHeldError",
    "EmptyAnswer",
    "Forbidden",
    "HookError",
    "InvalidField",
    "LeaseLost",
    "MalformedRequest",
    "MethodNotAllowed",
    "NotFound",
    "OwnerUnavailable",
    "PayloadTooLarge",
    "RequestError",
    "RunNotFound",
    "SchemaOutdated",
    "StepInputMismatch",
    "StepTimeout",
    "StepTooLarge",
    "StoreError",
    "StoreUnavailable",
    "TurnAborted",
    "TurnCancelled",
    "Unauthenticated",
    "UnsupportedMediaType",
    "error_class",
    "error_classes",
]


def error_classes() -> tuple[type[ChatTurnError], ...]:
    """Return every class of the tree, parents first."""
    found: list[type[ChatTurnError]] = [ChatTurnError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return tuple(found)


def error_class(code: str | None) -> type[ChatTurnError]:
    """Return the class that has *code*, the first of its branch; the root for a code of no class."""
    return next((cls for cls in error_classes() if cls.code == code), ChatTurnError)
