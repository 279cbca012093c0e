"""The model's side failed.  The tree is in `chatturn.errors`."""

from chatturn.errors.base import ChatTurnError

__all__ = [
    "BackendError",
    "BackendProtocolError",
    "BackendRejected",
    "BackendReportedError",
    "BackendTimeout",
    "BackendTransportError",
    "EmptyAnswer",
]


class BackendError(ChatTurnError):
    """
    The model's side failed.

    Attributes:
        backend: Which backend, by its kind.
        detail: At most 2 KiB of what it said, for the log only.
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
    Unreachable, or answering with errors, until the attempts were used up.

    Attributes:
        upstream_status: The last HTTP status, 0 if there was no response at all.
    """

    code = "backend_unavailable"
    retryable = True
    public = "The model is not reachable at the moment. Send the same request again in a moment."

    def __init__(self, message: str, *, backend: str, upstream_status: int = 0, detail: str = "") -> None:
        super().__init__(message, backend=backend, detail=detail)
        self.upstream_status = upstream_status


class BackendRejected(BackendTransportError):
    """The model's API refused the request, and would again: a wrong key, model or parameter."""

    code = "backend_rejected"
    retryable = False
    public = "The model's API refused the request. The operator finds its reason in the log."


class BackendTimeout(BackendError):
    """No headers, no bytes or no end within the deadline that the message names."""

    code = "backend_timeout"
    status = 504
    retryable = True
    public = "The model took too long. Send the same request again."


class BackendProtocolError(BackendError):
    """The stream was cut before the model said that it was done, or is not what it claims to be."""

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
