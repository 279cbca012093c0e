"""`ReplayedTurn`: a turn that had finished before it was asked for again."""

import json
from dataclasses import replace

from chatturn.chat.hooks.outbox import overrides
from chatturn.chat.requests import TurnInput
from chatturn.chat.turn.finish import ending_words, failure_words, kind_of, started_words, unlogged
from chatturn.chat.turn.reader import Reader, observer_of
from chatturn.chat.turn.retries import TooEarly
from chatturn.chat.turn.sinks import Sink
from chatturn.chat.turn.tracing import found, tell_end
from chatturn.database.api import Row
from chatturn.durable.attempt import Finished
from chatturn.durable.identifiers import manifest_hash
from chatturn.durable.records import Claim, RunStatus, StepKind, StepRecord, StepStatus
from chatturn.durable.rows import run_from_row
from chatturn.events import ChatStreamEvent

__all__ = ["TURN_STEP", "FailedTurn", "ReplayedTurn", "replay_of_version"]

TURN_STEP = 0
"""The position of the step whose result is a turn's answer."""


class ReplayedTurn:
    """
    A finished turn: its answer comes from the store, and nothing is written.

    Attributes:
        run_id: Its run.
        attempt: The attempt that finished it, from 1.
        created_at: When it was begun.
        redacting: Whether the product redacts the answer.
    """

    replayed = True
    retry_after_ms = 0

    def __init__(self, turn: TurnInput, finished: Finished, finish_reason: str | None = None) -> None:
        self.run_id = turn.run_id
        self.attempt = max(finished.claim.run.epoch, 1)
        self.created_at = finished.claim.run.created_at
        self.redacting = overrides(turn.deployment.hooks, "transform_final_text")
        self._turn = turn
        self._finished = finished
        self._finish_reason = finish_reason

    async def run(self, sink: Sink, *, joined: bool = False) -> None:
        """
        Say how the turn started, its answer, and how it ended: every line goes to *sink*, which is closed.

        Args:
            sink: The reader.
            joined: Whether the reader has read the log so far, and needs not be told that the run has started.
        """
        turn = self._turn
        reader = Reader(sink, observer_of(turn), turn.deployment.log)
        failure: Exception | None = None
        try:
            if not joined:
                self._say(reader, started_words(turn.identity))
            self._say_answer(reader)
        except Exception as error:  # noqa: BLE001 - the boundary: the reader gets a terminal line for everything
            failure = error
            turn.deployment.log("turn.failed", {"run_id": self.run_id, "attempt": self.attempt, "error": error})
            self._say(reader, failure_words(turn.identity, kind_of(error)))
        finally:
            await sink.close()
        await tell_end(turn, None, failure, (), replayed=True)

    def _say_answer(self, reader: Reader) -> None:
        end = self._finished.answer(TURN_STEP)
        self._say(reader, [ChatStreamEvent("result", {"finalText": end.text})])
        words = ending_words(self._turn.identity, end, replayed=True, finish_reason=self._finish_reason)
        self._say(reader, words)

    def _say(self, reader: Reader, events: list[ChatStreamEvent]) -> None:
        reader.send(unlogged(events, self.attempt), events)


class FailedTurn:
    """
    A turn that failed and may not be tried again yet: its failure comes from the store, and nothing is written.

    Attributes:
        run_id: Its run.
        attempt: The attempt that failed, from 1.
        created_at: When it was begun.
        redacting: Whether the product redacts the answer.
        retry_after_ms: Until it may be tried again.
    """

    replayed = True

    def __init__(self, turn: TurnInput, early: TooEarly) -> None:
        self.run_id = turn.run_id
        self.attempt = early.attempt
        self.created_at = early.created_at
        self.redacting = overrides(turn.deployment.hooks, "transform_final_text")
        self.retry_after_ms = early.wait_ms
        self._turn = turn
        self._kind = early.kind

    async def run(self, sink: Sink, *, joined: bool = False) -> None:
        """
        Say how the turn started, and how it failed: every line goes to *sink*, which is closed.

        Args:
            sink: The reader.
            joined: Whether the reader has read the log so far, and needs not be told that the run has started.
        """
        turn = self._turn
        reader = Reader(sink, observer_of(turn), turn.deployment.log)
        begin = [] if joined else started_words(turn.identity)
        words = [*begin, *failure_words(turn.identity, self._kind, self.retry_after_ms)]
        reader.send(unlogged(words, self.attempt), words)
        await sink.close()
        await tell_end(turn, None, None, (), replayed=True)


def replay_of_version(turn: TurnInput, row: Row | None) -> ReplayedTurn | None:
    """
    Return the replay of the version that counts, from the row that the refused claim returned.

    Args:
        turn: What was asked for.
        row: `chatturn.chat.thread.version_sql.OtherVersion.counting`.

    Returns:
        None where no version counts, it is not finished, or another question was asked: then the version has to be
        looked up.
    """
    if row is None or row["result_json"] is None or row["manifest_hash"] != manifest_hash(turn.manifest):
        return None
    run = run_from_row(row)
    if run.status is not RunStatus.COMPLETED:
        return None
    step = StepRecord(
        run_id=run.run_id,
        step_index=TURN_STEP,
        intent="",
        kind=StepKind.LLM,
        input_hash="",
        status=StepStatus.COMPLETED,
        attempts=1,
        result=json.loads(str(row["result_json"])),
        error=None,
        started_at=None,
        completed_at=run.completed_at,
    )
    if turn.tracing is not None:
        turn.tracing.claimed(found([row], attempt=run.epoch, replayed=True))
    about = replace(turn, identity=replace(turn.identity, version=int(row["version"] or 1)))
    reason = None if row["finish_reason"] is None else str(row["finish_reason"])
    return ReplayedTurn(about, Finished(Claim(run=run, steps=[step], lease=None)), reason)
