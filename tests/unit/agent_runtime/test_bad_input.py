"""What agent-runtime's names cannot take is refused as one kind of error, before anything happens."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from chatturn.agent_runtime import (
    AgentEvalError,
    AuthHeader,
    ChatTurnMessage,
    ChatTurnOverlay,
    ChatTurnSandbox,
    ClassifyIntentOptions,
    ConformanceOptions,
    RunAgentTaskOptions,
    RunAgentTaskStreamOptions,
    RunChatTurnOptions,
    SubagentMatcher,
    assert_profile_conformance,
    classify_intent,
    compose_turn_profile,
    create_iterable_backend,
    create_sandbox_prompt_backend,
    decide_knowledge_readiness,
    sandbox_as_chat_turn_target,
)
from chatturn.agent_runtime.agents.sandbox_turn import SandboxConnection
from chatturn.agent_runtime.tasks.readiness import assess_knowledge
from chatturn.agent_runtime.tasks.task_steps import DurableTask
from chatturn.errors import ChatTurnError, ValidationError
from tests.support.agent_tasks import TASK, Counting
from tests.support.transport import ScriptedTransport
from tests.unit.agent_runtime.agents.test_intents import profile
from tests.unit.agent_runtime.tasks.test_task_stream import Sandbox, options

NAN, HUGE, HALF = float("nan"), 10**400, "\ud800"
SANDBOX = ChatTurnSandbox(id="a", runtime_url="https://a.example")
CONNECTION = SandboxConnection(transport=ScriptedTransport([]))


def refusing(function: Callable[..., Any], wrong: dict[str, list[Any]], **right: Any) -> list[Any]:
    """Return a call for each wrong value of each argument of *function*, the others being right."""
    name = getattr(function, "__name__", "?")
    return [
        pytest.param(function, {**right, argument: value}, id=f"{name} {argument} {number}")
        for argument, values in wrong.items()
        for number, value in enumerate(values)
    ]


def matching(**members: Any) -> Any:
    return classify_intent(profile(law=[SubagentMatcher(**members)]), "a law")


def classified(**given: Any) -> Any:
    return classify_intent(given["profile"], given["message"], given["options"])


def conforming(**given: Any) -> Any:
    return assert_profile_conformance({}, given["options"])


def composed(**given: Any) -> Any:
    return compose_turn_profile(given["base"], given["overlay"])


def iterable(**given: Any) -> Any:
    return create_iterable_backend(given.pop("kind"), given.pop("stream"), **given)


def prompted(**given: Any) -> Any:
    return create_sandbox_prompt_backend(given.pop("box"), **given)


def targeted(**given: Any) -> Any:
    return sandbox_as_chat_turn_target(given.pop("instance"), **given)


def decided(**given: Any) -> Any:
    return decide_knowledge_readiness(given.pop("report"), **given)


def streamed(**given: Any) -> RunAgentTaskStreamOptions:
    return options(given.pop("backend"), **given)


def looped(**given: Any) -> RunAgentTaskOptions:
    return Counting().options(**given)


CALLS = [
    *refusing(ChatTurnOverlay, {each.name: ["x", 5, ["a"]] for each in fields(ChatTurnOverlay)}),
    *refusing(AuthHeader, {"name": [None, 5, "", "a b", HALF], "value": [None, 5, b"x", "a\nb", HALF]}, name="A", value="b"),
    *refusing(ChatTurnSandbox, {"id": [None, 5], "runtime_url": [None, 5, "ftp://a"], "auth_header": ["x", {}]}, id="a", runtime_url="https://a"),
    *refusing(ChatTurnMessage, {"role": ["tool", None, []], "content": [None, 5, HALF]}, role="user", content="a"),
    *refusing(SandboxConnection, {"retry": [None, 5], "idle_timeout_ms": [-1, NAN, "5", None], "total_timeout_ms": [-1, True]}, transport=None),
    *refusing(
        RunChatTurnOptions,
        {
            "sandbox": [None, "https://a"], "connection": [None], "profile": [None, "x"], "content": [None, 5, HALF],
            "prior": [None, "hello", [{"role": "user", "content": "a"}]], "model": [5], "request_id": [5, "a\nb", "é"],
        },
        sandbox=SANDBOX, connection=CONNECTION, profile={}, content="a",
    ),
    *refusing(composed, {"base": [None, "x", 5], "overlay": [None, {}, "x"]}, base={}, overlay=ChatTurnOverlay()),
    *refusing(targeted, {"instance": [None, 5, {}, {"id": 5, "url": "https://a"}], "auth_header": ["x"]}, instance={"id": "a", "url": "https://a"}),
    *refusing(matching, {"weight": [HUGE, 1e10, NAN, -1, "1", True], "min_score": [HUGE, NAN, "1"], "keywords": [None, "law", [5]], "patterns": [None, ["("], [5]]}),
    *refusing(ClassifyIntentOptions, {"default_min_score": [NAN, None, "1", -1, HUGE], "skip": [None, "law", 5, [5]], "filter": [5, "law"]}),
    *refusing(classified, {"profile": [None, 5], "message": [None, 5], "options": [None, {}]}, profile={}, message="a", options=ClassifyIntentOptions()),
    *refusing(
        ConformanceOptions,
        {
            "known_shell_capabilities": [None, "bash", [5]], "tools_allowed_without_mcp": [None, "a"],
            "strict_no_scaffolds": ["no", None], "min_system_prompt_chars": [None, -1, NAN, "8"],
        },
    ),
    *refusing(conforming, {"options": [None, {}, 5]}),
    *refusing(iterable, {"kind": ["", None, 5, HALF], "stream": [None, 5], "start": [5], "resume": ["x"], "stop": [5], "unsaid": ["x", 5, [5]]}, kind="a", stream=print),
    *refusing(prompted, {"box": [None, 5], "get_session_id": ["x"], "map_event": [5], "kind": ["", 5]}, box=type("Box", (), {"stream_prompt": print})()),
    *refusing(decided, {"report": [None, {}], "minimum_score": [NAN, "1", None, 2, HUGE]}, report=assess_knowledge(TASK)),
    *refusing(
        streamed,
        {
            "backend": [None, "openai"], "message": [5, HALF], "messages": ["hello", 5, ["hello"]], "model": [5],
            "session_id": ["", 5, "s" * 201, HALF], "knowledge": [{}], "hooks": [None, {}], "abort": [True], "durable": ["run-1"],
            "minimum_score": [None], "task": [None],
        },
        backend=Sandbox().backend(),
    ),
    *refusing(
        looped,
        {
            "observe": [None], "validate": [5], "decide": ["x"], "act": [None], "should_stop": [True], "on_event": [5], "on_step": [5],
            "knowledge": [5], "hooks": [None], "abort": [5], "durable": [{}],
        },
    ),
    *refusing(DurableTask, {"run_id": [5, "", HALF], "project_id": [None, 5, HALF], "scenario_id": [5, HALF]}, store=None, run_id="a", project_id="b"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "given"), CALLS)
def test_what_cannot_be_taken_is_refused(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """As a `ValidationError`, of the one tree, with its stable code; and in words that can be shown."""
    with pytest.raises(ValidationError) as refused:
        function(**given)

    assert isinstance(refused.value, AgentEvalError | ChatTurnError)
    assert "validation" == refused.value.code
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "given",
    [
        None, 5, "x", [], {"prompt": 5}, {"tools": ["a"]}, {"tools": {5: True}}, {"mcp": 5, "tools": {"a": 1}},
        {"prompt": {"systemPrompt": 5}},
    ],
)  # fmt: skip
def test_no_profile_makes_the_checks_raise(given: Any) -> None:
    """Each says what is wrong with it."""
    assert not assert_profile_conformance(given).valid


def test_the_largest_weights_are_added_up() -> None:
    assert 1.5e9 + 1e9 == matching(weight=1e9, keywords=["law"], patterns=["a"]).score
