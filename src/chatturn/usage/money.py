"""
Money: integer micro-US-dollars inside, US dollars at the border.

Integers add up exactly, in any order and under every grouping.  An amount is rounded once, when it comes in, half to
even: at most half a millionth of a dollar, whatever is done with it later.
"""

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

__all__ = ["MAX_MICRO_USD", "micro_usd", "usd"]

MAX_MICRO_USD: Final = 10**15
"""A billion dollars, of one amount: up to here a float in dollars still tells the millionths apart."""

_MICRO: Final = Decimal(10) ** -6


def micro_usd(dollars: object) -> int | None:
    """
    Return *dollars* in micro-US-dollars: 0.1 is 100,000.

    A float is taken as the shortest decimal that reads back as it, which is what was written.

    Returns:
        None for what is no amount, and so is not known: no number, not finite, negative, or over `MAX_MICRO_USD`.
    """
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 <= dollars <= MAX_MICRO_USD // 10**6:
        return None
    return int(Decimal(str(dollars)).quantize(_MICRO, rounding=ROUND_HALF_EVEN).scaleb(6))


def usd(amount_micro_usd: int) -> float:
    """Return micro-US-dollars as dollars: the nearest float, of which `micro_usd` makes the same amount again."""
    return amount_micro_usd / 10**6
