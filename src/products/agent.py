"""
A note keeper, whose model has two tools: one that runs at once, and one that waits for an approval.

If the variable ``NOTES_URL`` is set, each tool POSTs to ``<NOTES_URL>/<tool>``, under the call's idempotency key;
otherwise it only logs what it would have done.
"""

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.request import Request, urlopen

from chatturn.product import ChatTurnHooks, StepRetry, Tool, ToolContext, ToolError, print_log

__all__ = ["Hooks"]

_TIMEOUT_S: Final = 5


class Hooks(ChatTurnHooks):
    """Answer with the help of the tools."""

    sync_http = True
    instructions = "You keep the user's notes. Add a note when asked to remember something; send one only if asked to."

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(variables)
        text = {"type": "string"}
        self.tools = (
            Tool(
                name="add_note",
                description="Keeps a note.",
                parameters={"type": "object", "properties": {"text": text}, "required": ["text"]},
                run=self._add_note,
                retry=StepRetry(max_attempts=3, initial_backoff_ms=200),
            ),
            Tool(
                name="send_note",
                description="Sends a note to somebody; the user is asked first.",
                parameters={"type": "object", "properties": {"to": text, "text": text}, "required": ["to", "text"]},
                run=self._send_note,
                needs_approval=True,
                retry=StepRetry(max_attempts=3, initial_backoff_ms=200),
            ),
        )

    async def _add_note(self, args: Mapping[str, Any], call: ToolContext) -> Any:
        self._post("add_note", args, call)
        return {"kept": args["text"]}

    async def _send_note(self, args: Mapping[str, Any], call: ToolContext) -> Any:
        self._post("send_note", args, call)
        return {"sent": args["to"]}

    def _post(self, tool: str, args: Mapping[str, Any], call: ToolContext) -> None:
        """Send the call to the notes service, which must ignore a key that it has seen: a call may be sent twice."""
        address = self.variables.get("NOTES_URL")
        if not address:
            print_log("agent.note", {"tool": tool, "user": call.identity.user_id, "step": call.step_key})
            return
        headers = {"Content-Type": "application/json", "Idempotency-Key": call.step_key}
        body = json.dumps(dict(args)).encode()
        request = Request(f"{address}/{tool}", data=body, headers=headers)
        try:
            urlopen(request, timeout=_TIMEOUT_S).close()
        except (OSError, HTTPException) as error:
            raise ToolError("the notes are not reachable") from error
