"""
Parts of a sweep in invocations of their own, where a service binding to this Worker is bound as ``SWEEP``.

The binding names an entrypoint that no address leads to: only a Worker of the same account that binds it can call it.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import js
from pyodide.ffi import JsException, JsProxy

from chatturn.chat.sweep import Sweep
from chatturn.http.limits import MAX_BODY_BYTES
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.telemetry.operator_log import OperatorLog
from chatturn.workerd.ffi import js_object, settled, started

__all__ = ["answer_part", "hand_out"]

_new_request: Final = js.Request.new  # type: ignore[attr-defined]  # no class in the stub: the SDK's own has its name
_ADDRESS: Final = "http://localhost/"
"""A request must have an address; the binding ignores it."""


async def hand_out(binding: JsProxy, log: OperatorLog, run_ids: Sequence[str]) -> int:
    """Start an invocation that continues turns; see `HandOut`."""
    request = _new_request(_ADDRESS, js_object({"method": "POST", "body": json.dumps(run_ids)}))
    try:
        response = await settled(started(binding.fetch.bind(binding, request)))
        said = await settled(started(response.text.bind(response)))
    except JsException as error:
        log("sweep.part_failed", {"error": error})
        return 0
    if response.status != HTTPStatus.OK:
        log("sweep.part_failed", {"status": response.status, "error": said[:200]})
        return 0
    return int(said)


async def answer_part(sweep: Sweep, request: HttpRequest) -> HttpResponse:
    """Continue the turns that `hand_out` has named, and tell how many have run."""
    ran = await sweep.run_turns(json.loads(await request.read(MAX_BODY_BYTES)))
    return HttpResponse(status=HTTPStatus.OK, headers={}, body=str(ran).encode())
