"""Retry decisions: agent-runtime's defaults and formula, and what servers may ask for."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.backends.openai.retry import NO_HINT, BackendRetryPolicy, RetryHint

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
POLICY = BackendRetryPolicy()


def hint(**headers: str) -> RetryHint:
    return RetryHint.from_headers({name.replace("_", "-"): text for name, text in headers.items()}, now=lambda: NOW)


def always(u: float) -> Callable[[float, float], float]:
    return lambda _low, _high: u


def test_the_defaults_are_agent_runtimes_and_more_patient() -> None:
    """A policy made without arguments is agent-runtime's, but for what else passes, and silence."""
    policy = BackendRetryPolicy()

    assert (5, 1_000, 30_000, 0.25, 120_000) == (
        policy.max_attempts,
        policy.initial_backoff_ms,
        policy.max_backoff_ms,
        policy.jitter,
        policy.retry_after_max_ms,
    )
    assert set(policy.retry_statuses) >= {408, 409, 425, 429, 498, 500, 502, 503, 504, 520, 522, 524, 529}
    assert policy.request_timeout_ms == 300_000


@pytest.mark.parametrize(
    ("attempt", "expected"), [(1, 1_000), (2, 2_000), (3, 4_000), (5, 16_000), (6, 30_000), (99, 30_000)]
)
def test_the_backoff_doubles_up_to_its_maximum(attempt: int, expected: int) -> None:
    """Without jitter the wait is the initial one, doubled after every failure, up to the maximum."""
    policy = BackendRetryPolicy(max_attempts=100)

    assert expected == policy.delay_ms(attempt, NO_HINT, always(0.0))


@given(st.integers(1, 4), st.floats(-1, 1, exclude_max=True))
def test_jitter_follows_the_formula(attempt: int, u: float) -> None:
    """The wait is max(0, round(c + c*jitter*u)), halves rounded up as JavaScript rounds them."""
    c = 1_000 * 2 ** (attempt - 1)

    assert max(0, math.floor(c + c * 0.25 * u + 0.5)) == POLICY.delay_ms(attempt, NO_HINT, always(u))


def test_jitter_may_exceed_the_maximum() -> None:
    """Jitter is added after the maximum, as in agent-runtime."""
    policy = BackendRetryPolicy(max_attempts=20)

    assert policy.delay_ms(10, NO_HINT, always(1.0)) == 37_500


def test_halves_round_up() -> None:
    """A wait of 2.5 ms becomes 3, not Python's 2."""
    policy = BackendRetryPolicy(initial_backoff_ms=2, jitter=0.25)

    assert policy.delay_ms(1, NO_HINT, always(1.0)) == 3


def test_the_jitter_is_drawn_from_minus_one_to_one() -> None:
    """The generator is asked for numbers between -1 and 1."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    POLICY.delay_ms(1, NO_HINT, uniform)

    assert asked == [(-1.0, 1.0)]


def test_the_last_attempt_has_no_delay() -> None:
    """After `max_attempts` tries the policy gives up, whatever the server asks for."""
    assert POLICY.delay_ms(5, NO_HINT, always(0.0)) is None
    assert POLICY.delay_ms(5, RetryHint(after_ms=1), always(0.0)) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry_after_ms": "1500"}, 1_500),
        ({"retry_after_ms": "12.5"}, 13),
        ({"retry_after_ms": "7", "retry_after": "9"}, 7),
        ({"retry_after": "2"}, 2_000),
        ({"retry_after": " 0.25 "}, 250),
        ({"retry_after": "0"}, 0),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30_000),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:50 GMT", "date": "Tue, 14 Nov 2023 22:13:49 GMT"}, 1_000),
        ({"retry_after": "Tuesday, 14-Nov-23 22:13:50 GMT"}, 30_000),
        ({"retry_after": "Tue Nov 14 22:13:50 2023"}, 30_000),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:50 GMT", "date": "yesterday"}, 30_000),
    ],
)
def test_what_the_server_asks_for_is_the_wait(headers: dict[str, str], expected: int) -> None:
    """Milliseconds, seconds with decimals and every form of HTTP date are understood, without jitter."""
    assert expected == POLICY.delay_ms(1, hint(**headers), always(1.0))


@pytest.mark.parametrize(
    "value", ["", "soon", "-5", "inf", "nan", "1e9", "٣", "9" * 400, "Tue, 99 Nov 2023 22:13:50 GMT"]
)
def test_nonsense_is_no_wish(value: str) -> None:
    """A header that is no number and no date changes nothing about the wait."""
    assert hint(retry_after=value, retry_after_ms=value) == NO_HINT


def test_too_long_a_wish_ends_the_tries() -> None:
    """Asked to wait longer than `retry_after_max_ms`, the call gives up instead of waiting less."""
    assert POLICY.delay_ms(1, hint(retry_after="120"), always(0.0)) == 120_000
    assert POLICY.delay_ms(1, hint(retry_after="121"), always(0.0)) is None


@pytest.mark.parametrize(
    ("status", "verdict", "expected"),
    [(503, "", True), (400, "", False), (503, "false", False), (400, "TRUE", True), (503, "maybe", True)],
)
def test_the_servers_verdict_overrides_the_list(status: int, verdict: str, *, expected: bool) -> None:
    """`x-should-retry` decides where it is given; otherwise the list of statuses does."""
    assert expected is POLICY.may_retry(status, hint(x_should_retry=verdict))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),  # O7: never sends, and reports "undefined"
        ("max_attempts", True),
        ("max_attempts", 2.5),
        ("initial_backoff_ms", -1),
        ("max_backoff_ms", "30"),
        ("jitter", 1.5),
        ("jitter", math.nan),
        ("retry_statuses", (500, 99)),
        ("request_timeout_ms", -1),
        ("retry_after_max_ms", None),
    ],
)
def test_a_wrong_policy_is_refused_by_the_fields_name(field: str, value: Any) -> None:
    """A value out of its range fails at construction, and the message says which."""
    with pytest.raises(ValueError, match=f"^{field} "):
        BackendRetryPolicy(**{field: value})


@pytest.mark.parametrize(
    ("headers", "expected_ms"),
    [
        ({"retry_after": "7m12s"}, 432_000),
        ({"retry_after": "1.5 seconds"}, 1_500),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s"}, 360_000),
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "120ms"}, 120),
        ({"x_ratelimit_remaining_requests": "5", "x_ratelimit_reset_requests": "6m0s"}, None),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(int(NOW) + 9)}, 9_000),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(int(NOW) * 1000 + 9)}, 9),
        ({"ratelimit_remaining": "0", "ratelimit_reset": "30"}, 30_000),
        ({"anthropic_ratelimit_tokens_remaining": "0", "anthropic_ratelimit_tokens_reset": "2023-11-14T22:13:25Z"}, 5_000),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "soon"}, None),
        ({"x_ratelimit_remaining_tokens_minute": "0", "x_ratelimit_reset_tokens_minute": "12.5"}, 12_500),
        ({"x_rate_limit_remaining": "-1", "x_rate_limit_reset": "9"}, 9_000),
        ({"x_ms_retry_after_ms": "70"}, 70),
        ({"retry_after": str(int(NOW) + 9)}, 9_000),
        ({"retry_after": "2023-11-14T22:13:25Z"}, 5_000),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "2", "x_ratelimit_remaining": "0", "x_ratelimit_reset": "9"}, 2_000),
    ],
)  # fmt: skip
def test_vendors_say_when_a_limit_is_reset(headers: dict[str, str], expected_ms: int | None) -> None:
    """In spans, seconds, dates and moments; only of a limit that is used up, and after what HTTP says itself."""
    assert expected_ms == hint(**headers).after_ms


@pytest.mark.parametrize(
    ("words", "expected_ms"),
    [
        ("Rate limit reached. Please try again in 7m12s. Visit …", 432_000),
        ("Please retry in 36.9s.", 36_900),
        ('{"details":[{"@type":"RetryInfo","retryDelay":"36s"}]}', 36_000),
        ("Please wait 3600 seconds before retrying.", 3_600_000),
        ("please try again in about 5 minutes", 300_000),
        ('{"error":{"metadata":{"retry_after_seconds":12.5}}}', 12_500),
        ("try again later", None),
        ("retry in " + "9" * 400, None),
    ],
)
def test_a_body_says_when_to_come_again(words: str, expected_ms: int | None) -> None:
    """Where the headers do not."""
    assert expected_ms == NO_HINT.with_words(words).after_ms
    assert 5 == RetryHint(after_ms=5).with_words(words).after_ms
