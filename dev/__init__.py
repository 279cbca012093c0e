"""The embedded local runtime: `src/` in the real workerd, started by the real `wrangler dev`."""

import sys
from pathlib import Path

# The local database is brought to the schema by the same code that harnesses use.  At the end of the path, so that
# it hides nothing.
sys.path.append(str(Path(__file__).resolve().parent.parent / "src"))
