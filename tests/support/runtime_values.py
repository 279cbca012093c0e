"""Any value of agent-runtime's vocabulary, made from what its class declares: for tests of what holds for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from hypothesis import strategies as st

from chatturn.agent_runtime.values.codec import json_names
from chatturn.agent_runtime.values.control import MEMBERS, AgentRuntimeEvent
from chatturn.agent_runtime.values.events import EVENT_CLASSES

__all__ = ["KEYS", "PRIVATE", "Texts", "agent_events", "events", "json_values", "private", "values_of", "with_a_key"]

Texts: TypeAlias = Callable[[str], st.SearchStrategy[str]]
"""Gives the texts of a member, by its name in JSON."""

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


def json_values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any JSON whose texts and names are of *texts*; null stands only inside."""
    plain = texts | st.booleans() | NUMBERS
    inner = st.none() | plain
    return plain | st.lists(inner, max_size=2) | st.dictionaries(texts, inner | st.lists(inner, max_size=2), max_size=2)


def values_of(cls: Any, texts: Texts) -> st.SearchStrategy[Any]:
    """Any value of *cls*, with texts of *texts*."""
    names = json_names(cls)
    return st.builds(cls, **{item.name: _member(item.type, names[item.name], texts) for item in fields(cls)})


def events(texts: Texts) -> st.SearchStrategy[Any]:
    """Any event of a stream."""
    return st.one_of([values_of(cls, texts) for cls in EVENT_CLASSES.values()])


def agent_events(texts: Texts) -> st.SearchStrategy[Any]:
    """Any event of a loop of control."""
    return st.one_of([_agent_event(kind, texts) for kind in MEMBERS])


def _agent_event(kind: str, texts: Texts) -> st.SearchStrategy[AgentRuntimeEvent]:
    declared = {item.name: item.type for item in fields(AgentRuntimeEvent)}
    names = json_names(AgentRuntimeEvent)
    given = {name: _member(_required(declared[name]), names[name], texts) for name in {"task", *MEMBERS[kind]}}
    return st.builds(AgentRuntimeEvent, type=st.just(kind), **given)


def _required(declared: Any) -> Any:
    return get_args(declared)[0] if get_origin(declared) in {Union, UnionType} else declared


def _member(declared: Any, name: str, texts: Texts) -> st.SearchStrategy[Any]:
    if is_dataclass(declared):
        return values_of(declared, texts)
    if isinstance(declared, type) and issubclass(declared, StrEnum):
        return st.sampled_from(list(declared))
    if get_origin(declared) is not None:
        kinds = [kind for kind in get_args(declared) if kind is not NoneType]
        return _composed(get_origin(declared), kinds, name, texts)
    numbers = {bool: st.booleans(), int: st.integers(0, 2**53), float: NUMBERS}
    return {str: texts(name), Any: json_values(texts(name)), **numbers}[declared]


def _composed(origin: Any, kinds: Sequence[Any], name: str, texts: Texts) -> st.SearchStrategy[Any]:
    if origin is Literal:
        return st.sampled_from(kinds)
    if origin is tuple:
        return st.lists(_member(kinds[0], name, texts), max_size=1).map(tuple)
    if origin is Mapping:
        return st.dictionaries(texts(f"{name}.*"), _member(kinds[1], name, texts), max_size=2)
    return st.none() | _member(kinds[0], name, texts)


# Texts that must not be seen.

PRIVATE = "the plaintiff is Ms. Miller"
KEYS = ("sk-live-abcdefgh12345678", "ghp_" + "a" * 36, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln")

# What is shown to everybody: identifiers that programs make, closed sets, times, and the product's fixed sentence.
IDENTIFIERS = {
    "id",
    "intent",
    "domain",
    "timestamp",
    "backend",
    "createdAt",
    "updatedAt",
    "startedAt",
    "endedAt",
    "taskId",
    "requirementId",
    "requirementIds",
    "requiredFor",
    "blockingGapIds",
    "nonBlockingGapIds",
    "toolName",
    "toolCallId",
    "artifactId",
    "mimeType",
    "proposalId",
    "model",
    "finishReason",
    "runId",
    "failureClass",
    "userAnswers.*",  # by the question's id
}


def private(name: str) -> st.SearchStrategy[str]:
    return st.just("id-1") if name in IDENTIFIERS else st.just(PRIVATE)


def with_a_key(_: str) -> st.SearchStrategy[str]:
    return st.sampled_from(KEYS) | st.sampled_from(KEYS).map(lambda key: f"I use {key}, you see")
