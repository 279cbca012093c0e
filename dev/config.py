"""
The host's wrangler configuration, made from the deployment's.

Bindings, variables and cron triggers are taken from `wrangler.toml`, so that the Worker sees
locally what it sees when deployed. What only concerns Python modules is replaced.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["PLACEHOLDER_ID", "Config", "product_at_the_top", "read_toml", "table"]

PLACEHOLDER_ID: Final = "00000000-0000-0000-0000-"
"""What the id of a database begins with that has not been made."""

# Keys of the deployment that mean nothing, or something else, to a JavaScript host.
_REPLACED: Final = {"$schema", "main", "base_dir", "rules", "no_bundle", "env", "vars", "routes", "route", "build"}
# Bindings and vars are not inherited by `[env.<product>]`: wrangler's own rule.
_NOT_INHERITED: Final = {
    "vars", "d1_databases", "durable_objects", "workflows", "services", "kv_namespaces",
    "r2_buckets", "queues", "ai", "vectorize", "analytics_engine_datasets",
}  # fmt: skip


_NEW_ENVIRONMENT: Final = """\
{file} has no [env.{product}]. Add to it:

[env.{product}]
name = "{worker}-{product}"

[env.{product}.vars]
PRODUCT = "{product}"      # a name in src/products/__init__.py
PROJECT_ID = "{product}"
BACKEND = "openai"
OPENAI_BASE_URL = "https://api.openai.com/v1"
MODEL = "gpt-4.1-mini"

[[env.{product}.d1_databases]]
binding = "DB"
database_name = "{worker}-{product}"
database_id = "{placeholder}"      # to deploy: the one that `wrangler d1 create {worker}-{product}` prints
migrations_dir = "migrations"
"""


def _how_to_add(product: str, settings: Mapping[str, Any], file: str) -> str:
    number = len(settings.get("env", {})) + 1
    placeholder = f"{PLACEHOLDER_ID}{number:012}"
    return _NEW_ENVIRONMENT.format(
        product=product, worker=settings.get("name", "chatturn"), file=file, placeholder=placeholder
    )


def table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of a file of wrangler's; an empty one where there is none, or something else."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def product_at_the_top(settings: Mapping[str, Any]) -> str | None:
    """Return the product that needs no environment."""
    found: str | None = table(settings, "vars").get("PRODUCT")
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """
    Read a file of wrangler's.

    Raises:
        ValueError: It is not there, or no TOML; the message names it.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Config:
    """A Worker's configuration for one run."""

    deployment: Mapping[str, Any]
    """wrangler's settings, the chosen environment merged in."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to, or put in the place of, the deployment's `[vars]`."""

    @classmethod
    def read(cls, path: Path, *, environment: str | None = None, variables: Mapping[str, str] = {}) -> "Config":
        """
        Read *path* (`wrangler.toml`), with the settings of `[env.<environment>]` if given.

        Raises:
            ValueError: There is no such file or environment; the message says what to write.
        """
        settings = read_toml(path)
        if environment is not None and environment != product_at_the_top(settings):
            if not table(table(settings, "env"), environment):
                raise ValueError(_how_to_add(environment, settings, path.name))
            inherited = {k: v for k, v in settings.items() if k not in _NOT_INHERITED}
            settings = {**inherited, **settings["env"][environment]}
        return cls(deployment=settings, variables=variables)

    def exported_classes(self) -> dict[str, str]:
        """Return the classes, beside `Default`, that bindings of this Worker refer to."""
        found = {}
        for binding in self.deployment.get("durable_objects", {}).get("bindings", []):
            if "script_name" not in binding:
                found[binding["class_name"]] = "DurableObject"
        for binding in self.deployment.get("workflows", []):
            if "script_name" not in binding:
                found[binding["class_name"]] = "WorkflowEntrypoint"
        for binding in self.deployment.get("services", []):
            if "entrypoint" in binding and binding["service"] == self.deployment["name"]:
                found[binding["entrypoint"]] = "WorkerEntrypoint"
        return found

    def database_ids(self) -> dict[str, str]:
        """Return, for each D1 binding, the id that names its local database; without one wrangler takes its binding."""
        return {
            database["binding"]: database.get("preview_database_id", database.get("database_id", database["binding"]))
            for database in self.deployment.get("d1_databases", [])
        }

    def crons(self) -> list[str]:
        """Return the patterns at which the Worker is called."""
        return list(self.deployment.get("triggers", {}).get("crons", []))

    def for_host(self) -> dict[str, Any]:
        """Return the configuration of the JavaScript Worker that hosts Python."""
        kept = {key: value for key, value in self.deployment.items() if key not in _REPLACED}
        flags = [flag for flag in self.deployment.get("compatibility_flags", []) if not flag.startswith("python_")]
        return {
            **kept,
            "main": "main.mjs",
            "compatibility_flags": flags,
            "vars": {**self.deployment.get("vars", {}), **self.variables},
            "no_bundle": True,
            "find_additional_modules": True,
            "base_dir": ".",
            "rules": [
                {"type": "ESModule", "globs": ["**/*.mjs", "**/*.js"], "fallthrough": False},
                {"type": "CompiledWasm", "globs": ["**/*.wasm"], "fallthrough": False},
                {"type": "Data", "globs": ["**/*.zip", "**/*.tar", "**/*.bin"], "fallthrough": False},
                {"type": "Text", "globs": ["**/*.txt"], "fallthrough": False},
            ],
        }
