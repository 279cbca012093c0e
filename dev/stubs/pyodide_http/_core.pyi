class Request:
    def __init__(
        self,
        method: str,
        url: str,
        params: dict[str, str] | None = None,
        body: object = None,
        headers: dict[str, str] = ...,
        timeout: float = 0,
    ) -> None: ...

class Response:
    status_code: int
    headers: dict[str, str]
    body: bytes

def send(request: Request, stream: bool = False) -> Response: ...
