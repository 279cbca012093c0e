"""
Which turn, and which version of it, a request is about: usually the turn that it names, claimed without looking.

A turn that has versions, or holds another message, is looked up.  A message at whose index another message is open is
asked at the next index, and found there when it is sent again.
"""

import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from chatturn.chat.deployment import Deployment
from chatturn.chat.requests import TurnInput, TurnRequest
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.thread.queue_sql import read_taken
from chatturn.chat.thread.version_sql import OtherVersion, read_version_state
from chatturn.chat.thread.versions import Choice, version_for
from chatturn.chat.turn.turn import OpenTurn, open_turn
from chatturn.durable.identifiers import manifest_hash
from chatturn.errors import DurableRunInputMismatchError, DurableRunLeaseHeldError, NotFound, VersionConflict

__all__ = ["Opening"]

_TRIES: Final = 3
"""Tries, since the version that counts, or the free index, may change between the look and the claim."""


class _Make(Protocol):
    def __call__(
        self,
        identity: ChatTurnIdentity,
        request: TurnRequest,
        *,
        choice: Choice | None = None,
        asked_at_index: int | None = None,
    ) -> TurnInput: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """
    Opens turns in a deployment where they have versions.

    Attributes:
        deployment: The deployment.
        make: Makes a turn of a place and what is asked; the other arguments are members of `TurnInput`.
        may_see: Whether the turn's user may know of its session.
    """

    deployment: Deployment
    make: _Make
    may_see: Callable[[ChatTurnIdentity], Coroutine[Any, Any, bool]]

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> OpenTurn:
        """
        Claim what a request is about; see `open_turn`.

        Raises:
            VersionConflict: As `chatturn.chat.thread.versions.version_for`.
            DurableRunInputMismatchError: The turn is there with another message.
        """
        try:
            return await self._open_version(identity, request)
        except DurableRunInputMismatchError as error:
            if request.stays or request.supersede or request.replace is not None:
                raise
            return await self._open_moved(identity, request, error)

    async def _open_moved(
        self, identity: ChatTurnIdentity, request: TurnRequest, error: DurableRunInputMismatchError
    ) -> OpenTurn:
        """Ask at the next index, or where this message was asked before, if another message is open at its index."""
        asked = TurnInput(deployment=self.deployment, identity=identity, request=request)
        for tries_left in reversed(range(_TRIES)):
            [found] = await self.deployment.database.batch([read_taken(identity)])
            place, next_index = found.rows[0], int(found.rows[0]["next_index"] or 0)
            moved = [
                index
                for index, digest in json.loads(str(place["moved"]))
                if digest == manifest_hash(replace(asked, identity=replace(identity, turn_index=index)).manifest)
            ]
            if not moved and not place["taken"]:
                raise error
            if not moved and asked.when_busy in {"reject", "parallel"}:
                message = "another message is open there"
                raise DurableRunInputMismatchError(message, run_id=error.run_id, next_index=next_index)
            about = replace(identity, turn_index=moved[0] if moved else next_index)
            try:
                return await self._open_version(about, request, asked_at_index=identity.turn_index)
            except DurableRunInputMismatchError:
                if moved or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _open_version(
        self, identity: ChatTurnIdentity, request: TurnRequest, asked_at_index: int | None = None
    ) -> OpenTurn:
        """Claim the version of the turn that the request is about; the only one without looking."""
        if request.replace is None and not request.supersede:
            with suppress(OtherVersion, DurableRunInputMismatchError):
                return await open_turn(self.make(identity, request, asked_at_index=asked_at_index))
        for tries_left in reversed(range(_TRIES)):
            choice = await self._choose(identity, request)
            about = replace(identity, version=choice.version)
            asked = replace(request, supersede=request.supersede and choice.counts is None)
            try:
                return await open_turn(self.make(about, asked, choice=choice, asked_at_index=asked_at_index))
            except OtherVersion:
                if not tries_left:
                    raise VersionConflict("it changes all the time", run_id=turn_run_id(identity)) from None
            except DurableRunInputMismatchError:
                if not tries_left or not choice.is_new:
                    raise
            except DurableRunLeaseHeldError as error:
                if error.same_input or not tries_left or not choice.is_new:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _choose(self, identity: ChatTurnIdentity, request: TurnRequest) -> Choice:
        if not await self.may_see(identity):
            raise NotFound("there is no such session")
        asked = request.replace
        digest = manifest_hash(TurnInput(deployment=self.deployment, identity=identity, request=request).manifest)
        replaces, kind = (None, None) if asked is None else (asked.version, asked.kind)
        read = read_version_state(identity, digest, replaces, kind, self.deployment.theirs(identity))
        [state] = await self.deployment.database.batch([read])
        run_id = turn_run_id(identity)
        return version_for(state.rows[0], run_id, identity.turn_index, asked, supersede=request.supersede)
