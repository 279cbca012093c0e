"""An export of the database is imported again, by the installed wrangler: every row fits a statement of D1's."""

import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatturn.chat.log.compact import ROW_BYTES, compact, size_of_row
from chatturn.events import encode_lines, text_delta
from dev import paths, wrangler

pytestmark = pytest.mark.slow

STATEMENT_BYTES = 100_000
"""D1 takes no longer one. Source: developers.cloudflare.com/d1/platform/limits."""


def run(folder: Path, *arguments: str) -> str:
    """Run wrangler on a local database in *folder*."""
    done = subprocess.run(
        [*wrangler.command(), *arguments, "--config", str(folder / "wrangler.toml")],
        cwd=folder,
        env=wrangler.environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deployment(folder: Path) -> Path:
    """Make a folder with a local database of our migrations."""
    folder.mkdir()
    (folder / "wrangler.toml").write_text(
        'name = "backup"\ncompatibility_date = "2026-08-01"\n[[d1_databases]]\nbinding = "DB"\n'
        'database_name = "chatturn"\ndatabase_id = "4f0c1f5e-9d0e-4f07-8a56-0d6f0f2c9a11"\n'
        f'migrations_dir = "{paths.ROOT / "migrations"}"\n'
    )
    return folder


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """Read rows of its local database."""
    [file] = (folder / ".wrangler/state/v3/d1").rglob("[0-9a-f]*.sqlite")
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchall()


def test_an_export_is_imported_again(tmp_path: Path) -> None:
    """Tables, triggers and rows, among them a log's row as long as it may be; the triggers add nothing up twice."""
    before, after = deployment(tmp_path / "before"), tmp_path / "after"
    run(before, "d1", "migrations", "apply", "DB", "--local")
    text = "'" * (ROW_BYTES // 2)
    assert ROW_BYTES == size_of_row(text)
    text = text.replace("'", "''")
    said = [text_delta(each) for each in ("it's\n", "two\r\nlines; ", "and \\n\n", "--\n")] * 3
    log = compact("".join(encode_lines(said, 0, 1))).replace("'", "''")
    day = "2026-11-28T00:00:00.000Z"
    usage = "run_id, attempt, call_index, tenant_id, session_id, tokens_in, recorded_at"
    values = f"'chat:acme:s1:0', 1, 0, 'acme', 's1', 7, '{day}'"
    inserts = {
        "chat_segments": f"VALUES ('chat:acme:s1:0', 0, 0, 1, '{text}', 1), ('chat:acme:s1:1', 0, 11, 1, '{log}', 1)",
        "chat_usage": f"({usage}) VALUES ({values})",
    }
    script = "".join(f"INSERT INTO {table} {what};\n" for table, what in inserts.items())
    (before / "rows.sql").write_text(script)
    run(before, "d1", "execute", "DB", "--local", "--file", str(before / "rows.sql"))
    dump = tmp_path / "dump.sql"
    run(before, "d1", "export", "DB", "--local", "--output", str(dump))

    statements = re.split(r";\n(?=[A-Z])", dump.read_text())
    assert STATEMENT_BYTES > max(len(statement.encode()) for statement in statements)
    deployment(after)
    run(after, "d1", "execute", "DB", "--local", "--file", str(dump))
    for table in ("chat_segments", "chat_usage", "chat_usage_sums", "durable_schema_info"):
        read = f"SELECT * FROM {table}"  # noqa: S608
        assert rows(before, read) == rows(after, read)
    schema = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\' ORDER BY type, name"
    assert rows(before, schema) == rows(after, schema)
