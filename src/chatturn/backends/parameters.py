"""
What a request, or a deployment by default, may say about how a model answers: names, types and ranges, as data.

The names and ranges are those of OpenAI's chat completions; models take fewer, and their API says which.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from chatturn.jsontext.depth import nests_deeper

__all__ = ["PARAMETERS", "wrong_parameter"]

_MOST_TOKENS: Final = 10_000_000
_MOST_STOPS: Final = 16
_MOST_CHARACTERS: Final = 200
_MOST_SCHEMA_CHARACTERS: Final = 50_000
_DEEPEST: Final = 40


def _number(least: float, most: float) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: type(value) in {int, float} and math.isfinite(value) and least <= value <= most,
        f"a number from {least:g} to {most:g}",
    )


def _whole(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_CHARACTERS


def _is_stop(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and 0 < len(value) <= _MOST_STOPS and all(map(_is_text, value)))


def _is_object(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    text = json.dumps(value)
    return len(text) <= _MOST_SCHEMA_CHARACTERS and not nests_deeper(text, _DEEPEST)


_TOKENS: Final = _whole(1, _MOST_TOKENS)
_OBJECT: Final = (_is_object, f"an object of at most {_MOST_SCHEMA_CHARACTERS} characters as JSON")
_FLAG: Final = (lambda value: isinstance(value, bool), "true or false")

PARAMETERS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _whole(0, 100_000),
    "min_p": _number(0, 1),
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "stop": (_is_stop, f"a text, or 1 to {_MOST_STOPS} of them, of at most {_MOST_CHARACTERS} characters each"),
    "seed": _whole(-(2**53) + 1, 2**53 - 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "response_format": _OBJECT,
    "reasoning_effort": (_is_text, "a word"),
    "reasoning": _OBJECT,
    "verbosity": (_is_text, "a word"),
    "service_tier": (_is_text, "a word"),
    "tool_choice": (lambda value: _is_text(value) or _is_object(value), "a word or an object"),
    "parallel_tool_calls": _FLAG,
    "logprobs": _FLAG,
    "top_logprobs": _whole(0, 20),
}
"""Each parameter's check, and in words what it must be."""


def wrong_parameter(name: str, value: Any) -> str | None:
    """Say what is wrong with a parameter; None if nothing is."""
    if name not in PARAMETERS:
        return "is no parameter that is known"
    check, words = PARAMETERS[name]
    return None if check(value) else f"must be {words}"
