"""What a whole turn costs the isolate's processor, counted in calls of functions: no load of the machine changes that."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from chatturn.backends.openai.backend import create_openai_compatible_backend
from products.assistant import Hooks
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
