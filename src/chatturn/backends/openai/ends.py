"""
Why an answer ended: the finish reasons of OpenAI, compatible servers and gateways, and the `End` that each means.

Only a word of this table ends an answer well.  An empty word, as ``null``, is no finish reason.  An unknown word fails
the answer, since a truncated answer stored as a whole one is worse than a failure; the operator's log has the word.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

__all__ = ["End", "end_of", "known_words", "may_be_replaced", "reason_in", "says_nothing"]


class End(Enum):
    """How an answer ended; the value is the word that clients are told."""

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
        """Whether the text so far is no answer."""
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
    """Return every known word and the end that it means."""
    return _ENDS


def says_nothing(reason: object) -> bool:
    """Say whether *reason*, as the API sent it, is empty, such as ``null``."""
    return not reason or _word(reason) in _NOTHING


def reason_in(*places: Any) -> Any:
    """Return the first finish reason in *places*, under any of its names; None if there is none."""
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
    Return the end that *reason* means, in any spelling.

    ``FINISH_REASON_STOP``, ``FinishReason.STOP``, ``tool-calls``, ``endTurn`` and ``X: Y`` are known.
    """
    word = _word(reason)
    short = _PREFIX.sub("", word)
    return _ENDS.get(word) or _ENDS.get(short.partition(":")[0]) or End.UNKNOWN


def may_be_replaced(reason: str, *, alone: bool) -> bool:
    """
    Say whether a later empty frame may replace *reason*: never the reason of an answer cut short or failed.

    Args:
        reason: The reason as the API sent it.
        alone: Whether it came without content.  Some servers send a vague reason, as ``unknown``, with every piece.
    """
    end = end_of(reason)
    return end.is_whole or (not alone and (end is End.UNKNOWN or _PREFIX.sub("", _word(reason)) in _VAGUE))


def _word(reason: object) -> str:
    spaced = _INNER_CAPITAL.sub("_", str(reason).strip())
    return spaced.lower().replace("-", "_").replace(" ", "_")
