"""
HTTP to 127.0.0.1.

What `httpx.get` does for the internet is left out: it reads all certificates of the world, 70 ms a call, and asks
the environment for a proxy. Its time-out of 5 s is less than a busy machine may take.
"""

import ssl
from typing import Final

import httpx

__all__ = ["ANSWER_SECONDS", "http"]

ANSWER_SECONDS: Final = 60.0
"""How long an answer, or the next piece of one, may take unless a test says less."""

http: Final = httpx.Client(
    verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # knows no certificate, and meets none
    trust_env=False,
    timeout=ANSWER_SECONDS,
    # A connection for every request: one that was kept may have died with its Worker.
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
)
