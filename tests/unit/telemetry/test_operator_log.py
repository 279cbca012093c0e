"""Log lines: one line of JSON each, whatever happens, and no secrets in them."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.chat.deployment import Deployment
from chatturn.durable.runner import RunDurableInput
from chatturn.errors import BackendRejected, LeaseLost
from chatturn.telemetry.operator_log import json_line_log, print_log
from chatturn.telemetry.redaction import without_secrets


def logged(event: str, **particulars: object) -> dict[str, Any]:
    """What a record's line says."""
    lines: list[str] = []
    json_line_log(lines.append)(event, particulars)
    [line] = lines
    members: dict[str, Any] = json.loads(line)
    return members


def raised(error: Exception) -> Exception:
    """The error, with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


class Kind(StrEnum):
    """A text of a closed set."""

    TOOL = "tool"


class UnreadableError(Exception):
    """An error that cannot even say what it is."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError


def test_a_record_says_what_happened_and_with_what() -> None:
    """Level and event first, then the particulars as they are."""
    line = logged("sweep.done", runs=3, seconds=0.5, dry=False, kind=Kind.TOOL, ids=["a", "b"], more={"x": None})

    assert list(line.items()) == [
        ("level", "info"),
        ("event", "sweep.done"),
        ("runs", 3),
        ("seconds", 0.5),
        ("dry", False),
        ("kind", "tool"),
        ("ids", ["a", "b"]),
        ("more", {"x": None}),
    ]


def test_an_error_of_ours_is_written_with_its_code() -> None:
    """The class, the code and the message are what an operator searches for."""
    line = logged("segment.lost", error=LeaseLost("taken over", run_id="r"))

    assert line["level"] == "error"
    assert line["error"] == {"type": "LeaseLost", "message": "run 'r': taken over", "code": "lease_lost"}


def test_what_the_model_said_reaches_the_log() -> None:
    """The log is the one place where an upstream's own words belong."""
    line = logged("chat.failed", error=BackendRejected("400", backend="openai", detail='{"error":"no such model"}'))

    assert line["error"]["detail"] == '{"error":"no such model"}'


def test_a_bug_comes_with_its_traceback_and_cause() -> None:
    """An error that nobody raises on purpose says where it is from."""
    error = ValueError("x")
    error.__cause__ = KeyError("y")
    line = logged("hook.failed", error=raised(error))

    assert "in raised" in line["error"].pop("traceback")
    assert line["error"] == {"type": "ValueError", "message": "x", "cause": "KeyError: 'y'"}


def test_a_record_may_set_its_level_but_not_its_event() -> None:
    """What happened is said by the event alone."""
    line = logged("spans.dropped", level="warning", error=ValueError())
    lines: list[str] = []
    json_line_log(lines.append)("real", {"event": "fake"})

    assert line["level"] == "warning"
    assert json.loads(lines[0])["event"] == "real"


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Authorization",
        "api_key",
        "OPENAI_API_KEY",
        "apiKey",
        "auth_jwt_secret",
        "password",
        "token",
        "accessToken",
        "Set-Cookie",
        "credentials",
    ],
)
def test_values_with_secret_names_are_not_written(name: str) -> None:
    """At any depth, whatever they are."""
    line = logged("http.failed", headers=[{name: {"deep": "hunter2"}}])

    assert line["headers"] == [{name: "[redacted]"}]


@pytest.mark.parametrize("name", ["input_tokens", "idempotency_key", "key", "author"])
def test_values_with_harmless_names_are_written(name: str) -> None:
    """What operators need stays."""
    assert logged("usage", **{name: 7})[name] == 7


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abcdef123456",
        "bearer  abcdef123456==",
        "sk-proj-abcdef123456",
        "sk-ab****************xyz",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "xoxb-1234567890-abcdef",
        "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
        "AKIAABCDEFGHIJKLMNOP",
        "sk_live_abcdefghijklmnop",
        "glpat-abcdefghijklmnopqrst",
    ],
)
@pytest.mark.parametrize("wrap", [str, ValueError, lambda text: {text: 1}], ids=["text", "error", "name"])
def test_tokens_and_keys_inside_texts_are_not_written(secret: str, wrap: Callable[[str], object]) -> None:
    """An upstream that quotes the key it refused does not put it in the log."""
    line = json.dumps(logged("chat.failed", said=wrap(f"refused: {secret}, sorry")))

    assert secret not in line
    assert "refused: [redacted], sorry" in line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("connect to postgres://ann:hunter2@db:5432/x", "connect to postgres://[redacted]@db:5432/x"),
        ("see https://example.com:8080/a@b", "see https://example.com:8080/a@b"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- bye", "[redacted] bye"),
    ],
)
def test_passwords_and_private_keys_inside_texts_are_not_written(text: str, shown: str) -> None:
    """An address keeps its host, and one without a password stays as it is."""
    assert shown == logged("chat.failed", said=text)["said"]


@pytest.mark.parametrize(
    "unit",
    ["eyJ-", "eyJ", "eyJa.", "-eyJ.a-", "eyJ0123456789.", "sk-", "bearer ", "://a:", "-----BEGIN ", "ghp_-", "xoxb-"],
)
def test_no_text_makes_the_search_for_secrets_take_long(unit: str) -> None:
    """What a user may send, 200,000 characters, is looked through in no time, whatever it is made of."""
    began_s = time.process_time()
    without_secrets(unit * (200_000 // len(unit)))

    assert time.process_time() - began_s < 3


def test_long_texts_are_cut() -> None:
    """And say how long they were."""
    assert logged("x", text="a" * 5_000)["text"] == "a" * 4_096 + "… (5000 characters)"


def test_a_line_is_one_line_of_ascii() -> None:
    """Whatever splits lines, it does not split this one; whatever prints it, it can."""
    lines: list[str] = []
    json_line_log(lines.append)("x", {"text": "a\nb\r\u2028\x85é\ud800"})

    assert lines[0].isascii()
    assert len(lines[0].splitlines()) == 1


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.builds(ValueError, inner),
    max_leaves=20,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), anything))
def test_everything_can_be_logged(particulars: dict[str, object]) -> None:
    """A record of whatever shape is one line of strict JSON."""
    lines: list[str] = []
    json_line_log(lines.append)("x", particulars)

    [line] = lines
    json.loads(line, parse_constant=pytest.fail)


def test_what_json_cannot_carry_is_named_by_its_type() -> None:
    """A line that says little is better than none."""
    cycle: list[object] = []
    cycle.append(cycle)
    line = logged("x", nan=math.nan, huge=10**5_000, bytes=b"x", cycle=cycle)

    assert (line["nan"], line["huge"], line["bytes"]) == ("<float>", "<int>", "<bytes>")
    assert "<list>" in json.dumps(line["cycle"])


def test_an_error_that_cannot_be_read_still_makes_a_line() -> None:
    """The event is not lost."""
    line = logged("x", error=UnreadableError())

    assert line == {"level": "error", "event": "x", "unreadable": "RuntimeError"}


def test_a_broken_log_does_not_stop_the_turn() -> None:
    """A failure to write is swallowed: there is nobody left to tell."""

    def write(_: str) -> None:
        raise OSError

    json_line_log(write)("x", {})


def test_a_log_that_nobody_names_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the default of a deployment and of a run."""
    defaults = {each.name: each.default for cls in (Deployment, RunDurableInput) for each in fields(cls)}
    print_log("x", {"n": 1})

    assert defaults["log"] is print_log
    assert {"event": "x", "n": 1}.items() <= json.loads(capsys.readouterr().out).items()
