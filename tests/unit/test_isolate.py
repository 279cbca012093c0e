"""What is made of a deployment's settings: whatever is in them, it is made, or one setting is named, and none shown."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.backends import providers
from chatturn.chat.service import DurableChatService
from chatturn.errors import ConfigurationError
from chatturn.http.application import Application
from chatturn.http.messages import HttpRequest
from chatturn.http.routes import handle
from chatturn.isolate import make_isolate
from chatturn.settings import Settings, setting_names
from chatturn.telemetry.operator_log import json_line_log
from chatturn_testing.virtual_time import run
from products import make_hooks
from tests.support.platform import platform

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


def test_every_member_of_providers_is_tried() -> None:
    """Those that the module takes, by their names in its own text."""
    taken = set(re.findall(r'(?:take|place|ms)\(\s*"(\w+)"', inspect.getsource(providers)))

    assert {"kind", "takes", "idle_timeout_ms", "headers"} <= taken
    assert [] == [name for name in sorted(taken) if f'"{name}": ' not in json.dumps(WHOLE)]


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


async def told_by(variables: Mapping[str, object]) -> tuple[list[int], str]:
    """Return the statuses of some requests of everybody, and all that they, and the log, have said."""
    lines: list[str] = []
    log = json_line_log(lines.append)

    def failed(what: str, error: BaseException) -> None:
        log("request.failed", {"request": what, "error": error})

    try:
        isolate = make_isolate(make_hooks, platform(variables, console=log))
    except ConfigurationError as error:
        app = Application.unconfigured(error, log=failed)
    else:
        app = Application(
            authenticator=isolate.authenticator,
            service=DurableChatService(deployment=isolate.chat),
            log=failed,
            tickets=isolate.tickets,
            cors=isolate.cors,
        )
    statuses, said = [], ""
    for method, path in (("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/v1/sessions/s/turns/0")):
        response = await handle(HttpRequest(method=method, path=path, query="", headers={}, read=_nothing), app)
        statuses.append(response.status)
        said += f"{response.headers}{response.body!r}"
    return statuses, said + "".join(lines)


async def _nothing(_most: int) -> bytes:
    return b""


@pytest.mark.parametrize("private", PRIVATE)
async def test_nothing_that_stands_in_a_setting_is_told(private: str) -> None:
    """In whatever place: not at `/readyz` and `/healthz`, which everybody may ask, and not in the log."""
    count = 0
    for variables in settings_with(private):
        count += 1
        statuses, said = await told_by({**GOOD, **variables})

        assert private not in said, variables
        assert private.lower() not in said.lower(), variables
        assert statuses[0] == 200
        assert statuses[1] in {200, 503}, variables

    assert count > 1_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(PRIVATE),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PRIVATE) | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(name=st.sampled_from(setting_names()), value=JSON | st.text().map(lambda text: text + PRIVATE[0]))
def test_any_value_is_a_setting_or_a_wrong_one(name: str, value: Any) -> None:
    """Never another error, which every request would meet."""
    text = value if isinstance(value, str) else json.dumps(value)
    statuses, said = run(told_by({**GOOD, name: text}))

    assert not [private for private in PRIVATE if private in said]
    assert statuses[0] == 200
