"""
The chat of a user who asks too often: what is stored or being said is shown, and nothing is begun.

Every route's own operation works with it as with the chat itself, so a replay is what that operation makes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from chatturn.chat.requests import TurnInput, TurnRequest
from chatturn.chat.service import DurableChatService
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.turn.given import Given, find_asked
from chatturn.chat.turn.limits_sql import read_begun
from chatturn.chat.turn.turn import OpenTurn
from chatturn.durable.identifiers import manifest_hash
from chatturn.durable.records import EventRecord, RunStatus
from chatturn.errors import ChatTurnError, DurableRunInputMismatchError

__all__ = ["ReplayingChat"]


@dataclass(frozen=True, kw_only=True)  # no slots: with them, `super()` would need its arguments
class ReplayingChat(DurableChatService):
    """
    A chat that begins nothing.

    A turn that is finished is replayed, and one that runs is followed, or taken over if its worker is lost.  What would
    begin a turn, a version, or a failed or suspended turn again is refused, after one look of a few rows.

    Attributes:
        refusal: What it is refused with.
    """

    refusal: ChatTurnError

    @classmethod
    def of(cls, service: DurableChatService, refusal: ChatTurnError) -> Self:
        """Make one of a chat."""
        return cls(deployment=service.deployment, tracing=service.tracing, resumed=service.resumed, refusal=refusal)

    async def require_begun(self, identity: ChatTurnIdentity, request: TurnRequest | None = None) -> None:
        """
        Refuse a turn that is neither finished nor running, or that the user may not know of.

        Args:
            identity: The turn; any version of it.
            request: What was asked, if that is known: then a version that was asked otherwise does not count.
        """
        if not await self.may_see(identity.tenant_id, identity.session_id, identity.user_id):
            raise self.refusal
        [found] = await self.deployment.database.batch([read_begun(identity, self.deployment.theirs(identity))])
        asked = {row["manifest_hash"] for row in found.rows}
        if not asked:  # a request may be a megabyte, which takes longer to hash than all the rest
            raise self.refusal
        if request is not None:
            turn = TurnInput(deployment=self.deployment, identity=identity, request=request)
            if manifest_hash(turn.manifest) not in asked:
                raise self.refusal

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> OpenTurn:
        """Replay a turn; see `DurableChatService.open`."""
        if request.stays:  # else it may have been asked at the next index
            await self.require_begun(identity, request)
        try:
            return await super().open(identity, replace(request, supersede=False))
        except DurableRunInputMismatchError:
            raise self.refusal from None

    async def has_asked(self, identity: ChatTurnIdentity, questions: Sequence[str]) -> bool:
        """Compare with the thread's questions only for a turn that may be replayed."""
        await self.require_begun(identity)
        return await super().has_asked(identity, questions)

    async def take_results(self, tenant_id: str, user_id: str, results: Mapping[str, Any]) -> Given | None:
        """Find the turn that has got results; nothing is recorded."""
        given = await find_asked(self.deployment.database, tenant_id, results)
        if given is None or not await self.may_see(tenant_id, given.session_id, user_id):
            return None
        await self._require_finished(given.run_id)
        return given

    async def emit(
        self, tenant_id: str, user_id: str, run_id: str, key: str, payload: Any
    ) -> tuple[bool, EventRecord | None]:
        """Answer an event of a finished run as before: such a run takes none."""
        await self._require_finished(run_id)
        return await super().emit(tenant_id, user_id, run_id, key, payload)

    async def _require_finished(self, run_id: str) -> None:
        row = await self._asked(run_id)
        if row is None or row["status"] != RunStatus.COMPLETED:
            raise self.refusal

    def _traced(self, *args: Any, **members: Any) -> TurnInput:
        turn = super()._traced(*args, **members)
        # Asked again by the deployment itself: a turn whose worker is lost, for a reader who follows it.
        return turn if turn.asked_again else replace(turn, refusal=self.refusal)
