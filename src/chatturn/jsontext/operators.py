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
        text: What the setting says.
        number: Makes a number of its text; without it they are Python's int and float.

    Raises:
        ValueError: It is not JSON, nests more than 64 levels deep, or says half a character or a number that is none.
    """
    if nests_deeper(text, _DEEPEST):
        raise ValueError("too deep")
    try:
        found = json.loads(text, parse_int=number, parse_float=number, parse_constant=_refuse)
    except ArithmeticError as error:  # an exponent that no number has
        raise ValueError(str(error)) from error
    json.dumps(found, ensure_ascii=False, default=str).encode()
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
