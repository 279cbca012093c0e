"""A turn's log in agent-runtime's vocabulary: nothing is said twice, nothing out of order, and nothing made up."""

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.agent_runtime.turns.mapping import RuntimeEventMapper
from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.event_order import first_out_of_order
from chatturn.agent_runtime.values.events import (
    ArtifactEvent,
    BackendErrorEvent,
    FinalEvent,
    LlmCallEvent,
    ProposalCreatedEvent,
    RuntimeStreamEvent,
    SessionResumedEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.fixed_words import is_fixed
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.errors import error_class
from chatturn.events import (
    BESIDES_PREFIX,
    EVENT_TYPES,
    ChatStreamEvent,
    TextAssembly,
    encode_line,
    reasoning_delta,
    stored_event,
    text_delta,
    text_so_far,
    tool_approval,
    tool_call,
    tool_error,
    tool_result,
    usage_event,
)
from tests.support.turns import Desk, Product, open_sqlite

TASK = AgentTaskSpec(id="chatturn:chat:thread-1:0", intent="Answer.")


def mapper() -> RuntimeEventMapper:
    """A mapper whose clock is a second later each time."""
    seconds = count(1_767_225_600_000, 1_000)
    return RuntimeEventMapper(task=TASK, session_id="thread-1", backend="echo", now_ms=lambda: next(seconds))


def mapped(*chat_events: ChatStreamEvent) -> list[RuntimeStreamEvent]:
    mapping = mapper()
    return [event for said in chat_events for event in mapping.feed(said)]


def run(what: str, **data: Any) -> ChatStreamEvent:
    return ChatStreamEvent(f"session.run.{what}", {"sessionId": "thread-1", **data})


STARTED = run("started", tenantId="acme", turnIndex=0)
COMPLETED = run("completed", replayed=False)
RESTARTED = run("restarted", attempt=2, reason="lease_lapsed")
RESULT = ChatStreamEvent("result", {"finalText": "Hello"})


def kinds(events: list[RuntimeStreamEvent]) -> list[str]:
    return [event.type for event in events]


def text(events: list[RuntimeStreamEvent]) -> str:
    """What somebody has who joins the pieces, as agent-runtime does."""
    return "".join(event.text for event in events if isinstance(event, TextDeltaEvent))


def only(kind: type[Any], events: list[RuntimeStreamEvent]) -> Any:
    [event] = [event for event in events if isinstance(event, kind)]
    return event


def calls(events: list[RuntimeStreamEvent]) -> list[LlmCallEvent]:
    return [event for event in events if isinstance(event, LlmCallEvent)]


# A turn


def test_a_turn_is_a_task() -> None:
    """Beginning, session, answer, cost and end, each with its task, session and time."""
    events = mapped(
        STARTED,
        reasoning_delta("Hm."),
        text_delta("Hel"),
        text_delta("lo"),
        usage_event(model="gpt-x", tokensIn=3, tokensOut=2, tokensCached=1, finishReason="stop"),
        COMPLETED,
    )

    expected = ["task_start", "session_created", "backend_start", "reasoning_delta", "text_delta", "text_delta"]
    assert [*expected, "llm_call", "backend_end", "task_end", "final"] == kinds(events)
    session = {
        "id": "thread-1",
        "backend": "echo",
        "status": "completed",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:05.000Z",
    }
    assert {
        "type": "final",
        "task": {"id": TASK.id, "intent": "Answer."},
        "timestamp": "2026-01-01T00:00:05.000Z",
        "session": session,
        "status": "completed",
        "reason": "backend completed",
        "text": "Hello",
        "metadata": {"replayed": False},
    } == to_json(events[-1])
    assert {
        "type": "llm_call",
        "task": {"id": TASK.id, "intent": "Answer."},
        "session": session | {"status": "active", "updatedAt": session["createdAt"]},
        "timestamp": "2026-01-01T00:00:04.000Z",
        "model": "gpt-x",
        "tokensIn": 3,
        "tokensOut": 2,
        "finishReason": "stop",
    } == to_json(events[6])


async def test_the_log_of_a_real_turn_is_a_stream_in_order() -> None:
    """Fresh and replayed, from the lines that clients get, the same answer comes out once."""
    with open_sqlite() as database:
        desk = Desk(database, Product(reasoning_delta("r"), text_delta("Hel"), 16.0, text_delta("lo")))
        fresh, again = [[encode(line) for line in await desk.run()] for _ in range(2)]
    for lines in (fresh, again):
        mapping = mapper()
        events = [event for line in lines for event in mapping.feed_line(line)]

        assert first_out_of_order(events) is None
        assert ("Hello", "Hello") == (text(events), only(FinalEvent, events).text)


def encode(line: dict[str, Any]) -> str:
    return json.dumps(line)


def test_a_later_turn_of_a_thread_resumes_its_session() -> None:
    """The session is the thread, and only its first turn creates it."""
    assert SessionResumedEvent is type(mapped(run("started", turnIndex=3))[1])


def test_a_feed_that_begins_in_the_middle_begins_all_the_same() -> None:
    """A follower from a cursor did not see the start."""
    events = mapped(text_delta("lo"), COMPLETED)

    assert ["task_start", "session_created", "backend_start", "text_delta"] == kinds(events)[:4]


def test_whoever_comes_back_is_not_begun_twice() -> None:
    """A request that joins a running turn is told again that it has started."""
    assert kinds(mapped(STARTED, STARTED, text_delta("a"))).count("task_start") == 1


def test_another_attempt_after_an_end_is_another_task() -> None:
    """Each terminal line has its own end."""
    failed = run("failed", code="backend_timeout", message="", retryable=True)
    events = mapped(STARTED, text_delta("Hel"), failed, STARTED, text_delta("Hello"), COMPLETED)

    first, second = (event for event in events if isinstance(event, FinalEvent))
    assert ("Hel", "Hello") == (first.text, second.text)
    assert kinds(events).count("task_start") == 2


def test_what_has_no_place_in_the_vocabulary_is_nothing() -> None:
    """Pings, and what products add."""
    assert mapped(ChatStreamEvent("ping"), ChatStreamEvent("weather", {"sun": True})) == []


def test_every_type_of_ours_has_its_place() -> None:
    """All but the ping, the context, the wait and what stands beside a text; a line is read as its event is."""
    for kind in EVENT_TYPES:
        data: dict[str, Any] = {"delta": "a", "key": "k", "toolName": "t", "finalText": "a"}
        event = ChatStreamEvent(kind, data)

        has_none = kind in {"ping", "context", "session.run.queued"} or kind.startswith(BESIDES_PREFIX)
        assert has_none == (mapped(event) == [])
        assert mapped(event) == mapper().feed_line(encode_line(event, 0, 1))


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "{}", '{"type":7}', "[" * 101 + "]" * 101])
def test_what_is_no_line_is_refused(line: str) -> None:
    """It raises a ValueError, and nothing else."""
    with pytest.raises(ValueError, match=r"line|Expecting"):
        mapper().feed_line(line)


# Nothing is said twice


def test_o6_a_result_does_not_double_the_text() -> None:
    """The whole answer after its pieces adds nothing to them."""
    events = mapped(STARTED, text_delta("Hel"), text_delta("lo"), RESULT, COMPLETED)

    assert ("Hello", "Hello") == (text(events), only(FinalEvent, events).text)


def test_o6_a_result_says_what_is_missing() -> None:
    """Of an answer whose pieces came only in part, the rest is said."""
    assert "Hello" == text(mapped(STARTED, text_delta("Hel"), RESULT, COMPLETED))


def test_a_replay_says_the_answer_once() -> None:
    """A turn that had finished before has a result only."""
    events = mapped(STARTED, RESULT, run("completed", replayed=True))

    assert ("Hello", "Hello") == (text(events), only(FinalEvent, events).text)
    assert {"replayed": True} == only(FinalEvent, events).metadata


def test_what_a_product_redacts_is_not_said_once_more() -> None:
    """The pieces were said as the model said them; the answer is what the result says."""
    redacted = ChatStreamEvent("result", {"finalText": "my card is [card number]"})
    events = mapped(STARTED, text_delta("my card is 4111"), redacted, COMPLETED)

    assert "my card is 4111" == text(events)
    assert "my card is [card number]" == only(FinalEvent, events).text


def test_a_stored_log_that_is_redacted_says_its_answer() -> None:
    """Its pieces are empty, and its result is all there is."""
    stored = [stored_event(event) for event in (STARTED, text_delta("my card is 4111"), reasoning_delta("hm"))]
    redacted = ChatStreamEvent("result", {"finalText": "my card is [card number]"})
    events = mapped(*stored, redacted, COMPLETED)

    assert "my card is [card number]" == text(events)
    assert "reasoning_delta" not in kinds(events)


def test_a_part_that_is_sent_whole_again_says_what_is_new() -> None:
    """A cumulative text becomes its pieces."""
    grown = [ChatStreamEvent("message.part.updated", {"part": {"type": "text", "text": t}}) for t in ("He", "Hell")]

    assert "Hello" == text(mapped(STARTED, *grown, text_delta("o")))


def test_a_taken_over_attempt_begins_its_answer_anew() -> None:
    """What the lost attempt said is void: the backend starts again, and the end has the answer alone."""
    events = mapped(STARTED, text_delta("Hel"), RESTARTED, *text_so_far("Hel"), text_delta("lo"), COMPLETED)

    assert first_out_of_order(events) is None
    assert "Hello" == text(events[kinds(events).index("session_resumed") :]) == only(FinalEvent, events).text
    lost = only(BackendErrorEvent, events)
    assert (True, True) == (lost.recoverable, is_fixed(lost.message))


def test_what_was_said_on_the_way_to_a_tool_is_no_answer() -> None:
    """The final text begins after the last tool."""
    used = tool_result(tool_call_id="1", tool_name="find", result={"hits": 2})
    events = mapped(STARTED, text_delta("Let me look."), used, text_delta("Two."), COMPLETED)

    assert "Two." == only(FinalEvent, events).text


pieces = st.one_of(
    st.text(max_size=3).map(text_delta),
    st.text(max_size=3).map(reasoning_delta),
    st.just(tool_result(tool_call_id="1", tool_name="t", result=None)),
    st.builds(
        lambda text, id_: ChatStreamEvent("message.part.updated", {"part": {"id": id_, "text": text}}),
        st.sampled_from(["He", "Hell", "Hello", "x"]),
        st.sampled_from(["text", "2"]),
    ),
    st.sampled_from([RESULT, STARTED, RESTARTED, COMPLETED, ChatStreamEvent("ping"), usage_event(attempt=1)]),
    st.sampled_from([run("failed", code="aborted"), run("cancelled"), run("suspended", key="k")]),
    st.sampled_from([ChatStreamEvent("error", {"code": "backend_timeout"}), ChatStreamEvent("artifact", {"id": "a"})]),
    st.builds(ChatStreamEvent, st.sampled_from([*EVENT_TYPES, "proposal"]), st.dictionaries(st.text(), st.text())),
)


@given(st.lists(pieces, max_size=20))
def test_whatever_a_log_says_the_order_holds(said: list[ChatStreamEvent]) -> None:
    """Every task's events are in agent-runtime's order; the last one may not be over yet."""
    tasks: list[list[RuntimeStreamEvent]] = []
    for event in mapped(*said):
        if event.type == "task_start":
            tasks.append([])
        tasks[-1].append(event)

    for task in tasks:
        assert first_out_of_order(task) is None
    assert all(task[-1].type == "final" for task in tasks[:-1])


@given(st.lists(st.text(max_size=3).map(text_delta), max_size=6), st.text(max_size=4), st.booleans())
def test_the_final_text_is_the_turn_s_own(said: list[ChatStreamEvent], whole: str, resulted: bool) -> None:
    """What `TextAssembly` makes of the events is the text of the end, and nobody who joins the pieces has more."""
    result = [ChatStreamEvent("result", {"finalText": whole})] if resulted else []
    assembly = TextAssembly()
    assembly.add_all([*said, *result])
    events = mapped(STARTED, *said, *result, COMPLETED)

    assert assembly.text() == (only(FinalEvent, events).text or "")
    assert text(events) in {assembly.text(), "".join(str((event.data or {})["delta"]) for event in said)}


# Tools


def test_a_tool_s_use_is_told() -> None:
    """The call, the approval that it waits for, and what came of it."""
    args = {"cents": 5}
    events = mapped(
        tool_call(tool_call_id="1", tool_name="refund", args=args),
        tool_approval(tool_call_id="1", tool_name="refund", args=args, key="approve:1.1.0"),
        tool_result(tool_call_id="1", tool_name="refund", result={"refunded": 5}),
    )[3:]

    call, proposal, result = events
    assert isinstance(call, ToolCallEvent)
    assert ("refund", "1", args) == (call.tool_name, call.tool_call_id, call.args)
    assert isinstance(proposal, ProposalCreatedEvent)
    assert ("approve:1.1.0", "refund", "pending") == (proposal.proposal_id, proposal.title, proposal.status)
    assert {"toolCallId": "1", "toolName": "refund", "args": args} == proposal.content
    assert isinstance(result, ToolResultEvent)
    assert ("refund", "1", {"refunded": 5}) == (result.tool_name, result.tool_call_id, result.result)


def test_a_tool_that_was_not_done_has_a_result_that_says_so() -> None:
    """The model is told the same."""
    events = mapped(tool_error(tool_call_id="1", tool_name="refund", code="denied", message="denied: too much"))

    assert {"error": "denied: too much", "code": "denied"} == only(ToolResultEvent, events).result


@pytest.mark.parametrize("kind", ["proposal_created", "proposal", "filing"])
def test_a_product_s_proposals_are_told(kind: str) -> None:
    """Under each of agent-runtime's names; a status that they do not have is none."""
    given_data = {"id": "p", "title": "Ads", "status": "approved", "content": {"a": 1}}

    proposal = only(ProposalCreatedEvent, mapped(ChatStreamEvent(kind, given_data)))
    assert ("p", "Ads", "approved", {"a": 1}) == (
        proposal.proposal_id,
        proposal.title,
        proposal.status,
        proposal.content,
    )
    poor = only(ProposalCreatedEvent, mapped(ChatStreamEvent(kind, {"proposalId": "p", "status": "maybe"})))
    assert ("p", None) == (poor.title, poor.status)


def test_a_product_s_artifacts_are_told() -> None:
    """One without an id is none."""
    data = {"id": "a", "name": "plan.pdf", "mimeType": "application/pdf", "uri": "r2://x/a", "metadata": {"pages": 2}}

    artifact = only(ArtifactEvent, mapped(ChatStreamEvent("artifact", data)))
    assert ("a", "plan.pdf", "application/pdf", "r2://x/a", {"pages": 2}) == (
        artifact.artifact_id,
        artifact.name,
        artifact.mime_type,
        artifact.uri,
        artifact.metadata,
    )
    assert kinds(mapped(ChatStreamEvent("artifact", {"name": "plan.pdf"})))[3:] == []


# Model calls


def test_a_call_that_a_later_attempt_replays_is_told_once() -> None:
    """The first attempt made and told two calls, the second replays them and makes a third."""
    events = mapped(
        STARTED,
        usage_event(model="m", tokensIn=1),
        usage_event(model="m", tokensIn=2),
        RESTARTED,
        usage_event(model="m", tokensIn=1, attempt=1),
        usage_event(model="m", tokensIn=2, attempt=1),
        usage_event(model="m", tokensIn=4),
        run("restarted", attempt=3, reason="lease_lapsed"),
        usage_event(model="m", tokensIn=1, attempt=1),
        usage_event(model="m", tokensIn=2, attempt=1),
        usage_event(model="m", tokensIn=4, attempt=2),
        usage_event(model="m", tokensIn=8),
        COMPLETED,
    )

    assert [1, 2, 4, 8] == [call.tokens_in for call in calls(events)]


def test_a_call_that_was_told_only_by_its_replay_is_told() -> None:
    """The lost attempt's last lines were not stored; its call was paid for all the same."""
    events = mapped(STARTED, RESTARTED, usage_event(model="m", tokensIn=1, attempt=1), usage_event(tokensIn=2))

    assert [1, 2] == [call.tokens_in for call in calls(events)]


def test_another_attempt_s_calls_are_other_calls() -> None:
    """What an attempt after a failure pays for is told, though nobody says its number."""
    failed = run("failed", code="backend_timeout", message="", retryable=True)
    events = mapped(STARTED, usage_event(tokensIn=1), failed, STARTED, usage_event(tokensIn=2), COMPLETED)

    assert [1, 2] == [call.tokens_in for call in calls(events)]


def test_the_line_s_attempt_says_whose_call_it_is() -> None:
    """A log that begins with a later attempt does not take its calls for the first one's."""
    lines = [
        encode_line(STARTED, 0, 3),
        encode_line(usage_event(tokensIn=1), 1, 3),
        encode_line(run("restarted", attempt=4, reason="lease_lapsed"), 10_002, 4),
        encode_line(usage_event(tokensIn=1, attempt=3), 10_003, 4),
    ]
    mapping = mapper()

    assert 1 == len(calls([event for line in lines for event in mapping.feed_line(line)]))


@pytest.mark.parametrize("tokens", [None, -1, float("nan"), float("inf"), "7", True])
def test_a_count_that_is_none_is_not_known(tokens: object) -> None:
    """It is left out, and never 0."""
    [call] = calls(mapped(ChatStreamEvent("usage", {"tokensIn": tokens, "tokensOut": 0})))

    assert (None, 0, "unknown") == (call.tokens_in, call.tokens_out, call.model)


# Ends


def ended(*said: ChatStreamEvent) -> tuple[list[str], FinalEvent]:
    events = mapped(STARTED, text_delta("Hel"), *said)
    assert first_out_of_order(events) is None
    final = events[-1]
    assert isinstance(final, FinalEvent)
    return kinds(events)[4:], final


def failure(code: str) -> tuple[ChatStreamEvent, ChatStreamEvent]:
    cls = error_class(code)
    reason = {"code": code, "message": cls.public, "retryable": cls.retryable}
    return ChatStreamEvent("error", reason), run("failed", **reason)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("backend_timeout", "transport"),
        ("backend_rejected", "transport"),
        ("empty_answer", "backend"),
        ("lease_lost", "backend"),
    ],
)
def test_a_failed_turn_says_why_once(code: str, kind: str) -> None:
    """The reason is the code, the message our own sentence, and the text what there was."""
    ends, final = ended(*failure(code))

    assert ["backend_error", "task_end", "final"] == ends
    assert ("failed", code, "Hel") == (final.status, final.reason, final.text)
    assert final.error is not None
    assert (kind, True) == (final.error.kind, is_fixed(final.error.message))


def test_a_failure_without_its_error_line_is_told_the_same() -> None:
    """A feed may begin between the two."""
    _, failed = failure("empty_answer")

    assert ended(*failure("empty_answer"))[0] == ended(failed)[0]


def test_an_aborted_turn_is_aborted() -> None:
    """It failed because it was stopped, and is not to be recovered."""
    events = mapped(STARTED, *failure("aborted"))

    assert ("aborted", "aborted") == (only(FinalEvent, events).status, only(FinalEvent, events).reason)
    assert only(BackendErrorEvent, events).recoverable is False


def test_a_cancelled_turn_keeps_what_it_said() -> None:
    """It ends as aborted, without an error, for the reason that the line gives."""
    ends, final = ended(run("cancelled", reason="disconnected", replayed=False))

    assert ["backend_end", "task_end", "final"] == ends
    assert ("aborted", "disconnected", "Hel", None) == (final.status, final.reason, final.text, final.error)


def test_a_suspended_turn_is_blocked() -> None:
    """It stops until somebody gives the event that its metadata name."""
    ends, final = ended(run("suspended", key="approve:1.1.0", wakeAt="2026-01-08T00:00:00.000Z"))

    assert ["backend_end", "task_end", "final"] == ends
    assert ("blocked", "suspended") == (final.status, final.reason)
    assert {"key": "approve:1.1.0", "wakeAt": "2026-01-08T00:00:00.000Z"} == final.metadata


def test_all_reasons_of_ours_are_fixed_words() -> None:
    """So sanitizers show them."""
    terminal = [*(failure(code)[1] for code in ("backend_timeout", "aborted")), COMPLETED, run("suspended")]
    terminal += [run("cancelled", reason=reason) for reason in ("requested", "disconnected")]

    for line in terminal:
        assert is_fixed(ended(line)[1].reason)
