"""The interface to HTTP servers: sends a request, yields the response's body in pieces."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

__all__ = ["ADDRESS", "Transport", "TransportRequest", "TransportResponse", "is_address", "is_header_value"]

ADDRESS: Final = "an address of a server, https://api.example.com/v1: without a user, a password, a # or a space"
"""The condition of `is_address` in words, for error messages."""

_ADDRESS: Final = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?][!-~]*)?")
_LAST_PORT: Final = 65_535


def is_address(text: str) -> bool:
    """
    Say whether *text* is a URL that `fetch` accepts.

    Check first: `fetch` quotes a refused URL in its error, and a password in it would reach the log.
    """
    if not _ADDRESS.fullmatch(text) or "#" in text:
        return False
    try:
        return (urlsplit(text).port or 0) <= _LAST_PORT
    except ValueError:  # brackets without an IPv6 address, or a port above 65535
        return False


def is_header_value(text: str) -> bool:
    """Say whether a header can carry *text*: printable ASCII."""
    return text.isascii() and text.isprintable()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRequest:
    """An HTTP request, its body already encoded as JSON text; its headers hold keys, and are not in the repr."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: str = ""


class TransportResponse(Protocol):
    """An HTTP response whose headers have arrived."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """
        Yield the body: at each step all bytes that have arrived since the previous step, never an empty chunk.

        Raises:
            BackendTransportError: The connection broke.
        """


class Transport(Protocol):
    """Sends HTTP requests.  Redirects are not followed."""

    def send(self, request: TransportRequest) -> AbstractAsyncContextManager[TransportResponse]:
        """
        Send *request*; entering waits for the headers, leaving closes the connection, body read or not.

        Cancellation while entering, inside, or while leaving aborts the request and its body at once.

        Raises:
            BackendTransportError: No response: refused, reset, unresolved.  ``upstream_status`` is 0.
        """
