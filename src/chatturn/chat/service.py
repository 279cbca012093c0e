"""The chat of one deployment: what the HTTP routes ask for, done with its settings, product and database."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from chatturn.backends.parameters import allowed_parameters
from chatturn.chat.agent.tool_calls import APPROVAL_PREFIX, CLIENT_CALL, TOOL_PREFIX
from chatturn.chat.deployment import Deployment
from chatturn.chat.files import FileFacts, last_day
from chatturn.chat.following import FollowedTurn, read_page_in_turn
from chatturn.chat.hooks.outbox import Outbox
from chatturn.chat.listeners import RequestTracing
from chatturn.chat.lists.lists import (
    MessagePage,
    MessageQuery,
    TurnPage,
    TurnQuery,
    has_asked,
    list_messages,
    list_turns,
)
from chatturn.chat.lists.revisions import changed
from chatturn.chat.lists.sql import read_latest_turn, read_open_runs, read_recent_turn
from chatturn.chat.log.query_budget import RESUMED_AT_ONCE
from chatturn.chat.log.room import PAGE_CHARACTERS, holder, wait_for_room
from chatturn.chat.log.sql import request_cancel
from chatturn.chat.opening import Opening
from chatturn.chat.requests import Cancellation, TurnInput, TurnRequest, TurnView, history_of
from chatturn.chat.sessions.service import Sessions
from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids, turn_run_id
from chatturn.chat.thread.queue_sql import cancel_queued
from chatturn.chat.thread.session_sql import session_of_run_changed
from chatturn.chat.thread.their_sql import cancel_theirs, read_latest_of_theirs
from chatturn.chat.thread.version_sql import (
    activate,
    read_lines,
    read_same_turn,
    read_shown_version,
    read_versions,
)
from chatturn.chat.thread.versions import Choice, at_line
from chatturn.chat.turn import limits_sql
from chatturn.chat.turn import sql as chat_sql
from chatturn.chat.turn.disconnects import CANCEL_REQUESTED
from chatturn.chat.turn.given import Given, find_asked
from chatturn.chat.turn.reader import ping_every_ms
from chatturn.chat.turn.sinks import NoSink
from chatturn.chat.turn.their_log import counts_there
from chatturn.chat.turn.tracing import attributes_of_turn
from chatturn.chat.turn.turn import OpenTurn, open_turn
from chatturn.chat.usage.sql import read_usage_of_turn
from chatturn.chat.usage.totals import UsagePage, UsageQuery, list_usage, sums_of
from chatturn.database.api import Row
from chatturn.database.migration import missing_parts
from chatturn.durable.identifiers import manifest_hash
from chatturn.durable.records import EventRecord, RunOutcome, RunStatus
from chatturn.durable.rows import event_from_row
from chatturn.errors import (
    ChatTurnError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    FilesNotKept,
    FilesUnavailable,
    InvalidField,
    NotFound,
    RequestError,
    RunNotFound,
    SchemaOutdated,
    SessionBusy,
    StoreError,
    VersionConflict,
)
from chatturn.jsontext.stored import json_text
from chatturn.settings import names_in

__all__ = ["DurableChatService"]

_ASKED_FOR: Final = (APPROVAL_PREFIX, TOOL_PREFIX + CLIENT_CALL)
"""The beginnings of keys of events that count only while the run asks for them."""

_RESUME_PAUSES_S: Final = (0.0, 1.0, 3.0)
"""Pauses before tries to resume: a turn that is just being suspended keeps its lease for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableChatService:
    """
    Durable chat turns of one deployment, for one request.

    Attributes:
        deployment: The deployment.
        tracing: The request's telemetry; None where it goes nowhere.
        resumed: How many turns this invocation has run one after another without a request for them.
    """

    deployment: Deployment
    tracing: RequestTracing | None = None
    resumed: int = 0

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> OpenTurn:
        """
        Claim a turn, ready to run; see `open_turn`.

        Raises:
            InvalidField: It is a new turn whose model or parameters the deployment does not allow, or whose model takes
                nothing like the parts of the message.
            FileMissing, PayloadTooLarge, FilesNotKept, FilesUnavailable: As `Files.check`; nothing was stored.
        """
        await self._check_wishes(identity, request)
        if self.deployment.settings.threads == "off":
            if request.replace is not None:
                raise InvalidField("this deployment has no versions: its THREADS is off", field="replace")
            return await open_turn(self._traced(identity, request))
        opening = Opening(deployment=self.deployment, make=self._traced, may_see=self._may_see_turn)
        return await opening.open(identity, request)

    async def shown_version(self, identity: ChatTurnIdentity, after: int | None = None) -> ChatTurnIdentity:
        """
        Return the version of a turn that is shown to who names none: the one that runs, else the one that counts.

        Who comes back behind line *after* of another one, which was said later, goes on with that.
        """
        if self.deployment.settings.threads == "off":
            return identity
        lines = [] if after is None else [read_lines(identity, after)]
        read = read_shown_version(identity, self.deployment.theirs(identity))
        found, *said = await self.deployment.database.batch([read, *lines])
        shown = int(found.rows[0]["version"] or 1)
        return replace(identity, version=at_line(said[0].rows, shown) if said else shown)

    async def versions(self, identity: ChatTurnIdentity) -> Sequence[Row] | None:
        """Return a turn's versions, the first first; None if this user has no such turn."""
        if not await self._may_see_turn(identity):
            return None
        [found] = await self.deployment.database.batch([read_versions(identity, self.deployment.theirs(identity))])
        return found.rows or None

    async def activate(self, identity: ChatTurnIdentity) -> None:
        """
        Let a version of a turn count; one that counts already stays.

        Raises:
            NotFound: This user has no such turn.
            VersionConflict: There is no such version, or it has no answer.
            SessionBusy: A turn of the session is being answered; nothing was changed.
        """
        if not await self._may_see_turn(identity):
            raise NotFound("there is no such turn")
        run_id, around = turn_run_id(identity), self._outbox.around_activation(identity)
        *_, found = await self.deployment.database.batch(activate(identity, around.before, around.behind))
        came = found.rows[0]
        if came["counts"] or await counts_there(self.deployment.database, identity, self.deployment.theirs(identity)):
            return
        if not came["may_count"]:
            raise VersionConflict("it has no answer", run_id=run_id)
        raise SessionBusy("a turn of the session is being answered", run_id=run_id)

    async def tell_changes(self, identity: ChatTurnIdentity) -> None:
        """Tell the product what was detached or came back when a version began to count; see `Outbox.tell_changes`."""
        await self._outbox.tell_changes(turn_run_id(identity))

    @property
    def _outbox(self) -> Outbox:
        deployment = self.deployment
        return Outbox(database=deployment.database, hooks=deployment.hooks, log=deployment.log)

    async def _check_wishes(self, identity: ChatTurnIdentity, request: TurnRequest) -> None:
        """Refuse what the deployment does not allow, unless the turn is there: what was begun may be ended."""
        refusal = self.deployment.objection(request) or await self._missing_file(identity, request)
        if refusal is None:
            return
        digest = manifest_hash(TurnInput(deployment=self.deployment, identity=identity, request=request).manifest)
        [found] = await self.deployment.database.batch([read_same_turn(identity, digest)])
        if not found.rows:
            raise refusal

    async def _missing_file(self, identity: ChatTurnIdentity, request: TurnRequest) -> ChatTurnError | None:
        """Return what is wrong with the files that a message names; each is one look into their store."""
        try:
            await self.deployment.files.check(identity.tenant_id, identity.user_id, request.parts)
        except (RequestError, FilesNotKept, FilesUnavailable) as refusal:
            return refusal
        return None

    @property
    def sessions(self) -> Sessions:
        """The sessions, as people's data."""
        return Sessions(self.deployment)

    async def may_see(self, tenant_id: str, session_id: str, user_id: str) -> bool:
        """Say whether a user may know of a session; see `Sessions.may_see`."""
        return await self.sessions.may_see(tenant_id, session_id, user_id)

    async def _may_see_turn(self, identity: ChatTurnIdentity) -> bool:
        return await self.may_see(identity.tenant_id, identity.session_id, identity.user_id)

    def _traced(
        self,
        identity: ChatTurnIdentity,
        request: TurnRequest,
        *,
        asked_again: bool = False,
        may_wait: bool = True,
        choice: Choice | None = None,
        asked_at_index: int | None = None,
    ) -> TurnInput:
        turn = TurnInput(
            deployment=self.deployment,
            identity=identity,
            request=request,
            asked_again=asked_again,
            choice=choice,
            asked_at_index=asked_at_index,
            may_wait=may_wait,
            resume=self.resume if may_wait else replace(self, resumed=self.resumed + 1).resume,
        )
        if self.tracing is None:
            return turn
        tracing = self.tracing.turn(attributes_of_turn(identity, self.deployment.settings.project_id))
        traced = replace(self.deployment, database=tracing.around(self.deployment.database), log=tracing.log)
        return replace(turn, deployment=traced, tracing=tracing)

    async def show(self, identity: ChatTurnIdentity) -> TurnView | None:
        """Return the turn's run, or None if this tenant has none there."""
        if not await self._may_see_turn(identity):
            return None
        run_id = turn_run_id(identity)
        found, usage = await self.deployment.database.batch(
            [chat_sql.read_turn(run_id, self.deployment.theirs(identity)), read_usage_of_turn(run_id)]
        )
        return replace(TurnView.of(found.rows[0]), usage=sums_of(usage.rows[0])) if found.rows else None

    async def follow(
        self, identity: ChatTurnIdentity, after: int | None, *, may_take_over: bool, waits: bool = True
    ) -> FollowedTurn | None:
        """
        Find a turn's log, to be shown from a cursor on; None if this tenant has no such turn.

        Args:
            identity: The turn; its user is who follows.
            after: The seq of the last line that the reader has seen; None for the whole log.
            may_take_over: Whether the reader may run the turn if its worker is lost.
            waits: Whether the reader waits where others have not taken what they were sent; else it is refused.

        Raises:
            ReadersBusy: There is no room for another reader who is behind.
            InvalidField: There can be no line of that seq yet.
        """
        if not await self._may_see_turn(identity):
            return None
        run_id, theirs, cursor = turn_run_id(identity), self.deployment.theirs(identity), -1 if after is None else after
        page, release = await read_page_in_turn(self.deployment, identity, cursor, theirs, waits=waits)
        if page is None:
            return None
        if cursor > page.furthest:
            release()
            raise InvalidField(f"after is {cursor}, but the log ends at {page.ends}", field="after")
        return FollowedTurn(
            identity=identity,
            run_id=run_id,
            theirs=theirs,
            page=page,
            deployment=self.deployment,
            take_over=partial(self.reopen, run_id) if may_take_over else None,
            release=release,
        )

    @property
    def ping_every_ms(self) -> int:
        """After how much silence the reader of a turn that is run for it is sent a ping."""
        return ping_every_ms(self.deployment.settings.on_disconnect)

    async def latest_turn(self, tenant_id: str, session_id: str, user_id: str) -> int | None:
        """
        Return which turn of a session is being answered, else the last in it.

        None if it has none, or none for this user.
        """
        if not await self.may_see(tenant_id, session_id, user_id):
            return None
        project_id, may_be_theirs = self.deployment.settings.project_id, self.deployment.may_have_theirs(session_id)
        theirs = [read_latest_of_theirs(tenant_id, session_id, project_id)] if may_be_theirs else []
        found, *behind = await self.deployment.database.batch([read_latest_turn(tenant_id, session_id), *theirs])
        if behind and behind[0].rows[0]["latest"] is not None:
            return int(behind[0].rows[0]["latest"])
        latest = found.rows[0]["latest"]
        return None if latest is None else int(latest)

    async def has_asked(self, identity: ChatTurnIdentity, questions: Sequence[str]) -> bool:
        """Say whether these are what the user has asked in the session before a turn, each at its index."""
        return await has_asked(self.deployment.database, identity, questions)

    async def recent_turn(self, tenant_id: str, session_prefix: str, within_s: int) -> str | None:
        """Return the session of the latest turn of those whose names begin alike, if it was begun within so long."""
        first = session_run_ids(tenant_id, session_prefix)[0][:-1]
        read = read_recent_turn(first, f"{first}~", tenant_id, within_s)
        [found] = await self.deployment.database.batch([read])
        return str(found.rows[0]["session_id"]) if found.rows else None

    def model_names(self) -> Sequence[str]:
        """Return what a request may name as its model; the first is the deployment's."""
        settings = self.deployment.settings
        return list(dict.fromkeys(names_in(f"{settings.model},{settings.models}")))

    async def cancel(self, identity: ChatTurnIdentity) -> Cancellation | None:
        """
        Ask for a turn to be stopped for good, in whichever isolate it runs; None if this tenant has no such turn.

        A turn that is over stays as it is.  One that waits for its start is over at once, and leaves no message.  One
        that nobody runs is left to `resume`, which ends it.
        """
        if not await self._may_see_turn(identity):
            return None
        run_id, theirs = turn_run_id(identity), self.deployment.theirs(identity)
        queued, _, _, _, requested, _, *taken, state = await self.deployment.database.batch(
            [
                *cancel_queued(run_id, CANCEL_REQUESTED),
                request_cancel(run_id),
                chat_sql.wake_cancelled(run_id),
                *([] if theirs is None else cancel_theirs(identity, theirs, CANCEL_REQUESTED)),
                chat_sql.read_turn(run_id, theirs),
            ]
        )
        if not state.rows:
            return None
        if queued.rows:
            self.deployment.live.bells.ring(session_run_ids(identity.tenant_id, identity.session_id)[0])
        if requested.rows and (log := self.deployment.live.get(run_id)) is not None:
            log.cancel_requested = True
        stops = [queued, requested, *taken[-1:]]
        return Cancellation(requested=any(each.rows for each in stops), turn=TurnView.of(state.rows[0]))

    async def reopen(self, run_id: str) -> OpenTurn:
        """
        Claim a turn again, with what it was asked the first time; or wait for its start.

        Raises:
            RunNotFound: There is no such turn.
            DurableRunLeaseHeldError: It is being answered.
            ChatTurnError: As `open`.
        """
        row = await self._asked(run_id)
        if row is None:
            raise RunNotFound("it is no chat turn", run_id=run_id)
        return await self._reopen(row)

    async def _reopen(self, row: Row, *, may_wait: bool = True) -> OpenTurn:
        metadata, model, parameters = row["metadata_json"], row["model"], row["parameters_json"]
        parts, brought = row["parts_json"], row["history_json"]
        history, behind = history_of(None if brought is None else str(brought))
        request = TurnRequest(
            message=str(row["user_message"]),
            parts=() if parts is None else json.loads(str(parts)),
            model=None if model is None else str(model),
            metadata={} if metadata is None else json.loads(str(metadata)),
            history=history,
            behind=behind,
            parameters={} if parameters is None else json.loads(str(parameters)),
        )
        return await open_turn(self._traced(_identity(row), request, asked_again=True, may_wait=may_wait))

    async def keep_file(self, tenant_id: str, facts: FileFacts, data: bytes) -> tuple[str, str | None]:
        """
        Keep a file; return its id, and the last day on which it is there for certain; None for no end.

        Raises:
            FilesNotKept, FilesUnavailable: As `Files.keep`.
            LimitReached: Too much is stored today; the file was not kept.
        """
        deployment, today = self.deployment, self.deployment.sources.now()[:10]
        if deployment.file_store is None:
            raise FilesNotKept("there is no binding FILES")
        count = limits_sql.count_file(tenant_id, facts.user_id, facts.size, deployment.settings)
        counted, midnight = await deployment.database.batch(count)
        limits_sql.require_counted(counted.rows, midnight.rows[0])
        file_id = await deployment.files.keep(tenant_id, facts, data, today)
        days = deployment.settings.retention_days
        return file_id, last_day(today, days) if days else None

    async def check(self) -> None:
        """
        Look whether a turn could run.

        Raises:
            ConfigurationError: A setting that only turns look at cannot be read.
            StoreUnavailable: The database does not answer.
            StoreFull: It is full, or its quota is used up.
            SchemaOutdated: Its tables are missing, or older than this code.
        """
        allowed_parameters(self.deployment.settings.allow_parameters)
        if missing := await missing_parts(self.deployment.database):
            raise SchemaOutdated(f"the database lacks {', '.join(missing)}")
        await self.deployment.probe.require_works(self.deployment.database)

    async def messages(self, tenant_id: str, session_id: str, user_id: str, query: MessageQuery) -> MessagePage | None:
        """Return a stretch of a session's messages; None if the session is another user's."""
        if not await self.may_see(tenant_id, session_id, user_id):
            return None
        reading, who = self.deployment.reading, holder(tenant_id, user_id)
        while not reading.fits(who, PAGE_CHARACTERS):
            await wait_for_room(reading, who, PAGE_CHARACTERS, self.deployment.alarm())
        with reading.holding(who, PAGE_CHARACTERS):
            page = await list_messages(self.deployment.database, tenant_id, session_id, query)
        # An earlier version's code, which may serve the same database, counts no changes.
        return page if self.deployment.settings.threads == "on" else replace(page, revision=None, tag=None)

    async def session_changed(
        self, tenant_id: str, session_id: str, user_id: str, known: Callable[[str], bool], within_s: float
    ) -> bool:
        """
        Wait until a session is in another state than the reader knows; see `chatturn.chat.lists.revisions.changed`.

        Raises:
            InvalidField: The deployment does not count the changes of its sessions.
            NotFound: It is another user's session.
        """
        if self.deployment.settings.threads == "off":
            if within_s:
                raise InvalidField("this deployment counts no changes: its THREADS is off", field="wait")
            return True
        if not await self.may_see(tenant_id, session_id, user_id):
            raise NotFound("there is no such session")
        return await changed(self.deployment, tenant_id, session_id, known, within_s)

    async def turns(self, query: TurnQuery) -> TurnPage:
        """
        Return one page of a list of turns.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """
        settings = self.deployment.settings
        if settings.session_owner == "tenant":
            query = replace(query, user_id=None)
        return await list_turns(self.deployment.database, settings.project_id, query)

    async def usage(self, query: UsageQuery) -> UsagePage:
        """
        Add up what was consumed.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """
        return await list_usage(self.deployment.database, query)

    async def emit(
        self, tenant_id: str, user_id: str, run_id: str, key: str, payload: Any
    ) -> tuple[bool, EventRecord | None]:
        """
        Record an event of a run of this user's; the first under its key wins.

        An approval, or the result of a client's tool, is recorded only while it is asked for: one that comes too late
        is void, and one that is sent again is answered as the first time.

        Returns:
            Whether this one was the first, and the one that is recorded; None for a void approval.

        Raises:
            RunNotFound: This user has no such run, or nobody has asked for such an approval; nothing was stored.
            RunEnded: The run is over, and has no event under the key; nothing was stored.
            LimitReached: The run has too many events, or too much is stored today; nothing was stored.
        """
        row = await self._asked(run_id)
        if row is None or row["tenant_id"] != tenant_id:
            raise RunNotFound("this tenant has none of that name", run_id=run_id)
        if not await self.may_see(tenant_id, str(row["session_id"]), user_id):
            raise RunNotFound("it is another user's", run_id=run_id)
        if key.startswith(_ASKED_FOR):
            return await self._approve(run_id, key, payload)
        return await self._emit(replace(_identity(row), user_id=user_id), run_id, key, payload)

    async def _emit(
        self, identity: ChatTurnIdentity, run_id: str, key: str, payload: Any
    ) -> tuple[bool, EventRecord | None]:
        text = json_text(payload, "the event's payload")
        emit = limits_sql.emit_event(identity, run_id, key, text, self.deployment.settings)
        emitted, *_, found, refused = await self.deployment.database.batch(emit)
        if not found.rows:
            limits_sql.require_taken(refused.rows[0], run_id)
            raise RunNotFound("it does not exist; the event was not stored", run_id=run_id)
        return emitted.changes > 0, event_from_row(found.rows[0])

    async def take_results(self, tenant_id: str, user_id: str, results: Mapping[str, Any]) -> Given | None:
        """
        Give a turn the results of its client's tools, by the ids of the calls; see `chatturn.chat.turn.given`.

        Returns:
            What it was given; None if no turn has asked that this user may see.
        """
        given = await find_asked(self.deployment.database, tenant_id, results)
        if given is None or not await self.may_see(tenant_id, given.session_id, user_id):
            return None
        await self.deployment.database.batch(given.statements)
        return given

    async def _approve(self, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord | None]:
        text = json_text(payload, "the event's payload")
        _, found, asked = await self.deployment.database.batch(chat_sql.approve(run_id, key, text))
        if found.rows:
            event = event_from_row(found.rows[0])
            return event.payload == payload, event
        if not asked.rows[0]["asked"]:
            raise RunNotFound("nobody has asked for this approval", run_id=run_id)
        return False, None

    async def resume(self, run_id: str) -> bool:
        """
        Go on with a suspended turn, or one whose worker died, while nobody reads it; or begin one whose turn it is.

        A turn that is running is left alone: it sees for itself what it waits for, and whether it is to stop.
        It may begin the next one of its session when it ends, up to `RESUMED_AT_ONCE`: what is left after that is begun
        by another invocation.  Raises nothing but cancellation.

        Returns:
            Whether it ran.
        """
        if self.resumed >= RESUMED_AT_ONCE[self.deployment.settings.workers_plan]:
            return False
        try:
            return await self._resume(run_id)
        except DurableRunInputMismatchError as error:
            # What is asked now is not what was asked then: a setting has changed, and nobody can go on with the turn.
            self.deployment.log("turn.not_resumed", {"run_id": run_id, "error": error})
            await self._give_up(run_id, error)
        except ChatTurnError as error:
            self.deployment.log("turn.not_resumed", {"run_id": run_id, "error": error})
        return False

    async def look_after(self, tenant_id: str, session_id: str) -> bool:
        """
        Take over the session's turns whose worker is lost, or begin the next one, and run them to their ends.

        Returns:
            Whether a turn of the session was being answered, or waiting for that, here or elsewhere: then it is worth
            looking again.  What waits behind a suspended turn is left to whoever goes on with that.

        Raises:
            StoreError: The database does not answer, or refuses.
        """
        [found] = await self.deployment.database.batch([read_open_runs(*session_run_ids(tenant_id, session_id))])
        running, pending, suspended = (
            [row for row in found.rows if row["status"] == status]
            for status in (RunStatus.RUNNING, RunStatus.PENDING, RunStatus.SUSPENDED)
        )
        waiting = [] if suspended else pending
        lost = [str(row["run_id"]) for row in running or waiting[:1] if row["orphaned"]]
        lost = lost[: RESUMED_AT_ONCE[self.deployment.settings.workers_plan]]
        service = replace(self, deployment=self.deployment.running(max(1, len(lost))))
        await asyncio.gather(*(service.resume(run_id) for run_id in lost))
        return bool(running or waiting)

    async def _resume(self, run_id: str) -> bool:
        for pause_s in _RESUME_PAUSES_S:
            await asyncio.sleep(pause_s)
            if self.deployment.live.get(run_id) is not None:
                continue
            row = await self._asked(run_id)
            if row is None or row["status"] not in {RunStatus.PENDING, RunStatus.SUSPENDED, RunStatus.RUNNING}:
                return False
            try:
                turn = await self._reopen(row, may_wait=False)
            except DurableRunLeaseHeldError:
                if row["status"] == RunStatus.PENDING:  # somebody waits with it
                    return False
                continue
            except SessionBusy:
                return False
            await turn.run(NoSink())
            return True
        return False

    async def _give_up(self, run_id: str, error: ChatTurnError) -> None:
        try:
            outcome = RunOutcome(passed=False, notes=error.code)
            await self.deployment.store.give_up(run_id, outcome, [session_of_run_changed(run_id)])
        except StoreError as refusal:
            self.deployment.log("turn.not_resumed", {"run_id": run_id, "error": refusal})

    async def _asked(self, run_id: str) -> Row | None:
        [outcome] = await self.deployment.database.batch([chat_sql.read_turn_input(run_id)])
        return outcome.rows[0] if outcome.rows else None


def _identity(row: Row) -> ChatTurnIdentity:
    return ChatTurnIdentity(
        tenant_id=str(row["tenant_id"]),
        session_id=str(row["session_id"]),
        user_id=str(row["user_id"]),
        turn_index=int(row["turn_index"] or 0),
        version=int(row["version"] or 1),
    )
