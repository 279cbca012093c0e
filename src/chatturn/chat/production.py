"""What an attempt's answer is made of: the product's producer, its context, and what an earlier attempt had said."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from chatturn.backends import ChatMessage
from chatturn.canonical import canonical_hash
from chatturn.chat.agent import AgentProducer
from chatturn.chat.hooks import TurnContext
from chatturn.chat.log import TurnLog
from chatturn.chat.outbox import overrides
from chatturn.chat.place import Place
from chatturn.chat.producer import ChatProducer
from chatturn.chat.recall import recall_text
from chatturn.chat.request import RunChatTurnInput
from chatturn.durable.context import DurableContext
from chatturn.errors import AttemptsExhausted
from chatturn.records import Claim

__all__ = ["Production"]

_INLINE_WAIT_MS: Final = 2_000
"""A reader may be about to answer; beyond that, a worker that waits costs more than one that comes back."""


class Production:
    """
    The making of one answer.

    Args:
        turn: What is to be answered.
        run_id: The turn's run.
        log: Numbers what is said.
        room: Waits until so many further events may be said.
        drain: Waits for a reader that is behind.
    """

    def __init__(
        self,
        turn: RunChatTurnInput,
        run_id: str,
        log: TurnLog,
        *,
        room: Callable[[int], Awaitable[None]],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        self._turn = turn
        self._run_id = run_id
        self._log = log
        self._room = room
        self._drain = drain
        self._claim: Claim | None = None
        self._place = Place()
        self._history: Sequence[ChatMessage] = ()
        self._recalled = ""
        self._durable: DurableContext | None = None
        self._producer: ChatProducer | None = None

    def begin(self, claim: Claim, place: Place, history: Sequence[ChatMessage]) -> None:
        """Take what the claim found."""
        self._claim, self._place, self._history = claim, place, history

    @property
    def usages(self) -> Sequence[dict[str, Any]]:
        """What the model calls consumed so far: the data of the ``usage`` events."""
        return () if self._producer is None else self._producer.usages

    @property
    def has_checkpoints(self) -> bool:
        """Whether steps on the way to the answer are on record."""
        return self._durable is not None and bool(self._durable.steps())

    def said_so_far(self) -> str:
        """Return the text so far, or, before there is any, what an attempt before had said."""
        said = "" if self._producer is None else self._producer.said_so_far()
        return said or self._recalled

    async def recall(self) -> str:
        """
        Return what an attempt that broke off had said, where it is kept: by a model that goes on, or a cancel.

        Raises:
            StoreError: The database does not answer, or refuses.
        """
        turn, place = self._turn, self._place
        model = turn.model or turn.default_model
        continues = place.interrupted and not turn.hooks.tools and turn.backend.continues(model)
        redacting = overrides(turn.hooks, "transform_final_text")
        if self._log.attempt > 1 and (continues or place.cancel_requested) and not redacting:
            self._recalled = await recall_text(turn.database, self._run_id, self._log.attempt)
        return self._recalled

    def produce(self) -> ChatProducer:
        """
        Build the producer.

        Raises:
            AttemptsExhausted: The turn was tried as often as it may be.
            Exception: What the product's hook raises.
        """
        turn, attempts = self._turn, self._place.attempts
        if attempts > turn.most_attempts:
            raise AttemptsExhausted(f"it has come to nothing {attempts - 1} times", run_id=self._run_id)
        self._durable = self._steps()
        context = TurnContext(
            identity=turn.identity,
            user_message=turn.user_message,
            model=turn.model or turn.default_model,
            history=self._history,
            metadata=turn.metadata,
            attempt=self._log.attempt,
            request_id=canonical_hash([self._run_id, self._log.attempt]),
            backend=turn.backend,
            durable=self._durable,
            continue_from=self._recalled,
            tracer=turn.tracer,
            log=turn.log,
        )
        tools, instructions = turn.hooks.tools, turn.hooks.instructions
        producer = AgentProducer(context, tools, instructions) if tools else turn.hooks.produce(context)
        self._producer = ChatProducer(producer, self._log, turn.log, room=self._room, drain=self._drain)
        return self._producer

    def _steps(self) -> DurableContext:
        """Return the run's steps after the turn itself."""
        turn, claim = self._turn, self._claim
        return DurableContext(
            store=turn.store,
            lease=None if claim is None else claim.lease,
            run_id=self._run_id,
            project_id=turn.project_id,
            scenario_id=turn.identity.session_id,
            recorded=() if claim is None else claim.steps,
            sources=turn.sources,
            inline_wait_ms=_INLINE_WAIT_MS,
            log=turn.log,
            first_position=1,
        )
