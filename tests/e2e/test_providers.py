"""Providers that are nothing but settings, in the real workerd: Azure, AI Gateway, a chain, and Workers AI's binding."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatturn.backends.providers import PRESETS
from tests.support.client import Client, answer_of
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

SERVERS = [kind for kind in PRESETS if not PRESETS[kind].is_binding]

AI = Path(__file__).parents[1] / "worker" / "ai"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as started:
        yield started


@pytest.fixture(scope="module")
def worker(upstream: Upstream) -> Iterator[Worker]:
    """A Worker with five providers, one of which is not there."""
    server = upstream.url.removesuffix("/v1")
    providers = [
        {"kind": "azure", "base_url": server, "models": {"gpt-deployed": {"defaults": {"temperature": 0.5}}}},
        {
            "kind": "ai-gateway",
            "base_url": f"{server}/v1/account/mine/compat",
            "headers": {"cf-aig-authorization": "Bearer ${GATEWAY_TOKEN}"},
            "models": ["openai/gpt"],
        },
        {"kind": "vllm", "base_url": "http://127.0.0.1:9/v1", "models": ["gone"]},
        {"kind": "ollama", "base_url": f"{server}/v1", "models": ["here"]},
        {"kind": "workers-ai", "models": ["@cf/meta/llama", "@cf/none"]},
        *(
            {"name": f"all-{kind}", "kind": kind, "base_url": f"{server}/v1/{kind}", "models": [f"{kind}-model"]}
            for kind in SERVERS
        ),
    ]
    variables = {
        "BACKEND": "openai",
        "PRODUCT": "assistant",
        "PROJECT_ID": "chatturn",
        "MODEL": "gone, here",
        "PROVIDERS": json.dumps(providers),
        "AZURE_OPENAI_API_KEY": "azure-key",
        "AI_GATEWAY_KEY": "provider-key",
        "GATEWAY_TOKEN": "gateway-token",
    }
    variables = {**{PRESETS[kind].key: f"{kind}-key" for kind in SERVERS if PRESETS[kind].key}, **variables}
    with running_worker(
        entry="ai_entry",
        deployment=AI / "wrangler.toml",
        variables=variables,
        mounts={"ai_entry.py": AI / "ai_entry.py"},
    ) as started:
        yield started


def test_azure_is_asked_by_its_own_rules(worker: Worker, upstream: Upstream) -> None:
    """The deployment in the path, the version in the query, the key in its header, the default parameter in the body."""
    upstream.on("azure please", Script(text="From Azure."))
    lines = Client(worker.url).post("azure", "azure please", model="gpt-deployed")
    [call] = upstream.calls("azure please")

    assert answer_of(lines) == "From Azure."
    assert call.path == "/openai/deployments/gpt-deployed/chat/completions?api-version=2024-10-21"
    assert (call.headers["api-key"], "authorization" in call.headers) == ("azure-key", False)
    assert (call.body["model"], call.body["temperature"]) == ("gpt-deployed", 0.5)


def test_ai_gateway_is_asked_with_its_own_token(worker: Worker, upstream: Upstream) -> None:
    """Beside the key of the provider behind it."""
    upstream.on("gateway please", Script(text="Through it."))
    lines = Client(worker.url).post("gateway", "gateway please", model="openai/gpt")
    [call] = upstream.calls("gateway please")

    assert answer_of(lines) == "Through it."
    assert call.path == "/v1/account/mine/compat/chat/completions"
    assert call.headers["cf-aig-authorization"] == "Bearer gateway-token"
    assert call.headers["authorization"] == "Bearer provider-key"


def test_the_second_answers_where_the_first_is_not_there(worker: Worker, upstream: Upstream) -> None:
    """Both calls are on record, and the log tells of it."""
    upstream.on("chain please", Script(text="The second."))
    lines = Client(worker.url).post("chain", "chain please")
    calls = worker.sql(
        "SELECT model, outcome, error_code FROM chat_usage WHERE run_id = 'chat:acme:chain:0' ORDER BY call_index"
    )

    assert answer_of(lines) == "The second."
    assert [("gone", "failed", "backend_unavailable"), ("scripted-1", "completed", None)] == [
        (call["model"], call["outcome"], call["error_code"]) for call in calls
    ]
    assert '"instead_model":"here"' in worker.logged("model.fell_back")


def test_workers_ai_answers_over_its_binding(worker: Worker) -> None:
    """No address and no key; its own format is read, usage included."""
    lines = Client(worker.url).post("binding", "are you there?", model="@cf/meta/llama")
    [usage] = [line["data"] for line in lines if line["type"] == "usage"]

    assert answer_of(lines) == "@cf/meta/llama heard are you there?"
    assert (usage["tokensIn"], usage["tokensOut"]) == (7, 3)


def test_a_model_that_the_binding_does_not_have_is_a_refusal(worker: Worker) -> None:
    """The log has the binding's words, the client a sentence of ours."""
    lines = Client(worker.url).post("no-model", "hello", model="@cf/none")
    [error] = [line["data"] for line in lines if line["type"] == "error"]

    assert (error["code"], "No such model" in json.dumps(lines)) == ("backend_rejected", False)
    assert worker.logged("No such model")


@pytest.mark.parametrize("kind", SERVERS)
def test_a_turn_on_each_preset_needs_nothing_but_settings(worker: Worker, upstream: Upstream, kind: str) -> None:
    """Asked at its path, with its key in its header, or with none."""
    preset, message = PRESETS[kind], f"all of {kind}"
    upstream.on(message, Script(text=f"From {kind}."))
    lines = Client(worker.url).post(f"preset-{kind}", message, model=f"{kind}-model", parameters={"max_tokens": 9})
    [call] = upstream.calls(message)
    path, _, query = call.path.partition("?")
    secret = {"azure": "azure-key", "ai-gateway": "provider-key"}.get(kind, f"{kind}-key")

    assert answer_of(lines) == f"From {kind}."
    assert lines[-1]["type"] == "session.run.completed"
    assert path == f"/v1/{kind}" + preset.path.replace("{model}", f"{kind}-model")
    assert query == "&".join(f"{name}={value}" for name, value in preset.query.items())
    assert call.headers.get(preset.key_header) == (preset.key_prefix + secret if preset.key else None)
    assert call.headers["user-agent"] == "chatturn"
    assert (call.body["model"], call.body["max_tokens"]) == (f"{kind}-model", 9)
    assert ("stream_options" in call.body) == preset.quirks.stream_options
