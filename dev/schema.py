"""`make schema`: writes schema.sql, the copy of the schema for people and for the `sqlite3` shell."""

from chatturn.database.schema import DURABLE_SCHEMA_SQL
from dev import paths

if __name__ == "__main__":
    paths.SCHEMA.write_text(DURABLE_SCHEMA_SQL, "utf-8")
    print(f"wrote {paths.SCHEMA}")
