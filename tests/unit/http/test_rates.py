"""One user asks too often, and nobody else notices."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from chatturn.errors import RateLimited
from chatturn.http.auth import Principal
from chatturn.http.rates import _MOST_KEYS, BURST_S, AskedRate, IsolateRate, Rates


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def who(user: str = "ann", tenant: str = "acme") -> Principal:
    return Principal(tenant_id=tenant, user_id=user, scopes=frozenset())


def waits(rate: IsolateRate, key: str, times: int) -> list[float]:
    return [asyncio.run(rate.wait_s(key)) for _ in range(times)]


def test_a_burst_passes_and_then_the_rate() -> None:
    """A quarter of a minute's requests at once; afterwards one for each that the rate gives."""
    clock = Clock()
    rate = IsolateRate(1_200, now=clock)
    burst = int(1_200 * BURST_S / 60)

    assert waits(rate, "a", burst) == [0.0] * burst
    [wait] = waits(rate, "a", 1)
    assert wait == pytest.approx(0.05, abs=1e-3)
    clock.now_s += 0.051
    assert waits(rate, "a", 2)[0] == 0.0
    assert waits(rate, "b", 1) == [0.0]


def test_who_is_refused_is_not_punished() -> None:
    """A thousand refused requests do not move the moment when one passes again."""
    clock = Clock()
    rate = IsolateRate(60, now=clock)
    waits(rate, "a", 1_000)
    clock.now_s += 1.01

    assert waits(rate, "a", 1) == [0.0]


@pytest.mark.parametrize("per_minute", [1, 2, 3])
def test_the_smallest_rate_lets_one_pass(per_minute: int) -> None:
    """Else nobody could ever ask."""
    assert waits(IsolateRate(per_minute, now=Clock()), "a", 1) == [0.0]


@pytest.mark.slow
def test_no_rate_is_no_limit() -> None:
    """0: any number."""
    assert set(waits(IsolateRate(0, now=Clock()), "a", 5_000)) == {0.0}


@pytest.mark.slow
def test_the_memory_is_bounded() -> None:
    """Whoever makes up users does not fill it; who owes nothing is forgotten first."""
    clock = Clock()
    rate = IsolateRate(60, now=clock)
    waits(rate, "early", 1)
    clock.now_s += 2
    for number in range(_MOST_KEYS + 5):
        waits(rate, str(number), 1)

    assert len(rate._paid_off_at_s) <= _MOST_KEYS
    assert "early" not in rate._paid_off_at_s


def checks(rates: Rates, principal: Principal, times: int) -> int:
    """Return how many of so many requests pass."""
    passed = 0
    for _ in range(times):
        try:
            asyncio.run(rates.check(principal))
        except RateLimited:
            continue
        passed += 1
    return passed


def test_a_user_does_not_use_up_what_is_the_tenants() -> None:
    """Whom the user's own rate refuses is not counted for the tenant; names that look alike are not one user."""
    clock = Clock()
    rates = Rates(subject=IsolateRate(40, now=clock), tenant=IsolateRate(80, now=clock))

    assert checks(rates, who(), 1_000) == 10
    assert checks(rates, who("bob"), 5) == 5
    assert checks(rates, who("c:d", "a:b"), 100) == 10
    assert checks(rates, who("b:c:d", "a"), 100) == 10
    assert sum(checks(rates, who(str(number)), 10) for number in range(10)) == 5


def test_who_is_refused_is_told_when_to_ask_again() -> None:
    """In whole seconds, at least one."""
    clock = Clock()
    rates = Rates(subject=IsolateRate(4, now=clock), tenant=IsolateRate(0, now=clock))
    asyncio.run(rates.check(who()))
    with pytest.raises(RateLimited) as caught:
        asyncio.run(rates.check(who()))

    assert caught.value.retry_after_s == 15


def test_where_the_platform_counts_it_is_asked() -> None:
    """By the user's key and the tenant's."""
    asked: list[str] = []

    def limit(allowed: set[str]) -> Callable[[str], Awaitable[bool]]:
        async def allows(key: str) -> bool:
            asked.append(key)
            return key in allowed

        return allows

    rates = Rates(subject=AskedRate(allows=limit({"4:acme:ann"})), tenant=AskedRate(allows=limit({"acme"})))

    assert checks(rates, who(), 1) == 1
    assert checks(rates, who("bob"), 1) == 0
    assert asked == ["4:acme:ann", "acme", "4:acme:bob"]
