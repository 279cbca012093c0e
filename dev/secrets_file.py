"""`.dev.vars`: the secrets of local development, in the format wrangler reads."""

import os
import secrets
import time
from pathlib import Path
from typing import Final

import jwt

SIGNING_SECRET: Final = "AUTH_JWT_SECRET"  # noqa: S105 -- a name
_DAY_SECONDS: Final = 24 * 3600
_NEW_FILE: Final = """\
# Secrets for local development. Never committed; `make run` made this file.
# With OPENAI_API_KEY (and OPENAI_BASE_URL for another provider) `make run` talks to a real model.
"""


def read(path: Path) -> dict[str, str]:
    """Return the variables in *path*; none when there is no such file."""
    found = {}
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    for line in lines:
        name, equals, value = line.removeprefix("export ").partition("=")
        if equals and not name.lstrip().startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def ensure_signing_secret(path: Path) -> str:
    """Return AUTH_JWT_SECRET of *path*, adding a random one when it has none."""
    found = read(path).get(SIGNING_SECRET)
    if found:
        return found
    secret = secrets.token_urlsafe(32)
    existing = path.read_text("utf-8") if path.exists() else _NEW_FILE
    if existing and not existing.endswith("\n"):
        existing += "\n"
    # Created for its owner only; an existing file keeps its mode.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{existing}{SIGNING_SECRET}={secret}\n")
    return secret


def token(secret: str, *, tenant: str = "local", sub: str = "dev", scope: str = "turns", days: float = 7.0) -> str:
    """Return a bearer token: for the local Worker, if nothing else is said."""
    claims = {"sub": sub, "tenant": tenant, "scope": scope, "exp": int(time.time() + days * _DAY_SECONDS)}
    return jwt.encode(claims, secret, algorithm="HS256")
