"""What the README and the pages of docs/ say about the code is compared with the code, in both directions."""

import ast
import asyncio
import json
import re
import subprocess
import textwrap
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import MISSING, fields, replace
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import Request

import pytest

from chatturn import product
from chatturn.agent_runtime.shown.sanitize import RuntimeTelemetryOptions
from chatturn.agent_runtime.turns.mapping import RuntimeEventMapper
from chatturn.agent_runtime.values.events import EVENT_CLASSES
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.backends.providers import PRESETS
from chatturn.chat import files
from chatturn.chat.requests import TurnView
from chatturn.chat.thread.history import PastTurn
from chatturn.chat.turn.sinks import BufferSink
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.errors import ConfigurationError, DurableRunLeaseHeldError, error_classes
from chatturn.events import EVENT_TYPES, ChatStreamEvent, reasoning_delta, text_delta, tool_call, usage_event
from chatturn.http import limits, query_strings, user_messages
from chatturn.http.application import Application, Route
from chatturn.http.auth import SCOPES, BearerAuth
from chatturn.http.problems import problem
from chatturn.http.readiness import check_readiness
from chatturn.http.routes import ROUTES
from chatturn.http.strict_json import MAX_JSON_DEPTH
from chatturn.http.token_keys import Secrets
from chatturn.http.turns import _members
from chatturn.jsontext.canonical import canonical_hash
from chatturn.settings import Settings
from chatturn.telemetry import conventions
from chatturn.telemetry.otlp.metrics import INSTRUMENTS
from products.assistant import Hooks as Assistant
from tests.support.isolates import TURN, Isolate
from tests.support.transport import Reply, ScriptedTransport
from tests.support.turns import IDENTITY, Desk, Product, open_sqlite
from tests.turns.test_agent import Agent, Model
from tests.turns.test_client_tools import Guide
from tests.turns.test_parameters import isolate
from tests.unit.backends.openai.test_backend import DONE, OK, backend, frame

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "chatturn"
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
}


def prose(page: str) -> str:
    """Return *page* without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)


TERMINAL = {kind for kind, meaning in EVENT_TYPES.items() if meaning.startswith("terminal: ")}
PROSE = "\n".join(map(prose, PAGES))


def section(page: str, heading: str) -> str:
    """Return what stands below *heading* of *page*, its subsections included."""
    text = PAGES[page]
    [(level, start)] = [(len(m[1]), m.end()) for m in re.finditer(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)]
    following = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(text, start)
    return text[start : following.start() if following else None]


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """Return the tables below *heading* of *page* as rows of cells, without their heads."""
    found = re.findall(r"(?:^\|.*\n)+", section(page, heading), re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|\n").split("|")] for row in table.splitlines()[2:]] for table in found
    ]


def table(page: str, heading: str) -> list[list[str]]:
    """Return the first table below *heading* of *page*."""
    return tables(page, heading)[0]


def blocks(language: str) -> list[str]:
    """Return every fenced block of *language*, of all pages; those inside lists are indented."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(found[2]) for text in PAGES.values() for found in fence.finditer(text)]


def anchors(page: str) -> set[str]:
    """Return the anchors of *page*'s headings."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def sample(mark: str) -> str:
    """Return the one Python block that has *mark* in it."""
    [source] = [each for each in blocks("python") if mark in each]
    return source


def names(cell: str) -> list[str]:
    """Return what stands between backticks in *cell*."""
    return re.findall(r"`([^`]+)`", cell)


def first_name(cell: str) -> str:
    """Return what stands between the first backticks in *cell*."""
    return names(cell)[0]


# What is promised


PROOF = r"`(tests/[\w/]+\.py)::(\w+)`"


@cache
def proven_by(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_promise_has_a_test() -> None:
    """Each row of each table names the tests that prove it; the last two tables are what runs have counted."""
    *groups, _, _ = tables("docs/explanation/promises.md", "Promises")

    assert groups
    assert [] == [promise for rows in groups for promise, proof in rows if not re.findall(PROOF, proof)]


def test_every_test_that_is_named_exists() -> None:
    """On whatever page."""
    assert [] == [f"{path}::{name}" for path, name in re.findall(PROOF, PROSE) if name not in proven_by(path)]


def test_every_file_that_is_mentioned_exists() -> None:
    """Paths of the project; but a bench's results and the examples are not always there."""
    made = {"bench/RESULTS.md", "src/products/contracts.py", "src/products/orders.py", "src/products/refunds.py"}
    made.add("tests/test_refunds.py")
    folders = r"(src|tests|dev|bench|migrations|products|docs)"
    named = {name for name in names(PROSE) if re.fullmatch(rf"{folders}/[\w./-]*", name)}
    paths = {("src/" if name.startswith("products/") else "") + name for name in named if name not in made}

    assert paths
    assert set() == {path for path in paths if not (ROOT / path).exists()}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """To a file that is there, and to a heading on it, on whatever page the link stands."""
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent.joinpath(target).resolve() if target else ROOT / page

        assert path.is_file(), link
        assert not anchor or anchor in anchors(path.relative_to(ROOT).as_posix()), link


def test_every_page_is_in_the_navigation() -> None:
    """And the navigation names no page that does not exist."""
    listed = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)

    assert sorted(listed) == [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))]


def test_the_readme_is_short() -> None:
    """Who arrives reads it to its end; the rest has pages of its own."""
    assert len(PAGES["README.md"].splitlines()) <= 250


def test_every_command_is_in_the_makefile() -> None:
    """Each `make X` of the manual is a target, and each target but one is explained."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pages = "\n".join(PAGES.values())
    said = chain(re.findall(r"`make ([a-z-]+)", pages), re.findall(r"^make ([a-z-]+)", pages, re.MULTILINE))

    assert targets == set(said)
    assert targets - {"help"} == {
        name for row in table("CONTRIBUTING.md", "Commands") for name in re.findall("^`make ([a-z-]+)`", row[0])
    }


def test_every_folder_of_the_source_has_its_line() -> None:
    """Who looks for something finds the folder by what it holds."""
    told = {name.rstrip("/") for row in table("CONTRIBUTING.md", "Where things are") for name in names(row[0])}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in SRC.glob("*/__init__.py")}

    assert folders == {name for name in told if name.startswith("src/chatturn/")}


def test_the_checks_of_a_change_are_those_that_are_run() -> None:
    """What the manual says of `.ci/run` is what stands in it, in that order."""
    run = re.findall(r"^make ([a-z-]+(?: \w+=\w+)?)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    [sentence] = re.findall(r"^`\.ci/run` is (.+)$", PAGES["CONTRIBUTING.md"], re.MULTILINE)

    assert run == re.findall(r"`make ([a-z-]+(?: \w+=\w+)?)`", sentence)


@pytest.mark.parametrize("source", blocks("python"))
def test_every_python_sample_compiles_and_its_imports_exist(source: str) -> None:
    """Also those that no test runs: each name that is imported from chatturn is there."""
    tree = compile(source, "docs", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("chatturn.", "products.")):
            if node.module == "products.refunds":  # a reader writes it; the tutorials' own tests have it
                continue
            module = import_module(str(node.module))
            assert [] == [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module


@pytest.mark.parametrize("source", blocks("sh"))
def test_every_shell_sample_can_be_read_by_a_shell(source: str) -> None:
    """Without being run."""
    assert "" == subprocess.run(["sh", "-n"], input=source, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("source", blocks("toml"))
def test_every_toml_sample_is_toml(source: str) -> None:
    assert tomllib.loads(source)


@pytest.mark.parametrize("source", blocks("json"))
def test_every_json_sample_is_json(source: str) -> None:
    json.loads(source)


# The wire


def test_every_event_type_is_explained() -> None:
    """The table has every type that the engine says, in its own words, and no other."""
    assert [[f"`{kind}`", meaning] for kind, meaning in EVENT_TYPES.items()] == [
        row[:2] for row in table("docs/reference/protocol.md", "Lines")
    ]


async def test_every_event_has_the_members_that_are_told() -> None:
    """What turns of every kind say has exactly the documented data; only optional members may be missing."""
    told = {names(kind)[0]: names(members) for kind, _, members in table("docs/reference/protocol.md", "Lines")}
    said: dict[str, list[set[str]]] = {}
    with open_sqlite() as database:
        script = (reasoning_delta("r"), tool_call(tool_call_id="1", tool_name="t", args={}), 16.0, text_delta("a"))
        desk, sink = Desk(database, Product(*script)), BufferSink()
        lines = [*await desk.run(sink), *await desk.run()]
        lines += [json.loads(line) for line in sink.text().splitlines() if line.startswith('{"type":"ping"')]
        broken = Desk(database, Product(RuntimeError()))
        lines += await broken.run(identity=replace(IDENTITY, turn_index=1))
        lines += await broken.run(identity=replace(IDENTITY, turn_index=1), history_characters=1)
        model = Model([("note", {"text": "a"}), ("unknown", {}), ("send", {"text": "a"})])
        lines += await Desk(database, Agent(), backend=model.backend()).run(identity=replace(IDENTITY, turn_index=2))
        looking = Desk(database, Guide(), backend=Model(("look", {})).backend())
        lines += await looking.run(identity=replace(IDENTITY, turn_index=5))
        counts: dict[str, Any] = {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        counts["completion_tokens_details"] = {"reasoning_tokens": 1}
        beside: dict[str, Any] = {
            "annotations": [{"url": "https://a.test"}],
            "images": [{"image_url": {"url": "https://a.test"}}],
            "audio": {"id": "a"},
            "refusal": "a",
            "other": "b" * 100_000,
            "another": 1,
        }
        spoken = {"index": 0, "delta": beside, "logprobs": {"content": [{"token": "a"}]}}
        body = [frame("a"), frame(choices=[spoken]), frame(finish="stop"), frame(choices=[], usage=counts) + DONE]
        counting = Desk(database, Assistant(), backend=backend(ScriptedTransport([Reply(body=body)])))
        lines += await counting.run(identity=replace(IDENTITY, turn_index=4))
        doomed = Isolate(database, Product(1_000.0), settings={"LEASE_MS": "1000"})
        await doomed.ask("POST", f"{TURN[:-1]}3", {"message": "hi"})
        await doomed.kill()
        await asyncio.sleep(2)
        survivor = Isolate(database, Product(1_000.0))
        taken = await survivor.ask("POST", f"{TURN[:-1]}3", {"message": "hi"})
        await survivor.ask("POST", f"{TURN[:-1]}3/cancel")
        lines += await taken.lines()
        busy = Isolate(database, Product(5.0, text_delta("a")), settings={"THREADS": "on", "WHEN_BUSY": "queue"})
        for index in range(2):
            last = await busy.ask("POST", f"/v1/sessions/busy/turns/{index}", {"message": "hi"})
        lines += await last.lines()
    for line in lines:
        said.setdefault(line["type"], []).append(set(line.get("data", {})))

    assert set(EVENT_TYPES) == set(said)
    for kind, occurrences in said.items():
        if kind == "usage":
            assert {f"{member}?" for members in occurrences for member in members} | {"attempt?"} == set(told[kind])
        else:
            always = {member for member in told[kind] if not member.endswith("?")}
            ever = {member.removesuffix("?") for member in told[kind]}
            assert all(always <= members <= ever for members in occurrences), kind


def test_every_line_that_is_shown_could_be_said() -> None:
    """The examples are NDJSON of known types with one terminal line, the last; in a stream seq never goes back."""
    for example in blocks("ndjson"):
        shown = [json.loads(line) for line in example.splitlines()]
        seqs = [line["seq"] for line in shown if "seq" in line]

        assert {line["type"] for line in shown} <= set(EVENT_TYPES)
        assert "session.run.started" == next(line for line in shown if line["type"] != "session.run.queued")["type"]
        assert [shown[-1]["type"]] == [line["type"] for line in shown if line["type"] in TERMINAL]
        assert sorted(set(seqs)) == seqs


# HTTP


def test_every_route_is_told_with_its_scope() -> None:
    """The table of routes is the code's, row by row."""
    routes = [[route.method, route.template, *(route.scopes if isinstance(route, Route) else ())] for route in ROUTES]

    assert routes == [
        [*names(row[0]), *names(row[1]), *names(row[2])] for row in table("docs/reference/http.md", "Routes")
    ]
    assert {scope for _, _, *scopes in routes for scope in scopes} == set(SCOPES)


def test_every_member_of_a_request_is_told() -> None:
    """No member is accepted that the manual does not know."""
    assert set(limits.TURN_MEMBERS) == {names(row[0])[0] for row in table("docs/reference/http.md", "POST a turn")}


def test_every_header_of_our_own_is_told() -> None:
    """What begins with X- is explained in the table, and nothing else is."""
    sources = "".join(path.read_text("utf-8") for path in (SRC / "http").glob("*.py"))

    assert set(re.findall(r'"(X-[A-Za-z-]+)"', sources)) == {
        names(row[0])[0] for row in tables("docs/reference/http.md", "POST a turn")[1]
    }


def test_every_limit_is_told() -> None:
    """The numbers of the table are those of the code."""
    modules = (limits, query_strings, user_messages, files)
    values = [value for module in modules for name, value in vars(module).items() if name.startswith("MAX_")]

    assert sorted({*values, MAX_JSON_DEPTH}) == sorted(
        {int(row[1].replace(",", "")) for row in table("docs/reference/limits.md", "Limits of a request")}
    )


def test_every_error_is_told_as_it_is() -> None:
    """Code, status, whether a retry can help, and the sentence that clients see; in both directions."""
    rows = table("docs/reference/errors.md", "Every error")
    told = {names(code)[0]: (int(status), retryable == "yes") for code, status, retryable, *_ in rows}
    sentences = {cls.public for cls in error_classes()}

    assert {cls.code: (cls.status, cls.retryable) for cls in error_classes()} == told
    assert len(told) == len(rows)
    for code, _, _, sentence, _ in rows:
        assert sentence in {cls.public for cls in error_classes() if cls.code in names(code)}
    assert {cls.public for cls in error_classes() if cls.__subclasses__() == []} <= sentences & {row[3] for row in rows}


async def test_every_json_that_is_shown_is_what_is_sent() -> None:
    """A problem, a turn's view and a deployment that is not ready: the examples have their exact members."""
    error = DurableRunLeaseHeldError("held", run_id="r", retry_after_ms=1)
    in_flight = json.loads(problem(error, stream="/v1/sessions/demo/turns/0/stream").body)
    missing = ConfigurationError("OPENAI_API_KEY", "is required by BACKEND=openai")
    checks = await check_readiness(
        Application(
            authenticator=BearerAuth([Secrets({"AUTH_JWT_SECRET": "s" * 32})], now=time.time),
            service=missing,
            log=lambda *_: None,
        )
    )
    [view] = [example for each in blocks("json") if "runId" in (example := json.loads(each))]
    empty = TurnView(
        run_id="", status="", attempts=0, created_at="", updated_at="", completed_at=None, model=None, outcome=None
    )  # fmt: skip

    assert in_flight in [json.loads(each) for each in blocks("json")]
    assert {"ready": False, "checks": [check.to_json() for check in checks]} in [json.loads(e) for e in blocks("json")]
    assert list(_members(IDENTITY, empty)) == list(view)


# Settings


def settings_table() -> Iterator[list[str]]:
    """Yield the rows that the page must have."""
    for field in fields(Settings):
        assert field.default is not MISSING
        choices, least = field.metadata.get("choices", ()), field.metadata.get("least")
        values = ", ".join(f"`{each}`" for each in choices) or ("text" if least is None else f"at least {least}")
        default = "" if field.default == "" else f"`{field.default}`"
        yield [f"`{field.name.upper()}`", default, values, field.metadata["help"]]


def test_every_setting_is_told_as_it_is() -> None:
    """Name, default, values and meaning; in both directions."""
    assert list(settings_table()) == table("docs/reference/settings.md", "Every setting")


def test_no_other_setting_is_mentioned() -> None:
    """A name in the prose that looks like a setting is one, or belongs to a command."""
    known = {field.name.upper() for field in fields(Settings)} | {
        "PORT",
        "ARGS",
        "FILES",
        "SESSIONS",
        "SWEEP",
        "RATE_SUBJECT",
        "RATE_TENANT",
    }
    known |= {preset.key for preset in PRESETS.values()}
    words = {
        "GET",
        "HEAD",
        "OPTIONS",
        "POST",
        "PATCH",
        "DELETE",
        "WHERE",
        "DURABLE_SCHEMA_SQL",
        "DURABLE_SCHEMA_VERSION",
    }
    mentioned = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|[A-Z]{4,})(?:=[^`]*)?`", PROSE))

    assert set() == mentioned - known - words


# Examples


class Sent:
    """What an example sends, instead of sending it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request, timeout: float) -> closing[Any]:
        assert timeout < 10
        self.requests.append(request)
        return closing(self)

    def close(self) -> None:
        """Do nothing."""


async def test_the_product_in_the_manual_works() -> None:
    """It answers, redacts what is stored, and reports under the turn's key, as the text around it says."""
    source = sample("_CARD_NUMBER")
    module, sent = ModuleType("products.orders"), Sent()
    exec(compile(source, "docs", "exec"), vars(module))  # noqa: S102 - that is the test
    vars(module)["urlopen"] = sent
    with open_sqlite() as database:
        desk = Desk(database, module.Hooks())
        lines = await desk.run(message="my card is 4111 1111 1111 1111")
        [(content,)] = await desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")
    [request] = sent.requests
    assert isinstance(request.data, bytes)

    assert "session.run.completed" == lines[-1]["type"]
    assert content.endswith("You said: “my card is [card number]”")
    assert {"session": "thread-1", "text": content} == json.loads(request.data)
    assert "chat:acme:thread-1:0/1/persist_assistant_message" == request.get_header("Idempotency-key")


@pytest.mark.parametrize("source", [each for each in blocks("python") if "You explain contracts." in each])
async def test_the_first_product_in_the_manual_works(source: str) -> None:
    """It answers, and no address is in what is stored."""
    module = ModuleType("products.contracts")
    exec(compile(source, "docs", "exec"), vars(module))  # noqa: S102 - that is the test
    with open_sqlite() as database:
        desk = Desk(database, module.Hooks())
        lines = await desk.run(message="Ask ann@example.com.")
        [(content,)] = await desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")

    assert ["result", "session.run.completed"] == [line["type"] for line in lines[-2:]]
    assert content.endswith("You said: “Ask [e-mail].”")


async def test_the_hook_in_the_manual_that_shapes_requests_works() -> None:
    """The model is told what was looked up, and how to answer."""
    module = ModuleType("products.handbook")
    exec(compile(sample("You answer from the handbook."), "docs", "exec"), vars(module))  # noqa: S102 - that is the test
    with open_sqlite() as database:
        alone, transport = isolate(database, [OK], module.Hooks())
        await (await alone.post("holidays", parameters={"seed": 1})).lines()
        [exchange] = transport.exchanges
    body = json.loads(exchange.request.body)

    assert body["messages"][0]["content"].endswith("says about 'holidays'.")
    assert (body["temperature"], body["seed"]) == (0.2, 1)


def test_the_history_in_the_manual_works() -> None:
    """An answer that is not whole is not shown, and is told to be missing."""
    module = ModuleType("products.whole")
    exec(compile(sample("def show_history("), "docs", "exec"), vars(module))  # noqa: S102 - that is the test
    ends = {"a": "stop", "b": "length", "c": None, "d": "cancelled"}
    turns = [PastTurn(turn_index=0, question="q", answer=each, finish_reason=end) for each, end in ends.items()]
    shown = module.Hooks().show_history(turns, 100)

    assert ["q", "a", "q", "c"] == [message["content"] for message in shown.messages]
    assert (2, 2) == (shown.turns, shown.left_out)


async def test_the_agent_in_the_manual_works() -> None:
    """It waits for an approval, pays back once it has it, and answers."""
    source = sample("tools = (")
    module = ModuleType("products.refunds")
    exec(compile(source, "docs", "exec"), vars(module))  # noqa: S102 - that is the test
    with open_sqlite() as database:
        desk = Desk(database, module.Hooks(), backend=Model(("refund", {"cents": 5}), "Done.").backend())
        [key] = [line["data"]["key"] for line in await desk.run() if line["type"] == "tool.approval"]
        await desk.input().deployment.store.emit_event("chat:acme:thread-1:0", key, {"approved": True})
        lines = await desk.run()

    assert [5] == [line["data"]["result"]["refunded"] for line in lines if line["type"] == "tool.result"]
    assert "session.run.completed" == lines[-1]["type"]


def test_the_durable_task_in_the_manual_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It pays back once, however often it is started."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        exec(compile(sample("def refund(context"), "docs", "exec"), {})  # noqa: S102 - that is the test
    first, second, *refunded = capsys.readouterr().out.splitlines()

    assert "loading the order" == first
    assert second.startswith("paying back 500 under the key ")
    assert ["refunded 500"] * 2 == refunded


async def test_the_report_in_the_manual_works() -> None:
    """It says how a turn of the real engine ended and what it cost, and nothing of what it said."""
    source = sample("feed_line")
    module = ModuleType("products.report")
    exec(compile(source, "docs", "exec"), vars(module))  # noqa: S102 - that is the test
    with open_sqlite() as database:
        usage = usage_event(model="gpt-x", tokensIn=3, tokensOut=2)
        lines = await Desk(database, Product(text_delta("Ms. Miller"), usage)).run()
    reported = module.report(map(json.dumps, lines), lambda: 0)

    assert ("completed", "[redacted]") == (reported["turn"]["finalStatus"], reported["turn"]["finalText"])
    cost = {"tokensIn": 3, "tokensOut": 2, "costUsd": None, "wallMs": 0, "llmCalls": 1, "usdKnown": False}
    assert cost == reported["cost"]
    assert "Miller" not in json.dumps(reported)


def test_every_line_becomes_what_the_manual_says() -> None:
    """Each type of ours has a row with what a line of it becomes, or becomes nothing."""
    _, rows, _ = tables("docs/how-to/agent-runtime-events.md", "Read a turn with agent-runtime's tools")
    data = {"delta": "a", "part": {"type": "text"}, "key": "k", "toolName": "t", "finalText": "a", "code": "internal"}
    before = {"session.run.started": (), "session.run.failed": ("session.run.started", "error")}
    for line, becomes in rows:
        [kind] = names(line)
        task = AgentTaskSpec(id="t", intent="i")
        mapper = RuntimeEventMapper(task=task, session_id="s", backend="b", now_ms=lambda: 0)
        for each in before.get(kind, ("session.run.started",)):
            mapper.feed(ChatStreamEvent(each, data))
        said = {event.type for event in mapper.feed(ChatStreamEvent(kind, data))}

        assert said
        assert said <= set(names(becomes)) & set(EVENT_CLASSES), kind
    left_out = {"ping", "context", "session.run.queued", *(kind for kind in EVENT_TYPES if kind.startswith("answer."))}
    assert set(EVENT_TYPES) - left_out == {names(line)[0] for line, _ in rows}


def test_every_option_of_telemetry_is_told() -> None:
    """None is missing, and none is told that does not exist."""
    *_, rows = tables("docs/how-to/agent-runtime-events.md", "Read a turn with agent-runtime's tools")

    assert [item.name for item in fields(RuntimeTelemetryOptions)] == [names(option)[0] for option, _ in rows]


def test_the_modules_of_agent_runtimes_vocabulary_exist() -> None:
    """And the manual says how many types there are."""
    [rows, *_] = tables("docs/how-to/agent-runtime-events.md", "Read a turn with agent-runtime's tools")

    for name in (name for row in rows for name in names(row[0])):
        assert (SRC.parent / (name.replace(".", "/") + ".py")).exists(), name
    assert f"the {len(EVENT_CLASSES)} types" in rows[1][1]


# The public face


def test_every_name_that_a_product_may_import_is_told() -> None:
    """And none that it cannot."""
    rows = table("docs/reference/hooks.md", "What a product imports")

    assert sorted(product.__all__) == sorted(name for row in rows for name in names(row[0]))


_ADDED = ("traceparent", "report_call", "request", "question", "version")


@pytest.mark.parametrize(
    ("heading", "shown"),
    [
        (
            "What `produce` is given",
            {*(item.name for item in fields(product.TurnContext)), *_ADDED},
        ),
        ("What the model is asked", {item.name for item in fields(product.ModelRequest)}),
        (
            "What the hooks of a stored answer are given",
            {*(item.name for item in fields(product.FinishedTurn)), "version"},
        ),
        ("What `on_thread_changed` is given", {item.name for item in fields(product.ThreadChange)}),
        ("What `on_attempt_end` is given", {item.name for item in fields(product.EndedAttempt)}),
        ("Attributes of the class", {"sync_http", "tools", "instructions", "client_tools", "runtime_runs"}),
        ("Tools and approvals", {item.name for item in fields(product.Tool)}),
    ],
)
def test_every_member_of_what_hooks_are_given_is_told(heading: str, shown: set[str]) -> None:
    told = {name.partition("(")[0] for row in table("docs/reference/hooks.md", heading) for name in names(row[0])}

    assert shown == told


# Telemetry


def test_every_metric_is_told() -> None:
    """In the order of the code, and none that does not exist."""
    told = [names(row[0])[0] for row in table("docs/reference/metrics-and-spans.md", "Metrics")]

    assert list(INSTRUMENTS) == told


def test_every_attribute_of_a_span_is_told() -> None:
    """And none that is never noted."""
    rows = table("docs/reference/metrics-and-spans.md", "Attributes")
    noted = (getattr(conventions, name) for name in conventions.__all__)
    known = {value for value in noted if isinstance(value, str) and "." in value}

    assert known == {name for row in rows for name in names(row[0])}


def test_every_column_of_the_ledger_is_told() -> None:
    with open_sqlite() as database:
        found = database._connection.execute("SELECT name FROM pragma_table_info('chat_usage')").fetchall()

    assert {str(name) for (name,) in found} == {
        name for row in table("docs/reference/schema.md", "The ledger") for name in names(row[0])
    }


# The contract of agent-runtime

CONTRACT = "docs/reference/agent-runtime.md"


def test_every_number_of_a_test_is_a_defect_and_is_told() -> None:
    """What `test_b8_…` is about is looked up under B8; what came after 0.14.1 (S) has tests under other names."""
    sources = (path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tested = {found.upper() for text in sources for found in re.findall(r"def test_([brtco][0-9]+)_", text)}
    told = [row[0] for defects in tables(CONTRACT, "Defects") for row in defects]

    assert sorted(set(told)) == sorted(told)
    assert {number for number in told if number[0] != "S"} == tested


@pytest.mark.parametrize(("value", "digest"), [tuple(map(first_name, row)) for row in tables(CONTRACT, "Hashes")[1]])
def test_every_known_answer_is_ours(value: str, digest: str) -> None:
    assert digest == canonical_hash(json.loads(value))


def test_every_stream_event_is_told_with_its_members() -> None:
    """In their JSON's names, which are JavaScript's."""
    told = {kind: names(row[1]) for row in table(CONTRACT, "Stream events") for kind in names(row[0])}

    assert set(EVENT_CLASSES) == set(told)
    for kind, members in told.items():
        known = {re.sub(r"_(\w)", lambda m: m[1].upper(), item.name) for item in fields(EVENT_CLASSES[kind])}
        assert {member.rstrip("?") for member in members} <= known, kind


async def test_the_token_in_the_manual_is_accepted() -> None:
    """Whoever follows the recipe is who the claims say."""
    source = sample("jwt.encode")
    scope: dict[str, Any] = {"secret": "s" * 32}
    exec(compile(source, "docs", "exec"), scope)  # noqa: S102 - that is the test
    principal = await BearerAuth([Secrets({"AUTH_JWT_SECRET": "s" * 32})], now=time.time).authenticate(
        {"authorization": f"Bearer {scope['token']}"}
    )

    assert ("acme", "ann", frozenset({"turns"})) == (principal.tenant_id, principal.user_id, principal.scopes)
    assert set(scope["claims"]) <= {
        name for row in table("docs/reference/authentication.md", "Tokens") for name in names(row[0])
    }


@pytest.mark.parametrize("query", blocks("sql"))
async def test_every_query_in_the_manual_runs(query: str) -> None:
    """On a database with one turn, each statement is understood."""
    with open_sqlite() as database:
        desk = Desk(database)
        await desk.run()

        assert isinstance(await desk.rows(query), list)


def test_every_table_of_the_schema_is_explained() -> None:
    """A row for each, and none for one that does not exist."""
    with open_sqlite() as database:
        found = database._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()

    assert {str(name) for (name,) in found} == {names(row[0])[0] for row in table("docs/reference/schema.md", "Tables")}


def test_every_version_of_the_schema_is_told() -> None:
    """The one that the code needs, which is the last of the table, and each before it."""
    versions = [int(row[0]) for row in table("docs/reference/schema.md", "Versions")[1:]]

    assert f"This code needs version {DURABLE_SCHEMA_VERSION} in" in section("docs/reference/schema.md", "Versions")
    assert list(range(100, DURABLE_SCHEMA_VERSION + 1)) == versions


# The log


def logged_names(tree: ast.Module) -> Iterator[str]:
    """Yield the event names that *tree* gives to a log: literals, and what a variable in that place may be."""
    variables: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                texts: Sequence[ast.AST] = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                variables[name] = [
                    each.value for each in texts if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in {"log", "_log", "_report", "print_log"}:
            continue
        match node.args[0]:
            case ast.Constant(value=str(text)):
                yield text
            case ast.Name(id=name):
                yield from variables.get(name, ())


def test_every_log_event_is_explained() -> None:
    """An operator finds every name that the code logs, and none that it does not."""
    trees = [ast.parse(path.read_text("utf-8")) for path in SRC.rglob("*.py")]
    logged = {name for tree in trees for name in logged_names(tree) if re.fullmatch(r"[a-z]+\.[a-z_]+", name)}

    assert logged == {names(row[0])[0] for row in table("docs/reference/log-events.md", "Every event")}
