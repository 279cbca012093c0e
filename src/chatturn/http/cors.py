"""
CORS: which pages of other origins may read the Worker's responses.

A page sends its token itself, in a header or as a ticket, and the Worker reads no cookie.  So no response has
``Access-Control-Allow-Credentials``, and a page of another origin can do only what its token allows.

Source:
    Fetch Standard, section 3.3: the headers, which of them a preflight asks for, and that ``*`` among allowed
    headers does not cover ``Authorization``.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from chatturn.errors import ConfigurationError
from chatturn.http.messages import HttpRequest, HttpResponse

__all__ = ["Cors", "origins_in", "read_origins"]

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")

_ALLOWED_HEADERS: Final = "authorization, content-type, last-event-id, idempotency-key, x-run-id, traceparent, *"

# The headers that scripts may read, named as in the manual's tables.
_EXPOSED_HEADERS: Final = (
    "x-workflow-run-id, x-turn-attempt, x-turn-replayed, x-ping-ms, retry-after, etag, x-workflow-stream-tail-index"
    ", x-error-code, x-should-retry, x-ignored-parameters, link, location"
)
_ALLOWED_METHODS: Final = "GET, HEAD, POST, PATCH, DELETE"
_NO_CONTENT: Final = 204

MAX_AGE_S: Final = 7_200
"""For how many seconds a browser may remember a preflight: the most that Chromium accepts."""


def read_origins(text: str) -> frozenset[str]:
    """
    Read ``CORS_ORIGINS``: origins, separated by commas.

    Raises:
        ConfigurationError: One of them is not an origin as browsers send it: in lower case, without a path, not ``*``.
    """
    entries = [each.strip() for each in text.split(",")]
    for position, origin in enumerate(entries, 1):
        if origin and not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                "CORS_ORIGINS", f"entry {position} is no origin as browsers send it: https://app.example.com"
            )
    return frozenset(entries) - {""}


def origins_in(text: str) -> frozenset[str]:
    """
    Return the valid origins in ``CORS_ORIGINS``, and ignore the rest.

    Used if the settings cannot be read: then each response says why, and pages of these origins may read it.
    """
    return frozenset(each for each in map(str.strip, text.split(",")) if _ORIGIN.fullmatch(each))


class Cors:
    """
    Tells browsers which pages may read a response.

    Args:
        origins: The origins of these pages; if empty, no response gets a CORS header.
    """

    def __init__(self, origins: frozenset[str] = frozenset()) -> None:
        self._origins = origins

    def preflight(self, request: HttpRequest) -> HttpResponse | None:
        """Return the answer to a preflight from one of the origins; None for any other request."""
        if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
            return None
        if not self._allows(request):
            return None
        return HttpResponse(
            status=_NO_CONTENT,
            headers={
                "Access-Control-Allow-Methods": _ALLOWED_METHODS,
                "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
                "Access-Control-Max-Age": str(MAX_AGE_S),
            },
        )

    def marked(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Return *response*, which may be an error, with its CORS headers."""
        if not self._origins or response.passed_on is not None:  # The session's owner has added the headers.
            return response
        vary = response.headers.get("Vary")
        headers: Mapping[str, str] = {**response.headers, "Vary": "Origin" if vary is None else f"{vary}, Origin"}
        if self._allows(request):
            exposed = {"Access-Control-Expose-Headers": _EXPOSED_HEADERS}
            headers = {**headers, "Access-Control-Allow-Origin": request.headers["origin"], **exposed}
        return replace(response, headers=headers)

    def _allows(self, request: HttpRequest) -> bool:
        return bool(self._origins) and request.headers.get("origin", "") in self._origins
