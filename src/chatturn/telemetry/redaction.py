"""
What may be shown of data that hold secrets: the rules for names and texts, wherever something is shown.

They find what says that it is secret, by its name, and what looks like a key or a token.  A secret that does neither is
found by nobody; so whatever may hold a stranger's words is shown only to who asks for it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = ["REDACTED", "is_secret_name", "without_secret_members", "without_secrets", "without_uri_secrets"]

REDACTED: Final = "[redacted]"

_MAX_DEPTH: Final = 64
_SECRET_NAME: Final = re.compile(
    r"authorization|api[-_]?key|secret|passw|cookie|credential|private[-_]?key|jwt|token$", re.IGNORECASE
)
# Each alternative takes all that it has looked at, or looks at a bounded part: else a text could be made on which the
# search takes minutes.
_SECRET_TEXT: Final = re.compile(
    r"(?i:\bbearer\s+)[\w.~+/=-]{8,}"
    r"|\bsk-[\w*-]{8,}"  # a key of the chat completions API, which quotes it when it refuses it
    r"|\beyJ[\w-]{10,}(?:\.[\w-]+\.[\w-]*)?"  # a JSON Web Token, or the beginning of one
    r"|\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,})"  # GitHub, GitLab, Slack
    r"|\b(?:AIza[\w-]{30,}|A[KS]IA[0-9A-Z]{16}|[rs]k_(?:live|test)_\w{10,})"  # Google, Amazon, Stripe
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"  # the name and the password of an address
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)


def is_secret_name(name: str) -> bool:
    """Say whether what is called *name* is secret, whatever it is."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """Return *text* with the keys and tokens in it replaced."""
    return _SECRET_TEXT.sub(REDACTED, str(text))


def without_secret_members(value: Any, depth: int = 0) -> Any:
    """
    Return a copy of *value*, JSON, without what is called secret in it, and without keys and tokens in its texts.

    What is nested deeper than any reader goes is left out, and what is no JSON is named by its type.
    """
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping | list | tuple):
        return REDACTED if depth == _MAX_DEPTH else _container(value, depth + 1)
    plain = value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else f"<{type(value).__name__}>"


def _container(value: Mapping[Any, Any] | Sequence[Any], depth: int) -> Any:
    if not isinstance(value, Mapping):
        return [without_secret_members(item, depth) for item in value]
    return {
        without_secrets(name): REDACTED if is_secret_name(name) else without_secret_members(item, depth)
        for name, item in ((str(name), item) for name, item in value.items())
    }


def without_uri_secrets(uri: str) -> str:
    """Return where *uri* points, without the password, the query or the fragment that lets its holder in."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return REDACTED
    if not parts.netloc and not parts.path.startswith("/"):
        return f"{parts.scheme}:{REDACTED}" if parts.scheme else REDACTED  # data:, blob: … may be the thing itself
    return without_secrets(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())
