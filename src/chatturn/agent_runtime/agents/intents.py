"""
`classify_intent`: whom of a profile a message is for, by counting the keywords and patterns that are found.

No call depends on an earlier one, and no pattern of a profile can make a long message slow (`linear_patterns`).

Source:
    docs/reference/agent-runtime.md, Functions beside the turn.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias

from chatturn.agent_runtime.agents.linear_patterns import LinearPattern
from chatturn.agent_runtime.agents.profiles import AgentProfile, require_profile
from chatturn.agent_runtime.values.given import require_callable, require_kind, require_names
from chatturn.errors import ValidationError

__all__ = ["ClassifyIntentOptions", "ClassifyIntentResult", "IntentHits", "SubagentMatcher", "classify_intent"]

_PATTERN_WEIGHT: Final = 1.5
"""The score of one pattern that is found; a keyword that is found has 1."""

_MOST: Final = 1e9
_SCORE: Final = "a number from 0 to 1e9"

Subagent: TypeAlias = Mapping[str, Any]


def _is_score(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= _MOST


@dataclass(frozen=True, slots=True, kw_only=True)
class SubagentMatcher:
    """
    The keywords and patterns by which a message is matched.

    Attributes:
        keywords: Found anywhere in a message; upper and lower case are the same.
        patterns: Regular expressions.  A text is compiled with `re.IGNORECASE`; a compiled pattern keeps its flags.
        weight: The score of each keyword that is found; a pattern that is found has 1.5 times as much.
        min_score: The score that must be reached; None for the default.
    """

    keywords: Sequence[str] = ()
    patterns: Sequence[str | re.Pattern[str]] = ()
    weight: float = 1.0
    min_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyIntentOptions:
    """
    How `classify_intent` chooses.

    Attributes:
        default_min_score: The minimum score where no matcher names one.
        skip: Ids of subagents that are not considered.
        filter: Takes a subagent and its id; says whether it is considered.

    Raises:
        ValidationError: *default_min_score* is no number from 0 to 1e9, *skip* no collection of texts, or *filter* no
            function.
    """

    default_min_score: float = 1.0
    skip: Collection[str] = ()
    filter: Callable[[Subagent, str], bool] | None = None

    def __post_init__(self) -> None:
        if not _is_score(self.default_min_score):
            raise ValidationError(f"default_min_score must be {_SCORE}, not {self.default_min_score!r:.40}")
        require_names(self.skip, "skip")
        if self.filter is not None:
            require_callable(self.filter, "filter")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentHits:
    """How many keywords and patterns of one subagent were found, and what score it needed."""

    keyword_hits: int
    pattern_hits: int
    min_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyIntentResult:
    """
    The choice of `classify_intent`.

    Attributes:
        id: The id of the choice; None if no score reaches its minimum.
        subagent: As the profile has it.
        score: The score of the choice; 0 if there is none.
        scores: Of every subagent that was considered, by its id.
        evaluated: What each score is made of, by the same ids.
    """

    id: str | None
    subagent: Subagent | None
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    evaluated: Mapping[str, IntentHits] = field(default_factory=dict)


_DEFAULTS: Final = ClassifyIntentOptions()


def classify_intent(
    profile: AgentProfile, message: str, options: ClassifyIntentOptions = _DEFAULTS
) -> ClassifyIntentResult:
    """
    Return which of *profile*'s subagents *message* is for: the highest score that reaches its minimum.

    Of equal scores the first in the profile's order wins.  Matchers are in a subagent's ``metadata.matchers``
    (or ``matcher``): one, or a list, each with a weight of its own; of several minimums the last counts.

    Raises:
        ValidationError: The profile, a matcher, the options or the message is malformed, or a pattern cannot be
            searched in linear time.
    """
    require_profile(profile)
    require_kind(options, ClassifyIntentOptions, "options")
    if not isinstance(message, str):
        raise ValidationError(f"a message must be a text, and not {type(message).__name__}")
    folded = message.casefold()
    scores: dict[str, float] = {}
    evaluated: dict[str, IntentHits] = {}
    best: tuple[str, Subagent] | None = None
    for name, subagent in _considered(profile, options):
        matchers = _matchers(subagent, f"subagents.{name}.metadata")
        least = [each.min_score for each in matchers if each.min_score is not None]
        found = [(_keyword_hits(each, folded), _pattern_hits(each, message), each.weight) for each in matchers]
        score = sum((words + _PATTERN_WEIGHT * patterns) * weight for words, patterns, weight in found)
        hits = IntentHits(
            keyword_hits=sum(words for words, _, _ in found),
            pattern_hits=sum(patterns for _, patterns, _ in found),
            min_score=least[-1] if least else options.default_min_score,
        )
        scores[name], evaluated[name] = score, hits
        if score > 0 and score >= hits.min_score and (best is None or score > scores[best[0]]):
            best = name, subagent
    if best is None:
        return ClassifyIntentResult(id=None, subagent=None, score=0.0, scores=scores, evaluated=evaluated)
    winner, chosen = best
    return ClassifyIntentResult(id=winner, subagent=chosen, score=scores[winner], scores=scores, evaluated=evaluated)


def _considered(profile: AgentProfile, options: ClassifyIntentOptions) -> Iterator[tuple[str, Subagent]]:
    subagents = profile.get("subagents") or {}
    if not isinstance(subagents, Mapping):
        raise ValidationError("subagents must be an object, by id")
    for name, subagent in subagents.items():
        if not isinstance(subagent, Mapping):
            raise ValidationError(f"subagents.{name} must be an object")
        if name not in options.skip and (options.filter is None or options.filter(subagent, name)):
            yield name, subagent


def _keyword_hits(matcher: SubagentMatcher, folded: str) -> int:
    return sum(keyword.casefold() in folded for keyword in matcher.keywords)


def _pattern_hits(matcher: SubagentMatcher, message: str) -> int:
    return sum(_linear(pattern).search(message) for pattern in matcher.patterns)


def _linear(pattern: str | re.Pattern[str]) -> LinearPattern:
    """Return the pattern's automaton; unlike a JavaScript RegExp, it keeps no position between searches."""
    if isinstance(pattern, str):
        return _compiled(pattern, re.IGNORECASE)
    return _compiled(pattern.pattern, pattern.flags)


@lru_cache(maxsize=256)
def _compiled(source: str, flags: int) -> LinearPattern:
    return LinearPattern(source, flags)


def _matchers(subagent: Subagent, path: str) -> list[SubagentMatcher]:
    metadata = subagent.get("metadata")
    if not isinstance(metadata, Mapping):
        return []
    given = metadata.get("matchers", metadata.get("matcher"))
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return [_matcher(each, path) for each in several]


def _matcher(given: object, path: str) -> SubagentMatcher:
    if isinstance(given, SubagentMatcher):
        return _checked(given, path)
    if not isinstance(given, Mapping):
        raise ValidationError(f"{path}: a matcher must be an object")
    return _checked(
        SubagentMatcher(
            keywords=given.get("keywords") or (),
            patterns=given.get("patterns") or (),
            weight=1.0 if (weight := given.get("weight")) is None else weight,
            min_score=given.get("minScore"),
        ),
        path,
    )


def _checked(matcher: SubagentMatcher, path: str) -> SubagentMatcher:
    for name, values, kinds in (
        ("keywords", matcher.keywords, str),
        ("patterns", matcher.patterns, str | re.Pattern),
    ):
        if not isinstance(values, list | tuple) or not all(isinstance(value, kinds) and value for value in values):
            raise ValidationError(f"{path}: {name} must be a list of texts that are not empty")
    if any(isinstance(each, re.Pattern) and isinstance(each.pattern, bytes) for each in matcher.patterns):
        raise ValidationError(f"{path}: patterns must be of text, and not of bytes")
    for name, number in (("weight", matcher.weight), ("minScore", matcher.min_score)):
        if number is not None and not _is_score(number):
            raise ValidationError(f"{path}: {name} must be {_SCORE}, not {number!r:.40}")
    return matcher
