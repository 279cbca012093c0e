"""
Removes secrets from data that are shown: the rules for names and for texts.

The rules find values with a secret's name, and texts that look like a key or a token.  They miss any other secret; so
data that may hold a stranger's words are shown only where the deployment asks for them.
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
# Each alternative consumes all that it reads, or reads a bounded part; else a crafted text could make the search take
# minutes.
_SECRET_TEXT: Final = re.compile(
    r"(?i:\bbearer\s+)[\w.~+/=-]{8,}"
    r"|\bsk-[\w*-]{8,}"  # a key of the chat completions API, which quotes a refused key
    r"|\beyJ[\w-]{10,}(?:\.[\w-]+\.[\w-]*)?"  # a JSON Web Token, or the beginning of one
    r"|\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,})"  # GitHub, GitLab, Slack
    r"|\b(?:AIza[\w-]{30,}|A[KS]IA[0-9A-Z]{16}|[rs]k_(?:live|test)_\w{10,})"  # Google, Amazon, Stripe
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"  # the user name and the password in a URL
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)


def is_secret_name(name: str) -> bool:
    """Say whether every value named *name* is secret."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """Return *text* with its keys and tokens replaced."""
    return _SECRET_TEXT.sub(REDACTED, str(text))


def without_secret_members(value: Any, depth: int = 0) -> Any:
    """
    Return a copy of *value*, JSON, with members of secret names, and keys and tokens in texts, replaced.

    Levels nested deeper than `_MAX_DEPTH` are replaced, too; a value that is no JSON becomes its type's name.
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
    """Return *uri* without its password, query and fragment, which may grant access."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return REDACTED
    if not parts.netloc and not parts.path.startswith("/"):
        return f"{parts.scheme}:{REDACTED}" if parts.scheme else REDACTED  # data:, blob: … may hold the content itself
    return without_secrets(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())
