"""
`make test`: every rung, the two halves of it side by side.

The tests over HTTP mostly wait for Workers to start, and the others mostly compute, so together they take
hardly longer than the first half alone.  With arguments it is pytest with those arguments.
"""

import subprocess
import sys
import tempfile

from dev import paths

__all__ = ["main"]

_WAITING = ("tests/e2e",)
_COMPUTING = ("tests/unit", "tests/contract", "tests/chaos")


def main(arguments: list[str]) -> int:
    """Run the tests; return the exit status of pytest, of the half that failed if one did."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], cwd=paths.ROOT, check=False).returncode
    with tempfile.TemporaryFile("w+") as output:
        computing = subprocess.Popen([*pytest, *_COMPUTING], cwd=paths.ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            waited = subprocess.run([*pytest, *_WAITING], cwd=paths.ROOT, check=False).returncode
            computed = computing.wait()
        finally:
            computing.kill()
        output.seek(0)
        sys.stdout.write(output.read())
    return waited or computed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
