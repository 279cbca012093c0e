"""Does a task know enough?"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.readiness import (
    acquisition_plans_for,
    assess_knowledge,
    decide_knowledge_readiness,
    questions_for,
)
from chatturn.agent_runtime.tasks.task_backends import create_iterable_backend
from chatturn.agent_runtime.tasks.task_stream import RunAgentTaskStreamOptions
from chatturn.errors import ValidationError
from tests.support.agent_tasks import TASK, Counting, requirement

BACKEND = create_iterable_backend("echo", lambda _request, _context: _nothing())


async def _nothing() -> AsyncIterator[Any]:
    yield {"type": "text_delta", "text": "nothing"}


READY = assess_knowledge(TASK)
BLOCKED = assess_knowledge(replace(TASK, required_knowledge=(requirement("name"),)))


def test_readiness_has_three_states() -> None:
    """agent-runtime's test: blocked by a gap, a caveat by the score, else ready."""
    below = replace(READY, readiness_score=0.69)

    assert ["blocked", "caveat", "ready"] == [
        decide_knowledge_readiness(each).status for each in (BLOCKED, below, READY)
    ]
    assert [False, True, True] == [decide_knowledge_readiness(each).passed for each in (BLOCKED, below, READY)]


def test_the_minimum_itself_is_enough() -> None:
    """And it is an argument."""
    report = replace(READY, readiness_score=0.5)

    assert "ready" == decide_knowledge_readiness(report, minimum_score=0.5).status
    assert "caveat" == decide_knowledge_readiness(report, minimum_score=0.51).status
    assert "ready" == decide_knowledge_readiness(replace(report, readiness_score=0.0), minimum_score=0).status


def test_a_gap_blocks_whatever_the_score_is() -> None:
    decision = decide_knowledge_readiness(replace(BLOCKED, readiness_score=1.0), minimum_score=0)

    assert ("blocked", ("name",)) == (decision.status, decision.blocking_gap_ids)


def test_a_score_that_is_no_number_is_not_enough() -> None:
    """In JavaScript NaN is not below the minimum either, and passes."""
    assert "caveat" == decide_knowledge_readiness(replace(READY, readiness_score=float("nan"))).status


@pytest.mark.parametrize("minimum", [-0.01, 1.01, float("nan"), float("inf"), True])
def test_a_minimum_out_of_range_is_refused(minimum: Any) -> None:
    with pytest.raises(ValidationError, match="minimum_score"):
        decide_knowledge_readiness(READY, minimum_score=minimum)


def test_a_task_is_assessed_by_its_requirements() -> None:
    """What is missing, what of it blocks, and how much is known in the mean."""
    required = (
        requirement("a", known=0.8), requirement("b", known=0.4), requirement("c", importance="low"),
        requirement("d", known=0, confidence_needed=0.0),
    )  # fmt: skip
    report = assess_knowledge(replace(TASK, required_knowledge=required))

    assert (("b",), ("c",)) == (
        tuple(gap.id for gap in report.blocking_missing_requirements),
        tuple(gap.id for gap in report.non_blocking_gaps),
    )
    assert (1 + 0.5 + 0 + 1) / 4 == report.readiness_score


def test_gaps_become_questions_and_plans() -> None:
    """By how each can be closed; a credential is asked for as one."""
    required = (
        requirement("name"), requirement("key", category="credential_or_secret"),
        requirement("law", mode="search_web"), requirement("luck", mode="not_available"),
    )  # fmt: skip
    report = assess_knowledge(replace(TASK, required_knowledge=required))

    assert [("ask:name", "free_text"), ("ask:key", "credential")] == [
        (q.id, q.answer_type) for q in questions_for(report)
    ]
    assert [("acquire:law", "search_web")] == [(plan.id, plan.mode) for plan in acquisition_plans_for(report)]


@pytest.mark.parametrize("minimum", [None, "0.7", 2, float("nan"), True])
def test_a_minimum_that_is_none_is_refused_before_anybody_is_asked(minimum: Any) -> None:
    """When the options are made, and not behind the questions."""
    with pytest.raises(ValidationError, match="minimum_score"):
        Counting().options(minimum_score=minimum)
    with pytest.raises(ValidationError, match="minimum_score"):
        RunAgentTaskStreamOptions(task=TASK, backend=BACKEND, minimum_score=minimum)
    with pytest.raises(ValidationError, match="budget"):
        RunAgentTaskStreamOptions(
            task=replace(TASK, budget={"maxWishes": 3}),
            backend=BACKEND,
        )
