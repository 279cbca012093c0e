"""The local D1 databases: SQLite files that Miniflare keeps below the state folder."""

import hashlib
import hmac
from pathlib import Path
from typing import Final

from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import StoreError
from dev import paths

# Miniflare stores every local D1 database as an object of this Durable Object class.
_OBJECT_CLASS: Final = "miniflare-D1DatabaseObject"


def database_file(state: Path, database_id: str) -> Path:
    """
    Return the SQLite file of the local D1 database *database_id*.

    Source:
        workerd, `server.c++`: the id of a named object is an HMAC of its name, then an HMAC of that.
    """
    key = hashlib.sha256(_OBJECT_CLASS.encode()).digest()
    name = hmac.digest(key, database_id.encode(), "sha256")[:16]
    check = hmac.digest(key, name, "sha256")[:16]
    return state / "v3" / "d1" / _OBJECT_CLASS / f"{(name + check).hex()}.sqlite"


def apply_schema(state: Path, database_id: str, schema: Path) -> None:
    """
    Bring the local database to *schema*: the project's own by migrating, any other, which must be idempotent, as it is.

    Done before workerd opens the file: no request, and none of the seconds that
    `wrangler d1 execute` takes.

    Raises:
        ValueError: It is damaged, or another process uses it.
    """
    file = database_file(state, database_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with SqliteDatabase(file) as database:
            if schema == paths.SCHEMA:
                database.migrate()
            else:
                database.apply_schema(schema.read_text("utf-8"))
    except StoreError as error:
        raise ValueError(f"the local database {file}: {error}; `make reset` forgets it") from error
