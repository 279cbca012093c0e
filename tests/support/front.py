"""
What stands before a Worker on the platform: a server that does not go away with it.

It passes connections on, waits with new ones while the Worker is not there, and cuts them where a test says.
"""

import socket
import threading
import time
from contextlib import suppress
from typing import Final, Self

__all__ = ["Front"]

_RESET: Final = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, for 0 s: close() sends an RST
_TAKEN_BYTES: Final = 2_048
_PATIENCE_S: Final = 60.0


class Front:
    """
    A server on 127.0.0.1 in front of another.  Use it as a context.

    Args:
        port: Of the other.

    Attributes:
        url: Its address.
        cuts: After how many bytes of the answer each of the next connections is reset, in turn.
        cut: How many were.
        there: Whether the other answers; until it does, connections wait.
        pages: Where pages of another origin are, for those who are told.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts: list[int] = []
        self.cut = 0
        self.there = threading.Event()
        self.there.set()
        self.pages = ""
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            behind = self._connect()
            if behind is None:
                return
            with behind:
                limit = self.cuts.pop(0) if self.cuts else None
                asking = threading.Thread(target=self._pass_on, args=(client, behind, None), daemon=True)
                asking.start()
                self._pass_on(behind, client, limit)
                for each in (client, behind):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RD)  # wakes the other direction, and tells nobody
                asking.join()

    def _connect(self) -> socket.socket | None:
        deadline = time.monotonic() + _PATIENCE_S
        self.there.wait(_PATIENCE_S)
        while time.monotonic() < deadline and not self._closed:
            with suppress(OSError):
                return socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S)
            time.sleep(0.05)
        return None

    def _pass_on(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        """Pass on until an end; one that was not clean, or that a test asks for, is a reset."""
        passed, clean = 0, False
        try:
            while chunk := source.recv(_TAKEN_BYTES):
                if limit is not None and passed + len(chunk) >= limit:
                    target.sendall(chunk[: limit - passed])
                    self.cut += 1
                    break
                target.sendall(chunk)
                passed += len(chunk)
            else:
                clean = True
        except OSError:
            pass
        with suppress(OSError):
            if clean:
                target.shutdown(socket.SHUT_WR)
            else:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
