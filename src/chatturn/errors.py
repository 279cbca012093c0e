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
    + UnsupportedParameter                 400 unsupported_parameter
    + IdempotencyKeyReused                 422 idempotency_key_reused
    + FileMissing                          422 file_missing
  x ConfigurationError                   503 misconfigured: the operator must change a setting
  x FilesNotKept                         404 files_not_kept: the deployment has no binding for files
  x FilesUnavailable                     503 files_unavailable (r): the store of files does not answer
  x BodyTimeout                          408 body_timeout (r): the request did not arrive whole
  x RateLimited                          429 rate_limited (r): too many requests of one user or tenant
    + LimitReached                         429 limit_reached (r)
  x ReadersBusy                          503 busy (r): readers have not taken what they were sent
  x KeysUnavailable                      503 keys_unavailable (r): those that tokens are checked with
  x DurableRunError                      the run is not this caller's to continue
    + DurableRunLeaseHeldError             409 turn_in_flight (r)
    + DurableRunInputMismatchError         422 input_mismatch
    + VersionConflict                      409 version_conflict
    + SessionBusy                          409 session_busy (r)
    + QueueFull                            429 queue_full (r)
    + TurnPassed                           409 turn_passed
    + DurableRunDivergenceError            409 step_divergence
      - StepInputMismatch                    409 step_input_mismatch
    + DurableAwaitEventTimeoutError        408 await_event_timeout
    + StepTooLarge                         413 step_too_large
    + StepFailed                           500 step_failed
    + StepTimeout                          504 step_timeout (r)
    + AttemptsExhausted                    500 attempts_exhausted
    + BudgetExceeded                       402 budget_exceeded
    + UnpricedModel                        402 unpriced_model
    + RunEnded                             409 run_ended
    + LeaseLost                            409 lease_lost (r)
    + RunNotFound                          404 not_found
    + TurnAborted                          499 aborted (r)
    + TurnCancelled                        409 cancelled: ends a turn, and is never told as an error
  x StoreError                           500 store_rejected: the database refused a statement
    + StoreUnavailable                     503 store_unavailable (r)
    + StoreFull                            503 store_full
    + SchemaOutdated                       503 schema_outdated
  x BackendError                         502 backend_error: the model's side failed
    + BackendTransportError                502 backend_unavailable (r)
      - BackendRejected                      502 backend_rejected
        * QuotaExhausted                       502 quota_exhausted
        * ContextOverflow                      502 context_overflow
        * ContentNotTaken                      502 content_not_taken
    + BackendTimeout                       504 backend_timeout (r)
    + BackendProtocolError                 502 backend_protocol (r)
    + BackendReportedError                 502 backend_reported (r)
    + EmptyAnswer                          502 empty_answer (r)
    + AnswerWithheld                       502 answer_withheld
  x OwnerUnavailable                     503 owner_unavailable (r): the session's Durable Object
  x HookError                            500 hook_failed: a product's hook raised
  x AgentEvalError                       what agent-runtime's functions refuse
    + ValidationError                      422 validation: what they were given is not valid
      - InvalidRuntimeEvent                  422 validation
      - SessionMismatchError                 422 validation
    + RuntimeRunStateError                 409 run_state: the ledger's run does not stand where that can be done
"""

from typing import ClassVar

__all__ = [
    "AgentEvalError",
    "AnswerWithheld",
    "AttemptsExhausted",
    "BackendError",
    "BackendProtocolError",
    "BackendRejected",
    "BackendReportedError",
    "BackendTimeout",
    "BackendTransportError",
    "BodyTimeout",
    "BudgetExceeded",
    "ChatTurnError",
    "ConfigurationError",
    "ContentNotTaken",
    "ContextOverflow",
    "DurableAwaitEventTimeoutError",
    "DurableRunDivergenceError",
    "DurableRunError",
    "DurableRunInputMismatchError",
    "DurableRunLeaseHeldError",
    "EmptyAnswer",
    "FileMissing",
    "FilesNotKept",
    "FilesUnavailable",
    "Forbidden",
    "HookError",
    "IdempotencyKeyReused",
    "InvalidField",
    "InvalidRuntimeEvent",
    "KeysUnavailable",
    "LeaseLost",
    "LimitReached",
    "MalformedRequest",
    "MethodNotAllowed",
    "NotFound",
    "OwnerUnavailable",
    "PayloadTooLarge",
    "QueueFull",
    "QuotaExhausted",
    "RateLimited",
    "ReadersBusy",
    "RequestError",
    "RunEnded",
    "RunNotFound",
    "RuntimeRunStateError",
    "SchemaOutdated",
    "SessionBusy",
    "SessionMismatchError",
    "StepFailed",
    "StepInputMismatch",
    "StepTimeout",
    "StepTooLarge",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "TurnAborted",
    "TurnCancelled",
    "TurnPassed",
    "Unauthenticated",
    "UnpricedModel",
    "UnsupportedMediaType",
    "UnsupportedParameter",
    "ValidationError",
    "VersionConflict",
    "error_class",
    "error_classes",
]


class ChatTurnError(Exception):
    """
    Base of all of them: catch this to catch everything the package raises on purpose.

    Attributes:
        code: Stable, for programs.
        status: The HTTP status, if no status was sent yet.
        retryable: Whether the same request may succeed later.
        public: The only sentence about the error that a client sees.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    public: ClassVar[str] = "Something went wrong on our side. Contact the operator if it happens again."


class ConfigurationError(ChatTurnError):
    """
    A setting is missing or wrong.

    Attributes:
        setting: Its name in the environment, or its place in that setting.
        lacks: The name of the missing secret, if a secret is missing; for the operator's own screen only, since people
            put keys where names belong.
    """

    code = "misconfigured"
    status = 503
    public = "The service is not configured. The operator finds the setting's name at /readyz."

    def __init__(self, setting: str, message: str, *, lacks: str | None = None) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting
        self.lacks = lacks


class BodyTimeout(ChatTurnError):
    """The body did not arrive whole in time; nothing was written, and the same request may be sent again."""

    code = "body_timeout"
    status = 408
    retryable = True
    public = "The request did not arrive in time. Send it again."


class RateLimited(ChatTurnError):
    """
    One user or tenant sends too many requests; nothing was done.

    Attributes:
        retry_after_s: Seconds until the client may ask again.
    """

    code = "rate_limited"
    status = 429
    retryable = True
    public = "There were too many requests. Wait as Retry-After says, then send the same request again."

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LimitReached(RateLimited):
    """A user or a tenant has reached a limit: on turns at once, or on what is begun or stored in a day."""

    code = "limit_reached"
    public = "A limit of this user or tenant is reached. Wait as Retry-After says, then send the same request again."


class ReadersBusy(ChatTurnError):
    """The isolate holds too much text that slow readers have not taken yet."""

    code = "busy"
    status = 503
    retryable = True
    public = "Too many readers are behind at the moment. Send the same request again in a moment."


class KeysUnavailable(ChatTurnError):
    """The keys that an identity provider publishes cannot be fetched, so none of its tokens can be checked."""

    code = "keys_unavailable"
    status = 503
    retryable = True
    public = "Tokens cannot be checked at the moment. Send the same request again in a moment."


class OwnerUnavailable(ChatTurnError):
    """The session's Durable Object did not answer, or was restarted; its turns are taken over."""

    code = "owner_unavailable"
    status = 503
    retryable = True
    public = "The session is not reachable at the moment. Send the same request again in a moment."


class HookError(ChatTurnError):
    """
    A product's hook raised, or took longer than its deadline.

    Attributes:
        hook: Its name.
    """

    code = "hook_failed"
    public = "The product's own code failed while it handled the answer. The operator finds the reason in the log."

    def __init__(self, message: str, *, hook: str) -> None:
        super().__init__(f"{hook}: {message}")
        self.hook = hook


# What agent-runtime's functions refuse: the errors of the program that calls them, and of no client's.


class AgentEvalError(ChatTurnError):
    """What a function of agent-runtime was asked cannot be done; nothing was changed."""

    code = "validation"
    status = 422
    public = "The service asked itself for something that is not valid. Contact the operator."


class ValidationError(AgentEvalError, ValueError):
    """An argument is not valid; the message says which and why."""


class InvalidRuntimeEvent(ValidationError):
    """
    The JSON is no value of agent-runtime's vocabulary.

    Attributes:
        where: The member that is wrong, as a path: ``task.intent``.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where or 'the event'} {message}")
        self.where = where


class SessionMismatchError(ValidationError):
    """
    The session is one of another backend.

    Attributes:
        session_backend: The session's backend.
        requested_backend: The backend that asked for it.
    """

    def __init__(self, session_backend: str, requested_backend: str) -> None:
        super().__init__(f"the session is one of {session_backend!r}, and not of {requested_backend!r}")
        self.session_backend = session_backend
        self.requested_backend = requested_backend


class RuntimeRunStateError(AgentEvalError, RuntimeError):
    """The run does not stand where this can be done: a bug of the caller's; nothing was changed."""

    code = "run_state"
    status = 409


# The caller must change the request.


class RequestError(ChatTurnError):
    """
    The caller must change the request; nothing was written.

    Unlike all other messages in the tree, this message is made from the request alone, so clients see it
    as the problem's ``detail``.

    Attributes:
        field: The wrong member of the request; None if no single member is wrong.
    """

    code = "malformed_request"
    status = 400
    public = "The request is not valid. Correct it and send it again."

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MalformedRequest(RequestError):
    """The body is not JSON of the described shape."""

    public = "The request could not be read. Send a JSON object encoded as UTF-8."


class Unauthenticated(RequestError):
    """No token, or one that is forged, expired or incomplete."""

    code = "unauthenticated"
    status = 401
    public = "A valid bearer token is required. Send one in the Authorization header."


class Forbidden(RequestError):
    """The token is genuine but does not cover this."""

    code = "forbidden"
    status = 403
    public = "The token does not allow this. Ask for one with the scope that is named."


class NotFound(RequestError):
    """The route or resource does not exist, or is another tenant's: clients cannot tell the two apart."""

    code = "not_found"
    status = 404
    public = "There is nothing at this address for you. Check the address."


class MethodNotAllowed(RequestError):
    """
    The route exists, this method on it does not.

    Attributes:
        allow: The methods that exist, for the ``Allow`` header.
    """

    code = "method_not_allowed"
    status = 405
    public = "This address does not take that method. See the Allow header."

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class PayloadTooLarge(RequestError):
    """The body, or one member of it, is longer than its limit."""

    code = "payload_too_large"
    status = 413
    public = "The request is too large. Shorten the member that is named."


class UnsupportedMediaType(RequestError):
    """The body is not ``application/json``."""

    code = "unsupported_media_type"
    status = 415
    public = "Send the body as application/json."


class InvalidField(RequestError):
    """One member of the request has a wrong type or value; ``field`` names it."""

    code = "invalid_field"
    status = 422
    public = "One member of the request is not valid. Correct the member that is named."


class UnsupportedParameter(RequestError):
    """A client of another format asks for what cannot be done; ``field`` names the parameter."""

    code = "unsupported_parameter"
    status = 400
    public = "The request asks for something that this service cannot do. Leave out the parameter that is named."


class IdempotencyKeyReused(RequestError):
    """The idempotency key was used by another request."""

    code = "idempotency_key_reused"
    status = 422
    public = "This idempotency key was used with another request. Use a new key."


class FileMissing(RequestError):
    """A message names a stored file that is not there for this user; ``field`` names the member."""

    code = "file_missing"
    status = 422
    public = "A file of the message is not there. Send the file again, and the message with its new id."


class FilesNotKept(ChatTurnError):
    """The deployment has no binding ``FILES``."""

    code = "files_not_kept"
    status = 404
    public = "This service keeps no files. Put the file into the message itself, as a data: address."


class FilesUnavailable(ChatTurnError):
    """The store of files does not answer, or refused; sending the same file again is safe."""

    code = "files_unavailable"
    status = 503
    retryable = True
    public = "The store of files does not answer. Send the same request again."


# The database did not do as it was asked.


class StoreError(ChatTurnError):
    """The database refused a statement, because of a bug or a wrong schema.  Nothing was written."""

    code = "store_rejected"
    public = "The answer could not be stored. The operator finds the reason in the log."


class StoreUnavailable(StoreError):
    """The database did not answer.  Whether the write was applied is unknown, so every write is fenced."""

    code = "store_unavailable"
    status = 503
    retryable = True
    public = "The database is not answering. Send the same request again in a moment."


class StoreFull(StoreError):
    """The database is full, or one of its quotas is used up: retrying does not help.  Nothing was written."""

    code = "store_full"
    status = 503
    public = "Nothing more can be stored at the moment. Contact the operator."


class SchemaOutdated(StoreError):
    """The database's tables are missing or older than this code."""

    code = "schema_outdated"
    status = 503
    public = "The database is not set up for this version. The operator finds the command at /readyz."


# The model's side failed.


class BackendError(ChatTurnError):
    """
    The model's side failed.

    Attributes:
        backend: Which backend, by its kind.
        detail: At most 2 KiB of the backend's message, for the log only.
    """

    code = "backend_error"
    status = 502
    public = "The model could not answer. Contact the operator if it happens again."

    def __init__(self, message: str, *, backend: str, detail: str = "") -> None:
        super().__init__(f"{backend}: {message}")
        self.backend = backend
        self.detail = detail


class BackendTransportError(BackendError):
    """
    The model's API was unreachable, or answered with errors, until all tries were used up.

    Attributes:
        upstream_status: The last HTTP status, 0 if there was no response at all.
        retry_after_ms: The wait that the API asked for; None if it named none.
    """

    code = "backend_unavailable"
    retryable = True
    public = "The model is not reachable at the moment. Send the same request again in a moment."

    def __init__(
        self,
        message: str,
        *,
        backend: str,
        upstream_status: int = 0,
        detail: str = "",
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message, backend=backend, detail=detail)
        self.upstream_status = upstream_status
        self.retry_after_ms = retry_after_ms


class BackendRejected(BackendTransportError):
    """The model's API refused the request, and would again: a wrong key, model or parameter."""

    code = "backend_rejected"
    retryable = False
    public = "The model's API refused the request. The operator finds its reason in the log."


class QuotaExhausted(BackendRejected):
    """The account at the model's API has nothing left to spend; waiting a few minutes does not change that."""

    code = "quota_exhausted"
    public = "The service's account with the model is used up for now. Contact the operator."


class ContextOverflow(BackendRejected):
    """The conversation is longer than the model can read."""

    code = "context_overflow"
    public = "The conversation is too long for the model. Shorten the message, or start a new session."


class ContentNotTaken(BackendRejected):
    """The message has an image or a file of a kind that the model does not take."""

    code = "content_not_taken"
    public = "The model cannot read an image or a file of this message. Leave it out, or ask another model."


class BackendTimeout(BackendError):
    """No headers, no bytes or no end within the deadline that the message names."""

    code = "backend_timeout"
    status = 504
    retryable = True
    public = "The model took too long. Send the same request again."


class BackendProtocolError(BackendError):
    """The stream was cut before the model reported its end, or is not in the expected format."""

    code = "backend_protocol"
    retryable = True
    public = "The model's answer broke off. Send the same request again."


class BackendReportedError(BackendError):
    """The producer reported an error inside its stream."""

    code = "backend_reported"
    retryable = True
    public = "The model reported an error while it answered. Send the same request again."


class EmptyAnswer(BackendError):
    """The producer ended well but said nothing; that is never stored as an answer."""

    code = "empty_answer"
    retryable = True
    public = "The model gave an empty answer. Send the same request again."


class AnswerWithheld(BackendError):
    """The model ended without a word, at its length limit or stopped by a filter, and would do so again."""

    code = "answer_withheld"
    public = (
        "The model reached its length limit, or was stopped by a filter, before it said anything. Change the message."
    )


# The run is not this caller's to continue.


class DurableRunError(ChatTurnError):
    """
    The run is not this caller's to continue; it has been left as it was.

    Attributes:
        run_id: The run's id.
    """

    code = "run_error"
    status = 409
    public = "The turn cannot be continued by this request."

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(f"run {run_id!r}: {message}")
        self.run_id = run_id


class DurableRunLeaseHeldError(DurableRunError):
    """
    Another claim's lease of the run is live.

    Attributes:
        retry_after_ms: Milliseconds until the lease ends if it is not renewed, by the database's clock.
        same_input: Whether the running run has the requested manifest; False if the request was to supersede it.
    """

    code = "turn_in_flight"
    retryable = True
    public = "This turn is already being answered. Wait as Retry-After says, then send the same request again."

    def __init__(self, message: str, *, run_id: str, retry_after_ms: int, same_input: bool = True) -> None:
        super().__init__(message, run_id=run_id)
        self.retry_after_ms = retry_after_ms
        self.same_input = same_input


class DurableRunInputMismatchError(DurableRunError):
    """
    The same run id came with another manifest: another message or another model.

    Attributes:
        next_index: The turn index at which the message may be asked instead; None if it was not looked up.
    """

    code = "input_mismatch"
    status = 422
    public = "This turn was started with another message or model. Use the next turn index for a new message."

    def __init__(self, message: str, *, run_id: str, next_index: int | None = None) -> None:
        super().__init__(message, run_id=run_id)
        self.next_index = next_index


class VersionConflict(DurableRunError):
    """The turn's current version is not the one in the request, or a named version does not exist."""

    code = "version_conflict"
    public = "This turn has changed meanwhile. Read it, and send the request with the version that counts."


class SessionBusy(DurableRunError):
    """A turn of the session is being answered."""

    code = "session_busy"
    retryable = True
    public = "The session is being answered at the moment. Wait until it is done, then send the same request again."


class QueueFull(DurableRunError):
    """The session's queue is full: no further turn may wait for its start."""

    code = "queue_full"
    status = 429
    retryable = True
    public = "Too many messages of this session wait to be answered. Wait until one is done, then send it again."


class TurnPassed(DurableRunError):
    """The turn has no answer, and the thread has gone on without it."""

    code = "turn_passed"
    public = "Later turns of this session have answers. Send the message as the next turn, or with `replace`."


class DurableRunDivergenceError(DurableRunError):
    """The code asks for another step than the one recorded at this position."""

    code = "step_divergence"
    public = "The service changed while this turn was running. Start a new turn."


class StepInputMismatch(DurableRunDivergenceError):
    """The step is recorded with another input than it is now given."""

    code = "step_input_mismatch"


class DurableAwaitEventTimeoutError(DurableRunError):
    """The event did not come within its time, which runs from the first wait, not from each attempt's."""

    code = "await_event_timeout"
    status = 408
    public = "What the turn waited for did not come in time. Start a new turn."


class StepTooLarge(DurableRunError):
    """A step's input or result is longer or deeper than can be stored; the run is as it was."""

    code = "step_too_large"
    status = 413
    public = "A step of the turn produced more than can be stored."


class StepFailed(DurableRunError):
    """Replaces, on every attempt, a step's exception that a later attempt could not make again."""

    code = "step_failed"
    status = 500
    public = "A step of the turn failed. The operator finds the reason in the log."


class StepTimeout(DurableRunError):
    """A step took longer than its timeout."""

    code = "step_timeout"
    status = 504
    retryable = True
    public = "A step of the turn took too long. Send the same request again."


class AttemptsExhausted(DurableRunError):
    """The run, or a step of it, has used up its attempts; further claims end the same way."""

    code = "attempts_exhausted"
    status = 500
    public = "The turn failed too often and is not tried again. Start a new turn."


class BudgetExceeded(DurableRunError):
    """
    The budget is spent; no further model call is made.

    Attributes:
        scope: Whose budget: the ``turn``'s, the ``session``'s or the ``tenant``'s.
    """

    code = "budget_exceeded"
    status = 402
    public = "The budget for this conversation is used up. Contact the operator."

    def __init__(self, message: str, *, run_id: str, scope: str) -> None:
        super().__init__(message, run_id=run_id)
        self.scope = scope


class RunEnded(DurableRunError):
    """The run is over, and takes no further event; nothing was stored."""

    code = "run_ended"
    status = 409
    public = "The turn is over, and takes no further event."


class UnpricedModel(DurableRunError):
    """There is a budget, but the model's price is unknown; no call is made."""

    code = "unpriced_model"
    status = 402
    public = "The model has no price, and what may be spent is limited. Contact the operator."


class LeaseLost(DurableRunError):
    """The lease is another worker's by now; nothing was written."""

    code = "lease_lost"
    retryable = True
    public = "Another worker has taken over this turn. Send the same request again to get its answer."


class RunNotFound(DurableRunError):
    """There is no such run."""

    code = "not_found"
    status = 404
    public = NotFound.public


class TurnAborted(DurableRunError):
    """The turn was stopped on purpose before its answer was complete."""

    code = "aborted"
    status = 499
    retryable = True
    public = "The turn was stopped before its answer was complete. Send the same request again to restart it."


class TurnCancelled(DurableRunError):
    """
    The turn was stopped for good: the text up to the stop is its answer.

    Attributes:
        reason: Why, for clients.
    """

    code = "cancelled"
    public = "The turn was cancelled. What it had said by then is kept."

    def __init__(self, reason: str, *, run_id: str) -> None:
        super().__init__(f"it was cancelled: {reason}", run_id=run_id)
        self.reason = reason


# The tree as data.


def error_classes() -> tuple[type[ChatTurnError], ...]:
    """Return every class of the tree, parents first."""
    found: list[type[ChatTurnError]] = [ChatTurnError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return tuple(found)


def error_class(code: str | None) -> type[ChatTurnError]:
    """Return the class with *code*, the highest in the tree; the root class if no class has the code."""
    return next((cls for cls in error_classes() if cls.code == code), ChatTurnError)
