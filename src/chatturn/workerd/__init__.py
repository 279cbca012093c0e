"""
The platform: the only package besides ``entry.py`` that imports ``js``, ``pyodide`` and ``workers``.

Each module turns foreign objects into our values in one place, and implements one seam of the core.
It cannot be imported on CPython, so it is tested in the real runtime, workerd.

We take the raw bindings (``import_from_javascript("cloudflare:workers").env``) and not the SDK's wrapped ones:
the wrapper converts every row recursively in Python, and its shape differs between SDK generations.
"""
