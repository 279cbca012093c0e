"""A Worker that runs pytest: the same tests as on the host, on real D1, through the real FFI."""

import json

import run_tests
from workers import Request, Response, WorkerEntrypoint

__all__ = ["Default"]


class Default(WorkerEntrypoint):
    """POST a JSON list of node ids."""

    async def fetch(self, request: Request) -> Response:
        """Run the tests asked for; answer with one report for each."""
        if request.method != "POST":
            return Response("ready\n")
        return Response.json(run_tests.run(json.loads(await request.text())))
