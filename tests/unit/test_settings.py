"""Settings are read once, and a bad one is named."""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.errors import ConfigurationError
from chatturn.isolate import make_isolate
from chatturn.settings import Settings, setting_names
from products import make_hooks
from tests.support.platform import platform

NUMBERS = [item for item in fields(Settings) if isinstance(item.default, int)]
CHOICES = [item for item in fields(Settings) if "choices" in item.metadata]
SECRETS = [item for item in fields(Settings) if item.metadata.get("secret")]


def test_an_empty_environment_means_every_default() -> None:
    """Nothing has to be set for the settings to be readable."""
    assert Settings() == Settings.from_env({})


def test_an_empty_or_blank_variable_means_the_default() -> None:
    """A variable that a dashboard left empty is one that is not set."""
    assert Settings() == Settings.from_env(dict.fromkeys(setting_names(), " "))


def test_every_setting_is_read_from_its_name_in_upper_case() -> None:
    """The names in the environment are the fields' in upper case."""
    assert tuple(item.name.upper() for item in fields(Settings)) == setting_names()

    settings = Settings.from_env({"MODEL": " tiny ", "LEASE_MS": "5000", "BACKEND": "openai"})
    assert (settings.model, settings.lease_ms, settings.backend) == ("tiny", 5000, "openai")


def test_other_variables_do_not_matter() -> None:
    """A Worker's environment also holds bindings and other programs' variables."""
    assert Settings() == Settings.from_env({"PATH": "/bin", "lease_ms": "1"})


@pytest.mark.parametrize("name", [item.name.upper() for item in NUMBERS])
@pytest.mark.parametrize("text", ["many", "1.5", "1e3", "0x10", "-1", "9" * 5000])
def test_a_number_that_is_none_is_refused_by_name(name: str, text: str) -> None:
    """Whole numbers only, within the setting's limit."""
    with pytest.raises(ConfigurationError, match=f"^{name}: ") as caught:
        Settings.from_env({name: text})

    assert name == caught.value.setting


@pytest.mark.parametrize("item", NUMBERS, ids=lambda item: item.name)
def test_the_least_value_is_allowed_and_one_below_is_not(item: Field[Any]) -> None:
    """Limits are inclusive."""
    name, least = item.name, item.metadata["least"]

    assert least == getattr(Settings.from_env({name.upper(): str(least)}), name)
    with pytest.raises(ConfigurationError, match=f"at least {least}"):
        Settings.from_env({name.upper(): str(least - 1)})


@pytest.mark.parametrize("name", [item.name for item in NUMBERS if item.name.endswith("_ms")])
def test_a_time_beyond_what_timers_take_is_refused(name: str) -> None:
    """It would be over at once; and a lease that ends after the last date holds nobody off."""
    longest = 2**31 - 1

    assert longest == getattr(Settings.from_env({name.upper(): str(longest)}), name)
    with pytest.raises(ConfigurationError, match=f"^{name.upper()}: .*at most {longest}"):
        Settings.from_env({name.upper(): str(longest + 1)})


@pytest.mark.parametrize("item", CHOICES, ids=lambda item: item.name)
def test_a_choice_that_there_is_not_is_answered_with_those_there_are(item: Field[Any]) -> None:
    """The message lists what may be said, and not what was."""
    name, choices = item.name.upper(), item.metadata["choices"]

    with pytest.raises(ConfigurationError, match=f"^{name}: must be one of {', '.join(choices)}$"):
        Settings.from_env({name: "nonsense"})


def test_every_default_obeys_its_own_limits() -> None:
    """Writing a default out changes nothing."""
    written = {item.name.upper(): str(item.default) for item in fields(Settings)}

    assert Settings() == Settings.from_env(written)


@given(st.dictionaries(st.sampled_from(setting_names()), st.text()))
def test_any_environment_gives_settings_or_one_named_setting(env: dict[str, str]) -> None:
    """No value makes anything else happen."""
    try:
        Settings.from_env(env)
    except ConfigurationError as error:
        assert error.setting in env  # noqa: PT017  # most environments raise nothing


def test_no_message_can_repeat_a_secret() -> None:
    """Secrets are free text: nothing about them is checked while they are read."""
    assert {item.name for item in SECRETS} == {
        "auth_jwt_secret",
        "auth_jwt_secret_previous",
        "openai_api_key",
        "otel_exporter_otlp_headers",
        "ticket_secret",
    }
    assert all(set(item.metadata) == {"help", "secret"} for item in SECRETS)


def test_every_setting_says_what_it_is_for() -> None:
    """The manual's table is made of these sentences."""
    assert all(item.metadata["help"] for item in fields(Settings))


PRIVATE = "sk-live-0123456789-meant-for-another-setting"


def message_of(env: Mapping[str, str]) -> str:
    """Return what a Worker's first request says of these settings; "" if nothing is wrong with them."""
    good = {
        "AUTH_ISSUER": "https://id.example.com",
        "AUTH_JWT_SECRET": "a secret of thirty-two bytes, or more",
        "BACKEND": "openai",
        "OPENAI_API_KEY": "a key",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example.com",
    }
    try:
        make_isolate(make_hooks, platform({**good, **env})).authenticator.check()
    except ConfigurationError as error:
        return str(error)
    return ""


def test_no_message_shows_what_a_setting_was() -> None:
    """A key that was put into the wrong variable is not told at `/readyz`, which everybody may ask."""
    wrong = [
        *({name: PRIVATE} for name in setting_names()),
        *({name: f"https://[{PRIVATE}"} for name in setting_names()),
        {"PRICES": f'{{"{PRIVATE}": 1}}'},
        {"PRICES": f'{{"{PRIVATE}": {{"in": -1, "out": 1}}}}'},
        {"CORS_ORIGINS": f"https://app.example.com, https://{PRIVATE}/path"},
    ]
    messages = [message_of(env) for env in wrong]
    limited = {item.name.upper() for item in [*NUMBERS, *CHOICES]}
    others = {
        *("ALLOW_PARAMETERS", "AUTH_JWKS_URL", "CORS_ORIGINS", "OPENAI_BASE_URL", "PRICES", "PRODUCT", "PROVIDERS"),
        "UNPRICED_CEILING",
        *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER_ARG"),
    }

    assert {message.partition(":")[0] for message in messages} - {""} == limited | others
    assert [message for message in messages if PRIVATE in message] == []
