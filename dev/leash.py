"""
Runs a command that never outlives its parent: `python -m dev.leash COMMAND…`.

wrangler starts workerd, twice, and they stay when wrangler's parent is killed.
This process leads the group all of them are in. Its standard input is a pipe from the parent:
when that closes, however the parent died, the group ends.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Final

GRACE_SECONDS: Final = 3.0


def main(command: list[str]) -> None:
    """Run *command* until it ends or the parent goes, then end what is left of the group."""
    # SIGTERM goes to the whole group; this process has to see the others out. A handler that
    # does nothing, because an ignored signal would be ignored by the command as well.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    child.wait()
    time.sleep(0.1)  # workerd ends a moment after wrangler.
    os.killpg(0, signal.SIGKILL)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
