"""Runs, steps and holders of leases: the digests that agent-runtime pinned, and names that nobody shares."""

from itertools import count
from typing import Any, Final

import pytest

from chatturn.chat.thread.identity import ChatTurnIdentity, turn_manifest
from chatturn.durable.identifiers import derive_worker_id, manifest_hash, step_id
from chatturn.durable.records import DurableRunManifest, TaskSpec


def manifest(value: Any, *, scenario_id: str | None = "scenario-1", **task: Any) -> DurableRunManifest:
    """The manifest of agent-runtime's own test."""
    spec = TaskSpec(**{"id": "task-1", "intent": "unit-test", "domain": "test"} | task)
    return DurableRunManifest(project_id="test-project", scenario_id=scenario_id, task=spec, input=value)


CHAT_MANIFEST: Final = turn_manifest(
    ChatTurnIdentity(tenant_id="acme", session_id="thread-1", user_id="u", turn_index=0),
    project_id="legal-agent",
    domain="legal",
    user_message="hello",
    model=None,
)


@pytest.mark.parametrize(
    ("given_manifest", "digest"),
    [
        (manifest({"x": 1}), "7857c665dcc14de7d7db3e86692d6a9bb40990288dbb9f8ead2a2ba4ad7b145f"),
        (manifest({"a": 1, "b": 2}), "849d54eb5f60ace5f445afd57cb4689c2914d0d60b42ff88d856472e71256ee1"),
        (manifest({"b": 2, "a": 1}), "849d54eb5f60ace5f445afd57cb4689c2914d0d60b42ff88d856472e71256ee1"),
        (
            manifest({"x": 1}, scenario_id=None),
            "43691d7ba61a1c88b924602ea23ba13dd784638f67cbf86a3ed355b746bb758e",
        ),
        (CHAT_MANIFEST, "e1edc392da8ab77c9e0c9734ef74ea006df19d00d46cb98ff0c14ac51bc993d3"),
    ],
    ids=["input x", "inputs a, b", "inputs b, a", "no scenario", "chat"],
)
def test_known_manifests_have_the_pinned_digest(given_manifest: DurableRunManifest, digest: str) -> None:
    """A run that agent-runtime began is recognised as the same run."""
    assert digest == manifest_hash(given_manifest)


def test_the_known_step_has_the_pinned_id() -> None:
    """A step's id is agent-runtime's."""
    expected = "7f37baae8d80292c9995d9162e6e9fdf892294165afba9d3ead0ec2a03b78ed4"

    assert expected == step_id("chat:thread-1:0", 0, "turn")


def test_what_is_for_readers_does_not_change_a_manifest_hash() -> None:
    """Tags and a task's metadata are not part of what makes two requests the same run."""
    plain = manifest({"x": 1})
    tagged = DurableRunManifest(
        project_id=plain.project_id,
        scenario_id=plain.scenario_id,
        task=TaskSpec(id="task-1", intent="unit-test", domain="test", metadata={"note": "n"}),
        input={"x": 1},
        tags={"tenant_id": "acme"},
    )

    assert manifest_hash(plain) == manifest_hash(tagged)


def test_a_task_without_a_domain_is_not_the_task_of_any_domain() -> None:
    """A domain that is absent hashes as null, unlike every text."""
    hashes = {manifest_hash(manifest({}, domain=domain)) for domain in (None, "", "null", "test")}

    assert len(hashes) == 4


def test_worker_ids_are_the_tokens_they_are_given() -> None:
    """Randomness comes from outside, so a test can know the name."""
    tokens = map(str, count(1))

    assert [derive_worker_id(lambda: next(tokens)) for _ in range(2)] == ["worker-1", "worker-2"]


def test_worker_ids_differ_by_default() -> None:
    """Two claims never share a holder."""
    ids = {derive_worker_id() for _ in range(1000)}

    assert len(ids) == 1000
