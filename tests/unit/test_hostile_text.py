"""
No text keeps a pattern busy: an answer, a message or an error may have a megabyte, made by whoever wishes us ill.

A pattern that begins anew at each character and looks to the end of the text takes time with the square of its
length, an hour for a megabyte; meanwhile the isolate serves nobody.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import pytest

import products
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.http.sse import to_sse
from chatturn.jsontext.depth import nests_deeper
from chatturn.telemetry.redaction import is_secret_name, without_secret_members, without_secrets, without_uri_secrets

ROOT = Path(__file__).parents[2]

# What is repeated to the length; a pattern that has a weakness has it for a text of its own characters.
PIECES = [
    *("a", "A", "1", " ", "-", ".", "@", "_", ":", "/", "(", '"', "\\", "\n", "\t", "{", "[", "+", "=", "*", "ä", "😀"),
    *(
        "a@",
        "a.",
        "a@a.",
        "@a",
        "a-",
        "1 ",
        "1(",
        "1-",
        "1x",
        "a\n",
        "a b ",
        " \n",
        "12-34-",
        "123-45-678",
        "+1 ",
        "1\u00a0",
    ),
    *(
        "bearer ",
        "sk-",
        "eyJ",
        "eyJ-",
        "eyJaaaaaaaaaa.",
        "://",
        "://a:",
        "-----BEGIN ",
        "PRIVATE KEY",
        "gh",
        "ghp_",
        "token",
    ),
    *(
        "Proposal: ",
        "Proposal:\n",
        "use a ",
        "\\u",
        "https://a:b",
        '{"a":',
        "[{",
        "key=",
        "a:a@",
        "1a2b",
        "x" * 19 + "@",
    ),
]
BEGINNINGS = ["", "a@", "1", "+1", "bearer ", "eyJaaaaaaaaaa.", "://", "-----BEGIN ", "Proposal: ", '"']

SHORT, LONG = 16_000, 1_000_000
SHORT_S, LONG_S = 0.25, 4.0
"""Seconds of CPU that one text may take; most take a fiftieth of it, and with the square of their length far more."""

SLOWEST = 6


def seconds(work: Callable[[str], Any], text: str, most_s: float) -> float:
    began = time.process_time()
    work(text)
    took = time.process_time() - began
    assert took < most_s, f"{took:.2f} s for {len(text)} characters of {text[:20]!r}"
    return took


def assert_linear(work: Callable[[str], Any]) -> None:
    """Do *work* for short texts of every kind first, and then for a megabyte of those that took longest."""
    took = {
        (beginning, piece): seconds(work, text_of(beginning, piece, SHORT), SHORT_S)
        for piece in PIECES
        for beginning in BEGINNINGS
    }
    for beginning, piece in sorted(took, key=lambda kind: -took[kind])[:SLOWEST]:
        seconds(work, text_of(beginning, piece, LONG), LONG_S)


def text_of(beginning: str, piece: str, length: int) -> str:
    return (beginning + piece * (length // len(piece) + 1))[:length]


def modules() -> list[ModuleType]:
    return [import_module(f"products.{found.name}") for found in iter_modules(products.__path__)]


def patterns_in(value: object) -> Iterator["re.Pattern[str]"]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from patterns_in(each)
    elif isinstance(value, dict):
        yield from patterns_in([*value.keys(), *value.values()])


def patterns_of_the_manual() -> Iterator["re.Pattern[str]"]:
    """Yield those of the examples, which are copied into products."""
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for text in re.findall(r're\.(?:sub|compile)\(r"([^"\n]+)"', path.read_text("utf-8")):
            yield re.compile(text)


PATTERNS = sorted(
    {pattern for module in modules() for pattern in patterns_in(list(vars(module).values()))}
    | {*patterns_of_the_manual()},
    key=str,
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.pattern)
def test_every_pattern_of_every_product_takes_linear_time(pattern: "re.Pattern[str]") -> None:
    """Whatever a product looks for, in text that its model or its users wrote."""
    assert_linear(lambda text: pattern.sub("", text))


REDACTING = [each for each in modules() if each.Hooks.transform_final_text is not ChatTurnHooks.transform_final_text]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", REDACTING, ids=lambda module: module.__name__)
def test_every_product_redacts_a_hostile_answer_in_linear_time(module: ModuleType) -> None:
    """The whole hook, however it is made."""
    hooks: ChatTurnHooks = module.Hooks({})
    assert_linear(lambda text: asyncio.run(hooks.transform_final_text(text)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "redact",
    [without_secrets, is_secret_name, without_uri_secrets, lambda text: without_secret_members([text])],
    ids=["texts", "names", "addresses", "members"],
)
def test_every_redactor_takes_linear_time(redact: Callable[[str], Any]) -> None:
    """What is shown to operators was written by strangers: messages, arguments of tools, errors of APIs."""
    assert_linear(redact)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("read", [to_sse, lambda text: nests_deeper(text, 32)], ids=["events", "depth"])
def test_what_reads_every_text_takes_linear_time(read: Callable[[str], Any]) -> None:
    """On its way in and out."""
    assert_linear(read)
