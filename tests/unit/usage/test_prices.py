"""What a call costs, in whole micro-dollars: exact, or not known."""

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.errors import ConfigurationError
from chatturn.usage.prices import PRICES, PRICES_AS_OF, Price, PriceTable, parse_prices

tokens = st.integers(0, 10**9)
amounts = st.integers(0, 10**12)


@pytest.mark.parametrize(
    ("price", "counts", "cost"),
    [
        (Price(2_000_000, 8_000_000), (1_000_000, 1_000_000, 0), 10_000_000),
        (Price(2_000_000, 8_000_000), (1, 0, 0), 2),
        (Price(2_500_000, 10_000_000, 1_250_000), (1_000, 200, 400), 1_500 + 500 + 2_000),
        (Price(100_000, 0), (4, 0, 0), 0),  # 0.4
        (Price(100_000, 0), (5, 0, 0), 1),  # 0.5: a half is rounded up
        (Price(100_000, 0), (15, 0, 0), 2),  # 1.5: to 2 …
        (Price(100_000, 0), (25, 0, 0), 3),  # … and 2.5 to 3, not to the even one
        (Price(300_000, 300_000), (1, 1, 0), 1),  # 0.3 + 0.3: the sum is rounded, not its parts
        (Price(0, 0), (10**9, 10**9, 10**9), 0),  # what is free costs nothing, which is known
        (Price(2_000_000, 0, 500_000), (10, 0, 11), 5),  # more from the cache than there was: all of it was
        (Price(2_000_000, 0), (10, 0, 4), 20),  # no price of its own for what is cached
    ],
)
def test_a_call_costs_whole_micro_dollars(price: Price, counts: tuple[int, int, int], cost: int) -> None:
    """To the last one, halves up."""
    assert cost == price.of(*counts)


@given(tokens_in=tokens, tokens_out=tokens, cached=tokens, prices=st.tuples(amounts, amounts, amounts))
def test_a_cost_is_exact(tokens_in: int, tokens_out: int, cached: int, prices: tuple[int, int, int]) -> None:
    """It is at most half a micro-dollar from the true amount, however large that is, and never below zero."""
    from_cache = min(cached, tokens_in)
    parts = zip((tokens_in - from_cache, tokens_out, from_cache), prices, strict=True)
    true = Fraction(sum(count * price for count, price in parts), 1_000_000)
    cost = Price(*prices).of(tokens_in, tokens_out, cached)

    assert isinstance(cost, int)
    assert Fraction(-1, 2) < cost - true <= Fraction(1, 2)


def test_a_conversation_beyond_the_price_s_end_has_no_known_cost() -> None:
    """It has another price, which the table does not have: unknown, not guessed."""
    price = Price(2_500_000, 15_000_000, most_tokens_in=272_000)

    assert 680_000 == price.of(272_000, 0, 0)
    assert price.of(272_001, 0, 0) is None


# The table


def test_a_snapshot_costs_what_its_model_costs() -> None:
    """Unless it stands in the table itself, as one that was dearer."""
    table = PriceTable()

    assert PRICES["gpt-4.1-mini"] == table.price("gpt-4.1-mini-2025-04-14")
    assert Price(5_000_000, 15_000_000) == table.price("gpt-4o-2024-05-13")
    assert PRICES["gpt-4o"] == table.price("gpt-4o-2024-08-06")


@pytest.mark.parametrize(
    "model", ["", "gpt-4", "gpt-4.1-mini-fine", "GPT-4o", "gpt-4o-2024", "openai/gpt-4o", "x" * 999]
)
def test_what_is_not_in_the_table_has_no_price(model: str) -> None:
    """A similar name is another model."""
    assert PriceTable().price(model) is None


def test_the_deployment_s_own_prices_come_first() -> None:
    """For the models of the table, and for others."""
    table = PriceTable(parse_prices('{"gpt-4o": {"in": 1, "out": 2}, "local": {"in": 0, "out": 0}}'))

    assert Price(1_000_000, 2_000_000) == table.price("gpt-4o") == table.price("gpt-4o-2024-08-06")
    assert Price(0, 0) == table.price("local")
    assert PRICES["o3"] == table.price("o3")


def test_the_table_is_sane() -> None:
    """An answer costs no less than the question, what is cached no more; and it says when it was true."""
    for price in PRICES.values():
        assert 0 <= price.tokens_in <= price.tokens_out
        assert price.tokens_cached is None or 0 < price.tokens_cached < price.tokens_in
    assert len(PRICES_AS_OF) == 10


def test_nobody_is_told_twice() -> None:
    """What is not known of a model is news once, and after a thousand models never again."""
    table = PriceTable()

    assert [True, False] == [table.is_news("usage.unpriced", "m") for _ in range(2)]
    assert table.is_news("usage.unreported", "m")
    assert 998 == sum(table.is_news("usage.unpriced", f"m{n}") for n in range(2_000))
    assert not table.is_news("usage.unpriced", "m")


# The setting


@pytest.mark.parametrize(
    ("members", "price"),
    [
        ('{"in": 2.5, "out": 10, "cached": 1.25}', Price(2_500_000, 10_000_000, 1_250_000)),
        ('{"in": 0, "out": 0}', Price(0, 0)),
        ('{"in": 0.000001, "out": 1e-6}', Price(1, 1)),
        ('{"in": 0.1, "out": 0.3, "cached": 0.07}', Price(100_000, 300_000, 70_000)),
        ('{"in": 1e6, "out": 1000000.000000}', Price(10**12, 10**12)),
        ('{"in": 1.100000000000000000000000000000000000000000, "out": -0}', Price(1_100_000, 0)),
    ],
)
def test_prices_are_read_as_they_are_written(members: str, price: Price) -> None:
    """Dollars per million tokens, without a detour through binary fractions."""
    assert {"m": price} == parse_prices(f'{{"m": {members}}}')


def test_no_setting_is_no_prices() -> None:
    """An empty one neither."""
    assert {} == parse_prices("") == parse_prices("{}")


@pytest.mark.parametrize(
    "text",
    [
        "cheap",
        "[]",
        "1",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"m": 1}',
        '{"m": []}',
        '{"m": {}}',
        '{"m": {"in": 1}}',
        '{"m": {"out": 1}}',
        '{"m": {"in": 1, "out": 1, "audio": 1}}',
        '{"m": {"in": -1, "out": 1}}',
        '{"m": {"in": 1, "out": -0.000001}}',
        '{"m": {"in": NaN, "out": 1}}',
        '{"m": {"in": 1, "out": Infinity}}',
        '{"m": {"in": 0.0000001, "out": 1}}',
        '{"m": {"in": 1.0000001, "out": 1}}',
        '{"m": {"in": 1e-999999999, "out": 1}}',
        '{"m": {"in": 1e999999999, "out": 1}}',
        '{"m": {"in": 1e400, "out": 1}}',
        '{"m": {"in": 1000000.000001, "out": 1}}',
        '{"m": {"in": "1", "out": 1}}',
        '{"m": {"in": true, "out": 1}}',
        '{"m": {"in": null, "out": 1}}',
        '{"m": {"in": 1, "out": 1, "cached": null}}',
        '{"m": {"in": 1, "out": 1}, "n": {"in": 1}}',
    ],
    ids=lambda text: text[:50],
)
def test_what_is_no_price_is_refused(text: str) -> None:
    """And named, before any turn is priced with it."""
    with pytest.raises(ConfigurationError) as refused:
        parse_prices(text)

    assert str(refused.value).startswith("PRICES: ")


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children) | st.dictionaries(st.sampled_from(["in", "out", "cached", "m"]), children),
    max_leaves=8,
)


@given(json_values | st.dictionaries(st.text(max_size=5), st.dictionaries(st.sampled_from(["in", "out"]), st.floats())))
def test_any_setting_is_read_or_refused(value: Any) -> None:
    """Nothing else is raised, and what is read is never negative."""
    try:
        prices = parse_prices(json.dumps(value))
    except ConfigurationError:
        return
    assert all(price.tokens_in >= 0 and price.tokens_out >= 0 for price in prices.values())
