"""Values across the border to JavaScript: each conversion once, each explicit."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import js
from pyodide.ffi import JsProxy, jsnull, to_js

__all__ = ["js_arguments", "js_error", "js_object", "parse_js", "read_env"]


def js_object(members: Mapping[str, Any]) -> JsProxy:
    """Make a plain JavaScript object; without this, a dict arrives as a Map."""
    return to_js(members, dict_converter=js.Object.fromEntries)


def js_arguments(values: Iterable[str | int | float | None]) -> list[Any]:
    """Make arguments for a JavaScript call; None would arrive as undefined, which D1 refuses."""
    return [jsnull if value is None else value for value in values]


def parse_js(value: JsProxy) -> Any:
    """
    Turn a JavaScript value that is JSON into Python's.

    One crossing and two native parsers, whatever the size; ``to_py()`` crosses once per member and leaves null
    as ``jsnull``, which is not None.
    """
    return json.loads(js.JSON.stringify(value))


def js_error(message: str) -> JsProxy:
    """Make a JavaScript Error: a promise that rejects with anything else never wakes a Python ``await``."""
    return js.Error.new(message)


def read_env(env: JsProxy, names: Iterable[str]) -> dict[str, str]:
    """Read the vars and secrets called *names*; one that is not set is left out."""
    values = ((name, getattr(env, name, None)) for name in names)
    return {name: value for name, value in values if isinstance(value, str)}
