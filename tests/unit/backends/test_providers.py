"""Providers as data: every preset, every member, and what is wrong with a value, by its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatturn.backends.parameters import PARAMETERS, allowed_parameters
from chatturn.backends.providers import PRESETS, parse_providers, prices_of
from chatturn.errors import ConfigurationError
from chatturn.usage.prices import Price

SECRETS = {"OPENAI_API_KEY": "sk-open", "AZURE_OPENAI_API_KEY": "az-1", "AIG": "aig-1", "MY_KEY": "mine"}
SECRETS |= {preset.key: "sk" for preset in PRESETS.values() if preset.key and preset.key not in SECRETS}


def parsed(*members: Any) -> Any:
    return parse_providers(json.dumps(members), SECRETS)


@pytest.mark.parametrize("kind", PRESETS)
def test_each_preset_needs_no_more_than_its_kind(kind: str) -> None:
    """But for an address, where everybody has one of their own."""
    address = {} if PRESETS[kind].base_url else {"base_url": "https://api.example"}
    [provider] = parsed({"kind": kind, **address})

    assert (provider.name, provider.kind) == (kind, kind)
    assert provider.url.startswith(("http://", "https://", "binding:"))
    assert provider.model("any") is not None


def test_azure_has_the_model_in_its_path_and_a_key_of_its_own() -> None:
    """As its reference page has it: a deployment in the path, a version in the query, the header `api-key`."""
    [azure] = parsed(
        {"kind": "azure", "base_url": "https://mine.openai.azure.com/", "query": {"api-version": "2025-04-01"}}
    )

    assert azure.url_of("gpt 4/x") == (
        "https://mine.openai.azure.com/openai/deployments/gpt%204%2Fx/chat/completions?api-version=2025-04-01"
    )
    assert azure.headers == {"api-key": "az-1"}


def test_a_gateway_has_headers_with_secrets() -> None:
    """Cloudflare's AI Gateway wants a token of its own beside the provider's key."""
    [gateway] = parsed(
        {
            "kind": "ai-gateway",
            "base_url": "https://gateway.ai.cloudflare.com/v1/account/mine/compat",
            "key": "OPENAI_API_KEY",
            "headers": {"cf-aig-authorization": "Bearer ${AIG}", "User-Agent": "mine/1"},
        }
    )

    assert gateway.url_of("m") == "https://gateway.ai.cloudflare.com/v1/account/mine/compat/chat/completions"
    assert gateway.headers == {
        "authorization": "Bearer sk-open",
        "cf-aig-authorization": "Bearer aig-1",
        "user-agent": "mine/1",
    }


def test_a_base_url_keeps_its_query() -> None:
    """What stands in it comes before the preset's."""
    [azure] = parsed({"kind": "azure", "base_url": "https://a.example/x?api-version=v2&b=c", "models": ["m"]})

    assert azure.url_of("m") == "https://a.example/x/openai/deployments/m/chat/completions?api-version=v2&b=c"


def test_a_model_is_asked_as_itself_says_then_as_its_provider_does() -> None:
    """Deadlines, prices and defaults of a model come before those of its provider."""
    [home] = parsed(
        {
            "name": "home",
            "kind": "ollama",
            "idle_timeout_ms": 0,
            "total_timeout_ms": 5,
            "defaults": {"system": "Be kind.", "temperature": 1},
            "models": {
                "a": {
                    "total_timeout_ms": 7,
                    "defaults": {"temperature": 0.5, "seed": 3},
                    "price": {"in": 0.5, "out": 2},
                },
                "b": {"continues": True},
            },
        }
    )
    a, b = home.models["a"], home.models["b"]

    assert (a.idle_timeout_ms, a.total_timeout_ms, a.system) == (0, 7, "Be kind.")
    assert (a.defaults, b.defaults) == ({"temperature": 0.5, "seed": 3}, {"temperature": 1})
    assert (a.continues, b.continues, home.model("c")) == (None, True, None)
    assert prices_of([home]) == {"a": Price(500_000, 2_000_000)}


def test_no_key_is_said_as_null() -> None:
    """A server behind a gateway may want none."""
    [open_one] = parsed({"kind": "openai", "key": None})

    assert open_one.headers == {}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "PROVIDERS"),
        ("{}", "PROVIDERS"),
        ("[]", "PROVIDERS"),
        ("[1]", "PROVIDERS[0]"),
        ('[{"kind": "x"}]', "PROVIDERS[0].kind"),
        ('[{"kind": "azure"}]', "PROVIDERS[0].base_url"),
        ('[{"base_url": "ftp://x"}]', "PROVIDERS[0].base_url"),
        ('[{"base_url": "https://sk-secret@"}]', "PROVIDERS[0].base_url"),
        ('[{"base_url": "https://x/v1/chat/completions"}]', "PROVIDERS[0].base_url"),
        ('[{"kind": "workers-ai", "base_url": "https://x"}]', "PROVIDERS[0].base_url"),
        ('[{"kind": "ollama", "headers": {"Host": "x"}}]', "PROVIDERS[0].headers"),
        ('[{"kind": "ollama", "headers": {"content-length": "1"}}]', "PROVIDERS[0].headers"),
        ('[{"kind": "ollama"}, {"kind": "ollama"}]', "PROVIDERS[1].name"),
        ('[{"kind": "ollama", "name": "A B"}]', "PROVIDERS[0].name"),
        ('[{"kind": "openai", "key": "NOT_SET"}]', "PROVIDERS[0].key"),
        ('[{"kind": "openai", "key": "sk-secret"}]', "PROVIDERS[0].key"),
        ('[{"kind": "ollama", "headers": {"x": "${NOT_SET}"}}]', "PROVIDERS[0].headers"),
        ('[{"kind": "ollama", "headers": {"x": 1}}]', "PROVIDERS[0].headers"),
        ('[{"kind": "ollama", "headers": {"x": "a\\nb"}}]', "PROVIDERS[0].headers"),
        ('[{"kind": "ollama", "quirks": {"content": "x"}}]', "PROVIDERS[0].quirks.content"),
        ('[{"kind": "ollama", "quirks": {"x": 1}}]', "PROVIDERS[0].quirks"),
        ('[{"kind": "ollama", "models": []}]', "PROVIDERS[0].models"),
        ('[{"kind": "ollama", "models": {"m": 1}}]', "PROVIDERS[0].models[0]"),
        ('[{"kind": "ollama", "models": {"m": {"x": 1}}}]', "PROVIDERS[0].models[0]"),
        ('[{"kind": "ollama", "models": {"m": {"price": {"in": -1, "out": 1}}}}]', "PROVIDERS[0].models[0].price"),
        ('[{"kind": "ollama", "defaults": {"temperature": 3}}]', "PROVIDERS[0].defaults.temperature"),
        ('[{"kind": "ollama", "defaults": {"x": 3}}]', "PROVIDERS[0].defaults"),
        ('[{"kind": "ollama", "idle_timeout_ms": -1}]', "PROVIDERS[0].idle_timeout_ms"),
        ('[{"kind": "ollama", "sk-secret": 1}]', "PROVIDERS[0]"),
    ],
)
def test_a_wrong_value_is_told_by_its_place(text: str, place: str) -> None:
    """And never by itself: it may be a secret at the wrong place."""
    with pytest.raises(ConfigurationError) as raised:
        parse_providers(text, SECRETS)

    assert raised.value.setting == place
    assert "sk-secret" not in str(raised.value)


def test_nothing_is_nobody() -> None:
    """An empty setting has no providers."""
    assert parse_providers("", {}) == ()


def test_no_representation_shows_a_key() -> None:
    """A provider may stand in a log."""
    assert "sk-open" not in repr(parsed({"kind": "openai"}))


def test_the_manual_names_every_preset_and_parameter() -> None:
    """A deployment is written from it."""
    page = (Path(__file__).parents[3] / "docs/reference/model-apis.md").read_text()

    assert [] == [name for name in (*PRESETS, *PARAMETERS) if f"`{name}`" not in page]


@pytest.mark.parametrize("member", ['"kind": []', '"kind": {}', '"base_url": "https://["'])
def test_a_value_of_any_form_is_a_wrong_setting(member: str) -> None:
    """And no other error, which every request would meet."""
    with pytest.raises(ConfigurationError):
        parse_providers(f"[{{{member}}}]", SECRETS)


def test_a_name_that_is_no_parameter_is_not_shown() -> None:
    """It may be a key that stands in the wrong place."""
    with pytest.raises(ConfigurationError) as raised:
        allowed_parameters("temperature, sk-live-0123456789")

    assert "sk-live" not in str(raised.value)
