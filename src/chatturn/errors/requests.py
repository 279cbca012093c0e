"""The caller must change the request.  The tree is in `chatturn.errors`."""

from chatturn.errors.base import ChatTurnError

__all__ = [
    "Forbidden",
    "InvalidField",
    "MalformedRequest",
    "MethodNotAllowed",
    "NotFound",
    "PayloadTooLarge",
    "RequestError",
    "Unauthenticated",
    "UnsupportedMediaType",
]


class RequestError(ChatTurnError):
    """
    The caller must change the request; nothing was written.

    Unlike every other message in the tree, this one is made from the request alone, so clients see it as
    the problem's ``detail``.

    Attributes:
        field: The member of the request that is wrong, or None where it is no single one.
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
    """No such route or resource, or one of another tenant: the two are not told apart."""

    code = "not_found"
    status = 404
    public = "There is nothing at this address for you. Check the address."


class MethodNotAllowed(RequestError):
    """
    The route exists, this method on it does not.

    Attributes:
        allow: The methods that do, for the ``Allow`` header.
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
