"""Which subagent a message is for.  The first eleven are agent-runtime's own tests of its router, by what they test."""

import re
import time
from typing import Any

import pytest

from chatturn.agent_runtime.agents.intents import ClassifyIntentOptions, IntentHits, SubagentMatcher, classify_intent
from chatturn.errors import ValidationError


def profile(**matchers: Any) -> dict[str, Any]:
    """Return a profile with a subagent for each of *matchers*."""
    return {"subagents": {name: {"metadata": {"matchers": given}} for name, given in matchers.items()}}


CONTRACTS = {"keywords": ["contract", "clause"]}
TAXES = {"keywords": ["tax"], "patterns": [r"\bvat\b"]}


def test_keywords_are_counted_and_the_highest_score_wins() -> None:
    found = classify_intent(profile(contracts=CONTRACTS, taxes=TAXES), "Which clause of the contract is about tax?")

    assert ("contracts", 2.0) == (found.id, found.score)
    assert {"contracts": 2.0, "taxes": 1.0} == found.scores


def test_keywords_are_found_whatever_their_case() -> None:
    assert "contracts" == classify_intent(profile(contracts=CONTRACTS), "THE CONTRACT").id
    assert "streets" == classify_intent(profile(streets={"keywords": ["STRASSE"]}), "die Straße").id


def test_a_pattern_counts_one_and_a_half() -> None:
    found = classify_intent(profile(taxes=TAXES), "Is VAT due?")

    assert (1.5, IntentHits(keyword_hits=0, pattern_hits=1, min_score=1.0)) == (found.score, found.evaluated["taxes"])


def test_no_match_is_nobody_with_score_0() -> None:
    found = classify_intent(profile(contracts=CONTRACTS), "Good morning")

    assert (None, None, 0.0) == (found.id, found.subagent, found.score)


def test_a_score_below_the_minimum_does_not_win() -> None:
    found = classify_intent(profile(contracts={**CONTRACTS, "minScore": 2}), "a contract")

    assert (None, 0.0, 1.0) == (found.id, found.score, found.scores["contracts"])


def test_the_default_minimum_is_an_option() -> None:
    options = ClassifyIntentOptions(default_min_score=1.5)

    assert classify_intent(profile(contracts=CONTRACTS), "a contract", options).id is None


def test_of_equals_the_first_wins() -> None:
    same = {"keywords": ["contract"]}

    assert "b" == classify_intent(profile(b=same, a=same), "contract").id


def test_a_weight_multiplies_keywords_and_patterns() -> None:
    found = classify_intent(profile(taxes={**TAXES, "weight": 2}), "The tax is VAT")

    assert 2 * (1 + 1.5) == found.score


def test_several_matchers_keep_their_weights_and_the_last_minimum_counts() -> None:
    """agent-runtime adds their words up and drops the weights."""
    several = [{"keywords": ["tax"], "weight": 3, "minScore": 9}, {"keywords": ["law"], "minScore": 2}]
    found = classify_intent(profile(taxes=several), "tax law")

    assert ("taxes", 4.0, 2) == (found.id, found.score, found.evaluated["taxes"].min_score)


def test_skipped_and_filtered_subagents_are_not_considered() -> None:
    given = profile(a=CONTRACTS, b=CONTRACTS, c=CONTRACTS)
    options = ClassifyIntentOptions(skip=["a"], filter=lambda _, name: name != "b")

    assert {"c"} == set(classify_intent(given, "contract", options).scores)


def test_matcher_is_another_name_of_matchers() -> None:
    given = {"subagents": {"contracts": {"metadata": {"matcher": CONTRACTS}}, "none": {}}}

    assert "contracts" == classify_intent(given, "contract").id


def test_a_compiled_pattern_keeps_its_flags_and_has_no_state() -> None:
    """A JavaScript RegExp that is global finds only every second message."""
    given = profile(codes=SubagentMatcher(patterns=[re.compile("ABC")]))

    assert ["codes", None] * 3 == [classify_intent(given, text).id for text in ["ABC", "abc"] * 3]


def test_nothing_is_nobody_s_even_where_the_minimum_is_0() -> None:
    assert classify_intent(profile(contracts={**CONTRACTS, "minScore": 0}), "Good morning").id is None


@pytest.mark.parametrize(
    "matcher",
    [
        "contract", {"keywords": "contract"}, {"keywords": [""]}, {"keywords": [7]}, {"patterns": ["("]}, {"patterns": [re.compile(b"a")]},
        {"patterns": [r"(a)\1"]}, {"weight": -1}, {"weight": float("nan")}, {"weight": True}, {"minScore": float("inf")}, {"weight": "2"},
    ],
)  # fmt: skip
def test_a_matcher_that_is_none_is_refused_with_its_place(matcher: Any) -> None:
    """It is a mistake in a profile, not a message that nobody is meant for."""
    with pytest.raises(ValidationError) as refused:
        classify_intent(profile(contracts=matcher), "contract")

    assert "validation" == refused.value.code


@pytest.mark.parametrize("subagents", [["contracts"], {"contracts": "a lawyer"}])
def test_subagents_of_another_shape_are_refused(subagents: Any) -> None:
    with pytest.raises(ValidationError, match="subagents"):
        classify_intent({"subagents": subagents}, "contract")


def test_a_message_of_a_megabyte_is_classified_in_seconds() -> None:
    """Whatever the patterns are: none goes back and tries again."""
    hostile = {"patterns": [r"(a+)+$", r"(\w+\s*)+!", ".*a.*b.*c"], "keywords": ["b"]}
    began = time.process_time()

    classify_intent(profile(hostile=hostile), "a" * 1_000_000)

    assert time.process_time() - began < 5
