"""What an attempt's answer is made of: the product's producer, its context, and what an earlier attempt had said."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

from chatturn.agent_runtime.runs import RuntimeRunPersistenceAdapter
from chatturn.backends.api import ChatMessage
from chatturn.chat.agent.agent import MODEL_STEP, AgentProducer
from chatturn.chat.hooks.hooks import TurnContext
from chatturn.chat.hooks.outbox import HOOK_TIMEOUT_MS, overrides
from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.position import Place
from chatturn.chat.requests import TurnInput
from chatturn.chat.runtime_run import AttemptRun
from chatturn.chat.turn.earlier_attempt import recall_text
from chatturn.chat.turn.stream import ChatProducer, StreamProducer
from chatturn.chat.turn.tracing import tracer_of
from chatturn.chat.usage.attempt_usage import Account
from chatturn.chat.usage.calls import MeteredBackend
from chatturn.durable.context import DurableContext
from chatturn.durable.records import Claim
from chatturn.durable.settling import TurnEnd
from chatturn.durable.turn import DurableTurnProducer
from chatturn.errors import AttemptsExhausted
from chatturn.events import EventBatch, text_so_far
from chatturn.jsontext.canonical import canonical_hash
from chatturn.product_calls import awaited

__all__ = ["Production"]

MAX_ATTEMPTS_IN_ALL: Final = 100
"""Of one answer, also where each comes further; those that ended in a wait left out."""

_FURTHER_CHARACTERS: Final = 200
"""Stored behind what an attempt before had said: so the next one begins further on."""

_INLINE_WAIT_MS: Final = 2_000
"""A reader may be about to answer; beyond that, a worker that waits costs more than one that comes back."""


class Production:
    """
    The making of one answer.

    Args:
        turn: What is to be answered.
        run_id: The turn's run.
        log: Numbers what is said.
        account: Counts what the model's calls consume.
        room: Takes a number of events; waits until they may be said.
        drain: Waits for a reader that is behind.
        cancel: Stops the turn for good.
        require_held: Raises `LeaseLost` if the turn's lease is known to be lost.
    """

    def __init__(
        self,
        turn: TurnInput,
        run_id: str,
        log: TurnLog,
        account: Account,
        *,
        room: Callable[[int], Awaitable[None]],
        drain: Callable[[], Awaitable[None]],
        cancel: Callable[[], None],
        require_held: Callable[[], None],
    ) -> None:
        self._require_held = require_held
        self._turn = turn
        self._deployment = turn.deployment
        self._run_id = run_id
        self._log = log
        self._account = account
        self._room = room
        self._drain = drain
        self._cancel = cancel
        self._claim: Claim | None = None
        self._place = Place()
        self._history: Sequence[ChatMessage] = ()
        self._recalled = ""
        self._durable: DurableContext | None = None
        self._producer: ChatProducer | None = None
        self._kept: AttemptRun | None = None

    def begin(self, claim: Claim, place: Place, history: Sequence[ChatMessage]) -> None:
        """Take what the claim found."""
        self._claim, self._place, self._history = claim, place, history
        if self._deployment.hooks.runtime_runs is not None and claim.lease is not None:
            self._begin_run(self._deployment.hooks.runtime_runs)

    def _begin_run(self, adapter: RuntimeRunPersistenceAdapter) -> None:
        turn, attempt = self._turn, self._log.attempt
        self._kept = AttemptRun(
            adapter, turn.manifest, run_id=self._run_id, attempt=attempt, now=self._deployment.sources.now
        )

    async def keep_run(self, end: TurnEnd | None) -> None:
        """Have the attempt's row stored, if the product keeps those; a failure is logged."""
        if self._kept is None:
            return
        try:
            await awaited(self._kept.end(end, self._account.all_calls(self.usages)), HOOK_TIMEOUT_MS)
        except Exception as error:  # noqa: BLE001 - a product's code, and the turn is over
            self._deployment.log("hook.failed", {"run_id": self._run_id, "hook": "runtime_runs", "error": error})

    @property
    def usages(self) -> Sequence[dict[str, Any]]:
        """What the model calls consumed so far: the data of the ``usage`` events."""
        return () if self._producer is None else self._producer.usages

    @property
    def went_on(self) -> bool:
        """Whether the answer begins with what an attempt before had said."""
        return bool(self._recalled)

    @property
    def comes_further(self) -> bool:
        """Whether the answer is longer by now than what an attempt before had said, and so is worth another one."""
        return self.went_on and len(self.said_so_far()) >= len(self._recalled) + _FURTHER_CHARACTERS

    @property
    def has_checkpoints(self) -> bool:
        """Whether steps on the way to the answer are on record."""
        return self._durable is not None and bool(self._durable.steps())

    @property
    def _key_name(self) -> str:
        return self._run_id if self._claim is None else self._claim.run.key_name

    def said_so_far(self) -> str:
        """Return the text so far, as a reader has it."""
        return "" if self._producer is None else self._producer.said_so_far()

    def produce(self) -> ChatProducer:
        """
        Build the producer.

        Raises:
            AttemptsExhausted: The turn was tried as often as it may be.
        """
        if not self._place.cancel_requested:
            self._require_attempt(self._place.idle_attempts, self._place.attempts)
        self._producer = ChatProducer(
            self._begin, self._log, self._deployment.log, task=self._task, room=self._room, drain=self._drain
        )
        return self._producer

    async def _begin(self) -> DurableTurnProducer[EventBatch]:
        """
        Make the product's producer, which goes on with what an attempt before had said, if that is possible.

        Raises:
            StoreError: The database does not answer, or refuses.
            Exception: What the product's hook raises.
        """
        turn, deployment, place = self._turn, self._deployment, self._place
        hooks = deployment.hooks
        continues = place.interrupted and not hooks.tools and deployment.backend.continues(turn.model)
        redacting = overrides(hooks, "transform_final_text")
        if place.interrupted and (continues or place.cancel_requested) and not redacting:
            self._recalled = await recall_text(
                deployment.database, self._run_id, self._log.attempt, after_tools=bool(hooks.tools)
            )
        if place.cancel_requested and not place.interrupted:
            self._recalled = await self._said_before_the_wait()
        self._durable = self._steps()
        if place.cancel_requested:
            return StreamProducer(_say_again(self._recalled, self._cancel))
        context = TurnContext(
            identity=turn.identity,
            user_message=turn.request.message,
            model=turn.model,
            history=self._history,
            metadata=turn.request.metadata,
            parameters=turn.request.parameters,
            attempt=self._log.attempt,
            request_id=canonical_hash([self._key_name, self._log.attempt]),
            backend=MeteredBackend(deployment.backend, self._account),
            durable=self._durable,
            continue_from=self._recalled,
            tracer=tracer_of(turn.tracing),
            log=deployment.log,
        )
        tools, instructions = hooks.tools, hooks.instructions
        return AgentProducer(context, tools, instructions) if tools else hooks.produce(context)

    def _require_attempt(self, idle_attempts: int, attempts: int) -> None:
        if idle_attempts > self._deployment.settings.turn_attempts:
            raise AttemptsExhausted(f"it has come no further in {idle_attempts - 1} attempts", run_id=self._run_id)
        if attempts > MAX_ATTEMPTS_IN_ALL:
            raise AttemptsExhausted(f"it was tried {attempts - 1} times", run_id=self._run_id)

    async def _said_before_the_wait(self) -> str:
        """Return what the suspended attempt before has said; the text of a product that redacts is in no log."""
        hooks, claim = self._deployment.hooks, self._claim
        if overrides(hooks, "transform_final_text"):
            rounds = [step for step in (claim.completed_steps if claim else ()) if step.intent.startswith(MODEL_STEP)]
            return str(rounds[-1].result["text"]) if hooks.tools and rounds else ""
        database, attempt = self._deployment.database, self._log.attempt
        return await recall_text(database, self._run_id, attempt, after_tools=bool(hooks.tools), waited=True)

    def _task(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._durable is None else self._durable.task()

    def _steps(self) -> DurableContext:
        """Return the run's steps after the turn itself."""
        turn, deployment, claim = self._turn, self._deployment, self._claim
        return DurableContext(
            store=deployment.store,
            lease=None if claim is None else claim.lease,
            run_id=self._run_id,
            project_id=deployment.settings.project_id,
            scenario_id=turn.identity.session_id,
            recorded=() if claim is None else claim.steps,
            sources=deployment.sources,
            inline_wait_ms=_INLINE_WAIT_MS,
            log=deployment.log,
            first_position=1,
            with_statements=self._account.news,
            tracer=tracer_of(turn.tracing),
            require_held=self._require_held,
            key_name=self._key_name,
        )


async def _say_again(text: str, cancel: Callable[[], None]) -> AsyncGenerator[EventBatch, None]:
    """Say what an attempt had said that broke off, and then be cancelled: somebody wants the turn stopped."""
    if text:
        yield text_so_far(text)
    cancel()
    await asyncio.sleep(0)
