"""Start the Worker and let Schemathesis try it: by examples of each border, at random, and by sequences of calls."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.support.client import token
from tests.support.worker import running_worker

_FOLDER: Final = Path(__file__).parent
_ROOT: Final = _FOLDER.parents[1]
_SCOPES: Final = "turns turns:read operate"


def main(arguments: list[str]) -> int:
    """Return Schemathesis's exit status: 0 where nothing was found."""
    with running_worker() as worker, TemporaryDirectory() as cache:
        command = [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(_FOLDER / "schemathesis.toml")),
            *("run", f"{worker.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {token(scope=_SCOPES, exp=2**31)}"),
            *arguments,
        ]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.api.hooks", "PYTHONPATH": f"{_ROOT}:{_ROOT / 'src'}"}
        status = subprocess.run(command, env=environment, cwd=cache, check=False).returncode
        if status:
            print(worker.log)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
