"""
`assert_profile_conformance`: the checks that an agent's profile passes before it is shipped.

A profile is the JSON of a sandbox's agent: ``prompt.systemPrompt``, ``tools``, ``mcp``, ``subagents``, ``metadata``.

Source:
    docs/reference/agent-runtime.md, Functions beside the turn.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from chatturn.agent_runtime.values.given import require_kind, require_names, require_whole
from chatturn.errors import ValidationError

__all__ = [
    "SHELL_CAPABILITIES",
    "AgentProfile",
    "ConformanceIssue",
    "ConformanceOptions",
    "ConformanceResult",
    "assert_profile_conformance",
    "require_profile",
]

AgentProfile: TypeAlias = Mapping[str, Any]
"""The JSON of an agent's profile."""

SHELL_CAPABILITIES: Final = frozenset({"bash", "sh", "python", "node", "curl", "web", "browser", "shell"})
"""What every agent in a sandbox can do, and what a profile therefore must not list as a tool."""

_MIN_DESCRIPTION: Final = 40
_MIN_PROMPT: Final = 100
_SCAFFOLDS: Final = frozenset({"scaffold", "not-implemented"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceIssue:
    """
    One thing that is wrong with a profile.

    Attributes:
        code: Stable, for programs: one of the codes of `assert_profile_conformance`.
        path: Where it is: ``subagents.research.prompt``; "" for the profile itself.
        message: In words, which quote no prompt.
    """

    severity: Literal["error", "warn"]
    code: str
    path: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceOptions:
    """
    What `assert_profile_conformance` counts as an issue.

    Attributes:
        known_shell_capabilities: Names that are no tools; upper and lower case are the same.
        strict_no_scaffolds: Whether a subagent that is not implemented is an error, and not a warning.
        tools_allowed_without_mcp: Tools that need no MCP server of the same name.
        min_system_prompt_chars: The fewest characters of the system prompt, without the blanks around it.

    Raises:
        ValidationError: An option has the wrong type, or *min_system_prompt_chars* is below 0.
    """

    known_shell_capabilities: Collection[str] = SHELL_CAPABILITIES
    strict_no_scaffolds: bool = False
    tools_allowed_without_mcp: Collection[str] = ()
    min_system_prompt_chars: int = 800

    def __post_init__(self) -> None:
        require_names(self.known_shell_capabilities, "known_shell_capabilities")
        require_names(self.tools_allowed_without_mcp, "tools_allowed_without_mcp")
        require_kind(self.strict_no_scaffolds, bool, "strict_no_scaffolds")
        require_whole(self.min_system_prompt_chars, "min_system_prompt_chars")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceResult:
    """The issues of a profile, which is `valid` if none of them is an error."""

    valid: bool
    errors: tuple[ConformanceIssue, ...]
    warnings: tuple[ConformanceIssue, ...]


_DEFAULTS: Final = ConformanceOptions()


def require_profile(profile: object) -> None:
    """Refuse a profile that is no JSON object.  Raises `ValidationError`."""
    if not isinstance(profile, Mapping):
        raise ValidationError(f"a profile must be an object, and not {type(profile).__name__}")


def assert_profile_conformance(profile: AgentProfile, options: ConformanceOptions = _DEFAULTS) -> ConformanceResult:
    """
    Return every issue of *profile*; despite its name, which is agent-runtime's, no profile makes it raise.

    Codes:
        - ``system-prompt-too-short``
        - ``shell-capability-as-tool``: also if the tool is switched off, or allowed without MCP
        - ``decorative-tool-without-mcp``: a tool is switched on, and no MCP server of its name serves it
        - ``subagent-scaffold-shipped``
        - ``subagent-description-too-short``: under 40 characters
        - ``subagent-prompt-too-short``: under 100
        - ``profile-malformed``: a member is not of the shape that the other checks read; agent-runtime raises there

    Raises:
        ValidationError: *options* are no `ConformanceOptions`.
    """
    require_kind(options, ConformanceOptions, "options")
    if not isinstance(profile, Mapping):
        return ConformanceResult(valid=False, errors=(_malformed("", "an object"),), warnings=())
    issues = [*_prompt_issues(profile, options), *_tool_issues(profile, options), *_subagent_issues(profile, options)]
    errors = tuple(issue for issue in issues if issue.severity == "error")
    warnings = tuple(issue for issue in issues if issue.severity == "warn")
    return ConformanceResult(valid=not errors, errors=errors, warnings=warnings)


def _error(code: str, path: str, message: str) -> ConformanceIssue:
    return ConformanceIssue(severity="error", code=code, path=path, message=message)


def _malformed(path: str, wanted: str) -> ConformanceIssue:
    return _error("profile-malformed", path, f"must be {wanted}")


def _length(value: object) -> int:
    return len(value.strip()) if isinstance(value, str) else 0


def _prompt_issues(profile: AgentProfile, options: ConformanceOptions) -> Iterator[ConformanceIssue]:
    prompt = profile.get("prompt")
    if prompt is not None and not isinstance(prompt, Mapping):
        yield _malformed("prompt", "an object")
        return
    least, found = options.min_system_prompt_chars, _length((prompt or {}).get("systemPrompt"))
    if found < least:
        yield _error("system-prompt-too-short", "prompt.systemPrompt", f"has {found} characters, and needs {least}")


def _tool_issues(profile: AgentProfile, options: ConformanceOptions) -> Iterator[ConformanceIssue]:
    tools, servers = profile.get("tools") or {}, profile.get("mcp") or {}
    for name, value in (("tools", tools), ("mcp", servers)):
        if not isinstance(value, Mapping):
            yield _malformed(name, "an object, by name")
            return
    shell = {name.casefold() for name in options.known_shell_capabilities}
    for name, setting in tools.items():
        path = f"tools.{name}"
        if str(name).casefold() in shell:
            yield _error("shell-capability-as-tool", path, "is what every sandbox can do, and no tool")
        elif setting is not False and name not in servers and name not in options.tools_allowed_without_mcp:
            yield _error("decorative-tool-without-mcp", path, "is switched on, and no MCP server of its name serves it")


def _subagent_issues(profile: AgentProfile, options: ConformanceOptions) -> Iterator[ConformanceIssue]:
    subagents = profile.get("subagents") or {}
    if not isinstance(subagents, Mapping):
        yield _malformed("subagents", "an object, by id")
        return
    for name, subagent in subagents.items():
        path = f"subagents.{name}"
        if not isinstance(subagent, Mapping):
            yield _malformed(path, "an object")
            continue
        if _is_scaffold(subagent.get("metadata")):
            severity: Literal["error", "warn"] = "error" if options.strict_no_scaffolds else "warn"
            yield ConformanceIssue(
                severity=severity,
                code="subagent-scaffold-shipped",
                path=f"{path}.metadata",
                message="says that it is not implemented",
            )
        for member, least in (("description", _MIN_DESCRIPTION), ("prompt", _MIN_PROMPT)):
            if (found := _length(subagent.get(member))) < least:
                message = f"has {found} characters, and needs {least}"
                yield _error(f"subagent-{member}-too-short", f"{path}.{member}", message)


def _is_scaffold(metadata: object) -> bool:
    if not isinstance(metadata, Mapping):
        return False
    status = metadata.get("status")
    return (isinstance(status, str) and status in _SCAFFOLDS) or metadata.get("implemented") is False
