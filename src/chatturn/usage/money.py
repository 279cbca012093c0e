"""
Money: integer micro-US-dollars inside, US dollars at the border.

Integers add up exactly, in any order.  An amount is rounded once, when it comes in, half to even: the error is at most
0.0000005 dollars, whatever is done with the amount later.
"""

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

__all__ = ["MAX_MICRO_USD", "micro_usd", "usd"]

MAX_MICRO_USD: Final = 10**15
"""The largest amount, a billion dollars: up to here a float in dollars still distinguishes millionths."""

_MICRO: Final = Decimal(10) ** -6


def micro_usd(dollars: object) -> int | None:
    """
    Return *dollars* in micro-US-dollars: 0.1 is 100,000.

    A float counts as its shortest decimal, its ``repr``, which is what was written.

    Returns:
        None, unknown, for a value that is no number, not finite, negative, or over `MAX_MICRO_USD`.
    """
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 <= dollars <= MAX_MICRO_USD // 10**6:
        return None
    return int(Decimal(str(dollars)).quantize(_MICRO, rounding=ROUND_HALF_EVEN).scaleb(6))


def usd(amount_micro_usd: int) -> float:
    """Return micro-US-dollars as dollars: the nearest float, which `micro_usd` turns back into the same amount."""
    return amount_micro_usd / 10**6
