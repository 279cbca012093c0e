"""
`make rolling`: workers of an earlier version and of this one serve one database at the same time, killed at random.

The database is this version's, as in a deployment: its migrations come first.  ``--minutes 60`` goes on for an hour,
round after round; each round is finished by one of the two versions, in turns, and its sums are made at once.  Ends
with 1 if anything was lost, doubled or told differently.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.rolling.earlier import EARLIER, unpack
from tests.rolling.rig import ROOT, Figures, Version, run_round

_KILLS_PER_ROUND = 100


def main() -> int:
    """Run the rig; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=0, help="rounds of 100 kills for so long, in place of --kills")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    figures, began, rounds = Figures(), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="chatturn-rolling-", ignore_cleanup_errors=True) as name:
        code = Path(name) / "earlier"
        code.mkdir()
        unpack(code)
        versions = Version("this version", ROOT), Version(f"the version of {EARLIER[:12]}", code)
        while not rounds or (not figures.faults and time.monotonic() - began < 60 * options.minutes):
            kills = min(options.kills, _KILLS_PER_ROUND) if not options.minutes else _KILLS_PER_ROUND
            folder = Path(name) / f"round{rounds}"
            folder.mkdir()
            run_round(
                folder,
                versions if rounds % 2 == 0 else (versions[1], versions[0]),
                kills=kills,
                seed=options.seed + 1_000 * rounds,
                figures=figures,
            )
            rounds += 1
            if options.minutes:
                print(f"round {rounds}, {time.monotonic() - began:.0f} s: {dict(figures.counts)}", flush=True)
            options.kills -= kills
            if not options.minutes and options.kills <= 0:
                break
    print(
        f"{figures.table()}\n\nbeside {EARLIER[:12]}, seed {options.seed}, {rounds} rounds, {time.monotonic() - began:.0f} s"
    )
    for fault in figures.faults:
        print(fault)
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
