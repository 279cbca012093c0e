"""
Files that are too large for a message: kept in an object store, and named in messages by their id.

Files are in the store alone; the database has no row of them.  A file's key names its tenant and its user, so that all
files of a user are found.  An empty object whose key begins with the day of the upload stands beside the file, so that
retention deletes in the store's own order.  The empty object is written first, so that no file is forgotten if the
worker dies in between.
The id is made of the day, the user and the content, so that an upload whose reply was lost has the same id when it is
sent again.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, Protocol
from urllib.parse import quote

from chatturn.chat.parts import Part, file_ids_of
from chatturn.errors import FileMissing, FilesNotKept, PayloadTooLarge

__all__ = ["FILE_ID", "MAX_FILE_BYTES", "MAX_LOADED_BYTES", "FileFacts", "FileStore", "Files", "last_day"]

FILE_ID: Final = re.compile(r"file_([0-9]{8})_([0-9a-f]{16})_([0-9a-f]{32})")

MAX_FILE_BYTES: Final = 4_194_304
"""The most bytes of one file: 4 MiB."""

MAX_LOADED_BYTES: Final = 4_194_304
"""The most bytes of all stored files in one model call: each is 5 times in the isolate's memory of 128 MB."""

_DELETED_AT_ONCE: Final = 100
_PAGES_AT_ONCE: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """
    What is kept beside a file's content.

    Attributes:
        media_type: The file's media type, such as ``image/png``.
        name: The owner's name for the file; "" for none.
        size: The number of bytes.
        user_id: The user who uploaded the file.
    """

    media_type: str
    name: str
    size: int
    user_id: str


_NOTHING: Final = FileFacts(media_type="application/octet-stream", name="", size=0, user_id="")


def last_day(today: str, days: int) -> str:
    """Return the day *days* days after *today*, both ``YYYY-MM-DD``."""
    return (date.fromisoformat(today[:10]) + timedelta(days=days)).isoformat()


class FileStore(Protocol):
    """An object store.  Each method raises `FilesUnavailable` where it does not answer."""

    async def put(self, key: str, data: bytes, facts: FileFacts) -> None:
        """Keep *data* under *key*; the same again changes nothing."""

    async def head(self, key: str) -> FileFacts | None:
        """Return what is known of a file; None if there is none."""

    async def get(self, key: str) -> bytes | None:
        """Return a file's content; None if there is none."""

    async def stream(self, key: str, size: int) -> object | None:
        """Return the content of a file of *size* bytes, unread, as a body of the platform's; None if there is none."""

    async def keys(self, prefix: str, limit: int, *, after: str = "") -> Sequence[str]:
        """Return keys that begin with *prefix*, in their order, the first ones or those after one of them."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete what is under *keys*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """
    The files of one product.

    Attributes:
        project_id: The product's, so that several may share a store.
        store: The object store; None where no files are kept.
        owned: Whether only its user may see a file, and not the whole tenant.
    """

    project_id: str
    store: FileStore | None = None
    owned: bool = False

    async def keep(self, tenant_id: str, facts: FileFacts, data: bytes, today: str) -> str:
        """
        Keep a file, and return its id; the same file of the same day has the same id.

        Args:
            tenant_id: The tenant.
            facts: What is known of it.
            data: Its content.
            today: The day, ``YYYY-MM-DD``.

        Raises:
            FilesNotKept: The deployment has no store.
            FilesUnavailable: The store does not answer; the file may be sent again.
        """
        store, told = self._store(), f"{facts.media_type}\0{facts.name}\0".encode()
        digest = hashlib.sha256(told + data).hexdigest()[:32]
        file_id = f"file_{today.replace('-', '')}_{_hash(facts.user_id)}_{digest}"
        key = self._key(tenant_id, file_id)
        await store.put(self._beside(key), b"", _NOTHING)
        await store.put(key, data, facts)
        return file_id

    async def facts(self, tenant_id: str, user_id: str, file_id: str) -> FileFacts | None:
        """Return what is known of a file that this user may see; None if there is none."""
        facts = await self._store().head(self._key(tenant_id, file_id))
        return None if facts is None or (self.owned and facts.user_id != user_id) else facts

    async def content(self, tenant_id: str, user_id: str, file_id: str) -> tuple[FileFacts, bytes] | None:
        """Return a file that this user may see; None if there is none."""
        facts = await self.facts(tenant_id, user_id, file_id)
        data = None if facts is None else await self._store().get(self._key(tenant_id, file_id))
        return None if facts is None or data is None else (facts, data)

    async def stream(self, tenant_id: str, file_id: str, facts: FileFacts) -> object | None:
        """Return the content of a file, of which *facts* are known, unread; see `FileStore.stream`."""
        return await self._store().stream(self._key(tenant_id, file_id), facts.size)

    async def check(self, tenant_id: str, user_id: str, parts: Sequence[Part]) -> None:
        """
        Look whether all files that a message names are there.

        Raises:
            FileMissing: One is not.
            PayloadTooLarge: They are too large to be shown together.
            FilesNotKept, FilesUnavailable: As `keep`.
        """
        size = 0
        for file_id in file_ids_of(parts):
            facts = await self.facts(tenant_id, user_id, file_id)
            if facts is None:
                raise FileMissing("message names a file that is not there, or is another user's", field="message")
            size += facts.size
        if size > MAX_LOADED_BYTES:
            raise PayloadTooLarge(f"the files of a message may have {MAX_LOADED_BYTES} bytes together", field="message")

    async def delete_old(self, days: int, today: str) -> None:
        """Delete a bounded number of the files that came more than *days* days ago, the oldest first."""
        if self.store is None:
            return
        last = last_day(today, -days).replace("-", "")
        prefix = f"days/{self._project()}/"
        keys = await self.store.keys(prefix, _DELETED_AT_ONCE)
        if old := [key for key in keys if key.removeprefix(prefix)[:8] < last]:
            await self.store.delete([*map(self._behind, old), *old])

    async def forget(self, tenant_id: str, user_id: str, until: str) -> bool:
        """
        Delete files of a user, or, with an empty user, of a tenant: those that came until a day, some at once.

        Args:
            tenant_id: The tenant.
            user_id: The user of the tenant; "" for all users.
            until: The day, ``YYYY-MM-DD``.

        Returns:
            Whether none of them is left.
        """
        if self.store is None:
            return True
        prefix = f"files/{self._project()}/{_hash(tenant_id)}/" + (f"{_hash(user_id)}/" if user_id else "")
        last, after = until[:10].replace("-", ""), ""
        for _ in range(_PAGES_AT_ONCE):
            keys = await self.store.keys(prefix, _DELETED_AT_ONCE, after=after)
            if meant := [key for key in keys if key.split("/")[-2] <= last]:
                await self.store.delete([*meant, *map(self._beside, meant)])
            if len(keys) < _DELETED_AT_ONCE:
                return True
            after = keys[-1]
        return False

    def _store(self) -> FileStore:
        if self.store is None:
            raise FilesNotKept("there is no binding FILES")
        return self.store

    def _project(self) -> str:
        return quote(self.project_id, safe="")

    def _key(self, tenant_id: str, file_id: str) -> str:
        _, day, owner, digest = file_id.split("_")
        return f"files/{self._project()}/{_hash(tenant_id)}/{owner}/{day}/{digest}"

    def _beside(self, key: str) -> str:
        """Return the key by the day, for a file's own."""
        *_, tenant, owner, day, digest = key.split("/")
        return f"days/{self._project()}/{day}/{tenant}/{owner}/{digest}"

    def _behind(self, key: str) -> str:
        """Return a file's own key, for the one by the day."""
        *_, day, tenant, owner, digest = key.split("/")
        return f"files/{self._project()}/{tenant}/{owner}/{day}/{digest}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
