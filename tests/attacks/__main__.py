"""
`make attack`: each attack against a Worker of its own, bounded, with what it costs.

Of each: the memory of workerd before and at its worst, and how long `/healthz` takes others, before and at its worst.
Ends with 1 where an attack gets more than it may.
"""

import argparse
import json
import sys

from tests.attacks.attacks import ATTACKS
from tests.attacks.rig import table, tried


def main() -> int:
    """Run the attacks; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ATTACKS)}; all if none is named")
    parser.add_argument("--json", action="store_true", help="print figures, and no table")
    options = parser.parse_args()
    costs = [tried(name, ATTACKS[name]) for name in options.names or ATTACKS]
    print(json.dumps([cost.to_json() for cost in costs]) if options.json else table(costs))
    for cost in costs:
        for wrong in cost.wrong:
            print(f"{cost.name}: {wrong}")
    return 1 if any(cost.wrong for cost in costs) else 0


if __name__ == "__main__":
    sys.exit(main())
