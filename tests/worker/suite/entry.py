"""A Worker that runs pytest: the same tests as on the host, on real D1, through the real FFI."""

import json

from workers import Request, Response, WorkerEntrypoint

from tests.worker.suite.run_tests import run

__all__ = ["Default"]


class Default(WorkerEntrypoint):
    """POST a JSON list of node ids."""

    async def fetch(self, request: Request) -> Response:
        """Run the tests asked for; answer with one report for each."""
        if request.method != "POST":
            return Response("ready\n")
        return Response(json.dumps(run(json.loads(await request.text()))))
