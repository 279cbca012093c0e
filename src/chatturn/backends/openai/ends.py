"""
Why an answer ended: the words of OpenAI, of compatible servers and of those behind gateways, and what they come to.

Only a word of this table ends an answer well.  A word that says nothing is none; a word that nobody has told us fails
the answer like one that is known to, since a truncated answer that is stored as a whole one is worse than a failure.
The operator's log has the word then.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

__all__ = ["End", "end_of", "known_words", "may_be_replaced", "reason_in", "says_nothing"]


class End(Enum):
    """What an answer's end comes to; the value is the word that clients are told."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    FAILED = "error"
    UNKNOWN = "unknown"

    @property
    def is_whole(self) -> bool:
        """Whether the model has said all that it wanted to say."""
        return self in {End.STOP, End.TOOL_CALLS}

    @property
    def is_failure(self) -> bool:
        """Whether what came before is no answer."""
        return self in {End.FAILED, End.UNKNOWN}


_WORDS: Final[Mapping[End, str]] = {
    # OpenAI; Anthropic; Text Generation Inference; Cohere, Gemini and Vertex in capitals; gateways
    End.STOP: "stop end_turn stop_sequence eos eos_token stop_token stop_str complete completed end done finished "
    "success normal finish endoftext",
    End.TOOL_CALLS: "tool_calls tool_call tool_use function_call function_calls",
    # The same, Mistral, Z.ai
    End.LENGTH: "length max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length model_length "
    "token_limit token_limit_reached model_context_window_exceeded context_window_exceeded "
    "context_length_exceeded context_length incomplete length_limit limit",
    # The same, Azure, Gemini, Z.ai
    End.CONTENT_FILTER: "content_filter content_filtered content_filter_error filtered safety refusal refused "
    "sensitive recitation blocklist prohibited_content spii image_safety image_prohibited_content image_recitation "
    "guardrail guardrail_intervened moderation error_toxic language blocked",
    # vLLM and SGLang; DeepSeek; Z.ai; Gemini; Anthropic; Cohere; gateways
    End.FAILED: "abort aborted cancel cancelled canceled insufficient_system_resource network_error error errored "
    "internal_error server_error error_limit fail failed failure timeout timed_out time_limit overloaded "
    "engine_overloaded rate_limit malformed_function_call function_call_filter unexpected_tool_call malformed_response "
    "other finish_reason_other finish_reason_unspecified unspecified unknown user_cancelled preempted preemption "
    "repetition repetition_truncation load unload pause_turn disconnect disconnected interrupted",
}
_ENDS: Final[Mapping[str, End]] = {word: end for end, words in _WORDS.items() for word in words.split()}
_INNER_CAPITAL: Final = re.compile("(?<=[a-z])(?=[A-Z])")
_PREFIX: Final = re.compile("^finish_?reason[._:]+")
_VAGUE: Final = frozenset({"unspecified", "finish_reason_unspecified", "unknown", "other", "finish_reason_other"})
_NAMES: Final = ("finish_reason", "finishReason")
_NOTHING: Final = frozenset({"", "null", "none", "undefined", "nil", "false"})


def known_words() -> Mapping[str, End]:
    """Return every word that is known, and what it comes to."""
    return _ENDS


def says_nothing(reason: object) -> bool:
    """Say whether *reason*, a finish reason as it came, is none."""
    return not reason or _word(reason) in _NOTHING


def reason_in(*places: Any) -> Any:
    """Return the finish reason in the first of *places* that has one, whatever it is called there; None for none."""
    for place in places:
        for name in _NAMES if type(place) is dict else ():
            reason = place.get(name)
            if type(reason) is dict:
                reason = reason.get("type") or reason.get("reason")
            if not says_nothing(reason):
                return reason
    return None


def end_of(reason: str) -> End:
    """
    Return what *reason* comes to, however it is written.

    ``FINISH_REASON_STOP``, ``FinishReason.STOP``, ``tool-calls``, ``endTurn`` and ``X: Y`` are known.
    """
    word = _word(reason)
    short = _PREFIX.sub("", word)
    return _ENDS.get(word) or _ENDS.get(short.partition(":")[0]) or End.UNKNOWN


def may_be_replaced(reason: str, *, alone: bool) -> bool:
    """
    Say whether an empty frame may give another reason behind *reason*: none makes a cut answer whole, or a failed one.

    Args:
        reason: As it came.
        alone: Whether it came without content.  Some servers say with every piece that there is none yet.
    """
    end = end_of(reason)
    return end.is_whole or (not alone and (end is End.UNKNOWN or _PREFIX.sub("", _word(reason)) in _VAGUE))


def _word(reason: object) -> str:
    spaced = _INNER_CAPITAL.sub("_", str(reason).strip())
    return spaced.lower().replace("-", "_").replace(" ", "_")
