# ruff: noqa: F401 - to have been imported is all that they are for
"""
Modules that the standard library imports at the first call that needs them: `strptime`, ``"…".encode("utf-16-le")``.

Imported here, with the Worker, all of it is in the snapshot that the platform takes of Python's memory, and no request
compiles it.
"""

import _strptime  # type: ignore[import-not-found]  # typeshed has no stub of it
import encodings.utf_16_be
import encodings.utf_16_le
