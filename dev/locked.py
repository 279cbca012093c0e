"""
Runs a command that nobody else runs at the same time: `python3 dev/locked.py FILE COMMAND…`.

Two set-ups in one folder would break each other.  This one needs nothing but Python: it runs before anything is
installed.
"""

import fcntl
import os
import sys


def main(file: str, *command: str) -> None:
    """Become *command* once *file* is ours; it is given back when the command and what that started have ended."""
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)  # noqa: PTH103, PTH120 - any Python 3 gets this far
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another set-up runs in this folder; waiting for its end …", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    os.execvp(command[0], command)  # noqa: S606 - the command line is the Makefile's


if __name__ == "__main__":
    main(*sys.argv[1:])
