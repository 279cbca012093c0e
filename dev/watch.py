"""Notices edits of Python sources, without a dependency: a walk over a few hundred files."""

from collections.abc import Iterable
from pathlib import Path

from dev.bundle import Mounts, source_files

Fingerprint = frozenset[tuple[str, int, int]]


def fingerprint(mounts: Mounts, others: Iterable[Path]) -> Fingerprint:
    """Return a value that differs when any of the files was added, changed or removed."""
    watched = [path for _, path in source_files(mounts)] + list(others)
    found = set()
    for path in watched:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), status.st_mtime_ns, status.st_size))
    return frozenset(found)
