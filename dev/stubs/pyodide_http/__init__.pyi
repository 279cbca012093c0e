# The parts of pyodide-http 0.2.2 that `workerd/sync_http.py` uses; the package itself is not annotated.

__version__: str
