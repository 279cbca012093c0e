from typing import Any

class PyodideHTTPAdapter:
    def send(self, request: Any, *, stream: bool = False, timeout: Any = None) -> Any: ...
