# JavaScript's globals, as Pyodide shows them: anything may be there, and nothing is typed.

from typing import Any

def __getattr__(name: str) -> Any: ...
