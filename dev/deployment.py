"""
What would go wrong with a deployment later, found before: each problem with the command or setting that mends it.

What this folder shows is looked at here; what only the Cloudflare account knows, `dev.account` asks.
"""

import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.log.live import EventAlarm
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import ConfigurationError
from chatturn.isolate import Platform, make_isolate
from chatturn.settings import Settings
from chatturn.telemetry.operator_log import print_log
from chatturn.transport import TransportRequest, TransportResponse
from dev import paths, wrangler
from dev.account import Unanswered, error_of, migrations_left, secret_names
from dev.config import PLACEHOLDER_ID, Config
from dev.server import StartError
from dev.snapshot import check_snapshot

__all__ = [
    "Problem",
    "Target",
    "account_problems",
    "code_problems",
    "configuration_problems",
    "upload_problems",
]

_COMPILED: Final = {".so", ".pyc", ".pyd", ".dylib"}
_UPLOAD_SECONDS: Final = 300
_STAND_IN: Final = "stand-in=for-a-secret-whose-value-is-not-known-here"
"""For each secret: fit to be a key, a header, and a list of headers."""

_SECRETS: Final = frozenset(item.name.upper() for item in fields(Settings) if item.metadata.get("secret"))


@dataclass(frozen=True)
class Problem:
    """
    Something that would fail.

    Attributes:
        what: Is wrong.
        mend: What to type or to write.
    """

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}\n    {self.mend}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """
    What is deployed.

    Attributes:
        config: Its settings.
        environment: In ``wrangler.toml``; "" for the top of the file.
        file: That file.
    """

    config: Config
    environment: str
    file: Path = paths.DEPLOYMENT_CONFIG

    @property
    def variables(self) -> Mapping[str, Any]:
        """Its `[vars]`."""
        found: Mapping[str, Any] = self.config.deployment.get("vars", {})
        return found

    @property
    def option(self) -> str:
        """What is added to a command that a person types."""
        return f" --env {self.environment}" if self.environment else ""

    @property
    def where(self) -> str:
        """Where its settings stand."""
        return f"[{self.prefix}vars] in {self.file.name}"

    @property
    def prefix(self) -> str:
        """What its tables begin with."""
        return f"env.{self.environment}." if self.environment else ""


def code_problems() -> Iterator[Problem]:
    """Yield what would be uploaded by mistake, or would break every Worker there."""
    for path in paths.SOURCES.rglob("*"):
        if path.suffix == ".py" and (path.name.startswith("test_") or path.name == "conftest.py"):
            yield Problem(f"{path.relative_to(paths.ROOT)} would be uploaded: all of src/ is", "move it to tests/")
    for path in paths.SOURCES.iterdir():
        if path.stem in sys.stdlib_module_names:
            yield Problem(
                f"{path.relative_to(paths.ROOT)} is named like a module of the standard library, which wins",
                "rename it",
            )
    for path in paths.VENDORED.rglob("*"):
        if path.suffix in _COMPILED:
            yield Problem(
                f"{path.relative_to(paths.ROOT)} is compiled, and a Worker runs pure Python",
                "take it out of requirements-worker.in",
            )
    try:
        for fault in check_snapshot().faults:
            what, _, mend = str(fault).rpartition(": ")
            yield Problem(what, mend)
    except StartError as error:
        yield Problem(f"the Worker cannot be imported:\n{error}", "mend it, and see it with make run")


def upload_problems(target: Target) -> Iterator[Problem]:
    """Yield why wrangler would not upload it; print how large it is."""
    try:
        with tempfile.TemporaryDirectory(prefix="chatturn-") as folder:
            finished = _dry_run(target, Path(folder))
    except subprocess.TimeoutExpired:
        yield Problem(f"wrangler does not check the upload within {_UPLOAD_SECONDS} s", "try again")
        return
    if finished.returncode:
        yield Problem(f"wrangler refuses the configuration:\n{error_of(finished.stdout)}", f"mend {target.file.name}")
    else:
        for size in re.findall("^Total Upload.*", finished.stdout, re.MULTILINE):
            print(f"{target.environment or 'the top of the file'}: {size}", flush=True)


def _dry_run(target: Target, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *wrangler.command("deploy", "--dry-run"),
            *("--config", str(target.file), f"--env={target.environment}"),
            *("--outdir", str(folder / "out")),
        ],
        cwd=target.file.parent,
        env=wrangler.environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=_UPLOAD_SECONDS,
        check=False,
    )


def configuration_problems(target: Target) -> Iterator[Problem]:
    """Yield what is wrong with its settings and bindings; which secrets are set is not looked at."""
    wrong = list(_wrong_settings(target))
    yield from wrong or _doubtful_settings(target)


def account_problems(target: Target) -> Iterator[Problem]:
    """Yield what is missing in the Cloudflare account: databases, their tables, secrets."""
    for database in target.config.deployment.get("d1_databases", []):
        binding, name = database["binding"], database.get("database_name") or target.config.deployment["name"]
        if not database.get("database_id") or database["database_id"].startswith(PLACEHOLDER_ID):
            yield Problem(
                f"{binding} has no database: its database_id is a placeholder",
                f"wrangler d1 create {name}, and put the id that it prints into {target.file.name}",
            )
        else:
            yield from _migration_problems(target, binding)
    if not list(_wrong_settings(target)):
        yield from _secret_problems(target)


def _migration_problems(target: Target, binding: str) -> Iterator[Problem]:
    try:
        left = migrations_left(target.file, target.environment, binding)
    except Unanswered as error:
        yield Problem(f"wrangler does not say which migrations are applied:\n{error}", error.mend)
        return
    if left:
        yield Problem(
            f"{binding} lacks migrations: {', '.join(left)}",
            f"wrangler d1 migrations apply {binding} --remote{target.option}",
        )


def _secret_problems(target: Target) -> Iterator[Problem]:
    try:
        names = secret_names(target.file, target.environment)
    except Unanswered as unanswered:
        yield Problem(f"wrangler does not say which secrets are set:\n{unanswered}", unanswered.mend)
        return
    variables = {**dict.fromkeys(names, _STAND_IN), **target.variables}
    while (error := _first_error(target, variables)) is not None:
        if error.lacks is None:
            yield Problem(str(error), _mend(error, target))
            return
        yield Problem(f"the secret {error.lacks} is not set", f"wrangler secret put {error.lacks}{target.option}")
        variables[error.lacks] = _STAND_IN


def _wrong_settings(target: Target) -> Iterator[Problem]:
    """Yield each setting that is wrong, whatever the secrets are: it is taken out, and the rest is looked at."""
    variables = {**dict.fromkeys(_SECRETS, _STAND_IN), **target.variables}
    while (error := _first_error(target, variables, may_have_others=True)) is not None:
        if error.lacks is not None:
            variables[error.lacks] = _STAND_IN
            continue
        yield Problem(str(error), _mend(error, target))
        name = re.split(r"\W", error.setting)[0]
        if variables.pop(name, None) is None:
            return  # A binding, for instance: what is behind it cannot be looked at.


def _doubtful_settings(target: Target) -> Iterator[Problem]:
    """Yield what a Worker would start with, and nobody can have meant."""
    settings = Settings.from_env(target.variables)
    for name in ("PRODUCT", "BACKEND"):
        if not target.variables.get(name):
            default = getattr(settings, name.lower())
            yield Problem(f"{name} is not set, which means {default}", f"set {name} under {target.where}")
    if settings.auth == "off":
        yield Problem("AUTH is off: everybody may read and write every turn", f"take AUTH out of {target.where}")
    if settings.backend == "openai" and not settings.model:
        yield Problem("MODEL is not set, and requests need not name one", f"set MODEL under {target.where}")


def _mend(error: ConfigurationError, target: Target) -> str:
    tables = {"DB": f"[[{target.prefix}d1_databases]]", "AI": f"[{target.prefix}ai]"}
    if error.setting in tables:
        return f'declare {tables[error.setting]} with binding = "{error.setting}" in {target.file.name}'
    if error.setting == "PRODUCT":
        return f"set PRODUCT under {target.where}, or add the product to src/products/__init__.py"
    return f"set it under {target.where}"


def _first_error(
    target: Target, variables: Mapping[str, Any], *, may_have_others: bool = False
) -> ConfigurationError | None:
    """
    Return what the Worker's first request would say is wrong with its settings and bindings.

    Args:
        target: Whose bindings are looked at.
        variables: Its vars and secrets.
        may_have_others: Whether it may have secrets beside these.
    """

    def hooks(product: str, own: Mapping[str, str]) -> ChatTurnHooks:
        asked = _Asked(own)
        try:
            return _hooks(product, asked)
        except ConfigurationError:
            raise
        except Exception as failure:
            if _STAND_IN in asked.values_told or (may_have_others and asked.missed):
                return ChatTurnHooks()  # It depends on a secret, whose value nobody here knows.
            missed = f"; they ask for {', '.join(asked.missed)}, which is not set" if asked.missed else ""
            raise ConfigurationError(
                "PRODUCT", f"its hooks cannot be made: {type(failure).__name__}{missed}"
            ) from failure

    try:
        make_isolate(hooks, _platform(target, variables)).authenticator.check()
    except ConfigurationError as error:
        return error
    return None


def _hooks(product: str, variables: Mapping[str, str]) -> ChatTurnHooks:
    """Make a product's hooks, if the products can be imported outside a Worker: `code_problems` does so inside one."""
    try:
        products = import_module("products")
    except Exception:  # noqa: BLE001 -- whatever a module of somebody else's raises: a package that only Workers have
        return ChatTurnHooks()
    made: ChatTurnHooks = products.make_hooks(product, variables)
    return made


class _Asked(dict[str, str]):
    """
    A product's own vars and secrets, which remember what was asked for.

    Attributes:
        missed: Names that are not there.
        values_told: What was.
    """

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__(own)
        self.missed: list[str] = []
        self.values_told: list[str] = []

    def __getitem__(self, name: str) -> str:
        if name not in self:
            self.missed.append(name)
        value = super().__getitem__(name)
        self.values_told.append(value)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return a var or a secret."""
        try:
            return self[name]
        except KeyError:
            return default


def _platform(target: Target, variables: Mapping[str, Any]) -> Platform:
    """Return what the Worker would have; nothing of it is used while an isolate is made."""
    deployment = target.config.deployment
    bound = {database.get("binding") for database in deployment.get("d1_databases", [])}
    return Platform(
        variables=variables,
        database=SqliteDatabase(":memory:") if "DB" in bound else None,
        transport=_NoServers(),
        binding=_NoServers() if deployment.get("ai", {}).get("binding") == "AI" else None,
        limiters={},
        alarm=EventAlarm,
        file_store=None,
        verify=_no_signature,
        console=print_log,
        uniform=random.uniform,
        now=time.time,
        now_ns=time.time_ns,
        new_id=secrets.token_hex,
    )


class _NoServers:
    """Reaches nobody."""

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator[TransportResponse]:
        """Refuse."""
        raise NotImplementedError(request.url)
        yield  # A generator has one.


async def _no_signature(*_: object) -> bool:
    return False
