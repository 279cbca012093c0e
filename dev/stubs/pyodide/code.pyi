from collections.abc import Callable
from typing import Any

def relaxed_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...
