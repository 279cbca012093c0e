"""
`make demo`: what chatturn is for, shown to a person in less than two minutes.

A Worker in workerd answers, is killed in the middle of the answer, and is started again; the same turn finishes.
Meanwhile a second reader follows it; later a third one stops another turn.  Then the model itself is killed in the
middle of an answer, and another one gives it.  At the end the totals.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx

from dev import paths, secrets_file
from dev.config import Config
from dev.demo_model import ANSWER, DemoModel
from dev.server import Server

_LEASE_MS: Final = 4_000
_MODEL: Final = "demo"
_SECRET: Final = "the-secret-of-the-demonstration-only"  # noqa: S105 - it guards nothing
_BOLD, _DIM, _PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")


class _Screen:
    """Shows several readers at the same time, a line each; where no terminal listens, each line once it is whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live = sys.stdout.isatty()
        self._shown: dict[str, str] = {}

    def scene(self, text: str) -> None:
        """Begin another part of the story."""
        with self._lock:
            self._shown.clear()
            print(f"\n{_BOLD}{text}{_PLAIN}", flush=True)

    def say(self, text: str) -> None:
        """Say something below what is shown."""
        with self._lock:
            if self._live and self._shown:
                self._shown.clear()
            print(f"{_DIM}{text}{_PLAIN}", flush=True)

    def show(self, who: str, text: str) -> None:
        """Show what a reader has read so far; only the end of it fits."""
        with self._lock:
            width = shutil.get_terminal_size().columns - len(who) - 4
            line = text if len(text) <= width else "…" + text[1 - width :]
            if self._live:
                above = len(self._shown)
                self._shown[who] = line
                sys.stdout.write(f"\x1b[{above}F" if above else "")
                sys.stdout.write("".join(f"\x1b[2K{name}  {said}\n" for name, said in self._shown.items()))
                sys.stdout.flush()
            else:
                self._shown[who] = line

    def flush(self) -> None:
        """Show how far the readers have come, where no terminal has seen it."""
        with self._lock:
            if not self._live:
                for name, said in self._shown.items():
                    print(f"{name}  {said}")
            self._shown.clear()


class _Reader:
    """
    A client, by the rules of the wire: it comes back with the last `seq` that it has seen, until there is an end.

    Attributes:
        text: The answer so far.
        end: The terminal line, once it has come.
        connections: How many it took.
    """

    def __init__(self, who: str, url: str, token: str, show: Callable[[str, str], None]) -> None:
        self.text = ""
        self.end: dict[str, Any] | None = None
        self.connections = 0
        self._who, self._url, self._show = who, url, show
        self._headers = {"Authorization": f"Bearer {token}"}
        self._seen: int | None = None
        self._attempt = 0
        self._thread: threading.Thread | None = None

    def start(self, message: str | None = None) -> "_Reader":
        """Read in the background; ask *message* first, or follow whoever asks."""
        self._thread = threading.Thread(target=self._read, args=(message,), daemon=True)
        self._thread.start()
        return self

    def join(self) -> None:
        """Wait for the end."""
        assert self._thread is not None  # noqa: S101 - started before
        self._thread.join(60)

    def _read(self, message: str | None) -> None:
        while self.end is None:
            with suppress(httpx.HTTPError):
                self._connect(message)
            if self.end is None:
                time.sleep(0.3)

    def _connect(self, message: str | None) -> None:
        if message is not None and self._seen is None:
            body = {"message": message, "follow": True}
            opened = httpx.stream("POST", self._url, headers=self._headers, json=body, timeout=60)
        else:
            query = "" if self._seen is None else f"?after={self._seen}"
            opened = httpx.stream("GET", f"{self._url}/stream{query}", headers=self._headers, timeout=60)
        with opened as response:
            if response.status_code != httpx.codes.OK:
                return
            self.connections += 1
            for line in response.iter_lines():
                self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        kind, data = line["type"], line.get("data", {})
        if "seq" in line:
            self._seen = line["seq"]
            if line["attempt"] > self._attempt:
                self.text, self._attempt = "", line["attempt"]
        if kind == "message.part.updated":
            self.text = data["part"].get("text", self.text + data.get("delta", ""))
        elif kind == "result":
            self.text = data["finalText"]
        elif kind in {"session.run.completed", "session.run.cancelled", "session.run.failed"}:
            self.end = line
        self._show(self._who, self.text)


class _Provider:
    """A model in a process of its own, which can be killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "dev.demo_model"]
        self._process = subprocess.Popen(command, cwd=paths.ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """End it in the middle of what it does."""
        self._process.kill()
        self._process.wait()


def _chain(first: _Provider, second: DemoModel) -> dict[str, str]:
    """Return the settings of a deployment that asks one model, and another one if that is down."""
    providers = [
        {"name": name, "kind": "compatible", "key": None, "base_url": url, "models": [f"{name}-model"]}
        for name, url in (("first", first.url), ("second", second.url))
    ]
    return {"PROVIDERS": json.dumps(providers), "MODEL": "first-model,second-model", "FALLBACK_MIDWAY": "on"}


def _config(model: DemoModel, **others: str) -> Config:
    variables = {
        "BACKEND": "openai", "OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": "none", "MODEL": _MODEL,
        "CONTINUE_MODELS": _MODEL, "LEASE_MS": str(_LEASE_MS), "AUTH_JWT_SECRET": _SECRET,
    }  # fmt: skip
    return Config.read(paths.DEPLOYMENT_CONFIG, variables={**variables, **others})


@contextmanager
def _worker(model: DemoModel) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="chatturn-demo-", ignore_cleanup_errors=True) as folder:
        server = Server(
            folder=Path(folder) / "worker",
            state=Path(folder) / "state",
            config=_config(model),
            mounts={"": paths.SOURCES, "python_modules": paths.VENDORED},
            schema=paths.SCHEMA,
        )
        server.start()
        try:
            yield server
        finally:
            server.kill()


def main() -> int:
    """Show it; return 0 if everything came out as promised."""
    began = time.monotonic()
    print("starting Python in workerd, with a model that counts its words …", flush=True)
    with DemoModel() as model, _worker(model) as server:
        complete = _play(_Screen(), model, server)
    print(f"\n{_DIM}{time.monotonic() - began:.0f} s in all{_PLAIN}")
    return 0 if complete else 1


def _play(screen: _Screen, model: DemoModel, server: Server) -> bool:
    token = secrets_file.token(_SECRET)

    def reader(number: int, turn: int) -> _Reader:
        return _Reader(f"terminal {number}", f"{server.url}/v1/sessions/demo/turns/{turn}", token, screen.show)

    screen.scene("1. A question is asked. The answer streams; a second terminal follows it.")
    first = reader(1, 0).start("What is a durable turn?")
    time.sleep(1.5)
    second = reader(2, 0).start()
    time.sleep(3.0)

    screen.flush()
    screen.scene("2. kill -9: the Worker dies in the middle of the answer.")
    server.kill()
    said = model.words
    screen.say(f"the model had said {said} of {len(ANSWER.split())} words; starting again on the same database …")
    server.start()
    screen.say("the terminals come back with the last seq that they have seen; the dead one's lease lapses …")
    first.join()
    second.join()
    screen.flush()
    whole = first.text == second.text == ANSWER
    screen.say(f"the same turn, whole in both: {'yes' if whole else 'NO'}; the model was asked for the rest only")

    screen.scene("3. The same request again: a replay, from the database.")
    calls, asked_at = model.calls, time.monotonic()
    again = reader(1, 0).start("What is a durable turn?")
    again.join()
    took_ms, free = (time.monotonic() - asked_at) * 1000, model.calls == calls
    screen.flush()
    screen.say(f"{took_ms:.0f} ms, {model.calls - calls} calls of the model")

    screen.scene("4. Another question. A third terminal presses stop.")
    stopped = reader(1, 1).start("Say it again.")
    time.sleep(3.0)
    httpx.post(
        f"{server.url}/v1/sessions/demo/turns/1/cancel", headers={"Authorization": f"Bearer {token}"}
    ).raise_for_status()
    stopped.join()
    screen.flush()
    kept = stopped.end is not None and stopped.end["type"] == "session.run.cancelled" and stopped.text != ""
    time.sleep(0.5)
    screen.say(f"the model's connection is closed ({model.left} times so far), what was said is kept")

    fell_back = _play_chain(screen, model, server, lambda: reader(1, 2))

    screen.scene("Totals")
    words = 2 * len(ANSWER.split()) + len(stopped.text.split())
    for name, value in {
        "turns": 3, "answers lost": 0 if whole and kept else "SOME", "answers doubled": 0 if whole else "SOME",
        "kills": 2, "model calls": model.calls, "words in the answers": words, "words that the model said": model.words,
        "said twice or thrown away": model.words - words,
    }.items():  # fmt: skip
        print(f"  {name:<28}{value}")
    return whole and free and kept and fell_back


def _play_chain(screen: _Screen, model: DemoModel, server: Server, reader: Callable[[], _Reader]) -> bool:
    """Kill the first of two models in the middle of its answer."""
    screen.scene("5. The same Worker, with two models: MODEL=first-model,second-model. The first one answers.")
    first = _Provider()
    server.kill()
    server.config = _config(model, **_chain(first, model))
    server.start()
    asked, calls = reader(), model.calls
    asked.start("And who answers now?")
    time.sleep(3.0)
    screen.flush()
    screen.scene("6. kill -9: the first model dies in the middle of its answer.")
    only_first = model.calls == calls
    first.kill()
    asked.join()
    screen.flush()
    second = model.calls - calls
    whole = asked.text == ANSWER and asked.end is not None and asked.end["type"] == "session.run.completed"
    screen.say(f"the second model gave the answer, whole: {'yes' if whole else 'NO'}; it was asked {second} time")
    return whole and only_first and second == 1


if __name__ == "__main__":
    sys.exit(main())
