"""One tool call of a model: checked, approved, done once, and told: to the reader and to the model."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from chatturn.chat.hooks.hooks import TurnContext
from chatturn.chat.hooks.tool import Tool, ToolContext, ToolError
from chatturn.durable.records import StepKind
from chatturn.durable.steps import OpenWait, fingerprint, result_text
from chatturn.errors import AttemptsExhausted, DurableAwaitEventTimeoutError, StepTooLarge
from chatturn.events import ChatStreamEvent, tool_approval, tool_client, tool_error, tool_result
from chatturn.jsontext.stored import json_text
from chatturn.product_calls import Late, awaited
from chatturn.telemetry import conventions

__all__ = ["APPROVAL_PREFIX", "CLIENT_CALL", "MAX_CALLS", "TOOL_PREFIX", "ToolCall", "ToolOutcome", "ToolSteps"]

APPROVAL_PREFIX: Final = "approve:"
"""The keys of a run's events that are approvals begin with this."""

TOOL_PREFIX: Final = "tool:"
"""The keys of results of the client's tools begin with this; the call's id follows."""

CLIENT_CALL: Final = "call_"
"""The id of a call of a client's tool begins with this; with 37 characters, it is unique among all runs."""

MAX_CALLS: Final = 32
"""The most tool calls of one round that are done; the model is told that further calls are not done."""

_PATIENCE_MS: Final = 7 * 24 * 3_600_000
"""How long a turn waits for an approval, or for a client's result: 7 days."""

_DIGEST_CHARACTERS: Final = 32
"""Hex digits of a digest, 128 bits: nobody finds another call with the same digest."""

_MOST_RESULT_CHARACTERS: Final = 200_000
_MOST_ERROR_CHARACTERS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """
    What the model asks for.

    Attributes:
        id: The model's id of the call; not unique.
        name: The tool's name.
        args: The arguments as JSON; a text where the model's arguments were not JSON.
        place: ``<attempt>.<round>.<position>`` of the model call on record: unique within the run.
    """

    id: str
    name: str
    args: Any
    place: str


class ToolOutcome:
    """What became of one tool call."""

    def __init__(self) -> None:
        self._members: dict[str, Any] = {}
        self._verbatim = False

    def text(self) -> str:
        """Return it as the model is told; the text that a client gives as it is."""
        result = self._members.get("result")
        if self._verbatim and isinstance(result, str):
            return result
        return json_text(self._members.get("result", self._members), "an outcome")

    def settle(self, members: dict[str, Any], *, verbatim: bool = False) -> None:
        """Take *members*: ``{"result"}``, or ``{"error", "code"}``."""
        self._members, self._verbatim = members, verbatim

    def event(self, call: ToolCall) -> ChatStreamEvent:
        """Return it as the reader is told."""
        members = self._members
        if "result" in members:
            return tool_result(tool_call_id=call.id, tool_name=call.name, result=members["result"])
        return tool_error(tool_call_id=call.id, tool_name=call.name, code=members["code"], message=members["error"])


class ToolSteps:
    """
    The tools of one attempt of a turn.

    Args:
        context: The turn.
        tools: Each with a name of its own.

    Attributes:
        clients: The names of those that the client does.
    """

    def __init__(self, context: TurnContext, tools: Sequence[Tool]) -> None:
        self._context = context
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) != len(tools):
            raise ValueError("two tools have the same name")
        self.clients: Final = frozenset(tool.name for tool in tools if tool.run is None)
        self._asked: dict[str, _AskedOfClient] = {}

    async def tell_client(self, calls: Sequence[ToolCall]) -> AsyncGenerator[ChatStreamEvent, None]:
        """
        Tell the client its calls of a round, each once it is on record: only then can a result be taken.

        Nothing is waited for here, so that the client learns of all before the turn is suspended.
        """
        for call in calls:
            tool = self._tools.get(call.name)
            if tool is None or tool.run is not None or _objection(tool, call) is not None:
                continue
            told = replace(call, id=self._client_id(call))
            key = TOOL_PREFIX + told.id
            wait = await self._context.durable.open_event(key, timeout_ms=_PATIENCE_MS, linger=False)
            self._asked[call.place] = _AskedOfClient(told, wait)
            yield tool_client(tool_call_id=told.id, tool_name=call.name, args=call.args, key=key)

    async def use(self, call: ToolCall, outcome: ToolOutcome) -> AsyncGenerator[ChatStreamEvent, None]:
        """Do what the model asks for, or find out why not, and fill in *outcome*."""
        tool = self._tools.get(call.name)
        objection = _failed("unknown_tool", "there is no such tool") if tool is None else _objection(tool, call)
        if tool is None or objection is not None:
            outcome.settle(objection or {})
            yield outcome.event(call)
            return
        if (asked := self._asked.get(call.place)) is not None:
            outcome.settle(await _result_of(asked.wait), verbatim=True)
            yield outcome.event(asked.call)
            return
        denial = None
        if tool.needs_approval:
            key = self._approval_key(tool, call)
            # On record before anybody is asked: only what is asked for can be approved.
            wait = await self._context.durable.open_event(key, timeout_ms=_PATIENCE_MS)
            yield tool_approval(tool_call_id=call.id, tool_name=call.name, args=call.args, key=key)
            denial = await _denial(wait)
        outcome.settle(denial or await self._done(tool, call))
        yield outcome.event(call)

    def _client_id(self, call: ToolCall) -> str:
        """Return the id under which a client knows a call: of this call, of these arguments, of no other run."""
        durable = self._context.durable
        asked = [call.name, call.args, durable.step_key(f"{TOOL_PREFIX}{call.name}:{call.place}")]
        digest = fingerprint(asked, f"{TOOL_PREFIX}{call.place}", durable.run_id)
        return f"{CLIENT_CALL}{digest[:_DIGEST_CHARACTERS]}"

    def _approval_key(self, tool: Tool, call: ToolCall) -> str:
        """
        Return the key of a call's approval: of this call, of these arguments, of no other run.

        A run without keys of its own has the key that every version of this code makes of the call's place.
        """
        durable = self._context.durable
        if not durable.has_own_keys:
            return APPROVAL_PREFIX + call.place
        step_key = durable.step_key(_intent(tool, call), ahead=1)  # behind the wait
        asked = [tool.name, call.args, step_key]
        digest = fingerprint(asked, f"{APPROVAL_PREFIX}{call.place}", durable.run_id)
        return f"{APPROVAL_PREFIX}{call.place}.{digest[:_DIGEST_CHARACTERS]}"

    async def _done(self, tool: Tool, call: ToolCall) -> dict[str, Any]:
        durable = self._context.durable
        intent = _intent(tool, call)
        tool_context = ToolContext(
            identity=self._context.identity, tool_call_id=call.id, step_key=durable.step_key(intent)
        )
        tries = 0

        async def run() -> dict[str, Any]:
            # The last failure is the step's result: the model is told, and every later attempt tells it the same.
            nonlocal tries
            tries += 1
            try:
                return await self._try(tool, call, tool_context)
            except Exception as error:
                if tool.retry.delay_ms(tries, error) is not None:
                    raise
                self._context.log("tool.failed", {"run_id": durable.run_id, "tool": tool.name, "error": error})
                return _failed("failed", _words(error))

        try:
            done: dict[str, Any] = await durable.step(
                intent, run, kind=StepKind.TOOL, input=call.args, retry=tool.retry
            )
        except AttemptsExhausted:
            return _failed("failed", "it has failed too often")
        return done

    async def _try(self, tool: Tool, call: ToolCall, tool_context: ToolContext) -> dict[str, Any]:
        attributes = {
            conventions.OPERATION_NAME: conventions.EXECUTE_TOOL,
            conventions.TOOL_NAME: tool.name,
            conventions.TOOL_CALL_ID: call.id,
            conventions.TOOL_CALL_ARGUMENTS: self._context.tracer.content(call.args),
        }
        name = conventions.span_name(conventions.EXECUTE_TOOL, tool.name)
        with self._context.tracer.span(name, attributes=attributes) as span:
            # A copy: what the tool does to its arguments must not change what is on record.
            args = json.loads(json_text(call.args, "the arguments"))
            if tool.run is None:
                raise AssertionError("the client was asked")
            try:
                result = await awaited(
                    tool.run(args, replace(tool_context, traceparent=span.traceparent())), tool.timeout_ms
                )
            except Late as error:
                raise ToolError(f"it took longer than {tool.timeout_ms} ms") from error
            span.set(conventions.TOOL_CALL_RESULT, self._context.tracer.content(result))
        return _checked(result, tool, self._context.durable.run_id)


def _intent(tool: Tool, call: ToolCall) -> str:
    return f"tool:{tool.name}:{call.place}"


@dataclass(frozen=True, slots=True)
class _AskedOfClient:
    """A call that the client is to do, under the id by which it knows it."""

    call: ToolCall
    wait: OpenWait


async def _result_of(wait: OpenWait) -> dict[str, Any]:
    """Wait for what came of a call that the client does; return why there is nothing."""
    try:
        payload = await wait.payload()
    except DurableAwaitEventTimeoutError:
        return _failed("no_result", "its result did not come in time")
    if isinstance(payload, Mapping) and payload.keys() == {"error"}:
        return _failed("failed", str(payload["error"])[:_MOST_ERROR_CHARACTERS])
    return {"result": payload["result"] if isinstance(payload, Mapping) and payload.keys() == {"result"} else payload}


async def _denial(wait: OpenWait) -> dict[str, Any] | None:
    """Wait for an approval; return why there is none."""
    try:
        payload = await wait.payload()
    except DurableAwaitEventTimeoutError:
        return _failed("not_approved", "nobody approved it in time")
    # Whatever is not exactly an approval is none.
    if isinstance(payload, Mapping) and payload.get("approved") is True:
        return None
    reason = payload.get("reason") if isinstance(payload, Mapping) else None
    return _failed("denied", f"denied: {reason}" if isinstance(reason, str) and reason else "denied")


def _objection(tool: Tool, call: ToolCall) -> dict[str, Any] | None:
    if int(call.place.rpartition(".")[2]) >= MAX_CALLS:
        return _failed("too_many_calls", f"more than {MAX_CALLS} calls at once; ask for the others again")
    objection = tool.objection(call.args)
    return None if objection is None else _failed("invalid_arguments", objection)


def _checked(result: Any, tool: Tool, run_id: str) -> dict[str, Any]:
    """Return the outcome of a tool that succeeded, if what it returned can be recorded and told."""
    try:
        text = result_text({"result": result}, tool.name, run_id)
        text.encode()
    except (TypeError, UnicodeEncodeError):
        return _failed("invalid_result", "it was done, but its result is not JSON")
    except StepTooLarge:
        text = ""
    if not text or len(text) > _MOST_RESULT_CHARACTERS:
        return _failed("invalid_result", "it was done, but its result is too large")
    return {"result": result}


def _failed(code: str, message: str) -> dict[str, Any]:
    return {"error": message, "code": code}


def _words(error: Exception) -> str:
    """Say why a tool failed; what a foreign exception says may be anything."""
    if isinstance(error, ToolError):
        return str(error)[:_MOST_ERROR_CHARACTERS].encode("utf-8", "replace").decode()
    return "it failed"
