"""
The parameters that a request, or the deployment's defaults, may set for a model's answer, each as JSON Schema.

Names and ranges are those of OpenAI's chat completions.  A model may take fewer; its API then refuses the request.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from chatturn.errors import ConfigurationError
from chatturn.jsontext.canonical import canonical_hash
from chatturn.jsontext.depth import nests_deeper

__all__ = ["MAX_PARAMETERS_BYTES", "PARAMETERS", "TOOLS", "allowed_parameters", "whole", "wrong_parameter"]

MAX_PARAMETERS_BYTES: Final = 65_536
"""The longest JSON of all parameters of a request together."""

TOOLS: Final = "tools"
"""The parameter that only a request may set: the tools that its client runs."""

_DEEPEST: Final = 30

_Schema = Mapping[str, Any]
_TOKENS: Final[_Schema] = {"type": "integer", "minimum": 1, "maximum": 10_000_000}
_PENALTY: Final[_Schema] = {"type": "number", "minimum": -2, "maximum": 2}
_WORD: Final[_Schema] = {"type": "string", "format": "printable", "minLength": 1, "maxLength": 200}
_TEXT: Final[_Schema] = {"type": "string", "format": "storable", "minLength": 1, "maxLength": 200}
_OBJECT: Final[_Schema] = {"type": "object", "minProperties": 1}
_FLAG: Final[_Schema] = {"type": "boolean"}
_FUNCTION: Final[_Schema] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
    },
}
_TOOL: Final[_Schema] = {
    "type": "object",
    "format": "tool",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
}
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

PARAMETERS: Final[Mapping[str, _Schema]] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0, "maximum": 100_000},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "stop": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": 16, "items": _TEXT}]},
    "seed": {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "response_format": _OBJECT,
    "reasoning_effort": _WORD,
    "reasoning": _OBJECT,
    "verbosity": _WORD,
    "service_tier": _WORD,
    TOOLS: {"type": "array", "minItems": 1, "maxItems": 128, "items": _TOOL},
    "tool_choice": {"anyOf": [_WORD, _OBJECT]},
    "parallel_tool_calls": _FLAG,
    "logprobs": _FLAG,
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
}

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def wrong_parameter(name: str, value: Any) -> str | None:
    """Say what is wrong with a parameter; None if nothing is."""
    if name not in PARAMETERS:
        return "is no parameter that is known"
    return None if _fits(value, PARAMETERS[name]) else f"must be {_words(PARAMETERS[name])}"


def allowed_parameters(setting: str) -> frozenset[str]:
    """
    Return the names of the parameters that a request may set, by the setting ``ALLOW_PARAMETERS``.

    Raises:
        ConfigurationError: The setting has a name that is no parameter's.
    """
    names = {name.strip() for name in setting.split(",")} - {""}
    if names == {"*"}:
        return frozenset(PARAMETERS)
    if names == {"none"}:
        return frozenset()
    if not names <= PARAMETERS.keys():
        raise ConfigurationError("ALLOW_PARAMETERS", f"may have these names only: {', '.join(PARAMETERS)}")
    return frozenset(names)


def whole(value: Any) -> Any:
    """Return *value*, a float without a fraction as an int: 3.0 and 3 are the same number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fits(value: Any, schema: _Schema) -> bool:
    value = whole(value) if schema.get("type") == "integer" else value
    if "anyOf" in schema:
        return any(_fits(value, each) for each in schema["anyOf"])
    if type(value) not in _TYPES[schema["type"]]:
        return False
    if isinstance(value, str):
        is_written = value.isprintable() if schema["format"] == "printable" else _is_utf8(value)
        return is_written and schema["minLength"] <= len(value) <= schema["maxLength"]
    if isinstance(value, list):
        fits = schema["minItems"] <= len(value) <= schema["maxItems"]
        return fits and all(_fits(item, schema["items"]) for item in value)
    if isinstance(value, dict):
        text = json.dumps(value, ensure_ascii=False)
        is_whole = _is_tool(value) if schema.get("format") == "tool" else len(value) >= schema["minProperties"]
        return is_whole and _is_utf8(text) and not nests_deeper(text, _DEEPEST) and _is_exact(value)
    return isinstance(value, bool) or bool(schema["minimum"] <= value <= schema["maximum"])


def _is_tool(value: Mapping[str, Any]) -> bool:
    function = value.get("function")
    if value.get("type") != "function" or not isinstance(function, dict):
        return False
    name, described, parameters = (function.get(each) for each in ("name", "description", "parameters"))
    return (
        isinstance(name, str)
        and bool(_TOOL_NAME.fullmatch(name))
        and isinstance(described, str | None)
        and isinstance(parameters, dict | None)
    )


def _is_exact(value: Mapping[str, Any]) -> bool:
    """Say whether every JSON parser reads the numbers in *value* alike, so that its canonical hash can be compared."""
    try:
        canonical_hash(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _words(schema: _Schema) -> str:
    """Return the words that tell a caller which values a schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    kind = schema["type"]
    if kind in {"integer", "number"}:
        return (
            f"{'a whole number' if kind == 'integer' else 'a number'} from {schema['minimum']} to {schema['maximum']}"
        )
    if kind == "string":
        return f"a text of 1 to {schema['maxLength']} characters"
    if kind == "array" and schema["items"].get("format") == "tool":
        form = '{"type": "function", "function": {"name", "description", "parameters"}}'
        return f"a list of 1 to {schema['maxItems']} tools, each {form}, whose name is of A-Z a-z 0-9 _ -"
    if kind == "array":
        return f"a list of 1 to {schema['maxItems']} of these"
    return {
        "boolean": "true or false",
        "object": f"an object that nests at most {_DEEPEST} deep, with no number beyond 2**53",
    }[kind]
