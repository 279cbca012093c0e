"""`make chaos`: the rig, for as many kills as one likes; prints the table, and ends with 1 if anything was lost."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.rig import run


def main() -> int:
    """Run the rig; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    shown = sys.stderr.isatty()

    def progress(done: int) -> None:
        if shown and done % 10 == 0:
            print(f"\r{done:,} of {options.kills:,} killed ", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="chatturn-chaos-", ignore_cleanup_errors=True) as folder:
        report = run(Path(folder), kills=options.kills, seed=options.seed, progress=progress)
    if shown:
        print(file=sys.stderr)
    print(report.table())
    print(f"\nseed {options.seed}, {report.seconds:.0f} s")
    for name in ("lost", "doubled", "beyond", "broken"):
        for what in getattr(report, name):
            print(f"{name}: {what}")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
