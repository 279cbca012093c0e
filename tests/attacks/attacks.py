"""The attacks: each with what it may get at most."""

import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from tests.attacks.rig import Attack, Target
from tests.support.client import Client
from tests.support.http import http

__all__ = ["ATTACKS"]

_PRODUCTS: Final = Path(__file__).parent / "products"
_READERS: Final = 500
_STALLED_S: Final = 12.0
_HALF: Final = b'{"message": "hel'


def _answer_of_two_megabytes(target: Target) -> None:
    """
    Make the log, and read it as users do, with as many other requests at once as the attack has.

    JavaScript's memory grows with the first requests of any kind, and is the same for all after that.
    """
    client = Client(target.worker.url)
    client.post("long")
    for _ in range(3):
        with ExitStack() as stack:
            asked = [
                stack.enter_context(closing(_stalled(target, client, client.address("none")))) for _ in range(_READERS)
            ]
            for connection in asked:
                connection.recv(64)
    for _ in range(30):
        http.get(f"{client.address('long')}/stream", headers=client.headers)


def _stalled(target: Target, client: Client, path: str, *, buffer: int = 4_096) -> socket.socket:
    """Send a request, and take nothing of what comes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", target.worker.server.port))
    authorization, path = client.headers["authorization"], path.removeprefix(target.worker.url)
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {authorization}\r\n\r\n".encode())
    return connection


def _stalled_readers(target: Target) -> None:
    """Of ten users, who take nothing for a while; another one reads the whole log meanwhile."""
    path = "/v1/sessions/long/turns/0/stream"
    with ExitStack() as stack:
        for number in range(_READERS):
            client = Client(target.worker.url, sub=f"stalled-{number % 10}")
            stack.enter_context(closing(_stalled(target, client, f"{path}")))
        time.sleep(_STALLED_S)
        reader = Client(target.worker.url, sub="reader")
        headers = {**reader.headers, "accept": "text/event-stream"}
        answer = http.get(f"{target.worker.url}{path}", headers=headers, timeout=120)
    target.expect(holds=answer.status_code == 200, what=f"a reader gets {answer.status_code}")
    target.expect(holds="session.run.completed" in answer.text[-1_000:], what="a reader does not get the whole log")


def _half_sent_bodies(target: Target) -> None:
    client = Client(target.worker.url)
    with ExitStack() as stack:
        connections = []
        for number in range(300):
            connection = stack.enter_context(closing(socket.create_connection(_address(target), timeout=60)))
            connection.sendall(
                f"POST /v1/sessions/half-{number}/turns/0 HTTP/1.1\r\nhost: localhost\r\n"
                f"content-type: application/json\r\nauthorization: {client.headers['authorization']}\r\n"
                "content-length: 500\r\n\r\n".encode()
                + _HALF
            )
            connections.append(connection)
        told = sum(b" 408 " in connection.recv(64) for connection in connections)
    target.expect(holds=told == len(connections), what=f"{told} of {len(connections)} are told 408")


def _address(target: Target) -> tuple[str, int]:
    return "127.0.0.1", target.worker.server.port


def _hostile_text(target: Target) -> None:
    """What took a pattern of the product a minute."""
    client = Client(target.worker.url)
    messages = ["a" * 200_000, "a." * 100_000, "1 " * 100_000, "a@" * 100_000, "§ " * 100_000]
    with ThreadPoolExecutor(len(messages)) as pool:
        ends = pool.map(lambda each: client.post(f"hostile-{each[:2].encode().hex()}", each)[-1]["type"], messages)
    target.expect(holds=set(ends) == {"session.run.completed"}, what=f"turns end as {set(ends)}")


ATTACKS: Final[Mapping[str, Attack]] = {
    "stalled": Attack(
        title="500 readers of a log of 2 MB that take nothing",
        prepare=_answer_of_two_megabytes,
        run=_stalled_readers,
        products={"long_answer": _PRODUCTS / "long_answer.py"},
        variables={"PRODUCT": "long_answer"},
        most_mb=64,
        most_health_ms=8_000,  # five hundred requests at once
    ),
    "bodies": Attack(
        title="300 requests whose bodies stop in the middle",
        run=_half_sent_bodies,
        variables={"BODY_TIMEOUT_MS": "3000"},
        most_mb=64,
        most_health_ms=5_000,
    ),
    "patterns": Attack(
        title="text that a product's patterns would have taken a minute for",
        run=_hostile_text,
        variables={"PRODUCT": "legal"},
        most_mb=64,
        most_health_ms=5_000,
    ),
}
