"""
`make chaos`: both rigs, for as many kills as one likes; prints their tables, and ends with 1 if anything was lost.

The first has turns of their own, the second people who edit, type ahead and stop in threads that they share.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import threads
from tests.chaos.rig import run


def main() -> int:
    """Run the rig; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=5_000)
    parser.add_argument("--thread-kills", type=int, help="of the second rig; a fifth of the others by default")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    shown = sys.stderr.isatty()

    def progress(done: int) -> None:
        if shown and done % 10 == 0:
            print(f"\r{done:,} of {options.kills:,} killed ", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="chatturn-chaos-", ignore_cleanup_errors=True) as folder:
        report = run(Path(folder), kills=options.kills, seed=options.seed, progress=progress)
    thread_kills = options.kills // 5 if options.thread_kills is None else options.thread_kills
    with tempfile.TemporaryDirectory(prefix="chatturn-chaos-", ignore_cleanup_errors=True) as folder:
        of_threads = threads.run(Path(folder), kills=thread_kills, seed=options.seed, progress=progress)
    if shown:
        print(file=sys.stderr)
    print(report.table())
    print(f"\n{of_threads.table()}")
    print(f"\nseed {options.seed}, {report.seconds:.0f} s and {of_threads.seconds:.0f} s")
    for name in ("lost", "doubled", "beyond", "broken"):
        for what in getattr(report, name):
            print(f"{name}: {what}")
    print("\n".join(of_threads.faults))
    return 0 if report.clean and not of_threads.faults else 1


if __name__ == "__main__":
    sys.exit(main())
