"""
Real clients, unmodified, against a Worker in workerd: what they lose, what they double, and what it costs.

`make clients` installs them and runs this, and prints the table of clients and faults that the manual shows.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.client import token
from tests.support.front import Front
from tests.support.http import http
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script, ToolCall
from tests.support.worker import Worker, running_worker

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PYTHON: Final = str(HERE / ".venv" / "bin" / "python")
NODE: Final = str(Path(sys.executable).with_name("node"))
DENO: Final = str(HERE / "node_modules" / ".bin" / "deno")
LEASE_MS: Final = 3_000
WORDS: Final = " ".join(f"word{number}" for number in range(120))
ANSWER: Final = Script(text=WORDS, pause_s=0.01)
SECONDS: Final = 180
NOT_TRIED: Final = "\N{EN DASH}"

OPENAI: Final = {
    "openai (PyPI)": [PYTHON, "use_openai.py", "openai"],
    "openai (PyPI), not streamed": [PYTHON, "use_openai.py", "openai-at-once"],
    "langchain-openai": [PYTHON, "use_openai.py", "langchain"],
    "litellm": [PYTHON, "use_openai.py", "litellm"],
    "openai (npm)": [NODE, "use_openai.mjs"],
}
AI_SDK: Final = {
    "ai, DefaultChatTransport": [NODE, "use_chat.mjs", "default"],
    "ai, WorkflowChatTransport": [NODE, "use_chat.mjs", "workflow"],
}
OLDER: Final = {
    "ai, version 6": [NODE, "use_chat.mjs", "6"],
    "ai, version 5": [NODE, "use_chat.mjs", "5"],
}
BARE: Final = {"ai, WorkflowChatTransport as it is": [NODE, "use_chat.mjs", "workflow-bare"]}
TOOLS: Final = {
    "openai (PyPI), tools": [PYTHON, "use_openai.py", "openai-tools"],
    "langchain-openai, tools": [PYTHON, "use_openai.py", "langchain-tools"],
    "openai (npm), tools": [NODE, "use_openai.mjs"],
    "ai, tools in the page": [NODE, "use_chat.mjs", "default"],
    "ai, version 6, tools in the page": [NODE, "use_chat.mjs", "6"],
    "ai, version 5, tools in the page": [NODE, "use_chat.mjs", "5"],
}
OURS: Final = {
    "ours, JavaScript in Node": [NODE, "use_ours.mjs"],
    "ours, JavaScript in Deno": [DENO, "run", "--no-check", "--allow-net", "--allow-read", "use_ours.mjs"],
    "ours, Python": [sys.executable, "use_ours.py", "waits"],
    "ours, Python with asyncio": [sys.executable, "use_ours.py", "awaits"],
}
PAGES: Final = {
    "useChat in a page, examples/react.html": [NODE, "browser.mjs", "react.html"],
    "EventSource in a page, examples/eventsource.html": [NODE, "browser.mjs", "eventsource.html"],
}
EXAMPLES: Final = {
    "examples/openai_sdk.py": [sys.executable, "use_example.py", PYTHON, "../../examples/openai_sdk.py"],
    "examples/openai_sdk.mjs": [sys.executable, "use_example.py", NODE, ".build/openai_sdk.mjs"],
}
STREAMED: Final = [name for name in OPENAI if "not streamed" not in name]
CLIENTS: Final = {**OPENAI, **AI_SDK, **OLDER, **BARE, **OURS, **PAGES, **EXAMPLES}

ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}

if not Path(PYTHON).exists() or not (HERE / "node_modules" / "ai").exists():
    pytest.skip("the clients are not installed: make clients", allow_module_level=True)


@dataclass
class Row:
    """What came of one client and one fault."""

    client: str
    fault: str
    model_calls: int
    missing: int
    doubled: int
    errors: int

    @classmethod
    def of(cls, client: str, fault: str, calls: int, said: dict[str, Any]) -> "Row":
        """Count: a word that is there twice is doubled, one that is not there is missing."""
        words, got = WORDS.split(), re.findall(r"\S+", said["text"])
        missing = sum(len(word) for word in words if word not in got)
        doubled = sum(len(word) for word in got) - sum(len(word) for word in set(got))
        return cls(client, fault, calls, missing, doubled, len(said["errors"]))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The scripted model."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The examples on a server of their own, and what they import beside them, as a user would put it there."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "examples", folder, dirs_exist_ok=True)
    shutil.copytree(HERE / ".build", folder / "vendor")
    shutil.copy(ROOT / "clients" / "typescript" / "chatturn.js", folder / "vendor")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def worker(upstream: Upstream, pages: str) -> Iterator[Worker]:
    """A Worker whose model it is, with a short lease, that pages of their origin may call."""
    with running_worker(
        variables={
            "BACKEND": "openai",
            "MODEL": "scripted-1",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "sk-of-the-tests",
            "LEASE_MS": str(LEASE_MS),
            "CORS_ORIGINS": pages,
            "THREADS": "on",
        }
    ) as worker:
        yield worker


@pytest.fixture(scope="module")
def front(worker: Worker, pages: str) -> Iterator[Front]:
    """What the clients connect to."""
    with Front(int(worker.url.rpartition(":")[2])) as front:
        front.pages = pages
        yield front


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """The table, which is printed and kept in the end."""
    rows: list[Row] = []
    yield rows
    table = "\n".join(pivot(rows))
    sys.stdout.write(f"\n{table}\n")
    if target := os.environ.get("CLIENTS_TABLE"):
        Path(target).write_text(table + "\n", "utf-8")


def pivot(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table: a row for each client, a column for each fault."""
    clients, faults = dict.fromkeys(row.client for row in rows), dict.fromkeys(row.fault for row in rows)
    cells = {(row.client, row.fault): f"{row.model_calls} · {row.missing} · {row.doubled}" for row in rows}
    yield f"| Client | {' | '.join(faults)} |"
    yield "|---" * (1 + len(faults)) + "|"
    for client in clients:
        yield f"| {client} | {' | '.join(cells.get((client, fault), NOT_TRIED) for fault in faults)} |"


class Chat:
    """One client's question."""

    def __init__(self, front: Front, upstream: Upstream, client: str, fault: str, *scripts: Script) -> None:
        self.name = re.sub(r"\W+", "-", f"{client}-{fault}")
        self.question = f"{self.name} asks."
        self.client, self.fault, self.front, self.upstream = client, fault, front, upstream
        upstream.on(self.question, *(scripts or (ANSWER,)))

    @property
    def is_openai(self) -> bool:
        """Whether it speaks OpenAI's format."""
        return self.client in OPENAI or (self.client in TOOLS and not self.client.startswith("ai, "))

    def start(self, **more: Any) -> "subprocess.Popen[str]":
        """Start the client."""
        path = "/v1" if self.is_openai else "/v1/ai-sdk/chat" if self.client.startswith("ai, ") else ""
        asked = {
            "url": self.front.url + path,
            "token": token(),
            "pages": self.front.pages,
            "chromium": shutil.which("chromium"),
            "length": len(WORDS),
            "key": self.name,
            "chat": self.name,
            "question": self.question,
            "messages": [{"role": "user", "content": self.question}] if self.is_openai else [],
            **more,
        }
        command = [*{**CLIENTS, **TOOLS}[self.client], json.dumps(asked)]
        return subprocess.Popen(
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def said(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """Return what the client has in the end."""
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == 0, err[-2_000:]
        said: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return said

    def ask(self, **more: Any) -> dict[str, Any]:
        """Run the client to its end."""
        return self.said(self.start(**more))

    def row(self, said: dict[str, Any]) -> Row:
        """Count."""
        return Row.of(self.client, self.fault, len(self.upstream.calls(self.question)), said)

    def wait_for_words(self, chunks: int, of: str = "") -> None:
        """Wait until the model has said so much to the question, or to something *of* it."""
        [talks, *_] = self.upstream.wait_calls(1, SECONDS, of or self.question)
        deadline = time.monotonic() + SECONDS
        while talks.chunks_sent < chunks:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def assert_whole(row: Row, *, calls: int = 1) -> None:
    """Nothing is missing, nothing doubled, and no model call was made that need not be."""
    assert (0, 0) == (row.missing, row.doubled), row
    assert row.model_calls <= calls, row


@pytest.mark.parametrize("client", CLIENTS)
def test_a_fresh_turn(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """Without a fault: the whole answer, and the client has seen no error."""
    chat = Chat(front, upstream, client, "none")
    said = chat.ask()
    rows.append(chat.row(said))

    assert_whole(rows[-1])
    assert (WORDS, []) == (said["text"].strip(), said["errors"])


@pytest.mark.parametrize("client", CLIENTS)
def test_connections_that_are_cut(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """Reset three times, at random bytes of the answer."""
    chat = Chat(front, upstream, client, "cut at 3 random bytes")
    chance = random.Random(client)
    front.cut = 0
    most = 1_000 if "not streamed" in client else 9_000  # of an answer of so many bytes
    front.cuts = [chance.randrange(1, most) for _ in range(3)]
    said = chat.ask()
    front.cuts.clear()
    rows.append(chat.row(said))

    assert_whole(rows[-1])
    assert front.cut


@pytest.mark.parametrize("client", CLIENTS)
def test_a_worker_that_is_killed(
    client: str, front: Front, upstream: Upstream, worker: Worker, rows: list[Row]
) -> None:
    """SIGKILL in the middle of the answer: another attempt says it, and the client has it once."""
    chat = Chat(front, upstream, client, "SIGKILL in mid-stream")
    process = chat.start()
    chat.wait_for_words(40)
    front.there.clear()
    worker.kill()
    worker.restart()
    front.there.set()
    said = chat.said(process)
    rows.append(chat.row(said))

    assert_whole(rows[-1], calls=2)


@pytest.mark.parametrize("client", PAGES)
def test_pages(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """A second tab, a reload in the middle, and a stop that is still one after a reload: one message each time."""
    for fault, more in (("second tab", {"second_tab": True}), ("reload", {"reload_after": 100})):
        chat = Chat(front, upstream, client, fault)
        said = chat.ask(**more)
        rows.append(chat.row(said))

        assert_whole(rows[-1])
        assert (1, said["text"]) == (said["bubbles"], said.get("first", said["text"]))

    chat = Chat(front, upstream, client, "stop", Script(text=WORDS, pause_s=0.05))
    said = chat.ask(stop_after=40)
    headers = {"Authorization": f"Bearer {token()}"}
    thread = http.get(f"{front.url}/v1/sessions/{chat.name}/messages", headers=headers).json()["messages"]
    kept = thread[-1]["content"]
    rows.append(Row(client, "stop", len(upstream.calls(chat.question)), len(kept) - len(said["text"]), 0, 0))

    assert (True, kept, 1) == (thread[-1]["cancelled"], said["text"], said["bubbles"])
    assert len(kept) < len(WORDS)


@pytest.mark.parametrize("client", [*STREAMED, *AI_SDK, *OURS])
def test_a_second_tab(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """The same question twice at once: one model call, both have the whole."""
    chat = Chat(front, upstream, client, "second tab")
    first = chat.start()
    chat.wait_for_words(10)
    other = chat.ask()
    said = chat.said(first)
    rows.append(chat.row(other))

    assert_whole(rows[-1])
    assert said["text"] == other["text"]


@pytest.mark.parametrize("client", [*STREAMED, *AI_SDK, *OURS])
def test_a_reload(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """The page is gone in the middle of the answer, and comes back with the question only."""
    chat = Chat(front, upstream, client, "reload")
    process = chat.start()
    chat.wait_for_words(40)
    process.kill()
    process.communicate()
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": chat.question}]}
    said = chat.ask() if client not in AI_SDK else chat.ask(resume=True, messages=[message])
    rows.append(chat.row(said))

    assert_whole(rows[-1])
    assert 1 == said.get("bubbles", 1)


@pytest.mark.parametrize("client", AI_SDK)
def test_a_stop(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """Stopped by the user: the model is let go, what was said stays, and it comes back as the same message."""
    chat = Chat(front, upstream, client, "stop", Script(text=WORDS, pause_s=0.05))
    cancel = f"{front.url}/v1/sessions/{chat.name}/turns/0/cancel"
    said = chat.ask(stop_after=40, cancel=cancel)
    headers = {"Authorization": f"Bearer {token()}"}
    thread = http.get(f"{front.url}/v1/sessions/{chat.name}/messages", headers=headers).json()["messages"]
    kept = thread[-1]["content"]
    rows.append(Row(client, "stop", len(upstream.calls(chat.question)), len(kept) - len(said["text"]), 0, 0))

    assert (True, kept, 1) == (thread[-1]["cancelled"], said["text"], said["bubbles"])
    assert WORDS.startswith(kept)
    assert len(kept) < len(WORDS)
    [call] = upstream.calls(chat.question)
    assert call.wait_closed(5)


@pytest.mark.parametrize("client", STREAMED)
def test_a_reader_that_leaves(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """It closes the stream; the turn goes on, and the same request gets the whole without another call."""
    chat = Chat(front, upstream, client, "leaves, and asks again")
    chat.ask(leave_after=40)
    said = chat.ask()
    rows.append(chat.row(said))

    assert_whole(rows[-1])


LOOK: Final = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("client", "fault"),
    [
        *((client, "none") for client in TOOLS),
        *((client, "SIGKILL in mid-stream") for client in TOOLS if client != "openai (npm), tools"),
    ],
)
def test_tools_of_the_client(
    client: str, fault: str, front: Front, upstream: Upstream, worker: Worker, rows: list[Row]
) -> None:
    """
    Its loop, as it is: each call is done once, and the turn goes on with the result.

    With a fault the Worker is killed while it says what follows: the loop's last request is asked again.  (The loop of
    OpenAI's package for Node is one call of its user's, and ends with a stream that breaks off.)
    """
    chat = Chat(front, upstream, client, f"{fault} with tools")
    looked = f"[looked at {chat.name}]"
    call = ToolCall(id="call_1", name="look", arguments=json.dumps({"at": chat.name}))
    upstream.on(chat.question, Script(text="Let me see.", tool_calls=(call,), finish_reason="tool_calls"))
    upstream.on(looked, ANSWER)
    more: dict[str, Any] = {"body": {"parameters": {"tools": [LOOK]}}} if client.startswith("ai, ") else {"tools": True}
    if fault == "none":
        said = chat.ask(**more)
    else:
        process = chat.start(**more)
        chat.wait_for_words(40, of=looked)
        front.there.clear()
        worker.kill()
        worker.restart()
        front.there.set()
        said = chat.said(process)
    asked = [each.body["messages"] for each in (*upstream.calls(chat.question), *upstream.calls(looked))]
    row = Row.of(
        client, chat.fault, len(asked), {**said, "text": said["text"].replace("Let me see.", "").replace(looked, "")}
    )
    rows.append(row)

    assert_whole(row, calls=2 if fault == "none" else 3)
    assert [chat.name] == said["looked"] if client.startswith("ai, ") else looked in said["text"]
    assert [["user"], ["user", "assistant", "tool"]] == [[each["role"] for each in messages] for messages in asked[:2]]
    assert looked == asked[1][-1]["content"]


@pytest.mark.parametrize("client", AI_SDK)
def test_an_answer_is_regenerated(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """One bubble, with the new answer; the old one is kept as a version. An edit likewise."""
    for fault, more in (("regenerate", {"regenerate": True}), ("edit", {"edit": "Something else."})):
        upstream.on("Something else.", Script(text="another answer"))
        chat = Chat(
            front, upstream, client, fault, *([Script(text="the old answer"), ANSWER] if fault == "regenerate" else [])
        )
        said = chat.ask(**more)
        rows.append(chat.row(said))
        headers = {"Authorization": f"Bearer {token()}"}
        address = f"{front.url}/v1/sessions/{chat.name}"
        thread = http.get(f"{address}/messages", headers=headers).json()["messages"]
        versions = http.get(f"{address}/turns/0/versions", headers=headers).json()["versions"]

        assert_whole(rows[-1], calls=2 if fault == "regenerate" else 1)
        assert (1, [], WORDS) == (said["bubbles"], said["errors"], said["text"])
        assert [chat.question, WORDS] == [each["content"] for each in thread]
        assert (2, thread[1]["runId"]) == (len(versions), said["ids"][-1])


@pytest.mark.parametrize(
    ("client", "approve", "cut"),
    [
        *(("ai, DefaultChatTransport", approve, None) for approve in (True, False)),
        *(("ai, version 6", approve, None) for approve in (True, False)),
        *(("ai, WorkflowChatTransport", True, cut) for cut in (0, 1, 5)),
    ],
)
def test_an_approval(client: str, approve: bool, cut: int | None, upstream: Upstream, pages: str) -> None:
    """
    `addToolApprovalResponse` and `sendAutomaticallyWhen`: the same turn goes on, and nothing is sent or shown twice.

    With *cut* the stream behind the approval ends after so many chunks, and the transport goes on.
    """
    arguments = json.dumps({"to": "bob", "text": f"milk {approve} {cut} {client}"})
    call = ToolCall(id="call_1", name="send_note", arguments=arguments)
    variables = {
        "PRODUCT": "agent",
        "BACKEND": "openai",
        "MODEL": "scripted-1",
        "OPENAI_BASE_URL": upstream.url,
        "OPENAI_API_KEY": "sk-of-the-tests",
        "THREADS": "on",
        "CORS_ORIGINS": pages,
    }
    asks = Script(text="", tool_calls=(call,), finish_reason="tool_calls")
    with running_worker(variables=variables) as agent, Front(int(agent.url.rpartition(":")[2])) as there:
        there.pages = pages
        chat = Chat(there, upstream, client, f"approval {approve} {cut}", asks)
        told = '"sent"' if approve else "denied"
        upstream.on(told, ANSWER)
        before = len(upstream.calls(told))
        said = chat.ask(approve=approve, **({} if cut is None else {"cut": cut}))

    assert (WORDS, [], 1, 1) == (said["text"], said["errors"], said["bubbles"], said["tools"])
    assert ["output-available" if approve else "output-denied"] == [
        each for each in said["states"] if each.startswith("output")
    ]
    assert (1, 1) == (len(upstream.calls(chat.question)), len(upstream.calls(told)) - before)


@pytest.mark.parametrize("client", PAGES)
def test_a_page_regenerates(client: str, front: Front, upstream: Upstream, rows: list[Row]) -> None:
    """Its last button: one bubble with the new answer, also after a reload in the middle of it, and behind it."""
    chat = Chat(front, upstream, client, "regenerate", ANSWER, Script(text=f"{WORDS} anew", pause_s=0.05))
    said = chat.ask(regenerate="anew")
    rows.append(chat.row({**said, "text": said["text"].removesuffix(" anew")}))

    assert_whole(rows[-1], calls=2)
    assert (1, f"{WORDS} anew", []) == (said["bubbles"], said["text"], said["errors"])


def test_a_page_shows_what_another_tab_has_regenerated(front: Front, upstream: Upstream) -> None:
    """Shown again, it has one bubble with the new answer: not the old one, and not both."""
    client = "useChat in a page, examples/react.html"
    chat = Chat(front, upstream, client, "elsewhere", ANSWER, Script(text=f"{WORDS} anew"))
    said = chat.ask(elsewhere=True, regenerate="anew")

    assert (1, f"{WORDS} anew", []) == (said["bubbles"], said["text"], said["errors"])
    assert 2 == len(upstream.calls(chat.question))


@pytest.mark.parametrize("client", AI_SDK)
@pytest.mark.parametrize("change", ["regenerate", "edit"])
def test_a_second_tab_comes_back_to_what_the_first_has_changed(
    change: str, client: str, front: Front, upstream: Upstream
) -> None:
    """The thread first, then its stream, as the manual says: one question, one bubble, the new answer."""
    upstream.on("Something new.", ANSWER)
    scripts = [Script(text="the old answer"), ANSWER] if change == "regenerate" else [Script(text="the old answer")]
    chat = Chat(front, upstream, client, f"elsewhere {change}", *scripts)
    said = chat.ask(elsewhere=change, thread=f"{front.url}/v1/sessions/{chat.name}/messages", new="Something new.")

    assert (1, WORDS, [], 2) == (said["bubbles"], said["text"], said["errors"], len(said["ids"]))


@pytest.mark.parametrize("client", EXAMPLES)
def test_an_example_is_stopped(client: str, front: Front, upstream: Upstream) -> None:
    """Ctrl-C: the turn is cancelled, and what was said by then is kept."""
    chat = Chat(front, upstream, client, "stop", Script(text=WORDS, pause_s=0.3))
    *_, interpreter, script = EXAMPLES[client]
    environment = {**ENVIRONMENT, "CHATTURN_URL": front.url, "CHATTURN_TOKEN": token(), "PYTHONUNBUFFERED": "1"}
    # What a shell starts in the background ignores the keys, and so does what it starts itself; a handler ends that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [interpreter, script, chat.question, chat.name],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, inherited)
    assert process.stdout is not None
    said = ""
    while "word9" not in said:
        said += process.stdout.read(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Node is started by another program
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=SECONDS / 6)  # before the answer of 36 s is over
    assert process.poll() is not None, "it does not end"
    [call] = upstream.calls(chat.question)

    assert call.wait_closed(20)
    assert call.chunks_sent < len(WORDS.split())
