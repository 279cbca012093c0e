"""Settings that have a private text in one place: the wrong variable, a value, a name, deep inside."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from chatturn.settings import Settings, setting_names

__all__ = ["GOOD", "PRIVATE", "WHOLE", "settings_with"]

GOOD: Final = {
    "AUTH_JWT_SECRET": "a secret of thirty-two bytes, or more",
    "OPENAI_API_KEY": "sk-a-key-that-is-right",
    "GROQ_API_KEY": "another-key-that-is-right",
    "BACKEND": "openai",
    "MODEL": "m",
}
# Keys as they are: none of these shapes is one that the log would know and take out.
PRIVATE: Final = (
    "live-0123456789ABCDEF-meant-for-another-setting",
    "AKIA0123456789ABCDEFGHIJ",
    "0123456789abcdef01234567",
)

WRONG: Final[tuple[Any, ...]] = (None, True, -1, 1.5, "", [], {}, 1e400, "\ud800")

WHOLE: Final[Mapping[str, Any]] = {
    "PROVIDERS": [
        {
            "kind": "compatible",
            "name": "home",
            "base_url": "https://h.example/v1",
            "key": "GROQ_API_KEY",
            "headers": {"x-team": "a", "x-key": "${GROQ_API_KEY}"},
            "query": {"version": "1"},
            "quirks": {"stream_options": True, "content": "null", "max_tokens": "max_tokens", "later_turns": True},
            "request_timeout_ms": 1,
            "idle_timeout_ms": 1,
            "total_timeout_ms": 1,
            "continues": True,
            "takes": ["image_url"],
            "defaults": {
                "system": "Be brief.",
                "temperature": 0.5,
                "stop": ["x"],
                "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
            },
            "price": {"in": 1, "out": 2.5, "cached": 0.5},
            "models": {"m": {"idle_timeout_ms": 1, "price": {"in": 1, "out": 1}, "defaults": {"seed": 1}}},
        },
        {"kind": "groq", "models": ["n"]},
    ],
    "PRICES": {"m": {"in": 1, "out": 2.5, "cached": 0.5}},
}
"""The settings that are JSON, with every member that they may have."""


def put_everywhere(value: Any, private: str) -> Iterator[Any]:
    """Yield *value* once for each place in it, with *private* there: as a value, in one, as a name, beside the others."""
    yield from (
        private,
        [private],
        {private: private},
        f"https://{private}@h.example/[",
        "${" + private + "}",
        "${" + private,
    )
    if isinstance(value, dict):
        yield {**value, private: 1}
        for name, member in value.items():
            yield {(private if each == name else each): value[each] for each in value}
            yield from ({**value, name: other} for other in put_everywhere(member, private))
            yield from ({**value, name: wrong} for wrong in WRONG)
    if isinstance(value, list):
        yield [*value, private]
        for at, item in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in put_everywhere(item, private))


def texts(private: str) -> Iterator[str]:
    """Yield *private* as it may stand in a setting that is no JSON."""
    yield private
    for form in (
        "{}, x", "x, {}", "{}=x", "x={}", "x=%0a{}", "https://{}", "https://{}@h.example/v1", "https://a:{}@h.example", "https://[{}",
        "https://h.example:{}", "https://h.example/#{}", "https://h.example/v1 {}", "{}\n", "x\n{}", "[{}", "{}\ud800", "1{}",
        "-----BEGIN PUBLIC KEY-----{}",
    ):  # fmt: skip
        yield form.format(private)


def settings_with(private: str) -> Iterator[Mapping[str, object]]:
    """Yield settings that have *private* in one place, one after the other for all places."""
    for name in setting_names():
        yield from ({name: text} for text in texts(private))
        yield from ({name: value} for value in (1, 1.5, True, None, [private], {private: private}))
    for name, whole in WHOLE.items():
        yield from ({name: json.dumps(value)} for value in put_everywhere(whole, private))
        yield {name: json.dumps(whole)[:-1] + private}
        yield {name: "[" * 10_000 + private}
    names = [item.name.upper() for item in fields(Settings) if item.metadata.get("secret")]
    for name in [*names, "GROQ_API_KEY"]:
        yield {"PROVIDERS": json.dumps(WHOLE["PROVIDERS"]), name: f"{private}\n"}
        yield {name: f"{private}\u20ac"}
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example.com"}
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SERVICE_NAME"):
        yield from ({**collector, name: text} for text in texts(private))
    for further in ({"AUTH_JWKS_URL": f"https://{private}"}, {"AUTH_JWKS_URL": f"http://{private}.example"}):
        yield {**further, "AUTH_ISSUER": private}
