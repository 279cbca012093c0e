"""
An entry module: durable steps on D1, beside the loop that anybody would write first, on a database that counts.

``POST /bench/steps/<how>/<run>?steps=n`` runs so many steps: ``durable`` by `run_durable`, ``naive`` by asking for each
step's row, doing the step, and storing its row.  The same request again replays the run.
"""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from workers import Request, Response, import_from_javascript

from bench.counted import CountingDatabase
from bench.counted import Default as Counted
from chatturn.database.api import Database, Statement
from chatturn.durable.context import DurableContext
from chatturn.durable.records import DurableRunManifest, TaskSpec
from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore

__all__ = ["Default"]

_PREFIX = "/bench/steps/"
_TABLE = "CREATE TABLE IF NOT EXISTS naive_steps (run_id, position, result, PRIMARY KEY (run_id, position))"
_READ = "SELECT result FROM naive_steps WHERE run_id = ?1 AND position = ?2"
_STORE = "INSERT INTO naive_steps (run_id, position, result) VALUES (?1, ?2, ?3)"


class Default(Counted):
    """The Worker, the counts, and the steps."""

    async def fetch(self, request: Request) -> Any:
        """Answer one request."""
        address = urlsplit(request.url)
        if not address.path.startswith(_PREFIX):
            return await super().fetch(request)
        how, run_id = address.path.removeprefix(_PREFIX).split("/")
        steps = int(parse_qs(address.query)["steps"][0])
        database = CountingDatabase(import_from_javascript("cloudflare:workers").env.DB)
        done = await (_durable if how == "durable" else _naive)(database, run_id, steps)
        return Response(str(done))


async def _durable(database: Database, run_id: str, steps: int) -> int:
    async def task(context: DurableContext) -> int:
        return sum([await context.step(f"step {position}", _step, input=position) for position in range(steps)])

    task_spec = TaskSpec(id="bench", intent="bench", domain="bench")
    manifest = DurableRunManifest(project_id="bench", scenario_id="bench", task=task_spec, input={"steps": steps})
    store = SqlRunStore(database)
    result = await run_durable(RunDurableInput(run_id=run_id, manifest=manifest, store=store, task_fn=task))
    return result.result or 0


async def _naive(database: Database, run_id: str, steps: int) -> int:
    await database.batch([Statement(_TABLE)])
    done = 0
    for position in range(steps):
        [found] = await database.batch([Statement(_READ, (run_id, position))])
        if found.rows:
            done += int(str(found.rows[0]["result"]))
            continue
        value = await _step()
        await database.batch([Statement(_STORE, (run_id, position, value))])
        done += value
    return done


async def _step() -> int:
    return 1
