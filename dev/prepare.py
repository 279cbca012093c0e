"""The end of `make setup`: one start of the Worker, which leaves behind what makes the next ones fast."""

import tempfile
from pathlib import Path

from dev import paths
from dev.config import Config
from dev.server import Server

__all__ = ["main"]


def main() -> None:
    """Start it and end it politely: that is when Node writes down how it compiled wrangler."""
    with tempfile.TemporaryDirectory(prefix="chatturn-") as folder:
        server = Server(
            folder=Path(folder, "worker"),
            state=Path(folder, "state"),
            config=Config.read(paths.DEPLOYMENT_CONFIG, variables={"BACKEND": "echo"}),
            mounts={"": paths.SOURCES, "python_modules": paths.VENDORED},
            schema=paths.SCHEMA,
        )
        server.start()
        server.stop()


if __name__ == "__main__":
    main()
