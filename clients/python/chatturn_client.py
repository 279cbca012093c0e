"""
A client of chatturn over httpx, for code that waits and code that awaits.

It asks for a turn and comes back with the last ``seq`` that it has seen until there is a terminal line, whatever
happens to connections, Workers and databases meanwhile::

    with ChatTurnClient("https://chat.example.com", token=make_token) as client:
        answer = client.turn("thread-1", 0).ask("Which port?", on_text=print)

`AsyncChatTurnClient` is the same, awaited.  Both are thin: where a reader is, when it comes back and what a line means
is in `_Progress`, `_Patience` and `Answer`, which do no I/O.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from urllib.parse import quote, urlencode

import httpx

__all__ = ["Answer", "AsyncChatTurnClient", "AsyncTurn", "ChatTurnClient", "ChatTurnError", "Line", "Turn"]

Bearer: TypeAlias = "str | Callable[[], str] | None"
"""The bearer token, or what returns it: it is called for every request, so one may run out in mid-answer."""

Line: TypeAlias = dict[str, Any]
"""One line of a turn's log: ``{"type", "data"?, "seq"?, "attempt"?}``."""

_TERMINAL: Final = frozenset(f"session.run.{how}" for how in ("completed", "cancelled", "failed", "suspended"))
_SILENCE_S: Final = 45.0  # three missed pings
_PATIENCE_S: Final = 600.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
_LONGEST_RETRY_AFTER_S: Final = 60.0
_RUN: Final = re.compile(
    r":(\d+)(?:~(\d+))?$"
)  # how a run's id ends: the turn's index, and its version from the second
_OWN_ERRORS: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
"""What can never be sent: an address without a scheme, a token that is no header's value."""

_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500


class ChatTurnError(Exception):
    """
    The service refused: the same request would be refused again, unless `retryable` says otherwise.

    Attributes:
        code: Stable, for programs.
        status: The HTTP status; 0 where a line told the error.
        field: The member of the request that is wrong, if it is one.
        retryable: Whether the same request may succeed later.
    """

    def __init__(self, members: Mapping[str, Any], status: int = 0) -> None:
        super().__init__(str(members.get("detail") or members.get("message") or "the service refused"))
        self.code = str(members.get("code", "unexpected"))
        self.status = status
        self.field: str | None = members.get("field")
        self.retryable = members.get("retryable") is True


@dataclass
class Answer:
    """
    The answer as far as lines have told it.

    Attributes:
        text: What was said; of a product's tools and of reasoning there is nothing in it.
        status: ``queued``, ``running``, ``completed``, ``cancelled`` or ``suspended``.
        position: While it is queued: for how many turns of its session it waits.
        version: Which version of its turn it is, from 1; known at its end.
        usage: Of the last model call, as the model told it.
        waits_for: Of a suspended turn: the event's ``key`` and ``wakeAt``.
    """

    text: str = ""
    status: str = "running"
    usage: Mapping[str, Any] | None = None
    waits_for: Mapping[str, Any] | None = None
    position: int | None = None
    version: int | None = None
    _attempt: int = 0
    _parts: dict[str, str] = field(default_factory=dict)
    _whole: str | None = None

    @property
    def finish_reason(self) -> str | None:
        """Why the last model call ended: ``length`` and ``content_filter`` mean that the answer is not whole."""
        return None if self.usage is None else self.usage.get("finishReason")

    def take(self, line: Line) -> bool:
        """Take a line; return whether the text is another one now."""
        before, data, kind = self.text, line.get("data") or {}, line["type"]
        if line.get("attempt", 0) > self._attempt:
            self._attempt, self._parts, self._whole = line["attempt"], {}, None
        self.version = data.get("version", self.version)
        if kind == "message.part.updated":
            self._part(data)
        elif kind in {"tool.result", "tool.error"}:
            self._parts = {}  # what was said before was on the way to the tool
        elif kind == "result":
            self._whole = data["finalText"]
        elif kind == "usage":
            self.usage = data
        elif kind in {"session.run.queued", "session.run.started"}:
            self.status = "queued" if "position" in data else "running"
            self.position = data.get("position")
        elif kind in _TERMINAL and kind != "session.run.failed":
            self.status = kind.removeprefix("session.run.")
            self.waits_for = data if kind == "session.run.suspended" else None
        self.text = "".join(self._parts.values()) if self._whole is None else self._whole
        return self.text != before

    def _part(self, data: Mapping[str, Any]) -> None:
        part = data.get("part") or {}
        if part.get("type", "text") != "text":
            return
        name = part.get("id", "text")
        said = self._parts.get(name, "")
        self._parts[name] = said + data["delta"] if data.get("delta") else part.get("text", said)


@dataclass
class _Progress:
    """Where a reader is in a turn's log."""

    path: str
    body: dict[str, Any] | None
    seq: int | None = None
    over: bool = False
    _begun: bool = False
    _rest: bytes = b""
    _run_id: str = ""

    def take_run(self, headers: Mapping[str, str]) -> str:
        """Take which run a response is about: a message that found its place taken is at another index."""
        self._run_id = headers.get("x-workflow-run-id", self._run_id)
        return self._run_id

    def request(self) -> tuple[str, str, dict[str, Any] | None]:
        """Return what to ask: for the turn, as long as nothing of it was seen; then for what is behind that."""
        self._rest = b""
        if self.body is not None and not self._begun:
            return "POST", self.path, self.body
        path, version = _place_of(self._run_id, self.path)
        query = {name: value for name, value in (("version", version), ("after", self.seq)) if value is not None}
        return "GET", f"{path}/stream" + (f"?{urlencode(query)}" if query else ""), None

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Yield the lines that *chunk* ends, and that were not seen before; one without its LF is no line."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for text in whole:
            if text and self._take(line := json.loads(text)):
                yield line

    def _take(self, line: Line) -> bool:
        if line["type"] == "ping":
            return False
        if (seq := line.get("seq")) is not None:
            if self.seq is not None and seq <= self.seq:
                return False
            self.seq, self._begun = seq, True
        if line["type"] in _TERMINAL:
            again = line["type"] == "session.run.failed" and line["data"].get("retryable") and self.body is not None
            self.over, self._begun = not again, not again  # who has the question asks for another attempt
        return True


@dataclass
class _Patience:
    """When a reader comes back, and when it gives up."""

    patience_s: float
    refreshes: bool
    _pause_s: float = 0.0
    _refreshed: bool = False
    _heard_at: float = field(default_factory=time.monotonic)

    def heard(self) -> None:
        """Take note of a line."""
        self._pause_s, self._refreshed, self._heard_at = 0.0, False, time.monotonic()

    def after(self, response: httpx.Response | None) -> float:
        """
        Return how long to wait after a connection ended, with this refusal or none.

        Raises:
            ChatTurnError: The refusal is final, or nothing was heard for too long.
        """
        retry_after_s = 0.0
        if response is not None and response.is_error:
            if response.status_code == _UNAUTHORIZED and self.refreshes and not self._refreshed:
                self._refreshed = True  # the token may just have run out
                return 0.0
            error = _refusal(response)
            if not error.retryable:
                raise error
            retry_after_s = _retry_after_s(response)
        if time.monotonic() - self._heard_at > self.patience_s:
            raise ChatTurnError({"code": "no_answer", "message": "The service does not answer.", "retryable": True})
        most_s = min(3 * self._pause_s, _LONGEST_PAUSE_S) if self._pause_s else 2 * _FIRST_PAUSE_S
        self._pause_s = random.uniform(_FIRST_PAUSE_S, most_s)  # noqa: S311 - so that not all come back at once
        return max(self._pause_s, retry_after_s)


def _refusal(response: httpx.Response) -> ChatTurnError:
    try:
        members = response.json()
    except ValueError:
        members = None
    if isinstance(members, dict) and isinstance(members.get("code"), str):
        return ChatTurnError(members, response.status_code)
    # A proxy's page: not ours, so nobody says whether it may pass.
    passing = response.status_code >= _SERVER_ERROR or response.status_code == _TOO_MANY
    message = f"The service answered {response.status_code}."
    return ChatTurnError({"message": message, "retryable": passing}, response.status_code)


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), _LONGEST_RETRY_AFTER_S) if text.isdecimal() else 0.0


@dataclass(frozen=True, kw_only=True)
class _Settings:
    url: str
    token: Bearer
    silence_s: float
    patience_s: float

    def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the arguments of a request."""
        token = self.token() if callable(self.token) else self.token
        headers = {"Accept": "application/x-ndjson, application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        content = {} if body is None else {"json": body}
        return {"method": method, "url": self.url.rstrip("/") + path, "headers": headers, **content}

    @property
    def timeout(self) -> httpx.Timeout:
        """A connection that is silent for so long is dead."""
        return httpx.Timeout(self.silence_s)

    def patience(self) -> _Patience:
        """Return that of one reader."""
        return _Patience(self.patience_s, callable(self.token))


def _place_of(run_id: str, path: str) -> tuple[str, int | None]:
    """Return the address of a run's turn, and which version of it the run is; None where nothing is known of it."""
    found = _RUN.search(run_id)
    if found is None:
        return path, None
    return f"{path.rpartition('/')[0]}/{found[1]}", int(found[2] or 1)


def _turn_path(session: str, index: int) -> str:
    return f"/v1/sessions/{quote(session, safe='')}/turns/{index}"


def _event_path(run_id: str, key: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}/events/{quote(key, safe='')}"


def _decision(approved: bool, reason: str | None) -> dict[str, Any]:
    return {"approved": approved} if reason is None else {"approved": approved, "reason": reason}


def _messages_path(session: str, before: int | None, limit: int | None) -> str:
    members = {name: value for name, value in (("before", before), ("limit", limit)) if value is not None}
    query = "&".join(f"{name}={value}" for name, value in members.items())
    return f"/v1/sessions/{quote(session, safe='')}/messages" + (f"?{query}" if query else "")


def _body(message: str | None, options: Mapping[str, Any]) -> dict[str, Any] | None:
    if message is None:
        return None
    given = {name: value for name, value in options.items() if value is not None}
    return {"message": message, "follow": True, **given}


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        raise _refusal(response)
    return response.json()


def _ended(answer: Answer, last: Line) -> Answer:
    if last.get("type") == "session.run.failed":
        raise ChatTurnError(last["data"])
    return answer


class ChatTurnClient:
    """
    The client that waits.

    Args:
        url: Of the Worker, without a path.
        token: The bearer token, or what returns it.
        http: In place of a client of its own.
        silence_s: Without a byte for so long, a connection is dead.
        patience_s: Without a line for so long, over all connections, it gives up.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Bearer = None,
        http: httpx.Client | None = None,
        silence_s: float = _SILENCE_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._settings = _Settings(url=url, token=token, silence_s=silence_s, patience_s=patience_s)
        self._own = http is None
        self._http = http or httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._own:
            self._http.close()

    def turn(self, session: str, index: int) -> "Turn":
        """Return the turn at an index of a session, from 0."""
        return Turn(self, _turn_path(session, index))

    def messages(self, session: str, *, before: int | None = None, limit: int | None = None) -> Any:
        """Return a stretch of a session's messages, and its turns without an answer."""
        return self._ask("GET", _messages_path(session, before, limit))

    def emit(self, run_id: str, key: str, payload: Any) -> Any:
        """Give a run the event that it waits for; the first under a key wins, so it may be sent again."""
        return self._ask("POST", _event_path(run_id, key), {"payload": payload})

    def approve(self, run_id: str, key: str, *, approved: bool, reason: str | None = None) -> Any:
        """Allow a tool call that waits for it, or do not."""
        return self.emit(run_id, key, _decision(approved, reason))

    def give_result(self, run_id: str, key: str, result: Any) -> Any:
        """Give the result of a tool that the client does, JSON; the line ``tool.client`` has the key."""
        return self.emit(run_id, key, {"result": result})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = self._settings.request(method, path, body)
        return _checked(self._http.request(**request, timeout=self._settings.timeout))


class Turn:
    """One turn of a session."""

    def __init__(self, client: ChatTurnClient, path: str) -> None:
        self._client = client
        self._path = path
        self.run_id = ""

    def ask(
        self,
        message: str,
        *,
        on_text: Callable[[str], object] | None = None,
        on_line: Callable[[Line], object] | None = None,
        **options: Any,
    ) -> Answer:
        """
        Run the turn, join whoever runs it, or replay it, and return its answer.  Sending it again costs nothing.

        Args:
            message: What the user says.
            on_text: Is called with the whole text so far, each time that it has changed.
            on_line: Is called with every line.
            options: ``model``, ``metadata``, ``parameters``, ``on_mismatch``, ``replace``, ``when_busy``, as the
                service has them.

        Raises:
            ChatTurnError: The service refused, or the turn failed for good.
        """
        return self._answer(self.lines(message, **options), on_text, on_line)

    def follow(
        self,
        *,
        on_text: Callable[[str], object] | None = None,
        on_line: Callable[[Line], object] | None = None,
    ) -> Answer:
        """Follow a turn that somebody has begun, and return its answer."""
        return self._answer(self.lines(), on_text, on_line)

    def lines(self, message: str | None = None, *, after: int | None = None, **options: Any) -> Iterator[Line]:
        """Yield every line of the turn, each once and in order, to the terminal one; without a message as `follow`."""
        settings, http = self._client._settings, self._client._http  # noqa: SLF001 - the client's own
        progress, patience = _Progress(self._path, _body(message, options), after), settings.patience()
        while not progress.over:
            response: httpx.Response | None = None
            try:
                request = settings.request(*progress.request())
                with http.stream(**request, timeout=settings.timeout) as response:
                    if response.is_error:
                        response.read()
                    else:
                        self.run_id = progress.take_run(response.headers)
                        for chunk in response.iter_bytes():
                            for line in progress.feed(chunk):
                                patience.heard()
                                yield line
            except _OWN_ERRORS:
                raise
            except httpx.TransportError:
                response = None  # the connection broke, or is dead
            if not progress.over:
                time.sleep(patience.after(response))

    def cancel(self) -> Any:
        """Stop the turn for good; what it had said is kept.  It may be sent again."""
        path, _ = _place_of(self.run_id, self._path)
        return self._client._ask("POST", f"{path}/cancel")  # noqa: SLF001

    def show(self) -> Any:
        """Return the turn's run, without its answer."""
        return self._client._ask("GET", _place_of(self.run_id, self._path)[0])  # noqa: SLF001

    def versions(self) -> Any:
        """Return its versions, the first first, without their answers; ``counts`` marks the one in the thread."""
        path, _ = _place_of(self.run_id, self._path)
        return self._client._ask("GET", f"{path}/versions")["versions"]  # noqa: SLF001

    def activate(self, version: int) -> Any:
        """Let a version count, and what followed it; refused while a turn of the session is open."""
        path, _ = _place_of(self.run_id, self._path)
        return self._client._ask("POST", f"{path}/versions/{version}/activate")  # noqa: SLF001

    @staticmethod
    def _answer(
        lines: Iterator[Line], on_text: Callable[[str], object] | None, on_line: Callable[[Line], object] | None
    ) -> Answer:
        answer, last = Answer(), Line()
        for last in lines:
            changed = answer.take(last)
            if on_line is not None:
                on_line(last)
            if changed and on_text is not None:
                on_text(answer.text)
        return _ended(answer, last)


class AsyncChatTurnClient:
    """The client that awaits; see `ChatTurnClient`."""

    def __init__(
        self,
        url: str,
        *,
        token: Bearer = None,
        http: httpx.AsyncClient | None = None,
        silence_s: float = _SILENCE_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._settings = _Settings(url=url, token=token, silence_s=silence_s, patience_s=patience_s)
        self._own = http is None
        self._http = http or httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._own:
            await self._http.aclose()

    def turn(self, session: str, index: int) -> "AsyncTurn":
        """Return the turn at an index of a session, from 0."""
        return AsyncTurn(self, _turn_path(session, index))

    async def messages(self, session: str, *, before: int | None = None, limit: int | None = None) -> Any:
        """Return a stretch of a session's messages, and its turns without an answer."""
        return await self._ask("GET", _messages_path(session, before, limit))

    async def emit(self, run_id: str, key: str, payload: Any) -> Any:
        """Give a run the event that it waits for; the first under a key wins, so it may be sent again."""
        return await self._ask("POST", _event_path(run_id, key), {"payload": payload})

    async def approve(self, run_id: str, key: str, *, approved: bool, reason: str | None = None) -> Any:
        """Allow a tool call that waits for it, or do not."""
        return await self.emit(run_id, key, _decision(approved, reason))

    async def give_result(self, run_id: str, key: str, result: Any) -> Any:
        """Give the result of a tool that the client does, JSON; the line ``tool.client`` has the key."""
        return await self.emit(run_id, key, {"result": result})

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = self._settings.request(method, path, body)
        return _checked(await self._http.request(**request, timeout=self._settings.timeout))


class AsyncTurn:
    """One turn of a session; see `Turn`."""

    def __init__(self, client: AsyncChatTurnClient, path: str) -> None:
        self._client = client
        self._path = path
        self.run_id = ""

    async def ask(
        self,
        message: str,
        *,
        on_text: Callable[[str], object] | None = None,
        on_line: Callable[[Line], object] | None = None,
        **options: Any,
    ) -> Answer:
        """Run the turn, join whoever runs it, or replay it, and return its answer; see `Turn.ask`."""
        return await self._answer(self.lines(message, **options), on_text, on_line)

    async def follow(
        self,
        *,
        on_text: Callable[[str], object] | None = None,
        on_line: Callable[[Line], object] | None = None,
    ) -> Answer:
        """Follow a turn that somebody has begun, and return its answer."""
        return await self._answer(self.lines(), on_text, on_line)

    async def lines(
        self, message: str | None = None, *, after: int | None = None, **options: Any
    ) -> AsyncIterator[Line]:
        """Yield every line of the turn, each once and in order, to the terminal one; without a message as `follow`."""
        settings, http = self._client._settings, self._client._http  # noqa: SLF001 - the client's own
        progress, patience = _Progress(self._path, _body(message, options), after), settings.patience()
        while not progress.over:
            response: httpx.Response | None = None
            try:
                request = settings.request(*progress.request())
                async with http.stream(**request, timeout=settings.timeout) as response:
                    if response.is_error:
                        await response.aread()
                    else:
                        self.run_id = progress.take_run(response.headers)
                        async for chunk in response.aiter_bytes():
                            for line in progress.feed(chunk):
                                patience.heard()
                                yield line
            except _OWN_ERRORS:
                raise
            except httpx.TransportError:
                response = None  # the connection broke, or is dead
            if not progress.over:
                await asyncio.sleep(patience.after(response))

    async def cancel(self) -> Any:
        """Stop the turn for good; what it had said is kept.  It may be sent again."""
        path, _ = _place_of(self.run_id, self._path)
        return await self._client._ask("POST", f"{path}/cancel")  # noqa: SLF001

    async def show(self) -> Any:
        """Return the turn's run, without its answer."""
        return await self._client._ask("GET", _place_of(self.run_id, self._path)[0])  # noqa: SLF001

    async def versions(self) -> Any:
        """Return its versions, the first first, without their answers; ``counts`` marks the one in the thread."""
        path, _ = _place_of(self.run_id, self._path)
        return (await self._client._ask("GET", f"{path}/versions"))["versions"]  # noqa: SLF001

    async def activate(self, version: int) -> Any:
        """Let a version count, and what followed it; refused while a turn of the session is open."""
        path, _ = _place_of(self.run_id, self._path)
        return await self._client._ask("POST", f"{path}/versions/{version}/activate")  # noqa: SLF001

    @staticmethod
    async def _answer(
        lines: AsyncIterator[Line], on_text: Callable[[str], object] | None, on_line: Callable[[Line], object] | None
    ) -> Answer:
        answer, last = Answer(), Line()
        async for last in lines:
            changed = answer.take(last)
            if on_line is not None:
                on_line(last)
            if changed and on_text is not None:
                on_text(answer.text)
        return _ended(answer, last)
