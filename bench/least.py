"""
An entry module: *least*, what a Python Worker costs before it does anything of its own.

It answers a GET with two letters, and hands the model's stream on as it comes, through the real Worker's transport
and sink.  Nothing is parsed, checked, stored or logged.
"""

import json
from typing import Any

from workers import Request, Response, WorkerEntrypoint, import_from_javascript

from chatturn.chat.turn.sinks import Sink
from chatturn.http.messages import HttpResponse
from chatturn.transport import TransportRequest
from chatturn.workerd.fetch import FetchTransport
from chatturn.workerd.requests import to_response

__all__ = ["Default"]


class Default(WorkerEntrypoint):
    """The handler that the platform calls."""

    async def fetch(self, request: Request) -> Any:
        """Answer one request."""
        if request.method == "GET":
            return Response("ok")
        model = json.loads(await request.text())["model"]

        async def relay(sink: Sink) -> None:
            async with FetchTransport().send(_asking(model)) as response:
                async for chunk in response.chunks():
                    sink.write(chunk.decode())
            await sink.close()

        return to_response(HttpResponse(status=200, headers={}, stream=relay), request.js_object, self.ctx)


def _asking(model: str) -> TransportRequest:
    base_url = import_from_javascript("cloudflare:workers").env.OPENAI_BASE_URL
    body = json.dumps({"model": model, "stream": True})
    return TransportRequest(url=f"{base_url}/chat/completions", headers={"content-type": "application/json"}, body=body)
