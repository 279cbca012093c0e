"""How wrangler is called here: never online, never asking, nothing outside a folder of ours."""

import os
from pathlib import Path
from typing import Final

from dev import paths

_QUIET: Final = {
    "WRANGLER_SEND_METRICS": "false",
    "WRANGLER_SEND_ERROR_REPORTS": "false",
    "WRANGLER_HIDE_BANNER": "true",  # The banner is what looks for updates.
    "WRANGLER_NO_SKILLS_UPDATE_PROMPTS": "true",
    "CLOUDFLARE_CF_FETCH_ENABLED": "false",  # Request.cf is a fixed value.
    "X_LOCAL_EXPLORER": "false",
    "X_LOCAL_OBSERVABILITY": "false",  # It records every request for the explorer, in the same process.
    "DO_NOT_TRACK": "1",
    "CI": "1",
    "NO_COLOR": "1",
    "FORCE_COLOR": "0",
}


def command(*arguments: str) -> list[str]:
    """Return the command line of `wrangler ARGUMENTS…`, on the Node of this environment."""
    return [paths.node(), "--no-warnings", str(paths.WRANGLER), *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Return wrangler's environment variables; it keeps its logs and temporary files in *folder*."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    inherited = {
        name: value
        for name, value in os.environ.items()
        # A developer's Cloudflare account has no business here.
        if not name.startswith(("CLOUDFLARE_", "CF_", "WRANGLER_"))
    }
    own = {
        "TMPDIR": str(temporary),  # A killed wrangler leaves folders here.
        "NODE_COMPILE_CACHE": str(paths.BUILD / "node"),  # wrangler is 15 MB of JavaScript.
        "WRANGLER_LOG_PATH": str(folder / "wrangler-logs"),
        "WRANGLER_REGISTRY_PATH": str(folder / "registry"),
        "WRANGLER_CACHE_DIR": str(folder / "cache"),
    }
    return {**inherited, **_QUIET, **own}
