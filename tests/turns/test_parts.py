"""Messages with images and files: part of the turn and of the thread, and sent as each API takes them."""

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from chatturn.backends.providers import PRESETS, Model, Provider
from chatturn.backends.routing import Means, create_backend
from chatturn.chat.files import MAX_FILE_BYTES, MAX_LOADED_BYTES, FileFacts, Files
from chatturn.chat.requests import TurnRequest
from chatturn.chat.turn.sinks import BufferSink, NoSink
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import (
    DurableRunInputMismatchError,
    FileMissing,
    FilesNotKept,
    FilesUnavailable,
    InvalidField,
    PayloadTooLarge,
)
from chatturn.settings import Settings
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from products.assistant import Hooks as Assistant
from tests.support.isolates import Isolate
from tests.support.transport import Reply, ScriptedTransport
from tests.support.turns import IDENTITY, events_of, open_sqlite
from tests.unit.backends.openai.test_backend import OK

PICTURE = f"data:image/png;base64,{base64.b64encode(b'picture').decode()}"
IMAGE = {"type": "image", "url": PICTURE}
PAPER = {"type": "file", "url": "data:application/pdf;base64,cGFwZXI=", "name": "a.pdf"}
TEXT = {"type": "text", "text": "what is this?"}
SHOWN = {"type": "image_url", "image_url": {"url": PICTURE}}


class KeptFiles:
    """An object store in memory, which may be down; a worker that dies at its *fuse* does nothing more with it."""

    def __init__(self, fuse: Fuse | None = None) -> None:
        self.fuse = Fuse() if fuse is None else fuse
        self.files: dict[str, tuple[FileFacts, bytes]] = {}
        self.down = False
        self.asked: list[str] = []

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        self.fuse.pass_by(what)
        if self.down:
            raise FilesUnavailable("it is down")

    async def put(self, key: str, data: bytes, facts: FileFacts) -> None:
        self._ask("put")
        self.files[key] = facts, data

    async def head(self, key: str) -> FileFacts | None:
        self._ask("head")
        return self.files[key][0] if key in self.files else None

    async def get(self, key: str) -> bytes | None:
        self._ask("get")
        return self.files[key][1] if key in self.files else None

    async def stream(self, key: str, size: int) -> tuple[str, int]:
        self._ask("stream")
        return key, size

    async def keys(self, prefix: str, limit: int, *, after: str = "") -> Sequence[str]:
        self._ask("list")
        return sorted(key for key in self.files if key.startswith(prefix) and key > after)[:limit]

    async def delete(self, keys: Sequence[str]) -> None:
        self._ask("delete")
        for key in keys:
            del self.files[key]


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def isolate(
    database: SqliteDatabase, replies: list[Reply], *, kind: str = "openai", store: Any = None, **settings: str
) -> tuple[Isolate, ScriptedTransport]:
    """Return an isolate whose model is behind a preset, and the transport that has the record."""
    transport = ScriptedTransport(replies)
    preset = PRESETS[kind]
    provider = Provider(
        name=kind, kind=kind, url="https://api.test/v1", others=Model(takes=preset.takes), files_as=preset.files_as
    )
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    backend = create_backend(replace(Settings(), model="m"), [provider], means)
    alone = Isolate(database, Assistant(), backend, {"MODEL": "m", **settings}, file_store=store)
    return alone, transport


async def turn(alone: Isolate, index: int = 0, *parts: Any, message: str = "what is this?", **members: Any) -> Any:
    """Ask a turn to its end, and return its lines."""
    request = TurnRequest(message=message, parts=parts, **members)
    sink = BufferSink()
    await (await alone.service.open(replace(IDENTITY, turn_index=index), request)).run(sink)
    return events_of(sink.text())


def contents(transport: ScriptedTransport) -> list[Any]:
    """Return the content of each message of the latest request."""
    return [message["content"] for message in json.loads(transport.exchanges[-1].request.body)["messages"]]


def project_and_day(key: str) -> tuple[str, str]:
    """Return whose a key is, and of which day."""
    _, project, *others = key.split("/")
    return project, next(each for each in others if len(each) == len("20260101"))


async def keep(store: KeptFiles, data: bytes = b"picture", **facts: Any) -> str:
    """Keep a file of ann's, and return its id."""
    about = FileFacts(**{"media_type": "image/png", "name": "", "size": len(data), "user_id": "ann", **facts})
    return await Files(project_id="chatturn", store=store).keep("acme", about, data, "2026-01-01")


async def test_an_image_reaches_the_model_and_is_part_of_the_turn(database: SqliteDatabase) -> None:
    """The same one replays without a call; another one, or none, is another turn."""
    alone, transport = isolate(database, [OK])
    await turn(alone, 0, TEXT, IMAGE)
    await turn(alone, 0, TEXT, IMAGE)
    for other in ((), (TEXT, PAPER), (TEXT, {**IMAGE, "url": PICTURE[:-4] + "AAAA"})):
        with pytest.raises(DurableRunInputMismatchError):
            await turn(alone, 0, *other)

    assert contents(transport)[-1] == [TEXT, SHOWN]
    assert len(transport.exchanges) == 1


async def test_an_image_is_shown_again_in_later_turns_and_in_the_list(database: SqliteDatabase) -> None:
    """As it was said; a list has it, too."""
    alone, transport = isolate(database, [OK, OK])
    await turn(alone, 0, TEXT, IMAGE)
    await turn(alone, 1, message="and now?")
    page = await alone.ask("GET", "/v1/sessions/thread-1/messages")
    [asked, answered, *_] = page.body["messages"]

    assert contents(transport)[-3:] == [[TEXT, SHOWN], "Hello", "and now?"]
    assert (asked["content"], asked["parts"], "parts" in answered) == ("what is this?", [TEXT, IMAGE], False)


async def test_what_is_too_large_for_the_history_is_named_instead(database: SqliteDatabase) -> None:
    """Its text stays, the log says which turn is not whole, and the list says how long it is."""
    large = {"type": "image", "url": f"data:image/png;base64,{'A' * 8000}"}
    alone, transport = isolate(database, [OK, OK], HISTORY_CHARACTERS="4000")
    await turn(alone, 0, TEXT, large)
    lines = await turn(alone, 1, message="and now?")
    [context] = [line["data"] for line in lines if line["type"] == "context"]
    page = await alone.ask("GET", "/v1/sessions/thread-1/messages")
    [asked, *_] = page.body["messages"]

    assert contents(transport)[-3].startswith("what is this?\n[images or files")
    assert context["shortened"] == [0]
    assert asked["parts"][1] == {"type": "image", "characters": len(large["url"])}


async def test_a_takeover_asks_with_the_same_parts(database: SqliteDatabase) -> None:
    """They are stored with the turn, whose worker died before it said anything."""
    alone, transport = isolate(database, [OK])
    await alone.service.open(IDENTITY, TurnRequest(message="", parts=[IMAGE]))
    await asyncio.sleep(61)
    await (await alone.service.reopen("chat:acme:thread-1:0")).run(NoSink())

    assert contents(transport)[-1] == [SHOWN]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("deepseek", IMAGE),
        ("ollama", {"type": "image", "url": "https://example.com/a.png"}),
        ("groq", PAPER),
        ("openai", {"type": "file", "url": "https://example.com/a.pdf"}),
    ],
)
async def test_what_the_model_does_not_take_is_refused_before_anything_is_written(
    database: SqliteDatabase, kind: str, part: Any
) -> None:
    """And in a history from before, a note stands for it."""
    before, _ = isolate(database, [OK], kind="openrouter")
    await turn(before, 0, TEXT, part)
    alone, transport = isolate(database, [OK], kind=kind)
    with pytest.raises(InvalidField, match="takes no") as refused:
        await turn(alone, 1, TEXT, part)

    assert refused.value.field == "message"
    assert await alone.service.show(replace(IDENTITY, turn_index=1)) is None
    assert await turn(alone, 0, TEXT, part)  # a replay is never refused
    await turn(alone, 1, message="and now?")
    note = "[image]" if part["type"] == "image" else f"[file: {part.get('name', 'file')}]"
    assert contents(transport)[-3] == f"what is this?\n{note}"


async def test_files_are_sent_in_the_form_of_each_api(database: SqliteDatabase) -> None:
    """OpenAI's own, and Mistral's."""
    forms = []
    for index, kind in enumerate(("openai", "mistral")):
        alone, transport = isolate(database, [OK], kind=kind)
        await turn(alone, index, PAPER, message="", history=[])
        forms.append(contents(transport)[-1])

    assert forms == [
        [{"type": "file", "file": {"filename": "a.pdf", "file_data": PAPER["url"]}}],
        [{"type": "document_url", "document_url": PAPER["url"], "document_name": "a.pdf"}],
    ]


async def test_a_stored_file_is_loaded_for_the_model_only(database: SqliteDatabase) -> None:
    """The database has its id; later turns show it again, and a note once it is gone."""
    store = KeptFiles()
    file_id = await keep(store)
    alone, transport = isolate(database, [OK, OK, OK], store=store)
    await turn(alone, 0, {"type": "image", "file": file_id}, message="")
    first = contents(transport)[-1]
    await turn(alone, 1, message="and now?")
    again = contents(transport)[-3]
    store.files.clear()
    await turn(alone, 2, message="still?")

    assert (first, again, contents(transport)[-5]) == ([SHOWN], [SHOWN], "[image]")
    [stored] = await database.batch([Statement("SELECT parts_json FROM chat_turns WHERE turn_index = 0")])
    assert json.loads(str(stored.rows[0]["parts_json"])) == [{"type": "image", "file": file_id}]


async def test_a_file_that_is_not_there_is_refused_before_anything_is_written(database: SqliteDatabase) -> None:
    """So is another tenant's, another user's where sessions have owners, one too large, and any without a store."""
    store = KeptFiles()
    own = await keep(store)
    others = await keep(store, b"bob's", user_id="bob")
    large = [await keep(store, b"x", size=MAX_LOADED_BYTES), await keep(store, b"y")]
    gone = own[:-1] + ("0" if own[-1] != "0" else "1")
    alone, _ = isolate(database, [], store=store, SESSION_OWNER="subject")
    for ids, error in (([gone], FileMissing), ([others], FileMissing), (large, PayloadTooLarge)):
        with pytest.raises(error):
            await turn(alone, 0, *({"type": "image", "file": each} for each in ids), message="")
    foreign = replace(IDENTITY, tenant_id="globex")
    with pytest.raises(FileMissing):
        await alone.service.open(foreign, TurnRequest(message="", parts=[{"type": "image", "file": own}]))
    store.down = True
    with pytest.raises(FilesUnavailable):
        await turn(alone, 0, {"type": "image", "file": own}, message="")
    without, _ = isolate(database, [])
    with pytest.raises(FilesNotKept):
        await turn(without, 0, {"type": "image", "file": own}, message="")

    assert await alone.service.show(IDENTITY) is None


async def test_a_replay_needs_no_file_and_no_store(database: SqliteDatabase) -> None:
    """The answer is on record, whatever became of the picture."""
    store = KeptFiles()
    part = {"type": "image", "file": await keep(store)}
    alone, transport = isolate(database, [OK], store=store)
    await turn(alone, 0, part, message="")
    for trouble in ("gone", "down"):
        store.files.clear()
        store.down = trouble == "down"
        lines = await turn(alone, 0, part, message="")
        assert lines[-1]["data"]["replayed"] is True

    assert len(transport.exchanges) == 1


async def test_text_alone_looks_into_no_store(database: SqliteDatabase) -> None:
    """It costs what it cost."""
    store = KeptFiles()
    alone, _ = isolate(database, [OK, OK], store=store)
    await turn(alone, 0)
    await turn(alone, 1, TEXT, IMAGE)

    assert store.asked == []


async def test_old_files_are_deleted_by_the_sweep(database: SqliteDatabase) -> None:
    """Those of another product stay, and so do those of the last days."""
    store = KeptFiles()
    facts = FileFacts(media_type="image/png", name="", size=1, user_id="ann")
    for project, day in (("chatturn", "2025-12-01"), ("chatturn", "2999-12-31"), ("legal", "2025-01-01")):
        await Files(project_id=project, store=store).keep("acme", facts, b"x", day)
    alone, _ = isolate(database, [], store=store, RETENTION_DAYS="10")
    await alone.sweep()

    kept = [("chatturn", "29991231"), ("legal", "20250101")]
    assert sorted((project, day) for project, day in map(project_and_day, store.files)) == sorted(kept * 2)


@pytest.mark.parametrize("length", ["told", "not told"])
async def test_a_file_that_is_too_large_is_refused(database: SqliteDatabase, length: str) -> None:
    """By its header, before it is read, or by its bytes; nothing is kept."""
    store = KeptFiles()
    alone, _ = isolate(database, [], store=store)
    told = str(MAX_FILE_BYTES + 1) if length == "told" else ""
    body = b"" if told else b"x" * (MAX_FILE_BYTES + 1)
    reply = await alone.ask("POST", "/v1/files", body, content_type="image/png", content_length=told)

    assert (reply.status, reply.body["code"], store.asked) == (413, "payload_too_large", [])


async def test_a_file_that_is_got_never_comes_into_our_memory(database: SqliteDatabase) -> None:
    """The store's own stream is the body; for HEAD, none is asked for."""
    store = KeptFiles()
    alone, _ = isolate(database, [], store=store)
    file_id = (await alone.ask("POST", "/v1/files", b"x" * 1_000, content_type="image/png")).body["file"]
    store.asked.clear()
    got, head = [await alone.ask(method, f"/v1/files/{file_id}") for method in ("GET", "HEAD")]
    [(key, size)] = [response.content for response in (got.response,) if isinstance(response.content, tuple)]

    assert (len(store.files[key][1]), size, got.response.body) == (1_000, 1_000, b"")
    assert (head.response.headers, head.response.content) == (got.response.headers, None)
    assert store.asked == ["head", "stream", "head"]


async def test_a_store_that_is_down_may_be_asked_again(database: SqliteDatabase) -> None:
    """The same file has the same id then, which says nothing of whose it is."""
    store = KeptFiles()
    alone, _ = isolate(database, [], store=store, RETENTION_DAYS="7")
    store.down = True
    down = await alone.ask("POST", "/v1/files", b"x", content_type="image/png")
    store.down = False
    kept = [await alone.ask("POST", "/v1/files", b"x", content_type="image/png") for _ in range(2)]

    assert (down.status, down.body["code"], down.body["retryable"]) == (503, "files_unavailable", True)
    assert kept[0].body == kept[1].body
    assert len(store.files) == 2  # and its day


async def test_all_files_of_a_user_or_of_a_tenant_are_deleted_with_their_sessions(database: SqliteDatabase) -> None:
    """Others' stay, and what comes later does; nothing is left in the store of what is deleted."""
    store = KeptFiles()
    files = Files(project_id="chatturn", store=store)
    for user, tenant, day in (
        ("ann", "acme", "2026-01-01"),
        ("bob", "acme", "2026-01-01"),
        ("ann", "globex", "2026-01-01"),
    ):
        for number in range(120 if user == "bob" else 1):
            facts = FileFacts(media_type="image/png", name=str(number), size=1, user_id=user)
            await files.keep(tenant, facts, b"x", day)
    facts = FileFacts(media_type="image/png", name="", size=1, user_id="ann")
    later = await files.keep("acme", facts, b"later", "2999-01-01")
    alone, _ = isolate(database, [], store=store)
    counts = [len(store.files)]
    for user in ("ann", ""):
        assert await alone.service.sessions.delete_all("acme", user)
        counts.append(len(store.files))

    assert counts == [2 * (123), 2 * 122, 2 * 2]
    assert await files.facts("acme", "ann", later) is not None


async def test_a_store_that_is_down_does_not_forget_a_wish(database: SqliteDatabase) -> None:
    """It stays on record, and the cron goes on with it once the store is there again; other work is not held up."""
    store = KeptFiles()
    await keep(store)
    alone, _ = isolate(database, [OK], store=store, RETENTION_DAYS="30")
    await turn(alone, 0)
    store.down = True
    with pytest.raises(FilesUnavailable):
        await alone.service.sessions.delete_all("acme", "ann")
    await alone.sweep()
    assert [event for event, _ in alone.logged if event.startswith("files.")] == ["files.not_deleted"] * 2
    store.down = False
    await alone.sweep()
    [wishes] = await database.batch([Statement("SELECT count(*) AS wishes FROM chat_deletions")])

    assert (store.files, wishes.rows[0]["wishes"]) == ({}, 0)


CHAT = "/v1/ai-sdk/chat"
COMPLETIONS = "/v1/chat/completions"
UI_TEXT = {"type": "text", "text": "what is this?"}
UI_IMAGE = {"type": "file", "mediaType": "image/png", "url": PICTURE}
UI_PAPER = {"type": "file", "mediaType": "application/pdf", "url": PAPER["url"], "filename": "a.pdf"}
SHOWN_PAPER = {"type": "file", "file": {"filename": "a.pdf", "file_data": PAPER["url"]}}


def ui(*parts: dict[str, Any], **members: Any) -> dict[str, Any]:
    """Return what the AI SDK sends."""
    return {"id": "thread-1", "messages": [{"role": "user", "parts": list(parts)}], **members}


def completion(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return what OpenAI's clients send, in a session."""
    metadata = {"session_id": "thread-1", "turn_index": "0"}
    return {"model": "default", "messages": [{"role": "user", "content": list(parts)}], "metadata": metadata}


async def asked(alone: Isolate, path: str, body: Any) -> int:
    """Ask to the end of the answer, and return the status."""
    reply = await alone.ask("POST", path, body)
    if reply.task is not None:
        await reply.task
    return reply.status


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ui(UI_TEXT, UI_IMAGE, {"type": "data-mine", "data": 1}, UI_PAPER)),
        (COMPLETIONS, completion({**TEXT, "cache_control": 1}, SHOWN, SHOWN_PAPER)),
    ],
)
async def test_files_of_other_clients_are_parts_of_the_same_turn(
    database: SqliteDatabase, path: str, body: Any
) -> None:
    """What they send reaches the model as our own parts do, and is the same turn as those."""
    alone, transport = isolate(database, [OK])

    assert await asked(alone, path, body) == 200
    assert contents(transport)[-1] == [TEXT, SHOWN, SHOWN_PAPER]
    assert (await turn(alone, 0, TEXT, IMAGE, PAPER))[-1]["data"]["replayed"] is True


async def test_other_clients_name_stored_files_by_their_ids_or_addresses(database: SqliteDatabase) -> None:
    """The AI SDK by the address at which the file is got, OpenAI's clients by the id."""
    store = KeptFiles()
    file_id = await keep(store)
    alone, transport = isolate(database, [OK, OK], store=store)
    url = f"https://chat.example.com/v1/files/{file_id}"
    by_address = ui({"type": "file", "mediaType": "image/png", "url": url})
    by_id = {**completion({"type": "file", "file": {"file_id": file_id}}), "metadata": {}}

    assert await asked(alone, CHAT, by_address) == 200
    assert contents(transport)[-1] == [SHOWN]
    assert await asked(alone, COMPLETIONS, by_id) == 200
    assert contents(transport)[-1] == [{"type": "file", "file": {"filename": "file", "file_data": PICTURE}}]


async def test_a_conversation_that_a_request_brings_has_its_images(database: SqliteDatabase) -> None:
    """They are shown as they stand there; an image in an answer is none that a user has said."""
    alone, transport = isolate(database, [OK])
    messages = [
        {"role": "user", "content": [TEXT, SHOWN]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "and now?"},
    ]

    assert await asked(alone, COMPLETIONS, {"model": "default", "messages": messages}) == 200
    assert contents(transport)[-3:] == [[TEXT, SHOWN], "A cat.", "and now?"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ui({"type": "file", "mediaType": "image/png", "url": "http://a.test/b.png"})),
        (CHAT, ui({"type": "file", "mediaType": "image/png"})),
        (CHAT, ui({"type": "file", "mediaType": "video/mp4", "url": "data:video/mp4;base64,AAAA"})),
        (CHAT, ui({"type": "tool-x"})),
        (COMPLETIONS, completion({"type": "image_url", "image_url": PICTURE})),
        (COMPLETIONS, completion({"type": "file", "file": {"file_id": "file-openai"}})),
    ],
)
async def test_what_of_other_clients_cannot_be_taken_is_refused(database: SqliteDatabase, path: str, body: Any) -> None:
    """In words of its own, and before anything is written."""
    alone, transport = isolate(database, [])

    assert (await asked(alone, path, body), transport.exchanges) == (422, [])
    assert await alone.service.show(IDENTITY) is None


async def dying(database: SqliteDatabase, store: KeptFiles, fuse: Fuse) -> None:
    """Ask a turn with a stored file and one in itself, in a worker that dies at its fuse's point."""
    store.fuse = fuse
    file_id = next(iter(sorted(store.files))).split("/")
    named = f"file_{file_id[2]}_{file_id[4]}_{file_id[5]}"
    mortal, _ = isolate(MortalDatabase(database, fuse), [OK], store=store)  # type: ignore[arg-type]  # as an isolate has it
    await turn(mortal, 0, TEXT, IMAGE, {"type": "image", "file": named})


async def test_a_worker_may_die_at_every_look_into_the_database_and_the_store() -> None:
    """Whoever comes back asks with the same parts, and the next turn shows them again."""
    count = Fuse()
    counting = KeptFiles()
    await keep(counting)
    with open_sqlite() as other:
        await dying(other, counting, count)
    assert {"before a batch", "head", "get"} <= set(count.places)
    for point in range(len(count.places)):
        store = KeptFiles()
        await keep(store)
        with open_sqlite() as other:
            with suppress(Crash):
                await dying(other, store, Fuse(point))
            await asyncio.sleep(61)
            store.fuse = Fuse()
            alive, transport = isolate(other, [OK, OK], store=store)
            await dying(other, store, Fuse())
            await turn(alive, 1, message="and now?")
            [messages] = await other.batch([Statement("SELECT count(*) AS number FROM chat_messages")])

        assert contents(transport)[-3] == [TEXT, SHOWN, SHOWN], count.places[point]
        assert messages.rows[0]["number"] == 4


async def test_a_replay_does_not_ask_who_has_its_model_now(database: SqliteDatabase) -> None:
    """Neither with parts nor without: the answer is on record, and the deployment has other models by now."""
    before, _ = isolate(database, [OK, OK])
    await turn(before, 0, model="gone")
    await turn(before, 1, TEXT, IMAGE, model="gone")
    transport = ScriptedTransport([])
    provider = Provider(name="one", kind="compatible", url="https://api.test", models={"m": Model()}, others=None)
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    backend = create_backend(replace(Settings(), model="m"), [provider], means)
    alone = Isolate(database, Assistant(), backend, {"MODEL": "m"})
    replays = [await turn(alone, 0, model="gone"), await turn(alone, 1, TEXT, IMAGE, model="gone")]

    assert [lines[-1]["data"]["replayed"] for lines in replays] == [True, True]
