"""
The prices of models, with their source, and the cost of a call in whole micro-dollars.

A model that is not in the table has no known price: its cost is unknown, never zero, and never that of a model whose
name is similar.  A deployment adds its own prices, or replaces these, with the setting ``PRICES``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from chatturn.errors import ConfigurationError
from chatturn.jsontext.operators import parse_operators_json

__all__ = [
    "CHARACTERS_OF_A_TOKEN",
    "PRICES",
    "PRICES_AS_OF",
    "PRICES_SOURCE",
    "Price",
    "PriceTable",
    "parse_ceiling",
    "parse_prices",
    "read_price",
]

PRICES_SOURCE: Final = "https://platform.openai.com/docs/pricing"
PRICES_AS_OF: Final = "2026-06-22"
"""
The source of the table's list prices, and their date; they are from copies of that page.

The table is a default and no authority: list prices change, and contracts, regions, batches and service tiers
have their own.  To bill by the ledger, or to set budgets, set ``PRICES`` to the prices really paid.
"""

_SETTING: Final = "PRICES"
_CEILING: Final = "UNPRICED_CEILING"
CHARACTERS_OF_A_TOKEN: Final = 4
"""Characters of a token in English, roughly; used for estimates only, never for billing."""

_MICRO: Final = 1_000_000
_PER_TOKENS: Final = 1_000_000
_FINEST: Final = Decimal("0.000001")
_MOST_DOLLARS: Final = 1_000_000
_MOST_TOLD: Final = 1_000
_SNAPSHOT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


@dataclass(frozen=True, slots=True)
class Price:
    """
    The price of a million tokens, in micro-dollars: 2.50 dollars is 2,500,000.

    Attributes:
        tokens_in: For input tokens: the conversation.
        tokens_out: For output tokens: the answer and its reasoning.
        tokens_cached: For input tokens that the model reads from its cache; None: the same as *tokens_in*.
        most_tokens_in: Input tokens up to which the prices hold; beyond, the price is unknown.  None for no limit.
    """

    tokens_in: int
    tokens_out: int
    tokens_cached: int | None = None
    most_tokens_in: int | None = None

    def of(self, tokens_in: int, tokens_out: int, tokens_cached: int) -> int | None:
        """Return the cost of a call in micro-dollars, halves rounded up; None if unknown."""
        if self.most_tokens_in is not None and tokens_in > self.most_tokens_in:
            return None
        return self._cost(tokens_in, tokens_out, tokens_cached)

    def estimate(self, characters_in: int, tokens_out: int, tokens_in: int | None = None) -> int:
        """Estimate the cost of a call whose tokens are not all known; `most_tokens_in` is ignored."""
        if tokens_in is None:
            tokens_in = -(-characters_in // CHARACTERS_OF_A_TOKEN)
        return self._cost(tokens_in, tokens_out, 0)

    def _cost(self, tokens_in: int, tokens_out: int, tokens_cached: int) -> int:
        cached = min(tokens_cached, tokens_in)
        cached_price = self.tokens_in if self.tokens_cached is None else self.tokens_cached
        total = (tokens_in - cached) * self.tokens_in + cached * cached_price + tokens_out * self.tokens_out
        return (total + _PER_TOKENS // 2) // _PER_TOKENS


PRICES: Final[Mapping[str, Price]] = MappingProxyType(
    {
        "echo": Price(0, 0),  # ours, and free
        "gpt-4.1": Price(2_000_000, 8_000_000, 500_000),
        "gpt-4.1-mini": Price(400_000, 1_600_000, 100_000),
        "gpt-4.1-nano": Price(100_000, 400_000, 25_000),
        "gpt-4o": Price(2_500_000, 10_000_000, 1_250_000),
        "gpt-4o-2024-05-13": Price(5_000_000, 15_000_000),
        "gpt-4o-mini": Price(150_000, 600_000, 75_000),
        "gpt-5": Price(1_250_000, 10_000_000, 125_000),
        "gpt-5-mini": Price(250_000, 2_000_000, 25_000),
        "gpt-5-nano": Price(50_000, 400_000, 5_000),
        "gpt-5.2": Price(1_750_000, 14_000_000, 175_000),
        "gpt-5.4": Price(2_500_000, 15_000_000, 250_000, most_tokens_in=272_000),
        "gpt-5.4-mini": Price(750_000, 4_500_000, 75_000),
        "o3": Price(2_000_000, 8_000_000, 500_000),
        "o4-mini": Price(1_100_000, 4_400_000, 275_000),
    }
)
"""Prices by model name; a dated snapshot has the price of its model, unless it is listed itself."""


class PriceTable:
    """
    The prices of one deployment.

    Args:
        own: The deployment's prices; they override the table's.
        ceiling: The price that budgets use for a model without a price; None: unknown.
    """

    def __init__(self, own: Mapping[str, Price] = MappingProxyType({}), ceiling: Price | None = None) -> None:
        self._own = own
        self._ceiling = ceiling
        self._told: set[tuple[str, str]] = set()

    def is_news(self, what: str, model: str) -> bool:
        """Return True the first time that *what* is reported as unknown for *model*, False afterwards."""
        news = (what, model) not in self._told and len(self._told) < _MOST_TOLD
        if news:
            self._told.add((what, model))
        return news

    def price(self, model: str) -> Price | None:
        """Return a model's price; None if neither the deployment's prices nor the table has it."""
        for name in (model, _SNAPSHOT.sub("", model)):
            price = self._own.get(name) or PRICES.get(name)
            if price is not None:
                return price
        return None

    def for_budgets(self, models: Sequence[str]) -> Price | None:
        """
        Return the price that budgets use for a call of one of *models*: the highest of their prices.

        Returns:
            None if a model has no price and there is no ceiling.  If *models* is empty, the highest price of all known
            models.
        """
        found = [self.price(model) or self._ceiling for model in models]
        known = [price for price in found if price is not None]
        if len(known) < len(found):
            return None
        return max(
            known or [*self._own.values(), *PRICES.values()], key=lambda price: price.tokens_in + price.tokens_out
        )


def parse_ceiling(text: str) -> Price | None:
    """
    Read the setting ``UNPRICED_CEILING``: dollars for a million tokens, of either kind; "" for none.

    Raises:
        ConfigurationError: The value is no amount, is negative, or is finer than a micro-dollar.
    """
    if not text:
        return None
    try:
        amount = Decimal(text)
    except ArithmeticError:
        raise ConfigurationError(_CEILING, "must be an amount of dollars") from None
    price = _micro("it", amount if amount.is_finite() else None, _CEILING)
    return Price(price, price)


def parse_prices(text: str) -> dict[str, Price]:
    """
    Read the setting: ``{"model": {"in": 2.5, "out": 10, "cached": 1.25}}``, dollars per million tokens.

    Raises:
        ConfigurationError: The setting is not of this form, or a price is negative or finer than a micro-dollar.
    """
    if not text:
        return {}
    try:
        found = parse_operators_json(text, number=Decimal)
    except ValueError:
        raise ConfigurationError(_SETTING, "is not JSON") from None
    if not isinstance(found, dict):
        raise ConfigurationError(_SETTING, "must be an object: a price for each model")
    return {model: _read(f"model {position}", members) for position, (model, members) in enumerate(found.items(), 1)}


def read_price(setting: str, members: Any) -> Price:
    """
    Read a price inside another setting, its numbers as `json.loads` makes them.

    Raises:
        ConfigurationError: The value is no price; the error names *setting*.
    """
    if isinstance(members, dict):
        members = {name: _decimal(amount) for name, amount in members.items()}
    return _read("it", members, setting)


def _decimal(amount: Any) -> Any:
    return Decimal(repr(amount)) if type(amount) in {int, float} else amount


def _read(what: str, members: Any, setting: str = _SETTING) -> Price:
    if not isinstance(members, dict) or not {"in", "out"} <= set(members) <= {"in", "out", "cached"}:
        raise ConfigurationError(setting, f'{what} must have "in" and "out", may have "cached", and nothing else')
    amounts = {name: _micro(what, amount, setting) for name, amount in members.items()}
    return Price(amounts["in"], amounts["out"], amounts.get("cached"))


def _micro(what: str, amount: Any, setting: str) -> int:
    # The bounds come first: a comparison is exact, arithmetic with an exponent of a million digits is not.
    if isinstance(amount, Decimal) and 0 <= amount <= _MOST_DOLLARS and amount == amount.quantize(_FINEST):
        return int(amount * _MICRO)
    raise ConfigurationError(setting, f"{what} has a price that is no amount of dollars in whole millionths")
