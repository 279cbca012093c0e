"""What an API's words come to, as vendors say them."""

import pytest

from chatturn.backends.openai.failures import refusal
from chatturn.backends.openai.retry import NO_HINT
from chatturn.errors import ContextOverflow, QuotaExhausted


def kind(status: int, words: str) -> type[Exception] | None:
    comes_back = NO_HINT.with_words(words).after_ms is not None
    refused = refusal(words, status, "b", comes_back=comes_back)
    return None if refused is None else type(refused)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 10000 tokens."),
        (400, "Your input exceeds the context window of this model. Please adjust your input and try again."),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "input length and `max_tokens` exceed context limit: 190000 + 21333 > 200000"),
        (413, '{"error":{"type":"request_too_large","message":"Request exceeds the maximum size"}}'),
        (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
        (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
        (400, "too many tokens: size limit exceeded by 1000 tokens."),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000 `inputs` tokens"),
        (422, "`inputs` must have less than 1024 tokens. Given: 1200"),
        (400, "Input is too long for requested model."),
        (400, "InternalError.Algo.InvalidParameter: Range of input length should be [1, 98304]"),
        (400, '{"error":{"code":"1261","message":"Prompt 超长"}}'),
        (400, "Invalid request: Your request exceeded model token limit: 8192"),
        (400, "This model's maximum prompt length is 131072 but the request contains 160000 tokens."),
        (400, "the request exceeds the available context size, try increasing it"),
        (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
        (413, '{"error":{"code":"tokens_limit_reached","message":"Request body too large. Max size: 8000 tokens."}}'),
        (400, "Total tokens of image and text exceed max message tokens."),
        (400, "the max input characters is 20000"),
        (400, "Input tokens exceed the configured limit of 272000 tokens."),
        (500, "Context size has been exceeded."),
    ],
)
def test_a_conversation_that_is_too_long_is_told_as_such(status: int, words: str) -> None:
    """OpenAI, Anthropic, Gemini, Mistral, Cohere, TGI, Bedrock, DashScope, Z.ai, Moonshot, xAI, and local servers."""
    assert kind(status, words) is ContextOverflow


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, '{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}'),
        (400, "Billing hard limit has been reached"),
        (400, "You have reached your specified API usage limits. You will regain access on 2026-12-01."),
        (402, "Insufficient Balance"),
        (429, "Your account org-x is suspended, please check your plan and billing details"),
        (429, '{"error":{"code":"1113","message":"余额不足或无可用资源包,请充值。"}}'),
        (403, "AllocationQuota.FreeTierOnly: The free tier of the model has been exhausted."),
        (403, "Key limit exceeded (total limit)."),
        (403, '{"code":30001,"message":"Sorry, your account balance is insufficient","data":null}'),
        (429, "4006: you have used up your daily free allocation of 10,000 neurons"),
        (403, '{"reason":"NOT_ENOUGH_BALANCE","message":"not enough balance"}'),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month."),
        (429, "Your prepayment credits are depleted."),
        (403, "pre-consumed quota failed, user quota: 0, need quota: 5"),
        (403, "Your team has either used all available credits or reached its monthly spending limit."),
    ],
)
def test_an_account_with_nothing_left_is_told_as_such(status: int, words: str) -> None:
    """OpenAI, Anthropic, DeepSeek, Moonshot, Z.ai, DashScope, OpenRouter, Workers AI, Cohere, Gemini, gateways, xAI."""
    assert kind(status, words) is QuotaExhausted


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "max_tokens is too large: 100000. This model supports at most 16384 completion tokens"),
        (400, "max_tokens: 300000 > 8192, which is the maximum allowed number of output tokens"),
        (429, "Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000"),
        (429, "Too many tokens, please wait before trying again."),
        (429, "Allocated quota exceeded, please increase your quota limit. Throttling.AllocationQuota"),
        (429, "You exceeded your current quota. quotaId RequestsPerMinutePerProject retryDelay: 34s"),
        (429, "Resource has been exhausted (e.g. check quota)."),
        (401, "Incorrect API key provided. You can find your billing details elsewhere"),
        (529, "Overloaded"),
    ],
)
def test_what_only_sounds_like_it_is_none_of_these(status: int, words: str) -> None:
    """A limit per minute passes; an answer's own limit and a wrong key are something else."""
    assert kind(status, words) is None
