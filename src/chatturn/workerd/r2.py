"""`FileStore` over an R2 bucket."""

from collections.abc import Sequence
from typing import Any, Final

import js
from pyodide.ffi import JsException, JsProxy, to_js

from chatturn.chat.files import FileFacts
from chatturn.errors import FilesUnavailable
from chatturn.workerd.ffi import js_object, settled, started

__all__ = ["R2Files"]

_new_fixed_length: Final = js.FixedLengthStream.new  # type: ignore[attr-defined]  # no class in the stub


class R2Files:
    """
    Files in a bucket; their `FileStore` attributes are in the objects' metadata.

    Args:
        bucket: The raw binding.
    """

    def __init__(self, bucket: JsProxy) -> None:
        self._bucket = bucket

    async def put(self, key: str, data: bytes, facts: FileFacts) -> None:
        """Keep *data* under *key*; see `FileStore.put`."""
        metadata = {"name": facts.name, "user": facts.user_id}
        options = {"httpMetadata": {"contentType": facts.media_type}, "customMetadata": metadata}
        await self._asked("put", key, to_js(data), js_object(options))

    async def head(self, key: str) -> FileFacts | None:
        """Return a file's attributes; see `FileStore.head`."""
        found = await self._asked("head", key)
        if not found:
            return None
        metadata = found.customMetadata
        return FileFacts(
            media_type=found.httpMetadata.contentType, name=metadata.name, size=found.size, user_id=metadata.user
        )

    async def get(self, key: str) -> bytes | None:
        """Return a file's content; see `FileStore.get`."""
        found = await self._asked("get", key)
        if not found:
            return None
        try:
            content: bytes = (await settled(started(found.arrayBuffer.bind(found)))).to_bytes()
        except JsException as error:
            raise FilesUnavailable(str(error)) from error
        return content

    async def stream(self, key: str, size: int) -> JsProxy | None:
        """Return a file's content as the platform's stream; see `FileStore.stream`."""
        found = await self._asked("get", key)
        # Through a stream of a known length, for the header Content-Length.
        return found.body.pipeThrough(_new_fixed_length(size)) if found else None

    async def keys(self, prefix: str, limit: int, *, after: str = "") -> Sequence[str]:
        """Return keys that begin with *prefix*; see `FileStore.keys`."""
        behind = {"startAfter": after} if after else {}
        found = await self._asked("list", js_object({"prefix": prefix, "limit": limit, **behind}))
        return [each.key for each in found.objects]

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete what is under *keys*; see `FileStore.delete`."""
        await self._asked("delete", to_js(list(keys)))

    async def _asked(self, method: str, *arguments: Any) -> Any:
        """Call a method of the bucket; like all of them it returns a promise."""
        bucket = self._bucket
        try:
            return await settled(started(getattr(bucket, method).bind(bucket, *arguments)))
        except JsException as error:
            raise FilesUnavailable(str(error)) from error
