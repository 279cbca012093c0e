"""What a whole turn costs the isolate's processor, counted in calls of functions: no load of the machine changes that."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest

from chatturn.backends.openai.backend import create_openai_compatible_backend
from products.assistant import Hooks
from tests.support.isolates import Isolate, Reader
from tests.support.transport import BodyPart, Reply, ScriptedTransport
from tests.support.turns import Desk, open_sqlite

EVENTS = 2_000


def frame(content: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'model': 'm', 'choices': [choice]})}\n\n".encode()


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the calls of our functions."""
    calls = [0]

    def see(called: FrameType, event: str, _: object) -> None:
        calls[0] += event == "call" and "/src/chatturn/" in called.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize(("together", "most_per_event"), [(1, 61), (10, 7), (EVENTS, 0.7)])
async def test_an_answer_of_2000_events_costs_so_many_calls(together: int, most_per_event: float) -> None:
    """Each alone, as slow models send them; some in each chunk of the network; all at once."""
    frames = [frame(f"w{number} ") for number in range(EVENTS)]
    chunks = [b"".join(frames[at : at + together]) for at in range(0, EVENTS, together)]
    body: list[BodyPart] = [part for chunk in chunks for part in (chunk, 0.01)]
    transport = ScriptedTransport([Reply(body=[*body, frame("", "stop"), b"data: [DONE]\n\n"])])
    backend = create_openai_compatible_backend(
        transport=transport, base_url="http://m/v1", api_key="", model="m", uniform=lambda *_: 0.0, now=lambda: 0.0
    )
    with open_sqlite() as database, counted() as calls:
        lines = await Desk(database, Hooks(), backend=backend).run()

    assert lines[-1]["type"] == "session.run.completed"
    assert calls[0] / EVENTS <= most_per_event


def asked(route: str, index: int) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a session's turn, by a route; its client sends the whole thread."""
    said = [{"role": "user", "content": "hi", "parts": [{"type": "text", "text": "hi"}]} for _ in range(index + 1)]
    if route == "native":
        return f"/v1/sessions/thread-1/turns/{index}", {"message": "hi"}
    if route == "AI SDK":
        return "/v1/ai-sdk/chat", {"id": "thread-1", "messages": said}
    body = {"model": "default", "messages": said, "metadata": {"session_id": "thread-1"}, "stream": True}
    return "/v1/chat/completions", body


def done_by(isolate: Isolate, calls: list[int]) -> tuple[int, int]:
    """Return how many calls of functions there were, and how many round trips to the database."""
    return calls[0], isolate.wire.batches


class FirstByte(Reader):
    """A reader that notes what was done before its first byte."""

    def __init__(self, look: Callable[[], tuple[int, int]]) -> None:
        super().__init__()
        self.look, self.before = look, (0, 0)

    def write(self, text: str) -> None:
        """Take what the turn says."""
        self.before = self.before if self.text else self.look()
        super().write(text)


async def test_the_routes_of_other_clients_do_little_more_before_their_first_byte() -> None:
    """No round trip more, but for a completion whose earlier questions are compared with those of its session."""
    before = dict[str, list[tuple[int, int]]]()
    for route in ("warm up", "native", "AI SDK", "OpenAI"):
        with open_sqlite() as database:
            isolate = Isolate(database, Hooks(), settings={"THREADS": "on"})
            for index in range(2):
                path, body = asked(route, index)
                isolate.wire.batches = 0
                with counted() as calls:
                    reader = FirstByte(partial(done_by, isolate, calls))
                    reply = await isolate.ask("POST", path, body, reader=reader)
                    assert reply.task is not None
                    await reply.task
                before.setdefault(route, []).append(reader.before)

    [(first, _), (second, _)] = before["native"]
    for route, trips in (("native", [1, 1]), ("AI SDK", [1, 1]), ("OpenAI", [1, 2])):
        assert trips == [each for _, each in before[route]]
        assert all(calls <= 1.2 * native for (calls, _), native in zip(before[route], (first, second), strict=True))
