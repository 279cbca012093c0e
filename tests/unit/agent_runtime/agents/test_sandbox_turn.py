"""A turn with an agent in a sandbox: real HTTP, and a scripted sandbox that misbehaves."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from chatturn.agent_runtime.agents.sandbox_turn import (
    AuthHeader,
    ChatTurnMessage,
    ChatTurnOverlay,
    ChatTurnSandbox,
    HttpSandbox,
    RunChatTurnOptions,
    SandboxConnection,
    compose_turn_profile,
    run_chat_turn,
    sandbox_as_chat_turn_target,
)
from chatturn.agent_runtime.tasks.task_backends import AgentBackendInput, create_sandbox_prompt_backend
from chatturn.agent_runtime.tasks.task_steps import DurableTask
from chatturn.agent_runtime.tasks.task_stream import RunAgentTaskStreamOptions, run_agent_task_stream
from chatturn.agent_runtime.values.events import FinalEvent, TextDeltaEvent
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.durable.local_stores import FileSystemDurableRunStore
from chatturn.errors import (
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendTransportError,
    ChatTurnError,
    ValidationError,
)
from tests.support.agent_tasks import TASK
from tests.support.http_transport import HttpTransport
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script

PROFILE = {"prompt": {"systemPrompt": "You read contracts."}, "metadata": {"owner": "legal"}}
KEY = "Bearer sandbox-key-abcdefgh12345678"
HEL, LO = '{"type":"text_delta","data":{"text":"hel"}}', '{"type":"text_delta","data":{"text":"lo"}}'
HELLO = Script(frames=(HEL, LO, "[DONE]"))
TOLD = [json.loads(HEL), json.loads(LO)]
PATIENT = BackendRetryPolicy(max_attempts=3, initial_backoff_ms=1, max_backoff_ms=1, request_timeout_ms=30_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def target(server: Upstream, **members: Any) -> ChatTurnSandbox:
    url = server.url.removesuffix("/v1")
    return ChatTurnSandbox(
        **{"id": "box-1", "runtime_url": url, "auth_header": AuthHeader(name="authorization", value=KEY), **members}
    )


_OPEN: list[HttpTransport] = []


def connection(**members: Any) -> SandboxConnection:
    _OPEN.append(HttpTransport())
    return SandboxConnection(**{"transport": _OPEN[-1], "retry": PATIENT, "idle_timeout_ms": 30_000, **members})


def options(
    server: Upstream, content: str = "hi", *, over: SandboxConnection | None = None, **members: Any
) -> RunChatTurnOptions:
    given = {"sandbox": target(server), "connection": over or connection(), "profile": PROFILE, "content": content}
    return RunChatTurnOptions(**{**given, **members})


def real(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run *main* in real time: a socket cannot be told when to be ready."""

    async def closing() -> Any:
        try:
            return await main()
        finally:
            while _OPEN:
                await _OPEN.pop()._client.aclose()

    return asyncio.run(closing())


def told(server: Upstream, content: str = "hi", **members: Any) -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        return [event async for event in run_chat_turn(options(server, content, **members))]

    found: list[dict[str, Any]] = real(main)
    return found


# What is sent


def test_the_request_is_what_a_sandbox_understands(server: Upstream) -> None:
    """agent-runtime's own test: path, body and headers."""
    server.on("wire shape", HELLO)
    prior = [ChatTurnMessage(role="user", content="Hello"), ChatTurnMessage(role="assistant", content="Hi")]
    told(server, "wire shape", prior=prior, model="opus", request_id="turn-7")
    [call] = server.calls("wire shape")

    assert "/runtime/agents/run/stream" == call.path
    assert {
        "backend": {"type": "claude-code", "profile": PROFILE, "model": {"default": "opus"}},
        "messages": [
            {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "wire shape"},
        ],
    } == call.body  # fmt: skip
    assert ("text/event-stream", KEY, "turn-7") == tuple(
        call.headers[name] for name in ("accept", "authorization", "idempotency-key")
    )


def test_the_auth_header_is_sent_as_it_is(server: Upstream) -> None:
    """agent-runtime's own test: one header, under any name."""
    server.on("own header", HELLO)
    told(server, "own header", sandbox=target(server, auth_header=AuthHeader(name="x-box-key", value="k-7 of box-1")))
    headers = server.calls("own header")[0].headers

    assert ("k-7 of box-1", False) == (headers["x-box-key"], "authorization" in headers)


def test_without_an_auth_header_none_is_sent(server: Upstream) -> None:
    server.on("no key", HELLO)
    told(server, "no key", sandbox=target(server, auth_header=None))

    assert "authorization" not in server.calls("no key")[0].headers


def test_a_profile_may_name_its_backend(server: Upstream) -> None:
    server.on("own backend", HELLO)
    told(server, "own backend", profile={"metadata": {"backend": {"type": "codex"}}})

    assert {"type": "codex", "profile": {"metadata": {"backend": {"type": "codex"}}}} == server.calls("own backend")[
        0
    ].body["backend"]


def test_a_profile_that_is_no_json_is_refused(server: Upstream) -> None:
    with pytest.raises(ValidationError, match="JSON"):
        told(server, profile={"a": {1, 2}})


def test_a_key_is_not_shown() -> None:
    """Not in the repr of anything that has it."""
    sandbox = ChatTurnSandbox(
        id="box-1", runtime_url="https://box.example", auth_header=AuthHeader(name="authorization", value=KEY)
    )

    box = HttpSandbox(target=sandbox, connection=connection(), profile=PROFILE)
    assert KEY not in repr((sandbox, box, create_sandbox_prompt_backend(box)))


@pytest.mark.parametrize(("name", "value"), [("x-key", "a\r\nhost: evil"), ("x key", "a"), ("", "a"), ("x-key", "é")])
def test_a_header_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        AuthHeader(name=name, value=value)


# What is read


@pytest.mark.parametrize(
    ("word", "script"),
    [
        ("plain", HELLO),
        ("byte by byte", Script(frames=HELLO.frames, chunk_bytes=1)),
        ("crlf", Script(frames=HELLO.frames, newline="\r\n", chunk_bytes=3)),
        ("heartbeats", Script(frames=HELLO.frames, heartbeats=True)),
        ("without an end mark", Script(frames=(HEL, LO))),
        ("garbage between", Script(frames=("keepalive", HEL, "[1]", "7", LO, "[DONE]"))),
        ("blanks", Script(frames=(HEL, " ", LO))),
        ("silence after the end", Script(frames=HELLO.frames, ending="hang")),
    ],
)
def test_events_are_read_however_they_are_sent(server: Upstream, word: str, script: Script) -> None:
    """agent-runtime's parser works on lines of chunks: a line that has no LF yet is lost, or taken for text (O3, O4)."""
    server.on(word, script)

    assert told(server, word) == TOLD


@pytest.mark.parametrize(
    ("word", "script", "error"),
    [
        ("cut", Script(frames=(HEL, LO), chunk_bytes=20, stop_after=4, ending="cut"), BackendProtocolError),
        ("reset", Script(frames=(HEL, LO), stop_after=1, ending="reset"), BackendProtocolError),
        ("half a frame", Script(frames=(HEL, LO), chunk_bytes=60, stop_after=1), BackendProtocolError),
        ("nothing", Script(frames=()), BackendProtocolError),
        ("only garbage", Script(frames=("keepalive",)), BackendProtocolError),
        ("too long", Script(frames=("x" * 9_000_000,)), BackendProtocolError),
        ("stalled", Script(frames=(HEL, LO), stop_after=1, ending="hang"), BackendTimeout),
        ("no headers", Script(frames=(HEL,), before_headers_s=None), BackendTimeout),
    ],
)  # fmt: skip
def test_a_turn_that_does_not_end_well_raises(
    server: Upstream, word: str, script: Script, error: type[ChatTurnError]
) -> None:
    """There it is silent, or hangs for ever (O1, O5)."""
    server.on(word, script)
    within_ms = 150 if error is BackendTimeout else 30_000
    once = BackendRetryPolicy(max_attempts=1, request_timeout_ms=within_ms)

    with pytest.raises(error) as raised:
        told(server, word, over=connection(idle_timeout_ms=within_ms, retry=once))
    assert isinstance(raised.value, ChatTurnError)


def test_a_refusal_has_its_status_and_the_beginning_of_its_answer(server: Upstream) -> None:
    """agent-runtime's own test of what is not 2xx."""
    server.on("unauthorized", Script(status=401, body=json.dumps({"error": "wrong key"}) + "x" * 10_000))

    with pytest.raises(BackendRejected) as raised:
        told(server, "unauthorized")
    assert isinstance(raised.value, ChatTurnError)
    assert 401 == raised.value.upstream_status
    assert raised.value.detail.startswith('{"error": "wrong key"}')
    assert len(raised.value.detail) <= 2_048
    assert KEY not in repr(raised.value)


@pytest.mark.parametrize("quoted", [KEY, KEY.removeprefix("Bearer "), json.dumps({"authorization": KEY})])
def test_a_key_that_a_sandbox_quotes_is_not_told(server: Upstream, quoted: str) -> None:
    """Not by a refusal, which a task's last event has, and not by an event."""
    server.on(f"refuses {len(quoted)}", Script(status=401, body=f"{quoted} is not known here"))
    with pytest.raises(BackendRejected) as raised:
        told(server, f"refuses {len(quoted)}")
    server.on(f"tells {len(quoted)}", Script(frames=(json.dumps({"type": "log", "deep": [quoted]}), "[DONE]")))
    events = told(server, f"tells {len(quoted)}")
    refused = as_task(server, f"refuses {len(quoted)}")

    secret = KEY.removeprefix("Bearer ")
    assert secret not in raised.value.detail + str(raised.value) + repr(events) + repr(refused)
    assert "[redacted]" in raised.value.detail
    assert "[redacted]" in repr(events)


def test_a_failure_that_passes_is_tried_again_under_the_same_key(server: Upstream) -> None:
    server.on("passing", Script(status=503, body="{}"), Script(status=502, body="{}"), HELLO)

    assert told(server, "passing") == TOLD
    assert 1 == len({call.key for call in server.calls("passing")})
    assert 3 == len(server.calls("passing"))


def test_nobody_there_is_a_transport_error() -> None:
    async def main() -> None:
        sandbox = ChatTurnSandbox(id="box-1", runtime_url="http://127.0.0.1:9")
        given = RunChatTurnOptions(sandbox=sandbox, connection=connection(), profile={}, content="hi")
        await anext(run_chat_turn(given))

    with pytest.raises(BackendTransportError) as raised:
        real(main)
    assert 0 == raised.value.upstream_status


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_whoever_stops_reading_closes_the_connection(server: Upstream, how: str) -> None:
    """At once, in the middle of the body."""
    server.on(f"left by {how}", Script(frames=(HEL, LO), stop_after=1, ending="hang"))

    async def main() -> None:
        async def read() -> None:
            async with aclosing(run_chat_turn(options(server, f"left by {how}"))) as events:
                async for _ in events:
                    if how == "close":
                        return

        reading = asyncio.ensure_future(read())
        await asyncio.wait({reading}, timeout=0.3)
        reading.cancel()
        await asyncio.wait({reading})

    real(main)
    [call] = server.calls(f"left by {how}")
    assert call.wait_closed(2)


# Profiles


BASE = {
    "name": "lawyer",
    "prompt": {"systemPrompt": "You read contracts.", "style": "short"},
    "resources": {"files": ["a.pdf"], "limits": {"cpu": 1}},
    "subagents": {"reader": {"prompt": "Read."}},
    "metadata": {"owner": "legal"},
}


def test_an_overlay_of_nothing_changes_nothing() -> None:
    composed = compose_turn_profile(BASE, ChatTurnOverlay())

    assert composed == BASE
    assert composed is not BASE


def test_an_overlay_s_prompt_and_metadata_take_the_place_of_the_same() -> None:
    composed = compose_turn_profile(BASE, ChatTurnOverlay(prompt={"systemPrompt": "You write."}, metadata={"turn": 3}))

    assert ({"systemPrompt": "You write.", "style": "short"}, {"owner": "legal", "turn": 3}) == (
        composed["prompt"],
        composed["metadata"],
    )


def test_an_overlay_adds_resources_and_subagents() -> None:
    overlay = ChatTurnOverlay(
        resources={"files": ["b.pdf"], "limits": {"memory": 2}, "urls": ["x"]},
        subagents={"writer": {}, "reader": {"prompt": "Look."}},
    )
    composed = compose_turn_profile(BASE, overlay)

    assert {"files": ["a.pdf", "b.pdf"], "limits": {"cpu": 1, "memory": 2}, "urls": ["x"]} == composed["resources"]
    assert {"reader": {"prompt": "Look."}, "writer": {}} == composed["subagents"]


def test_what_is_done_to_a_composed_profile_changes_neither_part() -> None:
    files = ["b.pdf"]
    overlay = ChatTurnOverlay(resources={"files": files})
    composed = compose_turn_profile(BASE, overlay)
    composed["resources"]["files"].append("c.pdf")
    composed["prompt"]["style"] = "long"

    assert (["b.pdf"], ["a.pdf"], "short") == (files, BASE["resources"]["files"], BASE["prompt"]["style"])  # type: ignore[index]
    assert {"prompt": {"a": 1}} == compose_turn_profile({}, ChatTurnOverlay(prompt={"a": 1}))


def test_a_profile_of_another_shape_is_refused() -> None:
    with pytest.raises(ValidationError, match="prompt"):
        compose_turn_profile({"prompt": "You read."}, ChatTurnOverlay(prompt={"a": 1}))


# Targets


@pytest.mark.parametrize(
    "instance",
    [
        {"id": "box-1", "url": "https://box.example///"}, {"id": "box-1", "connection": {"runtimeUrl": "https://box.example/"}},
        {"id": "box-1", "url": None, "connection": {"runtimeUrl": "https://box.example"}}, SimpleNamespace(id="box-1", url="https://box.example"),
        SimpleNamespace(id="box-1", connection=SimpleNamespace(runtime_url="https://box.example/")),
    ],
)  # fmt: skip
def test_a_sandbox_is_a_target(instance: Any) -> None:
    auth = AuthHeader(name="x-key", value="k")
    found = sandbox_as_chat_turn_target(instance, auth_header=auth)

    assert ChatTurnSandbox(id="box-1", runtime_url="https://box.example", auth_header=auth) == found


@pytest.mark.parametrize(
    "instance",
    [
        {},
        {"id": "box-1"},
        {"url": "https://box.example"},
        {"id": "box-1", "url": "ftp://box"},
        {"id": 7, "url": "https://x"},
    ],
)
def test_a_sandbox_without_an_address_is_none(instance: Any) -> None:
    with pytest.raises(ValidationError):
        sandbox_as_chat_turn_target(instance)


# As the backend of a task


@pytest.mark.parametrize("secret", [KEY, KEY.removeprefix("Bearer ")])
@pytest.mark.parametrize("size", [1, 5, 11])
def test_a_key_that_a_sandbox_quotes_in_pieces_is_told_by_no_task(server: Upstream, secret: str, size: int) -> None:
    """Not in any event, nor in all of them together."""
    quoted, message = f"I have {secret}.", f"pieces {size} {len(secret)}"
    pieces = [quoted[at : at + size] for at in range(0, len(quoted), size)]
    server.on(
        message, Script(frames=(*(json.dumps({"type": "text_delta", "text": each}) for each in pieces), "[DONE]"))
    )
    events = as_task(server, message)

    said = "".join(event.text for event in events if isinstance(event, TextDeltaEvent))
    assert "I have [redacted]." == said.replace("Bearer ", "") == (events[-1].text or "").replace("Bearer ", "")
    assert KEY.removeprefix("Bearer ") not in repr(events)


def as_task(server: Upstream, message: str | None, **members: Any) -> list[Any]:
    async def main() -> list[Any]:
        box = HttpSandbox(target=target(server), connection=connection(), profile=PROFILE)
        backend = create_sandbox_prompt_backend(box, **members)
        given = RunAgentTaskStreamOptions(task=TASK, backend=backend, message=message, session_id="s1")
        return [event async for event in run_agent_task_stream(given)]

    found: list[Any] = real(main)
    return found


def test_a_sandbox_answers_a_task(server: Upstream) -> None:
    """agent-runtime's own test of how its events are mapped; the result at the end is not said twice (O6)."""
    frames = (
        HEL,
        '{"type":"tool_call","name":"read","id":"c1","input":{"page":1}}',
        LO,
        '{"type":"result","data":{"finalText":"hello"}}',
    )
    server.on("as a task", Script(frames=frames))
    events = as_task(server, "as a task")

    assert [
        "session_created",
        "backend_start",
        "text_delta",
        "tool_call",
        "text_delta",
        "backend_end",
        "task_end",
        "final",
    ] == [event.type for event in events[3:]]
    assert ("hello", "sandbox", {"resumable": True}) == (
        events[-1].text,
        events[3].session.backend,
        events[3].session.metadata,
    )


def test_two_attempts_at_one_task_ask_under_one_key(server: Upstream) -> None:
    """So that a sandbox that knows it does not work, and bill, twice; another task asks under another one."""
    server.on("twice", Script(status=400, body="{}"), HELLO, HELLO)

    async def main(path: str, run_id: str) -> AgentTaskStatus:
        store = FileSystemDurableRunStore(path)
        box = HttpSandbox(target=target(server), connection=connection(), profile=PROFILE)
        given = RunAgentTaskStreamOptions(
            task=TASK,
            backend=create_sandbox_prompt_backend(box),
            message="twice",
            durable=DurableTask(store=store, run_id=run_id, project_id="test-project"),
        )
        events = [event async for event in run_agent_task_stream(given)]
        await store.close()
        assert isinstance(events[-1], FinalEvent)
        return events[-1].status

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/runs.sqlite3"
        ends = [real(partial(main, path, run_id)) for run_id in ("run-1", "run-1", "run-2")]
    first, second, third = (call.key for call in server.calls("twice"))

    assert [AgentTaskStatus.FAILED, AgentTaskStatus.COMPLETED, AgentTaskStatus.COMPLETED] == ends
    assert first == second != third
    assert first


def test_a_sandbox_is_asked_the_task_s_intent_where_nothing_is_said(server: Upstream) -> None:
    server.on(TASK.intent, HELLO)
    as_task(server, None, get_session_id=lambda _: "own-session", kind="box")

    assert TASK.intent == server.calls(TASK.intent)[0].message


def test_what_is_asked_is_one_text() -> None:
    """The message, or else the last one's text, or else the intent."""
    hi = {"role": "user", "content": "Hi."}

    assert ["Hello.", "Hi.", TASK.intent, TASK.intent] == [
        AgentBackendInput(task=TASK, messages=messages, message=message).prompt
        for messages, message in (([hi], "Hello."), ([hi], None), ([{**hi, "content": [{"type": "image"}]}], None), ([], None))
    ]  # fmt: skip


def test_a_product_may_map_a_sandbox_s_events(server: Upstream) -> None:
    server.on("mapped", Script(frames=('{"kind":"say","words":"hi"}', '{"kind":"noise"}')))
    events = as_task(
        server,
        "mapped",
        map_event=lambda event: {"type": "text_delta", "text": event["words"]} if "words" in event else None,
    )

    assert "hi" == events[-1].text


def test_a_sandbox_that_breaks_off_fails_the_task(server: Upstream) -> None:
    server.on("broken", Script(frames=(HEL, LO), stop_after=1, ending="reset"))
    end = as_task(server, "broken")[-1]

    assert isinstance(end, FinalEvent)
    assert (AgentTaskStatus.FAILED, "hel", "backend_protocol") == (end.status, end.text, end.reason)


def test_a_sandbox_that_reports_an_error_fails_the_task(server: Upstream) -> None:
    server.on("reports", Script(frames=(HEL, '{"type":"error","message":"out of credit"}')))
    end = as_task(server, "reports")[-1]

    assert (AgentTaskStatus.FAILED, "backend_reported") == (end.status, end.reason)
    assert "out of credit" == end.error.body
