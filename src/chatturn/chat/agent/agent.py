"""
`AgentProducer`: a turn in which the model uses tools, each of its steps a checkpoint.

::

    model:1 ──▶ text, no calls ──▶ the answer
      │ calls
      ▼
    (approval ──▶) tool:… one after another ──▶ model:2 ──▶ …

A tool may be the client's: then its calls are told, all of a round at once, and the turn waits for their results.

Every model call and every tool call is a step of the turn's own run, after step 0, which is the turn.  An attempt
that follows on another replays the steps on record, without calling anybody, and goes on behind the last.  A
model call is recorded when it is over and before any of its tools runs: so which tools run is decided once.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, ChatMessage
from chatturn.backends.parameters import TOOLS
from chatturn.chat.agent.tool_calls import ToolCall, ToolOutcome, ToolSteps
from chatturn.chat.hooks.hooks import ModelRequest, TurnContext
from chatturn.chat.hooks.tool import Tool
from chatturn.durable.records import StepKind
from chatturn.errors import BackendError, EmptyAnswer
from chatturn.events import (
    BESIDES_PREFIX,
    ChatStreamEvent,
    EventBatch,
    TextAssembly,
    TextDeltas,
    events_of,
    pieces_of,
    text_delta,
    tool_call,
)
from chatturn.jsontext.canonical import canonical_hash

__all__ = ["MAX_CLIENT_ROUNDS", "MAX_ROUNDS", "MODEL_STEP", "AgentProducer"]

MODEL_STEP: Final = "model:"
"""The intents of recorded model calls begin with this: ``model:1``, ``model:2``, …"""

MAX_ROUNDS: Final = 10
"""The most model calls of one turn; in the last call the model must answer without tools."""


MAX_CLIENT_ROUNDS: Final = 50
"""The most model calls of a turn whose client does tools: the client sees each round, and may stop."""

_FREE_CHOICES: Final = (None, "auto", "none")
"""Values of ``tool_choice`` that force no tool."""


class AgentProducer:
    """
    A turn's producer that lets the model use tools.

    Args:
        context: The turn.
        tools: What the model may do.
        instructions: Said to the model before the conversation; "" for none.
        max_rounds: Model calls, at most; None for `MAX_ROUNDS`, or `MAX_CLIENT_ROUNDS` where the client does tools.

    Attributes:
        stream: The model's text as it comes, its tool calls and their outcomes.
    """

    def __init__(
        self,
        context: TurnContext,
        tools: Sequence[Tool],
        instructions: str = "",
        *,
        max_rounds: int | None = None,
    ) -> None:
        self._context = context
        self._own_tools = tools
        self._brought: Sequence[Mapping[str, Any]] = ()
        self._tools = ToolSteps(context, ())
        self._instructions = instructions
        self._max_rounds = max_rounds or MAX_ROUNDS
        self._more_rounds = max_rounds or MAX_CLIENT_ROUNDS
        self._answer: str | None = None
        self._latest: _Round | None = None
        self.stream: AsyncGenerator[EventBatch, None] = self._run()

    def final_text(self) -> str | None:
        """Return the model's text of its last round; the text of earlier rounds belongs to their tool calls."""
        return self._answer

    def said_so_far(self) -> str:
        """Return what the model has said in its latest round."""
        return "" if self._latest is None else self._latest.text

    def kept(self) -> Mapping[str, Any]:
        """Return what the API of the latest round wants back with it."""
        return {} if self._latest is None else self._latest.kept

    async def _run(self) -> AsyncGenerator[EventBatch, None]:
        asked = await self._context.request(system=self._instructions, tools=self._own_tools)
        self._take_tools(asked)
        messages = asked.conversation
        for number in range(1, self._max_rounds + 1):
            self._latest = said = _Round(
                number=number, attempt=self._context.attempt, request_id=self._request_id(number)
            )
            async with aclosing(self._ask(said, replace(asked, messages=messages))) as events:
                async for batch in events:
                    yield self._without_clients_calls(batch)
            if not said.calls:
                self._context.durable.require_all_consumed()
                self._answer = said.text
                return
            if number == self._max_rounds:
                # Before any tool runs: nobody would hear of the results.
                raise BackendError(f"asked for tools in {number} rounds", backend=self._context.backend.kind)
            messages.append(said.message())
            async with aclosing(self._tools.tell_client(said.calls)) as events:
                async for event in events:
                    yield event
            for call in said.calls:
                outcome = ToolOutcome()
                async with aclosing(self._tools.use(call, outcome)) as events:
                    async for event in events:
                        yield event
                messages.append({"role": "tool", "tool_call_id": call.id, "content": outcome.text()})

    def _request_id(self, number: int) -> str:
        return canonical_hash([self._context.request_id, number])

    def _take_tools(self, asked: ModelRequest) -> None:
        """Take the tools of the request: the product's, and those that the client does."""
        self._brought = asked.parameters.get(TOOLS, ())
        self._tools = ToolSteps(self._context, [*asked.tools, *map(_of_client, self._brought)])
        self._max_rounds = self._more_rounds if self._brought else self._max_rounds

    def _without_clients_calls(self, batch: EventBatch) -> EventBatch:
        """Leave out calls of the client's tools: they are told once they are on record."""
        clients, events = self._tools.clients, events_of(batch)
        if not clients or isinstance(events, TextDeltas):
            return batch
        return [
            event
            for event in events
            if event.type != "tool.call" or event.data is None or event.data.get("toolName") not in clients
        ]

    async def _ask(self, said: "_Round", asked: ModelRequest) -> AsyncGenerator[EventBatch, None]:
        """
        Call the model, or replay what it said, and fill in *said*.

        The step's input is not compared: instructions, history and the deployment's model may have changed since
        an earlier attempt, but what was said then was said, and paid for.
        """
        context = self._context
        intent = f"{MODEL_STEP}{said.number}"
        step = await context.durable.open_step(intent, kind=StepKind.LLM)
        with context.durable.step_span(intent, StepKind.LLM, replayed=step.replayed):
            if step.replayed:
                yield said.replay(step.result)
                return
            async with aclosing(self._answer_of_model(said, asked)) as batches:
                async for batch in batches:
                    yield batch
            await step.complete(said.to_json())

    async def _answer_of_model(self, said: "_Round", asked: ModelRequest) -> AsyncGenerator[EventBatch, None]:
        context = self._context
        offered = [*(tool.definition() for tool in asked.tools), *self._brought]
        options: dict[str, Any] = {**asked.parameters, **({TOOLS: offered} if offered else {})}
        if offered and said.number == self._max_rounds:
            options["tool_choice"] = "none"
        elif self._brought and said.number > 1 and options.get("tool_choice") not in _FREE_CHOICES:
            options["tool_choice"] = "auto"  # the forced tool was called; forced again, the model would never answer
        stream = context.backend.stream(
            AgentBackendInput(messages=list(asked.messages), model=asked.model, options=options),
            AgentBackendContext(request_id=said.request_id, tracer=context.tracer, keep=said.keep),
        )
        try:
            async for batch in stream:
                said.add(batch)
                yield batch
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
        if not said.calls and not said.text:
            # Not recorded: the next attempt shall ask again.
            raise EmptyAnswer("the model ended without text and without a tool call", backend=context.backend.kind)


@dataclass(slots=True, kw_only=True)
class _Round:
    """
    One model call.

    Attributes:
        number: The call's number in the turn, from 1.
        attempt: The attempt of the turn that made the call.
        request_id: The idempotency key of the call's requests.
        calls: The tools that it asked for, in its order.
        kept: What the model's API wants back with what was said.
    """

    number: int
    attempt: int
    request_id: str
    calls: list[ToolCall] = field(default_factory=list)
    kept: Mapping[str, Any] = field(default_factory=dict)
    _assembly: TextAssembly = field(default_factory=TextAssembly)
    _usages: list[dict[str, Any]] = field(default_factory=list)
    _besides: list[ChatStreamEvent] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the model said, without its reasoning."""
        return self._assembly.text()

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Take what the model's API wants back with what was said."""
        self.kept = kept

    def add(self, batch: EventBatch) -> None:
        """Take account of what the model says."""
        events = events_of(batch)
        self._assembly.add_all(events)
        for event in () if isinstance(events, TextDeltas) else events:
            if event.data is None:
                continue
            if event.type == "tool.call":
                data = event.data
                self._add_call(str(data.get("toolCallId")), str(data.get("toolName")), data.get("args"))
            elif event.type == "usage":
                self._usages.append(event.data)
            elif event.type.startswith(BESIDES_PREFIX):
                self._besides.append(event)

    def _add_call(self, id_: str, name: str, args: Any) -> None:
        # By attempt and round, since a model may use an id twice, and a superseded turn begins anew.
        place = f"{self.attempt}.{self.number}.{len(self.calls)}"
        self.calls.append(ToolCall(id=id_, name=name, args=args, place=place))

    def message(self) -> ChatMessage:
        """
        Return what the model said as a part of the conversation.

        Arguments that were no object become an empty one, since some servers refuse to read others back; the
        tool's outcome says what was wrong with them.
        """
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call.args)}}
            for call in self.calls
        ]
        kept = {"kept": self.kept} if self.kept else {}
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls, **kept}

    def to_json(self) -> dict[str, Any]:
        """Return the step's result."""
        calls = [{"id": call.id, "name": call.name, "args": call.args} for call in self.calls]
        made = {"attempt": self.attempt, "requestId": self.request_id}
        kept = {"kept": self.kept} if self.kept else {}
        besides = [[event.type, event.data] for event in self._besides]
        told = {"besides": besides} if besides else {}
        return {**made, "text": self.text, "calls": calls, "usages": self._usages, **kept, **told}

    def replay(self, result: dict[str, Any]) -> list[ChatStreamEvent]:
        """Become the round on record; return its events: the text in one piece, the calls, and who paid."""
        self.attempt = result["attempt"]
        self.kept = result.get("kept", {})
        text = result["text"]
        for call in result["calls"]:
            self._add_call(call["id"], call["name"], call["args"])
        events = list(map(text_delta, pieces_of(text)))
        self._assembly.add_all(events)
        return [
            *events,
            *(ChatStreamEvent(kind, data) for kind, data in result.get("besides", ())),
            *(tool_call(tool_call_id=call.id, tool_name=call.name, args=call.args) for call in self.calls),
            *(ChatStreamEvent("usage", {**usage, "attempt": self.attempt}) for usage in result["usages"]),
        ]


def _of_client(definition: Mapping[str, Any]) -> Tool:
    """Return a tool that a request brings; what its client has said of its arguments is for the model, not for us."""
    return Tool(name=definition["function"]["name"], description="", parameters={}, run=None)


def _arguments(args: Any) -> str:
    return json.dumps(args if isinstance(args, dict) else {}, ensure_ascii=False)
