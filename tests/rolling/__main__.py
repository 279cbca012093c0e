"""
`make rolling`: workers of an earlier version and of this one serve one database at the same time, killed at random.

The database is this version's, as in a deployment: its migrations come first.  ``--minutes 60`` goes on for an hour,
round after round; each round is finished by one of the two versions, in turns, and its sums are made at once.
``--switches 4`` has the real Worker in place of processes, in one version after the other.  Ends with 1 if anything was
lost, doubled or told differently.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.rolling.earlier import EARLIER, unpack
from tests.rolling.rig import ROOT, Figures, Version, run_round
from tests.rolling.workerd import run_switches

_KILLS_PER_ROUND = 100


def main() -> int:
    """Run the rig; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=0, help="rounds of 100 kills for so long, in place of --kills")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--switches", type=int, default=0, help="of the real Worker, in place of the rounds")
    options = parser.parse_args()
    figures, began, rounds = Figures(), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="chatturn-rolling-", ignore_cleanup_errors=True) as name:
        code = Path(name) / "earlier"
        code.mkdir()
        unpack(code)
        versions = Version("this version", ROOT), Version(f"the version of {EARLIER[:12]}", code)
        if options.switches:
            run_switches(Path(name), versions, options.switches, figures)
        else:
            rounds = _run_rounds(Path(name), versions, options, figures)
    print(
        f"{figures.table()}\n\nbeside {EARLIER[:12]}, seed {options.seed}, {rounds} rounds, {time.monotonic() - began:.0f} s"
    )
    for fault in figures.faults:
        print(fault)
    return 1 if figures.faults else 0


def _run_rounds(folder: Path, versions: tuple[Version, Version], options: argparse.Namespace, figures: Figures) -> int:
    """Go on for so many kills, or so many minutes, unless something is found; return how many rounds there were."""
    rounds, left, began = 0, options.kills, time.monotonic()
    while not figures.faults and (time.monotonic() - began < 60 * options.minutes if options.minutes else left > 0):
        kills = _KILLS_PER_ROUND if options.minutes else min(left, _KILLS_PER_ROUND)
        place = folder / f"round{rounds}"
        place.mkdir()
        pair = versions if rounds % 2 == 0 else (versions[1], versions[0])
        run_round(place, pair, kills=kills, seed=options.seed + 1_000 * rounds, figures=figures)
        rounds, left = rounds + 1, left - kills
        if options.minutes:
            print(f"round {rounds}, {time.monotonic() - began:.0f} s: {dict(figures.counts)}", flush=True)
    return rounds


if __name__ == "__main__":
    sys.exit(main())
