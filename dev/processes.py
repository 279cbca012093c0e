"""What still runs of a process group, by Linux's list of all processes; elsewhere by whether a signal finds it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["has_ended", "members"]

_PROCESSES: Final = Path("/proc")
_LISTED: Final = (_PROCESSES / "self" / "stat").exists()
_ENDED: Final = {"Z", "X"}


def has_ended(group: int) -> bool:
    """Return whether nothing of *group* runs any more."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return _LISTED and not any(members(group))


def members(group: int) -> Iterator[int]:
    """
    Yield the processes of *group* that run.

    One that has ended holds no port and no file, but a signal still finds it until its parent notices. With the
    parent gone that is up to init, and a container's takes seconds.
    """
    for folder in _PROCESSES.glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may contain anything; what follows it is the state, the parent, the group.
            state, _, leader, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(leader) == group and state not in _ENDED:
                yield int(folder.name)
