"""`GET /v1/usage` as operators ask for it: what is refused and how, pages, and tables that a spreadsheet may open."""

import base64
import csv
import io
from collections.abc import Iterator

import pytest

from chatturn.database.sqlite import SqliteDatabase
from products.assistant import Hooks as Assistant
from tests.support.isolates import Isolate
from tests.support.transport import ScriptedTransport
from tests.support.turns import open_sqlite
from tests.turns.test_account import COUNTED, micro_dollar_a_token, reporting
from tests.unit.backends.openai.test_backend import backend

GROUPS = 5


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def isolate(database: SqliteDatabase, *script: object) -> Isolate:
    """Return an isolate whose model's API follows a script."""
    transport = ScriptedTransport(script)  # type: ignore[arg-type]  # replies
    return Isolate(database, Assistant(), backend(transport), prices=micro_dollar_a_token())


async def several(database: SqliteDatabase) -> Isolate:
    """Have turns of some sessions answered, and one of a rival's."""
    alone = isolate(database, *[COUNTED] * (GROUPS + 1))
    for number in range(GROUPS):
        await (await alone.ask("POST", f"/v1/sessions/s{number}/turns/0", {"message": "hi"})).lines()
    await (await alone.ask("POST", "/v1/sessions/s0/turns/0", {"message": "hi"}, x_tenant="rival")).lines()
    return alone


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=user", "by"),
        ("by=", "by"),
        ("by=day&by=model", "query"),
        ("by=tenant;DROP TABLE chat_usage", "by"),
        ("from=2026-1-1", "from"),
        ("from=2026-02-30", "from"),
        ("to=today", "to"),
        ("to=2026-01-01T00:00:00Z", "to"),
        ("from=2026-01-02&to=2026-01-01", "from"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("tenant=", "tenant"),
        ("tenant=%00", "tenant"),
        ("after=forged", "after"),
        ("after=" + base64.urlsafe_b64encode(b'["day", 1, 2, 3]').decode().rstrip("="), "after"),
        ("session=a", "session"),
    ],
)
async def test_what_makes_no_sense_is_refused(database: SqliteDatabase, query: str, field: str) -> None:
    """With the member that is wrong, and before the database is asked."""
    refused = await isolate(database).ask("GET", f"/v1/usage?{query}", x_scopes="operate")

    assert (422, "invalid_field", field) == (refused.status, refused.body["code"], refused.body["field"])


async def test_a_cursor_is_of_one_list(database: SqliteDatabase) -> None:
    """That of another grouping is refused, rather than taken for a place in this one."""
    alone = await several(database)
    page = (await alone.ask("GET", "/v1/usage?by=session&limit=1", x_scopes="operate")).body
    refused = await alone.ask("GET", f"/v1/usage?by=model&after={page['next']}", x_scopes="operate")

    assert (422, "after") == (refused.status, refused.body["field"])


@pytest.mark.parametrize("scopes", ["turns", "turns:read", ""])
async def test_who_is_no_operator_sees_nothing(database: SqliteDatabase, scopes: str) -> None:
    """Not even of the own tenant: money is the operator's business."""
    refused = await isolate(database).ask("GET", "/v1/usage?tenant=acme", x_scopes=scopes)

    assert (403, "forbidden") == (refused.status, refused.body["code"])


@pytest.mark.parametrize("limit", [1, 2, GROUPS + 1, 200])
async def test_pages_show_every_group_once(database: SqliteDatabase, limit: int) -> None:
    """In order, by the cursor as by the link; and each page has the total of all."""
    alone = await several(database)
    query, groups = f"/v1/usage?by=session&limit={limit}", []
    path: str | None = query
    while path is not None:
        reply = await alone.ask("GET", path, x_scopes="operate")
        groups += [(group["tenantId"], group["sessionId"]) for group in reply.body["usage"]]
        assert (GROUPS + 1, 9 * (GROUPS + 1)) == (
            reply.body["total"]["turns"],
            reply.body["total"]["delivered"]["costMicroUsd"],
        )
        link = reply.response.headers.get("Link")
        assert (reply.body["next"] is None) == (link is None)
        path = None if link is None else link[1 : link.index(">")]

    assert [*(("acme", f"s{number}") for number in range(GROUPS)), ("rival", "s0")] == groups


async def test_days_are_a_period_that_includes_its_ends(database: SqliteDatabase) -> None:
    """And one without usage is empty, with sums that are not known, not wrong."""
    alone = await several(database)
    inside = (await alone.ask("GET", "/v1/usage?from=2026-01-01&to=2026-01-01", x_scopes="operate")).body
    ever = (await alone.ask("GET", "/v1/usage?from=0001-01-01&to=9999-12-31", x_scopes="operate")).body
    outside = (await alone.ask("GET", "/v1/usage?from=2026-01-02&to=2026-01-03", x_scopes="operate")).body

    assert [("2026-01-01", GROUPS + 1)] == [(group["day"], group["turns"]) for group in inside["usage"]]
    assert (inside["usage"], inside["total"]) == (ever["usage"], ever["total"])
    assert ([], 0, None) == (outside["usage"], outside["total"]["turns"], outside["total"]["delivered"]["tokensIn"])


@pytest.mark.parametrize(
    "name",
    [
        '=HYPERLINK("http://evil")',
        "+1",
        "-1",
        "@SUM(A1)",
        "\tx",
        "\n=1",
        "\uff1d1",
        " =1",
        " \t =1",
        "\u3000@A1",
        'a"b,c\r\nd',
    ],
)
async def test_no_name_is_a_formula_in_a_table(database: SqliteDatabase, name: str) -> None:
    """A model's name is anything that its API says; a spreadsheet must not run it, nor lose its place."""
    alone = isolate(database, reporting({"prompt_tokens": 7, "completion_tokens": 2}, model=name))
    await (await alone.post()).lines()
    reply = await alone.ask("GET", "/v1/usage?by=model", x_scopes="operate", accept="text/csv")
    [line] = csv.DictReader(io.StringIO(reply.response.body.decode(), newline=""))

    assert "text/csv; charset=utf-8" == reply.response.headers["Content-Type"]
    assert "nosniff" == reply.response.headers["X-Content-Type-Options"]
    assert reply.response.body.startswith(b'"model","turns",')
    assert line["model"] == (name if name.startswith("a") else f"'{name}")
    assert ("7", "2", "") == tuple(line[f"delivered.{each}"] for each in ("tokensIn", "tokensOut", "costMicroUsd"))
