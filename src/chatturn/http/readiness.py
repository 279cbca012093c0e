"""Whether this deployment can run a turn and, if not, which command or setting mends it."""

from dataclasses import dataclass
from typing import Any, Final

from chatturn.backends.providers import PRESETS
from chatturn.errors import ConfigurationError, SchemaOutdated, StoreError, StoreFull
from chatturn.http.application import Application
from chatturn.http.auth import Authenticator
from chatturn.settings import setting_names

__all__ = ["Check", "check_readiness"]

_MEND_SCHEMA: Final = "wrangler d1 migrations apply DB --remote (locally: make run)"
_MEND_DATABASE: Final = "look at the log for the database's own words; the D1 dashboard shows its state"
_MEND_FULL: Final = "delete what is too old (RETENTION_DAYS, LOG_RETENTION_DAYS), or raise the plan's limit"
_MEND_BINDINGS: Final = {
    "DB": "declare the D1 binding DB under [[d1_databases]] in wrangler.toml",
    "AI": 'declare [ai] with binding = "AI" in wrangler.toml',
}
_KNOWN_SECRETS: Final = {*setting_names(), *(preset.key for preset in PRESETS.values())}
"""Secret names that may be shown; any other name may be a key that was entered in the wrong place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """
    One thing that a turn needs.

    Attributes:
        name: ``settings``, ``database`` or ``schema``.
        ok: Whether it is there; None if that is unknown, because an earlier check failed.
        detail: What is wrong.
        mend: The command or setting that mends it.
    """

    name: str
    ok: bool | None
    detail: str | None = None
    mend: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the check as a JSON object, without the members that are None; ``ok`` always stays."""
        members = {"name": self.name, "ok": self.ok, "detail": self.detail, "mend": self.mend}
        return {name: value for name, value in members.items() if value is not None or name == "ok"}


async def check_readiness(app: Application) -> tuple[Check, ...]:
    """
    Check the settings, the database and its schema.

    The details name settings and say what they must be.  They show no secret, since no error's message does, and no
    text of the database's own.
    """
    settings = _check_settings(app.authenticator)
    try:
        await app.chat().check()
    except ConfigurationError as error:
        # A fault that the first check has found is shown before this one.  The database has not been asked.
        settings = settings if settings.ok is False else _misconfigured(error)
        return (settings, Check(name="database", ok=None), Check(name="schema", ok=None))
    except SchemaOutdated as error:
        schema = Check(name="schema", ok=False, detail=error.public, mend=_MEND_SCHEMA)
        return (settings, Check(name="database", ok=True), schema)
    except StoreFull as error:
        database = Check(name="database", ok=False, detail=error.public, mend=_MEND_FULL)
        return (settings, database, Check(name="schema", ok=True))
    except StoreError as error:
        database = Check(name="database", ok=False, detail=error.public, mend=_MEND_DATABASE)
        return (settings, database, Check(name="schema", ok=None))
    return (settings, Check(name="database", ok=True), Check(name="schema", ok=True))


def _check_settings(authenticator: Authenticator) -> Check:
    try:
        authenticator.check()
    except ConfigurationError as error:
        return _misconfigured(error)
    return Check(name="settings", ok=True)


def _misconfigured(error: ConfigurationError) -> Check:
    return Check(name="settings", ok=False, detail=str(error), mend=_mend_setting(error))


def _mend_setting(error: ConfigurationError) -> str:
    name = error.setting.partition("[")[0]
    if name in _MEND_BINDINGS:
        return _MEND_BINDINGS[name]
    if error.lacks is not None and error.lacks not in _KNOWN_SECRETS:
        return "wrangler secret put, and the name that stands there (locally: a line in .dev.vars)"
    if error.lacks is not None or name.endswith(("_SECRET", "_KEY", "_HEADERS")):
        name = error.lacks or name
        return f"wrangler secret put {name} (locally: a line {name}=… in .dev.vars)"
    return f"set {name} under [vars] in wrangler.toml (locally: in .dev.vars)"
