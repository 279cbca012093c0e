"""The recorded answers of model APIs against the backend itself, in virtual time, and cut in every way there is."""

import json
import re
from collections.abc import Mapping
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatturn.backends.api import AgentBackendContext, AgentBackendInput
from chatturn.backends.openai.backend import create_openai_compatible_backend
from chatturn.backends.openai.completions import CompletionReader
from chatturn.backends.openai.ends import known_words
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.errors import BackendError, BackendTransportError, EmptyAnswer
from chatturn.events import ChatStreamEvent, TextAssembly, encode_line, events_of
from tests.models.cases import Case, Recorded, all_cases
from tests.models.table import table
from tests.models.verdict import Outcome, differences
from tests.support.transport import BodyPart, Reply, ScriptedTransport

# What is the turn's to say, not the backend's; or packed by HTTP, which the platform unpacks.
_OF_A_TURN: Final = frozenset({"told", "log"})
_PACKED: Final = "gzip"
ALONE: Final = [case for case in all_cases() if case.tools == "none" and case.name != _PACKED]
BODIES: Final = sorted(
    {answer.content() for case in all_cases() for answer in case.answers if answer.status == 200} - {b""}
)


def reply(recorded: Recorded) -> Reply:
    """Return *recorded* for the scripted transport."""
    body: list[BodyPart] = []
    for pause_s, chunk in recorded.chunks:
        body += [pause_s, chunk] if pause_s else [chunk]
    ends: Mapping[str, list[BodyPart]] = {
        "rst": [BackendTransportError("reset", backend="test")],
        "fin": [BackendTransportError("cut", backend="test")],
        "hang": [recorded.hang_ms / 1000, BackendTransportError("cut", backend="test")],
    }
    body += ends.get(recorded.end, [])
    headers = {name.lower(): value for name, value in recorded.headers.items()}
    return Reply(status=recorded.status, headers=headers, body=body, after_s=recorded.before_headers_ms / 1000)


class PlayingTransport(ScriptedTransport):
    """Answers as a case was recorded."""

    def __init__(self, case: Case) -> None:
        super().__init__([])
        self._case = case

    def send(self, request: Any) -> Any:
        """Choose the answer by the request."""
        recorded = self._case.answer(len(self.exchanges)).for_request(request.headers, request.body)
        self._script.append(reply(recorded))
        return super().send(request)


async def outcome(case: Case) -> Outcome:
    """Ask once, and return what a turn's client would see of it."""
    transport = PlayingTransport(case)
    backend = create_openai_compatible_backend(
        transport=transport,
        base_url="https://api.example/v1",
        api_key="sk-1",
        model="m",
        uniform=lambda _low, _high: 0.0,
        now=lambda: 0.0,
        retry=BackendRetryPolicy(max_attempts=3),
    )
    asked = AgentBackendInput(messages=[{"role": "user", "content": case.message}])
    events: list[ChatStreamEvent] = []
    assembly = TextAssembly()
    last = "session.run.completed"
    try:
        async with aclosing(cast("Any", backend.stream(asked, AgentBackendContext(request_id="r")))) as stream:
            async for batch in stream:
                events += events_of(batch)
        assembly.add_all(events)
        if not assembly.text():
            raise EmptyAnswer("said nothing", backend="test")  # as the turn does
    except BackendError as error:
        events.append(ChatStreamEvent("error", {"code": error.code, "retryable": error.retryable}))
        last = "session.run.failed"
    lines = [json.loads(encode_line(event, None, 1)) for event in [*events, ChatStreamEvent(last)]]
    return Outcome(lines=lines, requests=len(transport.exchanges))


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
async def test_a_recorded_answer_comes_to_what_it_should(case: Case) -> None:
    """Each of them was once read wrongly by somebody."""
    want = {kind: value for kind, value in case.want.items() if kind not in _OF_A_TURN}

    assert [] == differences(want, await outcome(case))


def read(chunks: list[bytes]) -> tuple[str, list[ChatStreamEvent], str]:
    """Read a body; return its text, its other events, and the code of its failure."""
    reader = CompletionReader(model="m", backend="test", tools=("add_note", "wipe"))
    events: list[ChatStreamEvent] = []
    code = ""
    for chunk in chunks:
        if reader.done:
            break
        events += [event for batch in reader.feed(chunk) for event in batch]
    try:
        events += reader.finish()
    except BackendError as error:
        code = f"{error.code}: {error.detail}"
    assembly = TextAssembly()
    assembly.add_all(events)
    others = [event for event in events if event.type != "message.part.updated"]
    reasoning = "".join(
        (event.data or {})["delta"] for event in events if (event.data or {}).get("part", {}).get("type") == "reasoning"
    )
    return f"{assembly.text()}\n{reasoning}", others, code


def cut(body: bytes, places: list[int]) -> list[bytes]:
    """Cut *body* at *places*."""
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


@settings(max_examples=400)
@given(st.sampled_from(BODIES), st.lists(st.integers(0, 10_000), max_size=20))
def test_where_the_network_cuts_an_answer_makes_no_difference(body: bytes, places: list[int]) -> None:
    """Every recorded body comes to the same, in one piece, byte by byte, and cut anywhere."""
    expected = read([body])

    assert expected == read(cut(body, places))


@pytest.mark.parametrize("body", BODIES)
def test_an_answer_that_trickles_in_is_the_same(body: bytes) -> None:
    """Byte by byte is the same as at once."""
    assert read([body]) == read([body[at : at + 1] for at in range(len(body))])


NOISE: Final = [
    b": keepalive\n\n",
    b":\n\n",
    b"\n",
    b"data:\n\n",
    b'data: ""\n\n',
    b"event: ping\ndata: {}\n\n",
    b"retry: 5\n\n",
]


@settings(max_examples=400)
@given(
    st.sampled_from([body for body in BODIES if body.startswith(b"data: {") and b"\n\ndata" in body]),
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(NOISE)), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=10),
)
def test_noise_between_frames_makes_no_difference(
    body: bytes, noises: list[tuple[int, bytes]], places: list[int]
) -> None:
    """Comments, empty data and signs of life say nothing, wherever they stand between two frames."""
    frames = [frame + b"\n\n" for frame in body.split(b"\n\n")]
    frames[-1] = frames[-1][:-2]
    for place, noise in noises:
        frames.insert(place % (len(frames) - 1), noise)

    assert read([body]) == read(cut(b"".join(frames), places))


@settings(max_examples=200)
@given(st.sampled_from(BODIES), st.integers(0, 10_000), st.integers(0, 10_000))
def test_joined_pieces_of_answers_are_read_without_a_crash(body: bytes, start: int, end: int) -> None:
    """Whatever part of an answer stands in front of another, it comes to something, cut or not."""
    joined = body[start % len(body) :] + body[: end % len(body)]

    assert read([joined]) == read(cut(joined, [start, end]))


def test_the_manual_has_the_table() -> None:
    """Every recorded answer stands in the manual, with what it comes to."""
    page = (Path(__file__).parents[4] / "docs/reference/model-apis.md").read_text()

    assert page.endswith(table())


def test_the_manual_has_every_reason() -> None:
    """The words of the manual's table come to what it says."""
    page = (Path(__file__).parents[4] / "docs/reference/model-apis.md").read_text()
    rows = re.findall(
        r"^\| (`(?:stop|tool_calls|length|content_filter)`|an error) \| ([a-z_]+(?:, [a-z_]+)*) \|", page, re.MULTILINE
    )
    told = {word: told.strip("`") for told, words in rows for word in words.split(", ")}

    assert told == {word: "an error" if end.is_failure else end.value for word, end in known_words().items()}
