"""A platform's Headers as a mapping."""

from collections.abc import Iterator, Mapping

from pyodide.ffi import JsProxy

__all__ = ["LazyHeaders"]


class LazyHeaders(Mapping[str, str]):
    """Headers, each read only when asked for, since few are.  Names are in lower case, also those asked for."""

    def __init__(self, headers: JsProxy) -> None:
        self._headers = headers
        self._get = headers.get

    def __getitem__(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers.keys())

    def __len__(self) -> int:
        return sum(1 for _ in self)
