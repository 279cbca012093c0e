"""
What a Cloudflare account has, as wrangler tells it: the one on the PATH, with which its user is logged in, else ours.

wrangler tells errors in blocks of text: `error_of` finds the first, and `Unanswered` says what to do about it.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dev import wrangler

__all__ = ["Unanswered", "error_of", "migrations_left", "secret_names"]

_ANSWER_SECONDS: Final = 120
_UNAPPLIED: Final = re.compile(r"\b\d{4}_\w+\.sql\b")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_ERROR: Final = re.compile(r"^\S* ?\[ERROR\] (.*(?:\n(?:[ \t].*)?)*)", re.MULTILINE)
_MOST_LINES: Final = 12
_USELESS: Final = re.compile(r"If you think this is a bug.*|\s+at .*|.*Logs were written to.*")

_NEVER_UPLOADED: Final = re.compile(r'Worker "[^"]*"( \(env: [^)]*\))? not found|does not exist|\b10007\b')
"""Of a Worker that was never uploaded; its first secret makes it."""

_MENDS: Final = (
    (r"account ID", "set CLOUDFLARE_ACCOUNT_ID, or account_id in wrangler.toml"),
    (r"fetch failed|does not answer|malformed response", "look at the network, and try again"),
    (r"\b7404\b", "wrangler d1 create, and put the id that it prints into wrangler.toml"),
    (r"\b(9106|9109|10000|10001)\b|CLOUDFLARE_API_TOKEN|logged in", "wrangler login, or set CLOUDFLARE_API_TOKEN"),
)
_MEND_ANYTHING: Final = "try again; the words above are wrangler's own"


class Unanswered(Exception):
    """
    wrangler could not answer.

    Attributes:
        said: Its own words.
    """

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said

    @property
    def mend(self) -> str:
        """What to type."""
        return next((mend for pattern, mend in _MENDS if re.search(pattern, self.said)), _MEND_ANYTHING)


def secret_names(file: Path, environment: str) -> set[str]:
    """
    Return the names of a Worker's secrets; none of one that was never uploaded.

    Args:
        file: ``wrangler.toml``.
        environment: In it; "" for the top of the file.

    Raises:
        Unanswered: wrangler does not say.
    """
    try:
        answer = _ask(file, environment, "secret", "list", "--format", "json")
    except Unanswered as error:
        if _NEVER_UPLOADED.search(error.said):
            return set()
        raise
    return {secret["name"] for secret in _list_in(answer)}


def migrations_left(file: Path, environment: str, binding: str) -> Sequence[str]:
    """
    Return the migrations that a database lacks.

    Args:
        file: ``wrangler.toml``.
        environment: In it; "" for the top of the file.
        binding: The database's.

    Raises:
        Unanswered: wrangler does not say.
    """
    answer = _ask(file, environment, "d1", "migrations", "list", binding, "--remote")
    return sorted(set(_UNAPPLIED.findall(answer)))


def error_of(output: str) -> str:
    """Return the first error that wrangler tells in *output*; if it tells none, the end of it."""
    text = _COLOUR.sub("", output)
    found = _ERROR.search(text)
    lines = [line.rstrip() for line in (found[1] if found else text).splitlines()]
    said = [line for line in lines if line and not _USELESS.fullmatch(line.strip()) and not _USELESS.fullmatch(line)]
    return "\n".join(said[:_MOST_LINES] if found else said[-_MOST_LINES:])


def _ask(file: Path, environment: str, *arguments: str) -> str:
    """Return what wrangler answers."""
    found = shutil.which("wrangler")
    command = [found, *arguments] if found else wrangler.command(*arguments)
    try:
        finished = subprocess.run(
            [*command, "--config", str(file), f"--env={environment}"],
            cwd=file.parent,
            env={**os.environ, "CI": "1", "NO_COLOR": "1", "WRANGLER_HIDE_BANNER": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unanswered(f"it does not answer within {_ANSWER_SECONDS} s") from None
    except OSError as error:
        raise Unanswered(f"{command[0]} cannot be run: {error.strerror}") from error
    if finished.returncode:
        raise Unanswered(error_of(f"{finished.stderr}\n{finished.stdout}"))
    return finished.stdout


def _list_in(output: str) -> list[dict[str, Any]]:
    """Return the JSON array in *output*, whatever stands around it."""
    for match in re.finditer(r"^\s*\[", output, re.MULTILINE):
        try:
            found: list[dict[str, Any]] = json.JSONDecoder().raw_decode(output, match.end() - 1)[0]
        except ValueError:
            continue
        if all(isinstance(each, dict) and "name" in each for each in found):
            return found
    raise Unanswered(f"no list of secrets:\n{error_of(output)}")
