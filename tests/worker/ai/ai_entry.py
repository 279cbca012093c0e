"""The Worker, and beside it what stands in for Workers AI: it says in which words it was asked."""

import json
from collections.abc import Mapping
from typing import Any

from workers import Response, WorkerEntrypoint

from entry import Default, Session

__all__ = ["Default", "Session", "WorkersAI"]


class WorkersAI(WorkerEntrypoint):
    """Answers like the binding, in its own format: ``response``, and usage beside the last piece."""

    async def run(self, model: str, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> Response:
        """Stream an answer, or refuse."""
        if not options.get("returnRawResponse") or model == "@cf/none":
            refusal = {"errors": [{"message": "AiError: No such model", "code": 5007}], "success": False}
            return Response(json.dumps(refusal), status=400)
        words = [model, " heard ", inputs["messages"][-1]["content"]]
        frames: list[dict[str, Any]] = [{"response": word, "p": "abdefgh"} for word in words]
        frames.append({"response": "", "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
        body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"
        return Response(body, headers={"content-type": "text/event-stream"})
