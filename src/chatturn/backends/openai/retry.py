"""
When to try a model call again, and how long to wait before: decisions only, no clock and no sleeping.

The formula and most defaults are those of agent-runtime (docs/reference/agent-runtime.md, A model's API).  On
top of them come the words that servers use to ask for a wait: `retry-after-ms`, `retry-after` and `x-should-retry`, as
OpenAI's own clients read them, the headers in which vendors say when a limit is reset, and "try again in 7m12s".
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from chatturn.backends.openai.failures import PASSING_STATUSES

__all__ = ["NO_HINT", "BackendRetryPolicy", "RetryHint"]

_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_MOMENT: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,12})?")
_SPAN: Final = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?)"
)
_SPAN_WHOLE: Final = re.compile(rf"(?:{_SPAN.pattern},? ?)+")
_SPAN_IN_WORDS: Final = re.compile(
    rf"(?:(?:try again|retry|available|reset\w*) (?:in|after):?(?: about)?|please wait) ({_SPAN_WHOLE.pattern})"
    rf"|retrydelay\W+({_SPAN_WHOLE.pattern})"
)
_SECONDS_IN_WORDS: Final = re.compile(r"\bretry_after(?:_seconds)?\W{1,4}([0-9]{1,9}(?:\.[0-9]{1,9})?)\b")
_UNITS_MS: Final[Mapping[str, int]] = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# A header's name with `remaining` tells what is left of a limit; with `reset` instead, when the limit is reset.
_REMAINING: Final = "remaining"
_RESET: Final = "reset"
_NONE_LEFT: Final = re.compile(r"-[0-9.]{1,15}|0(?:\.0+)?")
_EPOCH_S: Final = 1_000_000_000
_EPOCH_MS: Final = 1_000_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryHint:
    """
    What a response says about trying again.

    Attributes:
        should_retry: Whether to try again, which overrides the status; None if it does not say.
        after_ms: How many milliseconds it asks to wait; None if it does not say.
    """

    should_retry: bool | None = None
    after_ms: int | None = None

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], *, now: Callable[[], float]) -> "RetryHint":
        """
        Read the hint out of a response's *headers*, whose names are in lower case; nonsense is no hint.

        Args:
            headers: The response's headers.
            now: Seconds since the epoch; dates are relative to it if the response has no ``date``.
        """
        return cls(
            should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower()),
            after_ms=_first(_after_ms(headers, now), _reset_ms(headers, now)),
        )

    def with_words(self, words: str) -> "RetryHint":
        """Return the hint; if it has no wait, with the wait that a body's *words* ask for."""
        if self.after_ms is not None:
            return self
        if found := _SPAN_IN_WORDS.search(words.lower()):
            return replace(self, after_ms=_span_ms((found[1] or found[4] or "").strip(", ")))
        found = _SECONDS_IN_WORDS.search(words.lower())
        return replace(self, after_ms=math.ceil(float(found[1]) * 1000)) if found else self


NO_HINT: Final = RetryHint()


def _after_ms(headers: Mapping[str, str], now: Callable[[], float]) -> int | None:
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = headers.get(name, "").strip()
        if _DECIMAL.fullmatch(milliseconds):
            return math.ceil(float(milliseconds))
    value = headers.get("retry-after", "").strip()
    if (until_ms := _until_ms(value, now)) is not None:
        return until_ms
    if (until := _timestamp(value)) is None:
        return None
    since = _timestamp(headers.get("date", ""))
    return max(0, math.ceil((until - (now() if since is None else since)) * 1000))


def _reset_ms(headers: Mapping[str, str], now: Callable[[], float]) -> int | None:
    """Return how long it takes until all limits that are used up are reset."""
    spans = [
        _until_ms(headers.get(name.replace(_REMAINING, _RESET), "").strip(), now)
        for name, left in headers.items()
        if _REMAINING in name and _NONE_LEFT.fullmatch(left.strip())
    ]
    return max((span for span in spans if span is not None), default=None)


def _until_ms(value: str, now: Callable[[], float]) -> int | None:
    if _MOMENT.fullmatch(value):
        number = float(value)
        if number < _EPOCH_S:
            return math.ceil(number * 1000)
        return max(0, math.ceil((number if number >= _EPOCH_MS else number * 1000) - now() * 1000))
    if (span_ms := _span_ms(value)) is not None:
        return span_ms
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return max(0, math.ceil((moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now()) * 1000))


def _span_ms(text: str) -> int | None:
    """Return the milliseconds of a span like ``7m12s`` or ``1.5 seconds``; None for anything else."""
    if not _SPAN_WHOLE.fullmatch(text):
        return None
    return math.ceil(sum(float(number) * _UNITS_MS[_unit(name)] for number, name in _SPAN.findall(text)))


def _unit(name: str) -> str:
    return "ms" if name.startswith(("ms", "milli")) else name[0]


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _timestamp(http_date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(http_date)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRetryPolicy:
    """
    How often and how patiently a model's API is tried.

    Attributes:
        max_attempts: Tries in all, the first included; at least 1.
        initial_backoff_ms: The wait after the first failure; it doubles after every further one.
        max_backoff_ms: The longest wait, before jitter.
        jitter: The share of a wait, 0 to 1, by which it randomly grows or shrinks.
        retry_statuses: The HTTP statuses after which another try may succeed.
        request_timeout_ms: The longest wait for the response's headers, per try; 0 waits for ever.
        retry_after_max_ms: The longest wait that a server may ask for; asked for more, the call gives up.

    Raises:
        ValueError: A value is out of its range; the message begins with the attribute's name.
    """

    max_attempts: int = 5
    initial_backoff_ms: int = 1_000
    max_backoff_ms: int = 30_000
    jitter: float = 0.25
    retry_statuses: Collection[int] = PASSING_STATUSES
    request_timeout_ms: int = 300_000
    retry_after_max_ms: int = 120_000

    def __post_init__(self) -> None:
        _require_int("max_attempts", self.max_attempts, least=1)
        _require_int("initial_backoff_ms", self.initial_backoff_ms, least=0)
        _require_int("max_backoff_ms", self.max_backoff_ms, least=0)
        if not 0 <= self.jitter <= 1:  # NaN included
            raise ValueError(f"jitter is {self.jitter!r}, but must be between 0 and 1")
        for status in self.retry_statuses:
            if status not in range(100, 600):
                raise ValueError(f"retry_statuses has {status!r}, but must hold HTTP statuses")
        _require_int("request_timeout_ms", self.request_timeout_ms, least=0)
        _require_int("retry_after_max_ms", self.retry_after_max_ms, least=0)

    def may_retry(self, status: int, hint: RetryHint) -> bool:
        """Return whether a response with *status* may be followed by a better one."""
        return status in self.retry_statuses if hint.should_retry is None else hint.should_retry

    def delay_ms(self, attempt: int, hint: RetryHint, uniform: Callable[[float, float], float]) -> int | None:
        """
        Return how long to wait after failed try *attempt*, or None to give up.

        ``c = min(initial_backoff_ms * 2**(attempt - 1), max_backoff_ms)``, then
        ``max(0, round(c + c * jitter * u))`` with ``u`` from [-1, 1), halves rounded up: jitter may exceed
        `max_backoff_ms`.  A wait that the server asked for is taken as it is.

        Args:
            attempt: 1-based.
            hint: The response's hint, `NO_HINT` if there was no response.
            uniform: Like `random.uniform`.
        """
        if attempt >= self.max_attempts:
            return None
        if hint.after_ms is not None:
            return hint.after_ms if hint.after_ms <= self.retry_after_max_ms else None
        capped = min(self.initial_backoff_ms << (attempt - 1), self.max_backoff_ms)
        return max(0, math.floor(capped + capped * self.jitter * uniform(-1.0, 1.0) + 0.5))


def _require_int(name: str, value: int, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {least}")
