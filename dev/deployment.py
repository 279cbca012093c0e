"""
What would go wrong with a deployment later, found before: each problem with the command or setting that mends it.

What this folder shows is looked at here.  What only the Cloudflare account knows, wrangler is asked: the one on the
PATH, with which its user is logged in, else this project's own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chatturn.backends.providers import parse_providers
from chatturn.errors import ConfigurationError
from chatturn.settings import Settings
from dev import paths, wrangler
from dev.config import PLACEHOLDER_ID, Config
from dev.server import StartError
from dev.snapshot import check_snapshot
from products import PRODUCTS

__all__ = ["Problem", "Target", "account_problems", "code_problems", "configuration_problems", "upload_problems"]

_COMPILED: Final = {".so", ".pyc", ".pyd", ".dylib"}
_UNAPPLIED: Final = re.compile(r"\b\d{4}_\w+\.sql\b")
_NOT_THERE_YET: Final = "does not exist"
"""Of a Worker that was never uploaded; its first secret makes it."""
_ANSWER_SECONDS: Final = 120
_LINES: Final = 3
"""Of what wrangler says when it cannot answer: the error; below it is general advice."""


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
    def variables(self) -> Mapping[str, str]:
        """Its `[vars]`."""
        found: Mapping[str, str] = self.config.deployment.get("vars", {})
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
    with tempfile.TemporaryDirectory(prefix="chatturn-") as folder:
        finished = subprocess.run(
            [
                *wrangler.command("deploy", "--dry-run"),
                *("--config", str(target.file), f"--env={target.environment}"),
                *("--outdir", str(Path(folder, "out"))),
            ],
            cwd=target.file.parent,
            env=wrangler.environment(Path(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if finished.returncode:
        yield Problem(f"wrangler refuses the configuration:\n{finished.stdout}", f"mend {target.file.name}")
    else:
        [size] = [line for line in finished.stdout.splitlines() if line.startswith("Total Upload")]
        print(f"{target.environment or 'the top of the file'}: {size}", flush=True)


def configuration_problems(target: Target) -> Iterator[Problem]:
    """Yield what is wrong with its settings."""
    try:
        settings = Settings.from_env(target.variables)
    except ConfigurationError as error:
        yield Problem(str(error), f"set it under {target.where}")
        return
    if settings.product not in PRODUCTS:
        yield Problem(
            f"PRODUCT = {settings.product} is no product",
            f"add it to src/products/__init__.py, or set PRODUCT under {target.where}",
        )
    if settings.auth == "off":
        yield Problem("AUTH is off: everybody may read and write every turn", f"take AUTH out of {target.where}")
    if settings.backend == "openai" and not (settings.model or settings.providers):
        yield Problem("MODEL is not set, and requests need not name one", f"set MODEL under {target.where}")
    try:
        _secrets_for(settings)
    except ConfigurationError as error:
        yield Problem(str(error), f"set it under {target.where}")


def account_problems(target: Target) -> Iterator[Problem]:
    """Yield what is missing in the Cloudflare account: databases, their tables, secrets."""
    for database in target.config.deployment.get("d1_databases", []):
        binding, name = database["binding"], database["database_name"]
        if database["database_id"].startswith(PLACEHOLDER_ID):
            yield Problem(
                f"{binding} has no database: its database_id is a placeholder",
                f"wrangler d1 create {name}, and put the id that it prints into {target.file.name}",
            )
        else:
            yield from _migration_problems(target, binding)
    yield from _secret_problems(target)


def _migration_problems(target: Target, binding: str) -> Iterator[Problem]:
    listed = _ask(target, "d1", "migrations", "list", binding, "--remote")
    if listed.returncode:
        yield _unanswered("which migrations are applied", listed)
    elif unapplied := sorted(set(_UNAPPLIED.findall(listed.stdout))):
        yield Problem(
            f"{binding} lacks migrations: {', '.join(unapplied)}",
            f"wrangler d1 migrations apply {binding} --remote{target.option}",
        )


def _secret_problems(target: Target) -> Iterator[Problem]:
    try:
        wanted = _secrets_for(Settings.from_env(target.variables))
    except ConfigurationError:
        return  # which `configuration_problems` tells
    listed = _ask(target, "secret", "list", "--format", "json")
    if listed.returncode and _NOT_THERE_YET not in listed.stdout:
        yield _unanswered("which secrets are set", listed)
        return
    present = set() if listed.returncode else {secret["name"] for secret in json.loads(listed.stdout)}
    for name in sorted(wanted - present - set(target.variables)):
        yield Problem(f"the secret {name} is not set", f"wrangler secret put {name}{target.option}")


def _secrets_for(settings: Settings) -> set[str]:
    """Return the names of the secrets without which no turn can be answered."""
    asked = _Asked()
    if settings.auth == "jwt" and not settings.auth_jwks_url:
        asked.get("AUTH_JWT_SECRET")
    if settings.backend == "openai" and settings.providers:
        parse_providers(settings.providers, asked)
    elif settings.backend == "openai":
        asked.get("OPENAI_API_KEY")
    return asked.names


class _Asked(dict[str, str]):
    """Variables that are all set; remembers which were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, _default: object = None) -> str:
        self.names.add(name)
        return "set"

    __getitem__ = get


def _ask(target: Target, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask the account."""
    found = shutil.which("wrangler")
    command = [found, *arguments] if found else wrangler.command(*arguments)
    return subprocess.run(
        [*command, "--config", str(target.file), f"--env={target.environment}"],
        cwd=target.file.parent,
        env={**os.environ, "CI": "1", "NO_COLOR": "1", "WRANGLER_HIDE_BANNER": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if "json" not in arguments else subprocess.PIPE,
        text=True,
        timeout=_ANSWER_SECONDS,
        check=False,
    )


def _unanswered(what: str, finished: subprocess.CompletedProcess[str]) -> Problem:
    lines = f"{finished.stdout or ''}\n{finished.stderr or ''}".splitlines()
    said = "\n".join([line for line in lines if line.strip()][:_LINES])
    return Problem(f"wrangler does not say {what}:\n{said}", "wrangler login, or set CLOUDFLARE_API_TOKEN")
