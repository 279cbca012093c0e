"""Who asks too often: what is stored is sent again in every format, readers lose nothing, and all else is refused."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn.http.ai_sdk import AI_SDK_CHAT
from chatturn.http.messages import HttpResponse
from chatturn.http.openai_chat import COMPLETIONS
from chatturn.http.rates import IsolateRate, Rates
from tests.support.isolates import TURN, Isolate, Reply
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import wrap
from tests.turns.test_agent import Model
from tests.turns.test_client_routes import Clerk, seen
from tests.turns.test_client_tools import CHAT, LOOK, LOOKS, Assistant, Guide
from tests.turns.test_versions import Counting

SLOW = (text_delta("a"), 5.0, text_delta("b"))
EVENTS = "text/event-stream"
ON = {"THREADS": "on"}


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


class NoneLeft:
    """A rate that is used up."""

    async def wait_s(self, _key: str) -> float:
        return 7.0


USED_UP = Rates(subject=NoneLeft(), tenant=IsolateRate(0, now=lambda: 0.0))


async def everything(database: SqliteDatabase) -> dict[str, list[Any]]:
    """Return all rows of all tables."""
    [named] = await database.batch([Statement("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")])
    names = [str(row["name"]) for row in named.rows]
    found = await database.batch([Statement(f'SELECT * FROM "{name}"') for name in names])  # noqa: S608 - ours
    return {name: list(map(dict, each.rows)) for name, each in zip(names, found, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Form:
    """
    A request of one client's.

    Attributes:
        path: Its address.
        body: Its body.
        headers: Its headers.
        again: What it has more when it is sent again.
        before: The requests that come first.
    """

    path: str
    body: dict[str, Any]
    headers: dict[str, Any] = field(default_factory=dict)
    again: dict[str, Any] = field(default_factory=dict)
    before: Sequence["Form"] = ()

    async def send(self, isolate: Isolate, **more: Any) -> Reply:
        return await isolate.ask("POST", self.path, self.body, **self.headers, **more)


def ui(*texts: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(texts)
    return [
        {"id": f"m{at}", "role": role, "parts": [{"type": "text", "text": text}]}
        for at, (role, text) in enumerate(zip(roles, texts, strict=False))
    ]


def said(*texts: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def completion(*texts: str, stream: bool = True, **members: Any) -> dict[str, Any]:
    return {"model": "default", "stream": stream, "messages": said(*texts), **members}


NATIVE = Form(path=TURN, body={"message": "hi"})
OF_SESSION = Form(path=COMPLETIONS, body=completion("hi", metadata={"session_id": "thread-1"}))
OF_CHAT = Form(path=AI_SDK_CHAT, body={"id": "thread-1", "messages": ui("hi")})
FORMS = {
    "native": NATIVE,
    "native, an edit": Form(
        path=TURN, body={"message": "ho", "replace": {"kind": "edit", "version": 1}}, before=[NATIVE]
    ),
    "native, a version": Form(
        path=TURN, body={"message": "hi", "replace": {"kind": "regenerate", "version": 1}}, before=[NATIVE]
    ),
    "native, superseding": Form(path=TURN, body={"message": "hi", "on_mismatch": "supersede"}),
    "a key": Form(path=COMPLETIONS, body=completion("hi"), headers={"idempotency_key": "k1"}),
    "a key, whole": Form(path=COMPLETIONS, body=completion("hi", stream=False), headers={"idempotency_key": "k1"}),
    "Open WebUI": Form(
        path=COMPLETIONS,
        body=completion("hi"),
        headers={"x_openwebui_chat_id": "c", "x_openwebui_message_id": "m"},
    ),
    "a retry": Form(path=COMPLETIONS, body=completion("hi"), again={"x_stainless_retry_count": "1"}),
    "a session": OF_SESSION,
    "a session, later": Form(
        path=COMPLETIONS, body=completion("hi", "?", "ho", metadata={"session_id": "thread-1"}), before=[OF_SESSION]
    ),
    "a session, an edit": Form(
        path=COMPLETIONS, body=completion("ho", metadata={"session_id": "thread-1"}), before=[OF_SESSION]
    ),
    "a session, another thread": Form(
        path=COMPLETIONS, body=completion("hey", "?", "ho", metadata={"session_id": "thread-1"}), before=[OF_SESSION]
    ),
    "a chat": OF_CHAT,
    "a chat, later": Form(path=AI_SDK_CHAT, body={"id": "thread-1", "messages": ui("hi", "?", "ho")}, before=[OF_CHAT]),
    "a chat, an edit": Form(
        path=AI_SDK_CHAT, body={"id": "thread-1", "messages": ui("ho"), "messageId": "m0"}, before=[OF_CHAT]
    ),
}


async def read(reply: Reply) -> str:
    """Return what came, without what is new in every answer."""
    assert 200 == reply.status, reply.response.body
    if reply.task is None:
        return reply.response.body.decode()
    await reply.task
    assert not reply.reader.broken_off
    return reply.reader.text


def refusal(reply: Reply) -> tuple[int, str, bool]:
    """Return the status, when to ask again, and whether the code is said."""
    said = reply.response.body.decode() + reply.response.headers.get("X-Error-Code", "")
    return reply.status, reply.response.headers["Retry-After"], "rate_limited" in said


REFUSED = (429, "7", True)


@pytest.mark.parametrize("name", FORMS)
async def test_a_stored_answer_is_sent_again_however_often_its_user_asks(database: SqliteDatabase, name: str) -> None:
    """In each format, as it would be otherwise; nothing is written, and no model is asked."""
    product, form = Counting(), FORMS[name]
    isolate = Isolate(database, product, settings=ON)
    for each in (*form.before, form):
        await read(await each.send(isolate))
    usual = await form.send(isolate, **form.again)
    expected, calls, before = await read(usual), len(product.calls), await everything(database)
    isolate.rates = USED_UP
    replies = [await form.send(isolate, **form.again) for _ in range(3)]

    assert [expected] * 3 == [await read(each) for each in replies]
    named = "X-Workflow-Run-Id"
    assert {usual.response.headers[named]} == {each.response.headers[named] for each in replies}
    assert {"true"} == {each.response.headers["X-Turn-Replayed"] for each in replies}
    assert calls == len(product.calls)
    assert before == await everything(database)


@pytest.mark.parametrize("name", FORMS)
async def test_what_would_begin_an_answer_is_refused(database: SqliteDatabase, name: str) -> None:
    """A turn that is not there, or a version; it is told when to ask again, and nothing is written."""
    product, form = Counting(), FORMS[name]
    isolate = Isolate(database, product, settings=ON)
    for each in form.before:
        await read(await each.send(isolate))
    calls, before = len(product.calls), await everything(database)
    isolate.rates = USED_UP

    assert REFUSED == refusal(await form.send(isolate, **form.again))
    assert calls == len(product.calls)
    assert before == await everything(database)


@pytest.mark.parametrize(
    "other",
    [
        Form(path=TURN, body={"message": "ho"}),
        Form(path=TURN, body={"message": "ho", "on_mismatch": "supersede"}),
        Form(path=TURN, body={"message": "hi", "replace": {"kind": "regenerate", "version": 1}}),
        Form(path=COMPLETIONS, body=completion("ho", metadata={"session_id": "thread-1"})),
        Form(path=AI_SDK_CHAT, body={"id": "thread-1", "messages": ui("ho"), "messageId": "m0"}),
        Form(path=AI_SDK_CHAT, body={"id": "thread-1", "messages": ui("hi"), "trigger": "regenerate-message"}),
        Form(path=TURN + "/cancel", body={}),
        Form(path="/v1/runs/chat:acme:thread-1:0/events/e", body={"payload": 1}),
    ],
    ids=lambda form: f"{form.path} {sorted(form.body)}",
)  # fmt: skip
async def test_a_finished_turn_opens_no_way_to_another_answer(database: SqliteDatabase, other: Form) -> None:
    """Another question, or the same one anew, at the place of a turn that is over."""
    product = Counting()
    isolate = Isolate(database, product, settings=ON)
    await read(await NATIVE.send(isolate))
    before = await everything(database)
    isolate.rates = USED_UP

    assert REFUSED == refusal(await other.send(isolate))
    assert before == await everything(database)
    assert 1 == len(product.calls)


@pytest.mark.parametrize("form", [NATIVE, OF_SESSION, OF_CHAT], ids=["native", "a session", "a chat"])
@pytest.mark.parametrize("threads", ["on", "off"])
async def test_a_failed_turn_is_not_tried_again(database: SqliteDatabase, form: Form, threads: str) -> None:
    """It has no answer that could be sent again."""
    product = Product(RuntimeError("x"))
    isolate = Isolate(database, product, settings={"THREADS": threads})
    reply = await form.send(isolate)
    assert reply.task is not None
    await reply.task
    before = await everything(database)
    isolate.rates = USED_UP

    assert REFUSED == refusal(await form.send(isolate))
    assert before == await everything(database)
    assert 1 == len(product.calls)


async def test_a_message_that_was_asked_at_the_next_index_is_found_there(database: SqliteDatabase) -> None:
    """Sent again at its own index, where another turn is finished: its answer is repeated, its failure not tried."""
    product = Product(*SLOW)
    isolate = Isolate(database, product, settings=ON)
    for session, script in (("answered", SLOW), ("failed", (RuntimeError("x"),))):
        path = f"/v1/sessions/{session}/turns/0"
        product.script = SLOW
        first = await isolate.ask("POST", path, {"message": "one"})
        await asyncio.sleep(1)
        second = await isolate.ask("POST", path, {"message": "two"})
        await first.lines()
        product.script = script
        await second.lines()
    calls, before = len(product.calls), await everything(database)
    isolate.rates = USED_UP
    answered, failed = [
        await isolate.ask("POST", f"/v1/sessions/{session}/turns/0", {"message": "two"})
        for session in ("answered", "failed")
    ]

    assert "chat:acme:answered:1" == answered.response.headers["X-Workflow-Run-Id"]
    assert "b" in await read(answered)
    assert REFUSED == refusal(failed)
    assert (calls, before) == (len(product.calls), await everything(database))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("owned", ["tenant", "subject"])
async def test_a_stranger_learns_nothing_by_asking_too_often(database: SqliteDatabase, name: str, owned: str) -> None:
    """Whether a session is there is told to none but its owner; another tenant has none."""
    form = FORMS[name]
    isolate = Isolate(database, Counting(), settings={**ON, "SESSION_OWNER": owned})
    for each in (*form.before, form):
        await read(await each.send(isolate))
    isolate.rates = USED_UP
    stranger = {"x_tenant": "rival"} if owned == "tenant" else {"x_user": "bob"}

    assert REFUSED == refusal(await form.send(isolate, **stranger))


async def test_results_of_tools_come_again_with_the_answer(database: SqliteDatabase) -> None:
    """The request that brought them is repeated; the first one, which still has none, is refused."""
    isolate = Isolate(database, Assistant(), Model(LOOKS, "done").backend(), settings=ON)
    first = {**completion("hi", stream=False), "tools": [LOOK]}
    asked = (await isolate.ask("POST", COMPLETIONS, first, idempotency_key="k1")).body["choices"][0]["message"]
    [call] = asked["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "seen"}
    second = {**first, "messages": [*first["messages"], asked, result]}
    isolate.rates = USED_UP
    early = await isolate.ask("POST", COMPLETIONS, second, idempotency_key="k2")
    isolate.rates = None
    answered = await isolate.ask("POST", COMPLETIONS, second, idempotency_key="k2")
    before = await everything(database)
    isolate.rates = USED_UP
    again = await isolate.ask("POST", COMPLETIONS, second, idempotency_key="k2")

    assert REFUSED == refusal(early)
    assert "done" == answered.body["choices"][0]["message"]["content"]
    assert answered.body == again.body
    assert before == await everything(database)


async def test_results_in_a_chat_come_again_with_the_answer(database: SqliteDatabase) -> None:
    """As useChat sends them: in the message that they belong to."""
    isolate = Isolate(database, Guide(), Model(LOOKS, "done").backend(), settings=ON)
    [question] = ui("hi")
    posted = await isolate.ask("POST", CHAT, {"id": "c1", "messages": [question]})
    [id_] = set(re.findall(r'"toolCallId":"([^"]+)"', await read(posted)))
    part = {"type": "tool-look", "toolCallId": id_, "state": "output-available", "input": {"at": "it"}, "output": [1]}
    form = Form(path=CHAT, body={"id": "c1", "messages": [question, {"id": "a", "role": "assistant", "parts": [part]}]})
    isolate.rates = USED_UP
    early = await form.send(isolate)
    isolate.rates = None
    await read(await form.send(isolate))
    expected, before = await read(await form.send(isolate)), await everything(database)
    isolate.rates = USED_UP

    assert REFUSED == refusal(early)
    assert expected == await read(await form.send(isolate))
    assert "done" in expected
    assert before == await everything(database)


async def test_a_decision_comes_again_with_the_answer(database: SqliteDatabase) -> None:
    """As useChat sends it; while the turn still waits for it, it is refused, and not recorded."""
    isolate = Isolate(database, Clerk(), settings=ON)
    [question] = ui("use send {}")
    view = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [question]}))
    [tool] = [part for part in view.parts if part["type"] == "dynamic-tool"]
    approval = {"id": tool["approval"], "approved": True}
    decided = {**tool, "toolCallId": tool["id"], "state": "approval-responded", "approval": approval}
    answer = {"id": view.id, "role": "assistant", "parts": [{"type": "step-start"}, decided]}
    form = Form(path=CHAT, body={"id": "c1", "messages": [question, answer], "messageId": view.id})
    waiting = await everything(database)
    isolate.rates = USED_UP
    early, unchanged = await form.send(isolate), waiting == await everything(database)
    isolate.rates = None
    await read(await form.send(isolate))
    expected, before = await read(await form.send(isolate)), await everything(database)
    isolate.rates = USED_UP

    assert REFUSED == refusal(early)
    assert unchanged
    assert expected == await read(await form.send(isolate))
    assert "sent" in expected
    assert before == await everything(database)


# Readers

STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ndjson": (f"{TURN}/stream", {}),
    "ndjson, a cursor": (f"{TURN}/stream?after=1", {}),
    "events": (f"{TURN}/stream", {"accept": EVENTS}),
    "events, a cursor": (f"{TURN}/stream", {"accept": EVENTS, "last_event_id": "1"}),
    "a chat": (f"{AI_SDK_CHAT}/thread-1/stream", {}),
    "a run": (f"{AI_SDK_CHAT}/chat:acme:thread-1:0/stream", {}),
    "a run, a chunk": (f"{AI_SDK_CHAT}/chat:acme:thread-1:0/stream?startIndex=2", {}),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("running", [True, False], ids=["running", "finished"])
async def test_a_reader_comes_back_however_often_its_user_asks(
    database: SqliteDatabase, name: str, *, running: bool
) -> None:
    """With its cursor, while the turn runs and when it is over: it gets what it would get otherwise."""
    isolate = Isolate(database, Product(*SLOW))
    posted = await isolate.post()
    if running:
        await asyncio.sleep(1)
    else:
        await posted.lines()
    path, headers = STREAMS[name]
    usual = await isolate.ask("GET", path, **headers)
    isolate.rates = USED_UP
    limited = await isolate.ask("GET", path, **headers)

    assert await read(usual) == await read(limited)
    assert "b" in limited.reader.text
    assert 1 == len(isolate.hooks.calls)  # type: ignore[attr-defined]  # it is a Product


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_of_no_turn_is_refused(database: SqliteDatabase, name: str) -> None:
    """So that a flood of them costs one look each; a stranger's turn is none."""
    isolate = Isolate(database, Product(), settings={"SESSION_OWNER": "subject"})
    path, headers = STREAMS[name]
    isolate.rates = USED_UP
    none = refusal(await isolate.ask("GET", path, **headers))
    isolate.rates = None
    await (await isolate.post()).lines()
    isolate.rates = USED_UP

    assert REFUSED == none == refusal(await isolate.ask("GET", path, x_user="bob", **headers))


async def test_an_event_source_is_not_ended_by_its_user_s_other_requests(database: SqliteDatabase) -> None:
    """It shows a ticket, and never asks again once it was refused."""
    isolate = Isolate(database, Product(*SLOW))
    await isolate.post()
    address = (await isolate.ask("POST", f"{TURN}/ticket")).body["stream"]
    isolate.rates = USED_UP
    first = await isolate.ask("GET", address, accept=EVENTS)
    await asyncio.sleep(1)
    first.reader.leave()
    [*_, last] = re.findall(r"^id: (\S+)$", first.reader.text, re.MULTILINE)
    second = await isolate.ask("GET", address, accept=EVENTS, last_event_id=last)

    assert "session.run.completed" in await read(second)
    assert 429 == (await isolate.ask("GET", address.replace("/turns/0/", "/turns/1/"), accept=EVENTS)).status


@pytest.mark.parametrize(
    "form",
    [Form(path=TURN, body={"message": "hi", "follow": True}), OF_SESSION, OF_CHAT],
    ids=["native", "a session", "a chat"],
)
async def test_who_posts_a_running_turn_again_follows_it(database: SqliteDatabase, form: Form) -> None:
    """So do clients that cannot resume a stream by any other request."""
    product = Product(*SLOW)
    isolate = Isolate(database, product, settings=ON)
    first = await form.send(isolate)
    await asyncio.sleep(1)
    isolate.rates = USED_UP
    second = await form.send(isolate)

    assert "b" in await read(second)
    await read(first)
    assert 1 == len(product.calls)


async def test_a_reader_takes_over_a_turn_whose_worker_is_lost(database: SqliteDatabase) -> None:
    """The turn was counted when it was begun; its answer must not wait for its user's rate."""
    lost = Isolate(database, Product(*SLOW))
    await OF_CHAT.send(lost)
    await asyncio.sleep(1)
    await lost.kill()
    isolate = Isolate(database, Product(*SLOW))
    isolate.rates = USED_UP
    reader = await isolate.ask("GET", f"{AI_SDK_CHAT}/thread-1/stream")
    again = await OF_CHAT.send(isolate)

    assert "b" in await read(reader)
    assert "b" in await read(again)
    assert 1 == len(isolate.hooks.calls)  # type: ignore[attr-defined]  # it is a Product


# What it costs


@pytest.mark.parametrize(
    ("name", "replayed", "refused"),
    [
        ("native", 2, 1),
        ("a key", 4, 1),
        ("Open WebUI", 4, 1),
        ("a retry", 4, 2),
        ("a session", 3, 1),
        ("a session, later", 5, 1),
        ("a chat", 3, 1),
        ("a chat, later", 3, 1),
    ],
)
async def test_a_flood_of_replays_costs_a_few_looks_each(
    database: SqliteDatabase, name: str, replayed: int, refused: int
) -> None:
    """In batches of reads: at most two more than without a flood; what is refused, one."""
    form = FORMS[name]
    isolate = Isolate(database, Counting(), settings=ON)
    wrapped = wrap(isolate)
    isolate.rates = USED_UP
    assert REFUSED == refusal(await form.send(isolate, **form.again))
    looked = wrapped.batches
    isolate.rates = None
    for each in (*form.before, form):
        await read(await each.send(isolate))
    isolate.rates = USED_UP
    before = wrapped.batches
    await read(await form.send(isolate, **form.again))

    assert (refused, replayed) == (looked, wrapped.batches - before)


@pytest.mark.parametrize("name", ["native", "a key", "Open WebUI"])
async def test_what_names_no_finished_turn_is_refused_before_its_body_is_read(
    database: SqliteDatabase, name: str
) -> None:
    """A body that cannot be read is not even looked at."""
    form = FORMS[name]
    isolate = Isolate(database, Counting(), settings=ON)
    isolate.rates = USED_UP

    assert REFUSED == refusal(await isolate.ask("POST", form.path, b"no JSON", **form.headers))


async def test_a_session_s_owner_begins_nothing_either(database: SqliteDatabase) -> None:
    """It does not count requests: a replay is answered without it, and a reader goes to where its turn runs."""

    class Owner:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def forward(self, _tenant_id: str, session_id: str, _body: bytes | None = None) -> HttpResponse:
            self.asked.append(session_id)
            return HttpResponse(status=200, headers={})

    isolate = Isolate(database, Counting(), settings=ON)
    await read(await NATIVE.send(isolate))
    isolate.rates, isolate.owner = USED_UP, (owner := Owner())
    for form in (NATIVE, OF_SESSION, OF_CHAT):
        assert "hi/1" in (await read(await form.send(isolate)))
    refused = [form for form in FORMS.values() if form.before]

    assert [REFUSED] * len(refused) == [refusal(await form.send(isolate)) for form in refused]
    assert [] == owner.asked
    await isolate.ask("GET", f"{TURN}/stream")
    assert ["thread-1"] == owner.asked


# The other limits


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "limits",
    [
        {"TURNS_SUBJECT_PER_DAY": "1", "TURNS_TENANT_PER_DAY": "1"},
        {"BYTES_SUBJECT_PER_DAY": "1", "BYTES_TENANT_PER_DAY": "1"},
        {"RUNNING_TURNS_SUBJECT": "1", "RUNNING_TURNS_TENANT": "1"},
        {"BUDGET_SESSION_MICRO_USD": "1", "BUDGET_TENANT_DAY_MICRO_USD": "1", "BUDGET_TURN_MICRO_USD": "1"},
        {"MODELS": "another", "ALLOW_PARAMETERS": ""},
    ],
    ids=lambda limits: next(iter(limits)),
)
async def test_no_other_limit_refuses_a_replay(database: SqliteDatabase, name: str, limits: dict[str, str]) -> None:
    """What may be begun no more was begun before; while another turn runs, too."""
    form = FORMS[name]
    before = Isolate(database, Counting(), settings=ON)
    for each in (*form.before, form):
        await read(await each.send(before))
    running = await before.ask("POST", "/v1/sessions/another/turns/0", {"message": "hi"})
    isolate = Isolate(database, Counting(), settings={**ON, **limits})
    again = await form.send(isolate, **form.again)

    assert "true" == again.response.headers["X-Turn-Replayed"]
    await read(again)
    await read(running)
    assert not isolate.hooks.calls  # type: ignore[attr-defined]  # it is a Product
