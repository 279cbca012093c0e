"""Stored files in a conversation, put in the place of their ids before a model is asked."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatturn.backends.api import ChatMessage
from chatturn.chat.files import MAX_LOADED_BYTES, Files
from chatturn.chat.parts import STORED, Part, content_of, note_of
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.errors import FileMissing

__all__ = ["FilesOfTurn"]


@dataclass(slots=True, kw_only=True)
class FilesOfTurn:
    """
    Loads the files that one model call shows: the question's, then those of the turns before, the latest first.

    Attributes:
        files: The store of files.
        identity: The turn; only files that its user may see are shown.
    """

    files: Files
    identity: ChatTurnIdentity
    _loaded: dict[str, str | None] = field(default_factory=dict)
    _room: int = MAX_LOADED_BYTES

    async def content(self, text: str, parts: Sequence[Part]) -> Any:
        """
        Return a question as the content of its message: text, or a list of parts.

        Raises:
            FileMissing: A file is not there any more.
            FilesNotKept, FilesUnavailable: The store is gone, or does not answer.
        """
        if not parts:
            return text
        content = [await self._part(part) for part in content_of(parts)]
        if None in content:
            raise FileMissing("a file of the message is not there any more", field="message")
        return content

    async def history(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Return *messages* with their files; a note stands in place of a file that is gone, or finds no more room."""
        shown = [await self._message(message) for message in reversed(messages)]
        return shown[::-1]

    async def _message(self, message: ChatMessage) -> ChatMessage:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        parts = [await self._part(part) or _note(part) for part in content]
        return {**message, "content": parts}

    async def _part(self, part: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a part with its file; None if the file cannot be had."""
        for kind, member in (("image_url", "url"), ("file", "file_data")):
            address = part[kind].get(member) if isinstance(part.get(kind), Mapping) else None
            if isinstance(address, str) and address.startswith(STORED):
                loaded = await self._address(address.removeprefix(STORED))
                return None if loaded is None else {**part, kind: {**part[kind], member: loaded}}
        return part

    async def _address(self, file_id: str) -> str | None:
        if file_id not in self._loaded:
            self._loaded[file_id] = await self._load(file_id)
        return self._loaded[file_id]

    async def _load(self, file_id: str) -> str | None:
        tenant_id, user_id = self.identity.tenant_id, self.identity.user_id
        facts = await self.files.facts(tenant_id, user_id, file_id)
        if facts is None or facts.size > self._room:
            return None
        found = await self.files.content(tenant_id, user_id, file_id)
        if found is None:
            return None
        self._room -= facts.size
        return f"data:{facts.media_type};base64,{base64.b64encode(found[1]).decode()}"


def _note(part: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = "image" if part.get("type") == "image_url" else "file"
    name = {"name": part["file"].get("filename")} if kind == "file" else {}
    return {"type": "text", "text": note_of({"type": kind, **name})}
