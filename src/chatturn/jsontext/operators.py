"""JSON that an operator wrote into a setting."""

import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

from chatturn.jsontext.depth import nests_deeper

__all__ = ["parse_operators_json"]

_DEEPEST: Final = 64


def parse_operators_json(text: str, *, number: Callable[[str], Any] | None = None) -> Any:
    """
    Read JSON as `json.loads` does, but strictly.

    Args:
        text: The value of the setting.
        number: Makes a number from its text; by default numbers are Python's int and float.

    Raises:
        ValueError: *text* is not JSON, nests more than 64 levels deep, or holds a lone surrogate, NaN or an infinity.
    """
    if nests_deeper(text, _DEEPEST):
        raise ValueError("too deep")
    try:
        found = json.loads(text, parse_int=number, parse_float=number, parse_constant=_refuse)
    except ArithmeticError as error:  # an exponent out of the number's range
        raise ValueError(str(error)) from error
    json.dumps(found, ensure_ascii=False, default=str).encode()
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
