"""
The providers of a deployment, which answer for its models, as data.

The setting ``PROVIDERS`` is a JSON array; each element names a preset and the members that differ from it::

    [{"kind": "azure", "base_url": "https://mine.openai.azure.com", "models": ["gpt-4.1"]},
     {"name": "home", "kind": "ollama", "base_url": "http://10.0.0.7:11434/v1",
      "models": {"qwen3": {"idle_timeout_ms": 0, "defaults": {"temperature": 0.2}}}}]

A wrong value is a `ConfigurationError` that names the value's place and never the value, which may be a secret.  The
place consists of names that this module knows and of numbers: a secret may stand where a member's name belongs, too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from chatturn.backends.api import CONTENTS
from chatturn.backends.openai.quirks import Quirks
from chatturn.backends.parameters import PARAMETERS, TOOLS, wrong_parameter
from chatturn.errors import ConfigurationError
from chatturn.jsontext.operators import parse_operators_json
from chatturn.transport import ADDRESS, is_address, is_header_value
from chatturn.usage.prices import Price, read_price

__all__ = ["PRESETS", "Model", "Preset", "Provider", "parse_providers", "prices_of"]

_SETTING: Final = "PROVIDERS"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_OF_THE_CONNECTION: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_ENDPOINT: Final = "/chat/completions"
_SECRET_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
_SECRET_IN_TEXT: Final = re.compile(r"\$\{([^}]*)\}")
_MODEL_PLACE: Final = "{model}"
_LONGEST_MS: Final = 2**31 - 1
_MOST_SYSTEM_CHARACTERS: Final = 100_000


_IMAGES: Final = frozenset({"image_url", "image_data"})
_OWN_IMAGES: Final = frozenset({"image_data"})
"""For servers on the operator's own machines: they would fetch an image's address from inside that network."""

_AND_FILES: Final = _IMAGES | {"file_data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """
    What the providers of one kind have in common.

    Attributes:
        base_url: The address of their API; "" if each provider has its own.
        path: What follows the base URL; ``{model}`` stands for the model's name.
        query: Members of the URL's query.
        key: The name of the secret that holds the key; "" if they need none.
        key_header: The header that carries the key.
        key_prefix: What stands before the key in that header.
        quirks: How their API wants requests; see `Quirks`.
        is_binding: Whether they are reached through a binding of the Worker instead of over HTTP.
        takes: What their models may be sent besides text, as far as their documentation says.
        files_as: How they want a file; see `chatturn.backends.openai.contents`.
    """

    base_url: str = ""
    path: str = "/chat/completions"
    query: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    quirks: Quirks = field(default_factory=Quirks)
    is_binding: bool = False
    takes: frozenset[str] = _IMAGES
    files_as: str = "file"


PRESETS: Final[Mapping[str, Preset]] = {
    "openai": Preset(base_url="https://api.openai.com/v1", key="OPENAI_API_KEY", takes=_AND_FILES),
    "azure": Preset(
        path="/openai/deployments/{model}/chat/completions",
        query={"api-version": "2024-10-21"},
        key="AZURE_OPENAI_API_KEY",
        key_header="api-key",
        key_prefix="",
    ),
    "ai-gateway": Preset(key="AI_GATEWAY_KEY", takes=_AND_FILES),
    "workers-ai": Preset(base_url="binding:AI", path="", is_binding=True, takes=_OWN_IMAGES),
    "anthropic": Preset(base_url="https://api.anthropic.com/v1", key="ANTHROPIC_API_KEY"),
    "deepseek": Preset(base_url="https://api.deepseek.com", key="DEEPSEEK_API_KEY", takes=frozenset()),
    "fireworks": Preset(base_url="https://api.fireworks.ai/inference/v1", key="FIREWORKS_API_KEY"),
    "gemini": Preset(
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key="GEMINI_API_KEY",
        quirks=Quirks(later_turns=True),
    ),
    "groq": Preset(base_url="https://api.groq.com/openai/v1", key="GROQ_API_KEY"),
    "mistral": Preset(
        base_url="https://api.mistral.ai/v1",
        key="MISTRAL_API_KEY",
        quirks=Quirks(stream_options=False),
        takes=CONTENTS,
        files_as="document_url",
    ),
    "openrouter": Preset(
        base_url="https://openrouter.ai/api/v1",
        key="OPENROUTER_API_KEY",
        quirks=Quirks(later_turns=True),
        takes=CONTENTS,
    ),
    "together": Preset(base_url="https://api.together.xyz/v1", key="TOGETHER_API_KEY"),
    "xai": Preset(base_url="https://api.x.ai/v1", key="XAI_API_KEY"),
    "llamacpp": Preset(base_url="http://localhost:8080/v1", takes=_OWN_IMAGES),
    "lmstudio": Preset(base_url="http://localhost:1234/v1", takes=_OWN_IMAGES),
    "ollama": Preset(base_url="http://localhost:11434/v1", takes=_OWN_IMAGES),
    "vllm": Preset(base_url="http://localhost:8000/v1", takes=_OWN_IMAGES),
    "compatible": Preset(takes=_AND_FILES),
}
"""Each preset by its kind.  Addresses and headers are those that the vendors document for OpenAI's clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """
    How a model is asked.  For an attribute that is None, the deployment's setting counts.

    Attributes:
        request_timeout_ms, idle_timeout_ms, total_timeout_ms: Its deadlines; see the settings of these names.
        continues: Whether its server continues an answer that broke off.
        system: The system message for conversations that begin without one; "" for none.
        defaults: Parameters for requests that do not set them.
        price: What its tokens cost; see `Price`.
        takes: What it may be sent besides text; see `chatturn.backends.api.CONTENTS`.
    """

    request_timeout_ms: int | None = None
    idle_timeout_ms: int | None = None
    total_timeout_ms: int | None = None
    continues: bool | None = None
    system: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None
    takes: frozenset[str] = _AND_FILES


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """
    A server or binding that answers for one or more models.

    Attributes:
        name: Unique in the deployment; telemetry shows it.
        kind: The kind of its preset, as in ``azure``.
        url: The address of its chat completions; ``{model}`` stands for the model's name.
        headers: Sent with each request; they hold secrets.
        quirks: How its API wants requests; see `Quirks`.
        models: How each model that it lists is asked, by the model's name.
        others: How any other model is asked; None if it has no others.
        is_binding: Whether it is reached through a binding of the Worker instead of over HTTP.
        files_as: How it wants a file; see `chatturn.backends.openai.contents`.
    """

    name: str
    kind: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    quirks: Quirks = field(default_factory=Quirks)
    models: Mapping[str, Model] = field(default_factory=dict)
    others: Model | None = field(default_factory=Model)
    is_binding: bool = False
    files_as: str = "file"

    def url_of(self, model: str) -> str:
        """Return the URL at which *model* is asked."""
        return self.url.replace(_MODEL_PLACE, quote(model, safe=""))

    def model(self, name: str) -> Model | None:
        """Return how the model *name* is asked; None if this provider does not have it."""
        return self.models.get(name, self.others)


def parse_providers(text: str, variables: Mapping[str, str]) -> tuple[Provider, ...]:
    """
    Read the setting ``PROVIDERS``.

    Args:
        text: The setting's text; "" for no providers.
        variables: The deployment's vars and secrets.

    Raises:
        ConfigurationError: The text has another form, names a secret that is not set, or gives two providers one name.
    """
    if not text:
        return ()
    try:
        found = parse_operators_json(text)
    except ValueError:
        raise ConfigurationError(_SETTING, "is not JSON") from None
    if not isinstance(found, list) or not found:
        raise ConfigurationError(_SETTING, "must be an array of providers")
    providers = tuple(_provider(_Place(f"{_SETTING}[{at}]", members), variables) for at, members in enumerate(found))
    names = [provider.name for provider in providers]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise ConfigurationError(f"{_SETTING}[{at}].name", f"is that of [{names.index(name)}], too")
    return providers


def prices_of(providers: Iterable[Provider]) -> dict[str, Price]:
    """Return what the models of *providers* cost, by their names."""
    priced = (each.models.items() for each in providers)
    return {name: model.price for models in priced for name, model in models if model.price is not None}


class _Place:
    """An object of the setting, whose members are taken one by one; a member left at the end is an unknown one."""

    def __init__(self, path: str, members: Any) -> None:
        if not isinstance(members, dict):
            raise ConfigurationError(path, "must be an object")
        self.path = path
        self._members = dict(members)
        self._positions = {name: position for position, name in enumerate(members, 1)}

    def take(self, name: str, check: Callable[[Any], bool], words: str, default: Any = None) -> Any:
        """Remove and return the member *name*; *default* if it is missing."""
        if name not in self._members:
            return default
        value = self._members.pop(name)
        if not check(value):
            raise self.error(name, f"must be {words}")
        return value

    def place(self, name: str) -> "_Place":
        """Remove and return the member *name*, an object; an empty one if it is missing."""
        return _Place(f"{self.path}.{name}", self._members.pop(name, {}))

    def rest(self) -> dict[str, Any]:
        """Remove and return all members that have not been taken, whatever their names are."""
        rest, self._members = self._members, {}
        return rest

    def end(self) -> None:
        """Refuse members that have not been taken, without their names: a secret may be in the wrong place."""
        if self._members:
            raise ConfigurationError(self.path, "has a member that is not known")

    def error(self, name: str, words: str, *, lacks: str | None = None) -> ConfigurationError:
        """Make the error about a member by its name, which this module knows."""
        return ConfigurationError(f"{self.path}.{name}", words, lacks=lacks)

    def error_at(self, name: str, words: str, *, lacks: str | None = None) -> ConfigurationError:
        """Make the error about a member by its position, from 1, because its name may be a secret."""
        return ConfigurationError(self.path, f"member {self._positions[name]} {words}", lacks=lacks)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_ms(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LONGEST_MS


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and is_address(value)


def _provider(place: _Place, variables: Mapping[str, str]) -> Provider:
    kind = place.take(
        "kind", lambda value: isinstance(value, str) and value in PRESETS, f"one of {', '.join(PRESETS)}", "compatible"
    )
    preset = PRESETS[kind]
    name = place.take("name", _is_name, f"like {_NAME.pattern}", kind)
    base_url = place.take(
        "base_url",
        lambda value: not preset.is_binding and _is_url(value) and not value.rstrip("/").endswith(_ENDPOINT),
        "none: it is a binding" if preset.is_binding else f"{ADDRESS}, and without {_ENDPOINT}",
        preset.base_url,
    )
    if not base_url:
        raise place.error("base_url", f"is required by the kind {kind!r}")
    query = {**preset.query, **_texts(place.place("query"))}
    key = place.take(
        "key", lambda value: value is None or _is_secret(value), "the name of a secret, or null", preset.key
    )
    headers = _headers(place.place("headers"), variables)
    if key:
        headers[preset.key_header] = preset.key_prefix + _secret(key, variables, partial(place.error, "key"))
    quirks = _quirks(place.place("quirks"), preset.quirks)
    models = _models(place)
    others = _model(place, Model(takes=preset.takes))
    place.end()
    return Provider(
        name=name,
        kind=kind,
        url=base_url if preset.is_binding else _joined(base_url, preset.path, query),
        headers=headers,
        quirks=quirks,
        models={model: _model(each, others, is_listed=True) for model, each in models.items()},
        others=None if models else others,
        is_binding=preset.is_binding,
        files_as=preset.files_as,
    )


def _is_secret(value: Any) -> bool:
    return isinstance(value, str) and bool(_SECRET_NAME.fullmatch(value))


def _joined(base_url: str, path: str, query: Mapping[str, str]) -> str:
    """Return the base URL with *path* behind its own path, and *query* behind its own query."""
    base = urlsplit(base_url)
    members = {**query, **dict(parse_qsl(base.query))}
    return urlunsplit((base.scheme, base.netloc, base.path.removesuffix("/") + path, urlencode(members), ""))


def _texts(place: _Place) -> dict[str, str]:
    members = place.rest()
    for name, value in members.items():
        if not isinstance(value, str):
            raise place.error_at(name, "must be a text")
    return members


def _headers(place: _Place, variables: Mapping[str, str]) -> dict[str, str]:
    members = _texts(place)
    for name, value in members.items():
        if not _HEADER.fullmatch(name) or not is_header_value(value):
            raise place.error_at(name, "is no header")
        if name.lower() in _OF_THE_CONNECTION:
            raise place.error_at(name, "is a header of the connection's own")
    return {name.lower(): _filled(value, variables, partial(place.error_at, name)) for name, value in members.items()}


def _filled(value: str, variables: Mapping[str, str], error: Callable[..., ConfigurationError]) -> str:
    """Replace each ``${NAME}`` by the var or secret of that name."""
    return _SECRET_IN_TEXT.sub(lambda match: _secret(match[1], variables, error), value)


def _secret(name: str, variables: Mapping[str, str], error: Callable[..., ConfigurationError]) -> str:
    """Return what a header gets from the secret *name*."""
    value = variables.get(name, "")
    if not value:
        raise error("names a secret that is not set", lacks=name)
    if not is_header_value(value):
        raise error("names a secret with a character that no header can carry")
    return value


def _quirks(place: _Place, preset: Quirks) -> Quirks:
    contents, tokens = ("empty", "null", "absent"), ("max_tokens", "max_completion_tokens")
    quirks = Quirks(
        stream_options=place.take("stream_options", _is_flag, "true or false", preset.stream_options),
        content=place.take("content", lambda value: value in contents, f"one of {', '.join(contents)}", preset.content),
        max_tokens=place.take(
            "max_tokens", lambda value: value in tokens, f"one of {', '.join(tokens)}", preset.max_tokens
        ),
        later_turns=place.take("later_turns", _is_flag, "true or false", preset.later_turns),
    )
    place.end()
    return quirks


def _models(place: _Place) -> dict[str, _Place]:
    def is_models(value: Any) -> bool:
        return isinstance(value, dict | list) and bool(value) and all(map(_is_text, value))

    models = place.take("models", is_models, "names of models, or an object with a member for each", [])
    members = models if isinstance(models, dict) else {name: {} for name in models}
    return {name: _Place(f"{place.path}.models[{at}]", each) for at, (name, each) in enumerate(members.items())}


def _model(place: _Place, otherwise: Model, *, is_listed: bool = False) -> Model:
    """Read how a model is asked; members that are missing are as in *otherwise*."""

    def ms(name: str) -> int | None:
        value: int | None = place.take(name, _is_ms, "whole milliseconds, 0 for no end", getattr(otherwise, name))
        return value

    defaults = place.place("defaults")
    system = defaults.take(
        "system",
        lambda value: _is_text(value) and len(value) <= _MOST_SYSTEM_CHARACTERS,
        f"a text of at most {_MOST_SYSTEM_CHARACTERS} characters",
        otherwise.system,
    )
    model = Model(
        request_timeout_ms=ms("request_timeout_ms"),
        idle_timeout_ms=ms("idle_timeout_ms"),
        total_timeout_ms=ms("total_timeout_ms"),
        continues=place.take("continues", _is_flag, "true or false", otherwise.continues),
        system=system,
        defaults={**otherwise.defaults, **_parameters(defaults)},
        price=_price(place),
        takes=frozenset(place.take("takes", _is_takes, f"some of {', '.join(sorted(CONTENTS))}", otherwise.takes)),
    )
    if is_listed:
        place.end()
    return model


def _is_takes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each in CONTENTS for each in value)


def _parameters(place: _Place) -> dict[str, Any]:
    members = place.rest()
    for name, value in members.items():
        wrong = "is a request's own" if name == TOOLS else wrong_parameter(name, value)
        if wrong is not None:
            raise place.error(name, wrong) if name in PARAMETERS else place.error_at(name, wrong)
    return members


def _price(place: _Place) -> Price | None:
    price = place.take("price", lambda value: isinstance(value, dict), "an object", None)
    return None if price is None else read_price(f"{place.path}.price", price)
