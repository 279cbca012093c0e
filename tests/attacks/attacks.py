"""The attacks: each with what it may get at most."""

import socket
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.attacks.rig import Attack, Target
from tests.support.client import Client
from tests.support.http import http

__all__ = ["ATTACKS"]

_PRODUCTS: Final = Path(__file__).parent / "products"
_FILES: Final = Path(__file__).parents[1] / "worker" / "files.toml"
_READERS: Final = 500
_WAITING_MB: Final = 192
"""What 500 requests that only wait take of workerd is in it: 70 MB."""

_STALLED_S: Final = 12.0
_RUNNING: Final = 40
_EVENTS: Final = 50
_HALF: Final = b'{"message": "hel'
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_STREAM: Final = "/v1/sessions/long/turns/0/stream"
_KEY: Final[Mapping[str, str]] = {"idempotency-key": "long"}
_COMPLETIONS: Final = "/v1/chat/completions"
_COMPLETION: Final = '{"model": "default", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


def _answer_of_two_megabytes(target: Target) -> None:
    """
    Make the log, and read it as users do, with as many other requests at once as the attack has.

    JavaScript's memory grows with the first requests of any kind, and is the same for all after that.
    """
    client = Client(target.worker.url)
    client.post("long")
    headers = {**client.headers, **_KEY, "content-type": "application/json"}
    http.post(
        f"{target.worker.url}{_COMPLETIONS}", content=_COMPLETION, headers=headers, timeout=120
    ).raise_for_status()
    for _ in range(3):
        with ExitStack() as stack:
            asked = [
                stack.enter_context(closing(_stalled(target, client, client.address("none")))) for _ in range(_READERS)
            ]
            for connection in asked:
                connection.recv(64)
    for _ in range(30):
        http.get(f"{client.address('long')}/stream", headers=client.headers)


def _stalled(
    target: Target,
    client: Client,
    path: str,
    *,
    buffer: int = 4_096,
    named: Mapping[str, str] = _NOTHING,
    body: str = "",
) -> socket.socket:
    """Send a request, and take nothing of what comes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", target.worker.server.port))
    authorization, path = client.headers["authorization"], path.removeprefix(target.worker.url)
    named = {"host": "localhost", "authorization": authorization, **named}
    if body:
        named = {**named, "content-type": "application/json", "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    connection.sendall(f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\n{head}\r\n{body}".encode())
    return connection


def _stalled_readers(
    target: Target, path: str = _STREAM, *, named: Mapping[str, str] = _NOTHING, body: str = ""
) -> None:
    """Of ten users, or of one if they send a body, who take nothing for a while; another reads the log meanwhile."""
    with ExitStack() as stack:
        for number in range(_READERS):
            client = Client(target.worker.url, **({} if body else {"sub": f"stalled-{number % 10}"}))
            stack.enter_context(closing(_stalled(target, client, path, named=named, body=body)))
        time.sleep(_STALLED_S)
        reader = Client(target.worker.url, sub="reader")
        headers = {**reader.headers, "accept": "text/event-stream"}
        answer = http.get(f"{target.worker.url}{_STREAM}", headers=headers, timeout=120)
    target.expect(holds=answer.status_code == 200, what=f"a reader gets {answer.status_code}")
    target.expect(holds="session.run.completed" in answer.text[-1_000:], what="a reader does not get the whole log")


def _stalled_downloads(target: Target) -> None:
    """Of one user, of one file; he gets it again meanwhile."""
    client = Client(target.worker.url)
    content = b"\x89PNG" * 1_048_576
    headers = {**client.headers, "content-type": "image/png"}
    sent = http.post(f"{target.worker.url}/v1/files", content=content, headers=headers, timeout=60)
    path = f"/v1/files/{sent.json()['file']}"
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(closing(_stalled(target, client, path)))
        time.sleep(_STALLED_S)
        got = http.get(f"{target.worker.url}{path}", headers=client.headers, timeout=60)
    target.expect(holds=got.content == content, what=f"the file is answered with {got.status_code}")


def _begun_post(target: Target, client: Client, number: int, *, length: int) -> socket.socket:
    """Begin to post a turn: the head of the request, which announces a body of so many bytes."""
    connection = socket.create_connection(_address(target), timeout=60)
    connection.sendall(
        f"POST /v1/sessions/half-{number}/turns/0 HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/json\r\nauthorization: {client.headers['authorization']}\r\n"
        f"content-length: {length}\r\n\r\n".encode()
    )
    return connection


def _half_sent_bodies(target: Target) -> None:
    client = Client(target.worker.url)
    with ExitStack() as stack:
        connections = []
        for number in range(300):
            connection = stack.enter_context(closing(_begun_post(target, client, number, length=500)))
            connection.sendall(_HALF)
            connections.append(connection)
        told = sum(b" 408 " in connection.recv(64) for connection in connections)
    target.expect(holds=told == len(connections), what=f"{told} of {len(connections)} are told 408")


def _half_sent_megabytes(target: Target) -> None:
    """Of one user; another one's long message is answered meanwhile."""
    client, other = Client(target.worker.url), Client(target.worker.url, sub="bob")
    body = b'{"message": "' + b"x" * 1_000_000
    with ExitStack() as stack:
        connections = []
        for number in range(300):
            connection = stack.enter_context(closing(_begun_post(target, client, number, length=len(body) + 2)))
            with suppress(TimeoutError, BlockingIOError):
                connection.setblocking(False)
                connection.send(body)
            connection.settimeout(60)
            connections.append(connection)
        answered = other.post("other", "y" * 100_000)[-1]["type"]
        told = sum(b" 408 " in connection.recv(64) for connection in connections)
    target.expect(holds=told == len(connections), what=f"{told} of {len(connections)} are told 408")
    target.expect(holds=answered == "session.run.completed", what=f"another user's turn ends as {answered}")


def _address(target: Target) -> tuple[str, int]:
    return "127.0.0.1", target.worker.server.port


def _hostile_text(target: Target) -> None:
    """What took a pattern of the product a minute."""
    client = Client(target.worker.url)
    messages = ["a" * 200_000, "a." * 100_000, "1 " * 100_000, "a@" * 100_000, "§ " * 100_000]
    with ThreadPoolExecutor(len(messages)) as pool:
        ends = pool.map(lambda each: client.post(f"hostile-{each[:2].encode().hex()}", each)[-1]["type"], messages)
    target.expect(holds=set(ends) == {"session.run.completed"}, what=f"turns end as {set(ends)}")


def _twenty_turns_at_once(target: Target) -> None:
    """Each costs more than there is."""

    def ask(number: int) -> str:
        lines = Client(target.worker.url).post("dear", f"question {number}", number, when_busy="parallel")
        return str(lines[-1]["data"].get("code", "completed"))

    with ThreadPoolExecutor(20) as pool:
        ends = list(pool.map(ask, range(20)))
    target.expect(holds=ends.count("completed") == 1, what=f"{ends.count('completed')} of 20 are answered")
    target.expect(holds=ends.count("budget_exceeded") == 19, what=f"the others end as {set(ends)}")


def _turns_without_end(target: Target) -> None:
    """Of one user; another one is answered meanwhile."""
    client, other = Client(target.worker.url), Client(target.worker.url, sub="bob")

    def begin(number: int) -> int:
        with client.stream(f"many-{number}") as response:
            return response.status_code  # and go away

    with ThreadPoolExecutor(40) as pool:
        statuses = Counter(pool.map(begin, range(160)))
        answered = other.post("other")[-1]["type"]
    running = target.worker.sql("SELECT count(*) AS runs FROM durable_runs WHERE run_id LIKE '%many-%'")[0]["runs"]
    target.expect(holds=set(statuses) == {200, 429}, what=f"statuses are {statuses}")
    target.expect(holds=statuses[200] == running <= _RUNNING, what=f"{running} turns were begun")
    target.expect(holds=answered == "session.run.completed", what=f"another user's turn ends as {answered}")


def _events_without_end(target: Target) -> None:
    """Of 60 kB each, to one turn."""
    client = Client(target.worker.url)

    def emit(number: int) -> int:
        address = f"{target.worker.url}/v1/runs/chat:acme:waits:0/events/key-{number}"
        return http.post(address, json={"payload": "x" * 60_000}, headers=client.headers).status_code

    with client.stream("waits"), ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(emit, range(200)))
    [stored] = target.worker.sql("SELECT count(*) AS events FROM durable_events")
    target.expect(holds=statuses == {200: _EVENTS, 429: 200 - _EVENTS}, what=f"statuses are {statuses}")
    target.expect(holds=stored["events"] == _EVENTS, what=f"{stored['events']} events are stored")


def _requests_without_end(target: Target) -> None:
    """Of one user, as fast as they are answered; another one's are not refused."""
    client, other = Client(target.worker.url), Client(target.worker.url, sub="bob")

    def ask(_number: int) -> int:
        return http.get(client.address("none"), headers=client.headers).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(ask, range(600)))
        status = http.get(other.address("none"), headers=other.headers).status_code
    target.expect(holds=statuses[429] > statuses[404], what=f"statuses are {statuses}")
    target.expect(holds=status == 404, what=f"another user is told {status}")


ATTACKS: Final[Mapping[str, Attack]] = {
    "stalled": Attack(
        title="500 readers of a log of 2 MB that take nothing",
        prepare=_answer_of_two_megabytes,
        run=_stalled_readers,
        products={"long_answer": _PRODUCTS / "long_answer.py"},
        variables={"PRODUCT": "long_answer"},
        most_mb=96,  # 64 are wanted, and taken in four runs of five: when JavaScript's memory is collected differs
        most_health_ms=15_000,  # five hundred requests at once
    ),
    **{
        name: Attack(
            title=f"the same, {title}",
            prepare=_answer_of_two_megabytes,
            run=run,
            products={"long_answer": _PRODUCTS / "long_answer.py"},
            variables={"PRODUCT": "long_answer"},
            most_mb=_WAITING_MB,
            most_health_ms=15_000,
        )
        for name, title, run in (
            (
                "stalled-events",
                "as server-sent events",
                partial(_stalled_readers, named={"accept": "text/event-stream"}),
            ),
            ("stalled-chats", "as an AI SDK stream", partial(_stalled_readers, path="/v1/ai-sdk/chat/long/stream")),
            (
                "stalled-completions",
                "as a chat completion that is sent again",
                partial(_stalled_readers, path=_COMPLETIONS, named=_KEY, body=_COMPLETION),
            ),
        )
    },
    "files": Attack(
        title="100 readers of a file of 4 MB that take nothing",
        run=_stalled_downloads,
        deployment=_FILES,
        most_mb=128,
        most_health_ms=15_000,
    ),
    "bodies": Attack(
        title="300 requests whose bodies stop in the middle",
        run=_half_sent_bodies,
        variables={"BODY_TIMEOUT_MS": "3000"},
        most_mb=64,
        most_health_ms=15_000,
    ),
    "megabytes": Attack(
        title="300 bodies of a megabyte that stop before their end, of one user",
        run=_half_sent_megabytes,
        variables={"BODY_TIMEOUT_MS": "8000"},
        most_mb=128,
        most_health_ms=15_000,
    ),
    "patterns": Attack(
        title="text that a product's patterns would have taken a minute for",
        run=_hostile_text,
        products={"repeats": _PRODUCTS / "repeats.py"},
        variables={"PRODUCT": "repeats"},
        most_mb=64,
        most_health_ms=15_000,
    ),
    "budget": Attack(
        title="20 turns at once on a budget that is all but spent",
        run=_twenty_turns_at_once,
        variables={
            "MODEL": "echo",
            "PRICES": '{"echo": {"in": 1, "out": 1}}',
            "BUDGET_SESSION_MICRO_USD": "1",
        },
        most_mb=64,
        most_health_ms=15_000,
    ),
    "turns": Attack(
        title="160 slow turns at once, of one user who may run 40",
        run=_turns_without_end,
        products={"slow_answer": _PRODUCTS / "slow_answer.py"},
        variables={"PRODUCT": "slow_answer", "RUNNING_TURNS_SUBJECT": str(_RUNNING)},
        most_mb=128,
        most_health_ms=15_000,
    ),
    "events": Attack(
        title="200 events of 60 kB to one turn that may have 50",
        run=_events_without_end,
        products={"slow_answer": _PRODUCTS / "slow_answer.py"},
        variables={"PRODUCT": "slow_answer", "RUN_EVENTS": str(_EVENTS)},
        most_mb=128,
        most_health_ms=15_000,
    ),
    "requests": Attack(
        title="600 requests as fast as they are answered, of one user who may send 400 a minute",
        run=_requests_without_end,
        variables={"RATE_SUBJECT_PER_MINUTE": "400"},
        most_mb=64,
        most_health_ms=15_000,
    ),
}
