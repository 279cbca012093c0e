"""A chat client as tests need it: signs its own tokens, and reads lines as they come."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import jwt

from tests.support.http import ANSWER_SECONDS, http
from tests.support.worker import SECRET

__all__ = ["Client", "answer_of", "lines_of", "parsed", "token"]


def token(**claims: Any) -> str:
    """Return a token of tenant ``acme``, unless *claims* say otherwise; None leaves a claim out."""
    standard = {"tenant": "acme", "sub": "ann", "scope": "turns", "exp": int(time.time()) + 600}
    return jwt.encode({name: value for name, value in {**standard, **claims}.items() if value is not None}, SECRET)


class Client:
    """Speaks to one Worker in the name of one user."""

    def __init__(self, url: str, **claims: Any) -> None:
        self._url = url
        self.headers = {"authorization": f"Bearer {token(**claims)}"}

    def address(self, session: str, index: int = 0) -> str:
        """Return the address of a turn."""
        return f"{self._url}/v1/sessions/{session}/turns/{index}"

    @contextmanager
    def stream(self, session: str, message: str = "hello", index: int = 0, **members: Any) -> Iterator[httpx.Response]:
        """Post a turn and give its response before its body."""
        with http.stream(
            "POST",
            self.address(session, index),
            json={"message": message, **members},
            headers=self.headers,
            timeout=60,
        ) as response:
            yield response

    def post(self, session: str, message: str = "hello", index: int = 0, **members: Any) -> list[dict[str, Any]]:
        """Post a turn and return its lines."""
        with self.stream(session, message, index, **members) as response:
            assert response.status_code == 200, response.read()
            return parsed(response)

    def problem(
        self, session: str, message: str = "hello", index: int = 0, **members: Any
    ) -> tuple[int, dict[str, Any]]:
        """Post a turn that is refused, and return the status and the problem."""
        with self.stream(session, message, index, **members) as response:
            assert response.headers["content-type"] == "application/problem+json"
            return response.status_code, json.loads(response.read())

    def settle(
        self, session: str, message: str = "hello", index: int = 0, seconds: float = 60.0
    ) -> list[dict[str, Any]]:
        """Post a turn until it is answered, waiting as told while it is in flight."""
        deadline = time.monotonic() + seconds
        while True:
            with self.stream(session, message, index) as response:
                if response.status_code == 200:
                    return parsed(response)
                assert response.status_code == 409, response.read()
                wait_s = float(response.headers["retry-after"])
            assert time.monotonic() + wait_s < deadline, f"still in flight; told to wait {wait_s} s"
            time.sleep(wait_s)

    def show(self, session: str, index: int = 0) -> httpx.Response:
        """Get a turn."""
        return http.get(self.address(session, index), headers=self.headers)

    def wait_for(self, session: str, status: str, index: int = 0) -> None:
        """Look at a turn until it has a status."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while (view := self.show(session, index).json())["status"] != status:
            assert time.monotonic() < deadline, view
            time.sleep(0.05)


def lines_of(response: httpx.Response) -> Iterator[str]:
    """Yield a response's lines as they come.  Split at LF only: `iter_lines` also splits at U+2028."""
    rest = ""
    for text in response.iter_text():
        *lines, rest = (rest + text).split("\n")
        yield from lines
    assert rest == "", "the last line has no end"


def parsed(response: httpx.Response) -> list[dict[str, Any]]:
    """Read a response's lines to the end."""
    return [json.loads(line) for line in lines_of(response)]


def answer_of(lines: list[dict[str, Any]]) -> str:
    """Put the answer together from a turn's lines, fresh or replayed."""
    results = [line["data"]["finalText"] for line in lines if line["type"] == "result"]
    deltas = [line["data"]["delta"] for line in lines if line["type"] == "message.part.updated"]
    return results[0] if results else "".join(deltas)
