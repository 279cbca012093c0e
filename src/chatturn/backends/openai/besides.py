"""
What a model says besides text, reasoning and tool calls: citations, images, audio, refusals, log probabilities, more.

It is collected from the answer's pieces and told at the answer's end, each kind as an event of its own.  Of a
value over its limit only the name and the length are told; a citation over its limit is left out.

Source:
    OpenAI, Chat Completions (annotations, audio, refusal, logprobs); OpenRouter, image generation (images) and web
    search (annotations); Perplexity, API reference (citations, search_results).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chatturn.backends.openai.kept import merged
from chatturn.events import ChatStreamEvent
from chatturn.jsontext.depth import nests_deeper

__all__ = ["KNOWN", "MAX_BESIDES_CHARACTERS", "MAX_VALUE_CHARACTERS", "Besides"]

MAX_VALUE_CHARACTERS: Final = 100_000
"""The longest JSON of one event's data, because a line of a log is stored as a whole."""

MAX_BESIDES_CHARACTERS: Final = 300_000
"""The longest JSON of all that one answer says besides its text."""

_MOST_NAME_CHARACTERS: Final = 60
_DEEPEST: Final = 30
_INLINE: Final = "data:"

_ROLE_AND_TEXT: Final = frozenset({"role", "content", "name", "index", "id", "type"})
_TOLD_OTHERWISE: Final = frozenset(
    {"reasoning", "reasoning_content", "reasoning_text", "reasoning_details", "thinking", "thinking_blocks"}
    | {"reasoning_signature", "signature", "thought_signature", "extra_content", "tool_calls", "function_call"}
    | {"error", "obfuscation", "token_ids", "finish_reason", "finishReason", "logprobs"}
)
KNOWN: Final = _ROLE_AND_TEXT | _TOLD_OTHERWISE
"""Members of a delta that are read elsewhere, or not at all."""

_CITATIONS: Final = frozenset({"annotations", "citations", "search_results"})
_CITATION_PARTS: Final = frozenset({"url_citation", "file_citation", "citation"})
_EMPTY: Final[tuple[Any, ...]] = (None, False, "", [], {})


class Besides:
    """Collects what one answer says besides its text, from the answer's pieces."""

    def __init__(self) -> None:
        self._citations: list[Any] = []
        self._images: list[Mapping[str, Any]] = []
        self._audio: list[Mapping[str, Any]] = []
        self._refusal: list[str] = []
        self._logprobs: list[Any] = []
        self._others: dict[str, list[Any]] = {}
        self._room = MAX_BESIDES_CHARACTERS

    def add(self, members: Mapping[str, Any]) -> None:
        """Take the members of a delta, or of a whole message, that are not `KNOWN`."""
        for name, value in members.items():
            if name not in KNOWN and value not in _EMPTY:
                self._take(name, value)

    def add_part(self, part: Mapping[str, Any]) -> None:
        """Take a part of a content that is neither text nor reasoning."""
        kind = part.get("type")
        if kind in {"image_url", "image", "output_image"}:
            self._take("images", [part])
        elif isinstance(kind, str):
            self._take(kind, part.get(kind, part))

    def add_citations(self, found: object) -> None:
        """Take the citations of a frame that stand outside its choices."""
        if isinstance(found, list) and found:
            self._take("citations", found)

    def add_logprobs(self, found: object) -> None:
        """Take the log probabilities of a choice's piece."""
        content = found.get("content") if isinstance(found, Mapping) else None
        if isinstance(content, list) and self._fits(content):
            self._logprobs += content

    @property
    def transcript(self) -> str:
        """The words of the audio."""
        texts = [piece.get("transcript") for piece in self._audio]
        return "".join(text for text in texts if isinstance(text, str))

    @property
    def has_images(self) -> bool:
        """Whether there are images."""
        return bool(self._images)

    def events(self) -> list[ChatStreamEvent]:
        """Return all collected values as events: citations, images, audio, refusal, log probabilities, other data."""
        events = [
            *_lists("answer.citations", "citations", [_citation(each) for each in _each_once(self._citations)]),
            *_lists("answer.images", "images", _each_once(self._images)),
            *([ChatStreamEvent("answer.audio", _sound(self._audio))] if self._audio else ()),
            *([ChatStreamEvent("answer.refusal", {"text": "".join(self._refusal)})] if self._refusal else ()),
            *_lists("answer.logprobs", "content", self._logprobs),
        ]
        others = (_other(name, values) for name, values in self._others.items())
        return [_sendable(event) for event in [*events, *(ChatStreamEvent("answer.data", data) for data in others)]]

    def _take(self, name: str, value: Any) -> None:
        if name == "images":
            images = [_image(image) for image in value if isinstance(image, Mapping)] if isinstance(value, list) else []
            self._images += [image if self._fits(image) else _named_only(image) for image in images]
        elif name == "refusal":
            self._refusal += [value] if isinstance(value, str) and self._fits(value) else []
        elif name == "audio" and isinstance(value, Mapping):
            self._audio.append({**value, "data": len(str(value.get("data") or ""))})
        elif name in _CITATIONS and isinstance(value, list):
            if value[-1:] != self._citations[-1:] and self._fits(value):
                self._citations += value
        elif name in _CITATION_PARTS:
            self._citations += [value] if self._fits(value) else []
        else:
            kept = value if self._fits(value) else _TooLong(value)
            self._others.setdefault(name[:_MOST_NAME_CHARACTERS], []).append(kept)

    def _fits(self, value: Any) -> bool:
        size = _size(value)
        if size > self._room or nests_deeper(json.dumps(value), _DEEPEST):
            return False
        self._room -= size
        return True


class _TooLong:
    """Stands for a value over the limit."""

    def __init__(self, value: Any) -> None:
        self.size = _size(value)


def _sendable(event: ChatStreamEvent) -> ChatStreamEvent:
    """Return *event* with halves of surrogate pairs replaced, because no line of a log can carry them."""
    text = json.dumps(event.data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return ChatStreamEvent(event.type, json.loads(text.encode("utf-8", "replace")))
    return event


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))


def _each_once(items: Sequence[Any]) -> list[Any]:
    return list({json.dumps(item, sort_keys=True): item for item in items}.values())


def _lists(kind: str, member: str, items: Sequence[Any]) -> list[ChatStreamEvent]:
    """Return events of *kind* for all *items*, each event up to its limit; an item over the limit is left out."""
    groups: list[list[Any]] = []
    room = 0
    for item in items:
        size = _size(item)
        if size > MAX_VALUE_CHARACTERS:
            continue
        if size > room:
            groups.append([])
            room = MAX_VALUE_CHARACTERS
        groups[-1].append(item)
        room -= size
    return [ChatStreamEvent(kind, {member: group}) for group in groups]


def _citation(found: Any) -> Mapping[str, Any]:
    """Return a citation in one form: ``url``, ``title``, ``startIndex``, ``endIndex``, as far as it has them."""
    if isinstance(found, str):
        return {"url": found}
    if not isinstance(found, Mapping):
        return {"value": found}
    kind = found.get("type")
    inner = found.get(kind) if isinstance(kind, str) else None
    members = {**found, **inner} if isinstance(inner, Mapping) else dict(found)
    if isinstance(kind, str):
        members.pop(kind, None)
    for theirs, ours in (("start_index", "startIndex"), ("end_index", "endIndex")):
        if theirs in members:
            members[ours] = members.pop(theirs)
    return members


def _image(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an image's address; for an address over the limit, or none, its media type and length in characters."""
    inner = next((found[name] for name in ("image_url", "image", "source") if name in found), found)
    url = inner if isinstance(inner, str) else inner.get("url") if isinstance(inner, Mapping) else None
    if isinstance(url, str) and _size(url) <= MAX_VALUE_CHARACTERS - _MOST_NAME_CHARACTERS:
        return {"url": url}
    media_type = url[len(_INLINE) :].partition(";")[0] if isinstance(url, str) and url.startswith(_INLINE) else None
    return {"mediaType": media_type, "characters": _size(found)}


def _named_only(image: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the length of an image for which the answer's limit has no room left."""
    return {"mediaType": None, "characters": len(str(image.get("url", "")))}


def _sound(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the API's id of the audio, its expiry, its transcript and its length, without its bytes."""
    named = [{name: piece[name] for name in ("id", "expires_at") if name in piece} for piece in pieces]
    members: dict[str, Any] = merged(named)
    text = "".join(str(piece.get("transcript") or "") for piece in pieces)
    told = {"id": members.get("id"), "expiresAt": members.get("expires_at"), "transcript": text[:MAX_VALUE_CHARACTERS]}
    return {**told, "characters": sum(piece["data"] for piece in pieces)}


def _other(name: str, values: Sequence[Any]) -> dict[str, Any]:
    lost = sum(value.size for value in values if isinstance(value, _TooLong))
    together = None if lost else merged(values, name)
    if lost or (lost := _size(together)) > MAX_VALUE_CHARACTERS:
        return {"name": name, "characters": lost}
    return {"name": name, "value": together}
