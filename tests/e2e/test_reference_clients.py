"""Our own clients, each by the tests that lie beside it."""

import subprocess
import sys
from pathlib import Path

CLIENTS = Path(__file__).parents[2] / "clients"
NODE = Path(sys.executable).with_name("node")


def test_the_client_for_browsers_and_node() -> None:
    """`node --test`: resuming, dead connections, tokens, aborts, and a fetch without streams."""
    files = map(str, (CLIENTS / "typescript").glob("*.test.js"))
    done = subprocess.run([NODE, "--test", *files], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout[-8_000:]
    assert " pass 19\n" in done.stdout
