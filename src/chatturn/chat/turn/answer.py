"""What an attempt's answer is made of: the product's producer, its context, and the text of an earlier attempt."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from chatturn.backends.parameters import TOOLS
from chatturn.chat.agent.agent import MODEL_STEP, AgentProducer
from chatturn.chat.hooks.answering import answer
from chatturn.chat.hooks.hooks import DurableTurnProducer, TurnContext
from chatturn.chat.hooks.outbox import overrides
from chatturn.chat.log.attempt_place import Place
from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.writer import LogWriter
from chatturn.chat.requests import TurnInput
from chatturn.chat.thread.history import PastTurn, ShownHistory
from chatturn.chat.turn.attempt_usage import AttemptUsage
from chatturn.chat.turn.disconnects import CANCEL_REQUESTED
from chatturn.chat.turn.earlier_attempt import recall_text
from chatturn.chat.turn.reader import Reader
from chatturn.chat.turn.stored_files import FilesOfTurn
from chatturn.chat.turn.stream import ChatProducer, StreamProducer
from chatturn.chat.turn.tracing import tracer_of
from chatturn.chat.usage.calls import MeteredBackend
from chatturn.database.api import Statement
from chatturn.durable.attempt import Attempt
from chatturn.durable.context import DurableContext
from chatturn.durable.sql.runs import CAME_FURTHER
from chatturn.errors import AttemptsExhausted, HookError
from chatturn.events import EventBatch, text_so_far
from chatturn.jsontext.canonical import canonical_hash

__all__ = ["Answer"]

MAX_ATTEMPTS_IN_ALL: Final = 100
"""Attempts at one answer, even if each adds to the answer; an attempt that ended in a wait does not count."""

_FURTHER_CHARACTERS: Final = 200
"""An attempt has come further once its answer has 200 characters more than `Answer.recalled`."""

_MOST_KEPT_CHARACTERS: Final = 20_000
"""The longest JSON that goes back to the API with an answer in later turns; longer JSON is not kept."""

_INLINE_WAIT_MS: Final = 2_000
"""A run waits in its worker for at most 2 s, since a reader may be about to answer; then it is suspended."""


class Answer:
    """
    The making of one answer; stores with the log that the answer has come further.

    Args:
        turn: What is to be answered.
        attempt: The claimed attempt; its lease covers every write.
        place: Where the turn stands.
        past: The answered turns before this one, oldest first; at most one more than the model may be shown.
        log: Numbers the lines.
        usage: Counts what the model calls consume.

    Attributes:
        shown: What the model is shown of the turns before; set when the producer is made.
        recalled: The text of an earlier attempt with which this answer begins; "" for none.
        steps: The run's steps, after the turn itself.
        said: The producer, which knows the answer so far.
    """

    def __init__(
        self,
        turn: TurnInput,
        attempt: Attempt,
        place: Place,
        *,
        past: Sequence[PastTurn],
        log: TurnLog,
        usage: AttemptUsage,
    ) -> None:
        self.recalled = ""
        self.shown = ShownHistory()
        self.steps = _steps(turn, attempt, usage)
        self.said: ChatProducer | _Nothing = _Nothing()
        self._kept: Mapping[str, Any] = {}
        self._turn = turn
        self._attempt = attempt
        self._place = place
        self._past = past
        self._log = log
        self._usage = usage
        self._telling = self._told = False

    @property
    def has_checkpoints(self) -> bool:
        """Whether steps on the way to the answer are on record."""
        return bool(self.steps.steps())

    async def begin(self, writer: LogWriter, reader: Reader) -> ChatProducer:
        """
        Make the producer, which goes on with what an attempt before had said, if that is possible.

        Args:
            writer: Is waited for if the database is behind.
            reader: Is waited for if it is behind.

        Raises:
            AttemptsExhausted: The turn was tried as often as it may be.
            StoreError: The database does not answer, or refuses.
            Exception: What the product's hook raises.
        """
        producer, report = await self._product(), self._turn.deployment.log
        said = ChatProducer(producer, self.steps, self._log, writer=writer, reader=reader, report=report)
        self.said = said
        return said

    # What is stored with the log, see `Companion`.

    def unrecorded(self) -> Sequence[Statement]:
        """Return the statement that sets the count of idle attempts to 0, once the answer has come further."""
        self._telling = not self._told and self._comes_further()
        return [Statement(CAME_FURTHER)] if self._telling else []

    def recorded(self) -> None:
        """Take note that the statements of `unrecorded` were run."""
        self._told = self._told or self._telling

    def kept_json(self) -> str | None:
        """
        Return what the API that gave the answer wants back with it in later turns; None for nothing.

        None, too, for a product that redacts, and for an answer that goes on with the text of an earlier attempt.
        """
        if self.recalled or overrides(self._turn.deployment.hooks, "transform_final_text"):
            return None
        kept = self.said.kept() or self._kept
        text = json.dumps(kept, ensure_ascii=False)
        is_of_a_call = bool(kept) and any(kept["calls"])
        return text if kept and not is_of_a_call and len(text) <= _MOST_KEPT_CHARACTERS else None

    def _keep(self, kept: Mapping[str, Any]) -> None:
        self._kept = kept

    def _comes_further(self) -> bool:
        recalled = self.recalled
        return bool(recalled) and len(self.said.said_so_far()) >= len(recalled) + _FURTHER_CHARACTERS

    async def _product(self) -> DurableTurnProducer[EventBatch]:
        turn, deployment, place = self._turn, self._turn.deployment, self._place
        hooks = deployment.hooks
        if not place.cancel_requested:
            self._require_attempt(place.idle_attempts, place.attempts)
        continues = place.interrupted and not self._uses_tools and deployment.backend.continues(turn.model)
        redacting = overrides(hooks, "transform_final_text")
        if place.interrupted and (continues or place.cancel_requested) and not redacting:
            self.recalled = await self._recall(waited=False)
        if place.cancel_requested and not place.interrupted:
            self.recalled = await self._said_before_the_wait()
        if place.cancel_requested:
            return StreamProducer(_say_again(self.recalled, self._attempt))
        self.shown = self._shown()
        context = await self._context()
        if self._uses_tools:
            return AgentProducer(context, hooks.tools, hooks.instructions)
        if not overrides(hooks, "produce"):
            return StreamProducer(answer(context, system=hooks.instructions))
        return hooks.produce(context)

    @property
    def _uses_tools(self) -> bool:
        turn = self._turn
        return bool(turn.deployment.hooks.tools or turn.request.parameters.get(TOOLS))

    def _require_attempt(self, idle_attempts: int, attempts: int) -> None:
        run_id = self._turn.run_id
        if idle_attempts > self._turn.deployment.settings.turn_attempts:
            raise AttemptsExhausted(f"it has come no further in {idle_attempts - 1} attempts", run_id=run_id)
        if attempts > MAX_ATTEMPTS_IN_ALL:
            raise AttemptsExhausted(f"it was tried {attempts - 1} times", run_id=run_id)

    async def _recall(self, *, waited: bool) -> str:
        deployment, number = self._turn.deployment, self._attempt.number
        after_tools = self._uses_tools
        return await recall_text(deployment.database, self._turn.run_id, number, after_tools=after_tools, waited=waited)

    async def _said_before_the_wait(self) -> str:
        """Return the text of the suspended attempt: from its log, or from its last step if the product redacts."""
        hooks = self._turn.deployment.hooks
        if overrides(hooks, "transform_final_text"):
            rounds = [step for step in self._attempt.claim.completed_steps if step.intent.startswith(MODEL_STEP)]
            return str(rounds[-1].result["text"]) if self._uses_tools and rounds else ""
        return await self._recall(waited=True)

    def _shown(self) -> ShownHistory:
        turn, deployment = self._turn, self._turn.deployment
        if turn.request.history is not None:
            return ShownHistory(messages=turn.request.history)
        settings = deployment.settings
        looked_at = self._past[-settings.history_turns :] if settings.history_turns else []
        try:
            shown = deployment.hooks.show_history(looked_at, settings.history_characters)
        except Exception as error:
            raise HookError(f"raised {type(error).__name__}", hook="show_history") from error
        more = len(self._past) - len(looked_at)
        return replace(shown, left_out=shown.left_out + more) if more else shown

    async def _context(self) -> TurnContext:
        turn, deployment, number = self._turn, self._turn.deployment, self._attempt.number
        files = FilesOfTurn(files=deployment.files, identity=turn.identity)
        content = await files.content(turn.request.message, turn.request.parts)
        return TurnContext(
            identity=turn.identity,
            user_message=turn.request.message,
            user_content=content,
            model=turn.model,
            history=await files.history(self.shown.messages),
            metadata=turn.request.metadata,
            behind=turn.request.behind,
            parameters=turn.request.parameters,
            attempt=number,
            replaces=self._place.replaces,
            request_id=canonical_hash([self._attempt.claim.run.key_name, number]),
            backend=MeteredBackend(deployment.backend, self._usage, self._keep),
            meter=self._usage,
            durable=self.steps,
            continue_from=self.recalled,
            tracer=tracer_of(turn.tracing),
            log=deployment.log,
            shape=deployment.hooks.shape_request,
        )


def _steps(turn: TurnInput, attempt: Attempt, usage: AttemptUsage) -> DurableContext:
    """Return the run's steps after the turn itself."""
    deployment = turn.deployment
    return DurableContext(
        store=deployment.store,
        lease=attempt.lease,
        run_id=turn.run_id,
        project_id=deployment.settings.project_id,
        scenario_id=turn.identity.session_id,
        recorded=attempt.claim.steps,
        sources=deployment.sources,
        inline_wait_ms=_INLINE_WAIT_MS,
        log=deployment.log,
        first_position=1,
        with_statements=usage.news,
        tracer=tracer_of(turn.tracing),
        ended=attempt.ended,
        key_name=attempt.claim.run.key_name,
    )


class _Nothing:
    """The producer before there is one: it has said nothing."""

    is_full = False

    def said_so_far(self) -> str:
        return ""

    def kept(self) -> Mapping[str, Any]:
        return {}


async def _say_again(text: str, attempt: Attempt) -> AsyncGenerator[EventBatch, None]:
    """Say *text*, the text of an earlier attempt, and cancel this attempt, since somebody wants the turn stopped."""
    if text:
        yield text_so_far(text)
    attempt.cancel(CANCEL_REQUESTED)
    await asyncio.sleep(0)
