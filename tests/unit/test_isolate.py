"""What is made of a deployment's settings: whatever is in them, it is made, or one setting is named, and none shown."""

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

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
from chatturn.settings import setting_names
from chatturn.telemetry.operator_log import json_line_log
from chatturn_testing.virtual_time import run
from products import make_hooks
from tests.support.platform import platform
from tests.support.private_settings import GOOD, PRIVATE, WHOLE, settings_with


def test_every_member_of_providers_is_tried() -> None:
    """Those that the module takes, by their names in its own text."""
    taken = set(re.findall(r'(?:take|place|ms)\(\s*"(\w+)"', inspect.getsource(providers)))

    assert {"kind", "takes", "idle_timeout_ms", "headers"} <= taken
    assert [] == [name for name in sorted(taken) if f'"{name}": ' not in json.dumps(WHOLE)]


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


@pytest.mark.slow
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
