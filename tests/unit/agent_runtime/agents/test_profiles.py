"""What a profile must be before it is shipped.  The first ten are agent-runtime's own tests, by what they test."""

from typing import Any

import pytest

from chatturn.agent_runtime.agents.intents import classify_intent
from chatturn.agent_runtime.agents.profiles import (
    SHELL_CAPABILITIES,
    ConformanceOptions,
    ConformanceResult,
    assert_profile_conformance,
)
from chatturn.agent_runtime.agents.sandbox_turn import ChatTurnOverlay, compose_turn_profile
from chatturn.errors import ValidationError

SUBAGENT = {"description": "Reads contracts and finds the clauses that matter.", "prompt": "Read. " * 20}


def good(**members: Any) -> dict[str, Any]:
    """Return a profile with which nothing is wrong, but for *members*."""
    return {"prompt": {"systemPrompt": "You are careful. " * 50}, "subagents": {"reader": SUBAGENT}, **members}


def codes(result: ConformanceResult) -> list[tuple[str, str]]:
    """Return the code and the path of all errors."""
    return [(issue.code, issue.path) for issue in result.errors]


def test_a_profile_with_which_nothing_is_wrong_is_valid() -> None:
    result = assert_profile_conformance(good(tools={"search": True}, mcp={"search": {"url": "x"}}))

    assert ConformanceResult(valid=True, errors=(), warnings=()) == result


@pytest.mark.parametrize(
    "prompt", [None, {}, {"systemPrompt": "short"}, {"systemPrompt": " " * 900}, {"systemPrompt": 9}]
)
def test_a_short_system_prompt_is_an_error(prompt: Any) -> None:
    result = assert_profile_conformance(good(prompt=prompt))

    assert [("system-prompt-too-short", "prompt.systemPrompt")] == codes(result)
    assert not result.valid


def test_how_short_is_an_option() -> None:
    result = assert_profile_conformance(
        good(prompt={"systemPrompt": "short"}), ConformanceOptions(min_system_prompt_chars=5)
    )

    assert result.valid


@pytest.mark.parametrize("name", sorted(SHELL_CAPABILITIES))
def test_what_every_sandbox_can_do_is_no_tool(name: str) -> None:
    result = assert_profile_conformance(good(tools={name: True}))

    assert [("shell-capability-as-tool", f"tools.{name}")] == codes(result)


def test_neither_the_allow_list_nor_switching_it_off_rescues_a_shell_tool() -> None:
    options = ConformanceOptions(tools_allowed_without_mcp=["bash"])
    result = assert_profile_conformance(good(tools={"bash": False, "Python": {}}, mcp={"bash": {}}), options)

    assert [("shell-capability-as-tool", "tools.bash"), ("shell-capability-as-tool", "tools.Python")] == codes(result)


def test_a_tool_that_nothing_serves_is_decorative() -> None:
    result = assert_profile_conformance(good(tools={"search": True, "find": {}, "off": False}, mcp={"find": {}}))

    assert [("decorative-tool-without-mcp", "tools.search")] == codes(result)


def test_a_tool_may_be_allowed_without_mcp() -> None:
    options = ConformanceOptions(tools_allowed_without_mcp=["search"])

    assert assert_profile_conformance(good(tools={"search": True}), options).valid


@pytest.mark.parametrize("metadata", [{"status": "scaffold"}, {"status": "not-implemented"}, {"implemented": False}])
def test_a_scaffold_is_a_warning_and_where_that_is_asked_an_error(metadata: Any) -> None:
    profile = good(subagents={"reader": {**SUBAGENT, "metadata": metadata}})
    lenient = assert_profile_conformance(profile)
    strict = assert_profile_conformance(profile, ConformanceOptions(strict_no_scaffolds=True))

    assert (True, ["subagent-scaffold-shipped"]) == (lenient.valid, [issue.code for issue in lenient.warnings])
    assert (False, [("subagent-scaffold-shipped", "subagents.reader.metadata")]) == (strict.valid, codes(strict))


def test_a_subagent_needs_a_description_and_a_prompt() -> None:
    result = assert_profile_conformance(good(subagents={"reader": {"description": "Reads."}}))

    assert [
        ("subagent-description-too-short", "subagents.reader.description"),
        ("subagent-prompt-too-short", "subagents.reader.prompt"),
    ] == codes(result)


def test_the_names_of_the_shell_are_an_option() -> None:
    options = ConformanceOptions(known_shell_capabilities={"fetch"}, tools_allowed_without_mcp=["bash"])
    result = assert_profile_conformance(good(tools={"bash": True, "fetch": True}), options)

    assert [("shell-capability-as-tool", "tools.fetch")] == codes(result)


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"prompt": "You are careful."}, "prompt"), ({"tools": ["bash"]}, "tools"), ({"mcp": "all"}, "mcp"),
        ({"subagents": ["reader"]}, "subagents"), ({"subagents": {"reader": None}}, "subagents.reader"),
    ],
)  # fmt: skip
def test_a_profile_of_another_shape_is_told_and_does_not_raise(members: dict[str, Any], path: str) -> None:
    """Its name promises an assertion, and its contract that it never raises."""
    assert ("profile-malformed", path) in codes(assert_profile_conformance(good(**members)))


def test_no_message_quotes_a_prompt() -> None:
    """A prompt may hold what is not for a log."""
    result = assert_profile_conformance(
        {"prompt": {"systemPrompt": "the secret"}, "subagents": {"a": {"prompt": "the secret"}}}
    )

    assert "secret" not in repr(result)


@pytest.mark.parametrize("profile", [None, [], "profile", 7])
def test_what_is_no_profile_is_found_out_and_never_raises(profile: Any) -> None:
    """Where something is done with it, it is refused as an error of the one tree."""
    found = assert_profile_conformance(profile)

    assert (False, ["profile-malformed"]) == (found.valid, [issue.code for issue in found.errors])
    with pytest.raises(ValidationError, match="object"):
        compose_turn_profile(profile, ChatTurnOverlay())
    with pytest.raises(ValidationError, match="object"):
        classify_intent(profile, "hi")


def test_a_message_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValidationError, match="text"):
        classify_intent({}, None)  # type: ignore[arg-type]
