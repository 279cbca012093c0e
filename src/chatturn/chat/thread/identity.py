"""Who speaks in which thread at which position, and the durable names that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from chatturn.chat.parts import identity_of
from chatturn.durable.records import DurableRunManifest, TaskSpec

__all__ = [
    "ChatTurnIdentity",
    "legacy_run_id",
    "session_id_of",
    "session_run_ids",
    "turn_intent",
    "turn_manifest",
    "turn_of_run",
    "turn_run_id",
    "version_of_run",
    "version_run_ids",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnIdentity:
    """
    The coordinates of one turn.

    Attributes:
        tenant_id: The workspace or customer; turns of different tenants can never meet.
        session_id: The thread.
        user_id: Who sent the message; not part of the turn's identity.
        turn_index: 0-based position in the thread.
        version: Which version of the turn, from 1.
    """

    tenant_id: str
    session_id: str
    user_id: str
    turn_index: int
    version: int = 1


def turn_run_id(identity: ChatTurnIdentity) -> str:
    """
    Return the id of the turn's run: ``chat:<tenant>:<session>:<turn_index>``; version *n* > 1 adds ``~n``.

    Each part is percent-encoded, so no choice of names makes two turns share an id.
    """
    first = f"{_session(identity.tenant_id, identity.session_id)}:{identity.turn_index}"
    return first if identity.version == 1 else f"{first}~{identity.version}"


def turn_intent(identity: ChatTurnIdentity) -> str:
    """Return the name of the step whose result is the turn's answer."""
    return f"chat:turn-{identity.turn_index}"


def version_run_ids(identity: ChatTurnIdentity) -> tuple[str, str, str]:
    """Return the run id of the turn's first version, and two texts between which the later versions' run ids sort."""
    first = f"{_session(identity.tenant_id, identity.session_id)}:{identity.turn_index}"
    return first, f"{first}~", f"{first}~:"  # the character after the digits


def session_run_ids(tenant_id: str, session_id: str) -> tuple[str, str]:
    """Return two texts between which the ids of a session's runs sort, and no other run's."""
    session = _session(tenant_id, session_id)
    return f"{session}:", f"{session};"  # the character after the colon


def tenant_run_ids(tenant_id: str) -> tuple[str, str]:
    """Return two texts between which the ids of a tenant's runs sort, and no other run's."""
    tenant = _tenant(tenant_id)
    return f"{tenant}:", f"{tenant};"


def session_id_of(run_id: str) -> str | None:
    """Return the session of a turn's run; None for a run that is no turn of ours."""
    kind, _, name = run_id.partition(":")
    parts = name.split(":")
    return unquote(parts[1]) if kind == "chat" and len(parts) == 3 else None  # noqa: PLR2004 - tenant, session, index


def turn_of_run(run_id: str) -> tuple[str, int] | None:
    """Return the session and the index of a turn's run; None for a run that is no turn of ours."""
    kind, _, name = run_id.partition(":")
    parts = name.split(":")
    index = parts[-1].partition("~")[0]
    if kind != "chat" or len(parts) != 3 or not index.isdecimal():  # noqa: PLR2004 - tenant, session, index
        return None
    return unquote(parts[1]), int(index)


def version_of_run(run_id: str) -> int:
    """Return the number of the turn's version that a run is, from 1."""
    version = run_id.rpartition(":")[2].partition("~")[2]
    return int(version) if version.isdecimal() else 1


def with_version_of(identity: ChatTurnIdentity, run_id: str) -> ChatTurnIdentity:
    """Return the version of a turn that one of its runs is."""
    version = version_of_run(run_id)
    return identity if version == identity.version else replace(identity, version=version)


# One request asks for it up to 15 times; encoding takes longer than the rest of an id.
@lru_cache(maxsize=1_024)
def _session(tenant_id: str, session_id: str) -> str:
    return f"{_tenant(tenant_id)}:{quote(session_id, safe='')}"


@lru_cache(maxsize=1_024)
def _tenant(tenant_id: str) -> str:
    return f"chat:{quote(tenant_id, safe='')}"


def legacy_run_id(identity: ChatTurnIdentity) -> str | None:
    """
    Return what agent-runtime calls the turn's run: ``chat:<session>:<turn_index>``.

    It has no tenant: two tenants whose sessions have the same name share it.  Of a session whose name has a colon it is
    None, since theirs, which is not encoded, could be the id of another tenant's run.
    """
    if ":" in identity.session_id:
        return None
    return f"chat:{identity.session_id}:{identity.turn_index}"


def turn_manifest(
    identity: ChatTurnIdentity,
    *,
    project_id: str,
    domain: str,
    user_message: str,
    model: str | None,
    history: Sequence[Mapping[str, Any]] | None = None,
    behind: Sequence[Mapping[str, Any]] = (),
    parameters: Mapping[str, Any] | None = None,
    parts: Sequence[Mapping[str, Any]] = (),
) -> DurableRunManifest:
    """
    Describe the turn for its run: agent-runtime's manifest, so that their databases' hashes still match.

    The manifest gets further members for a conversation that the request brings, for parameters, and for the parts of a
    message that is more than text; without them its hash is agent-runtime's.

    Source:
        docs/reference/agent-runtime.md, Hashes: the digest of the manifest and of its input are pinned there.
    """
    return DurableRunManifest(
        project_id=project_id,
        scenario_id=identity.session_id,
        task=TaskSpec(
            id=f"{project_id}:chat:{identity.session_id}:{identity.turn_index}",
            intent=f"Run a {domain} chat turn with workspace context.",
            domain=domain,
        ),
        input={
            "userMessage": user_message,
            "model": model,
            **({} if history is None else {"history": [dict(message) for message in history]}),
            **({"behind": [dict(message) for message in behind]} if behind else {}),
            **({"parameters": dict(parameters)} if parameters else {}),
            **({"parts": identity_of(parts)} if parts else {}),
        },
        tags={"session_id": identity.session_id, "tenant_id": identity.tenant_id},
    )
