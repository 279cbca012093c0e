"""An identity provider: it has keys, signs tokens with them, and publishes them on 127.0.0.1."""

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

__all__ = ["IdentityProvider", "SigningKey", "jwk_set", "verify_on_the_host"]


class SigningKey:
    """
    A key pair.

    Args:
        kid: Its name.
        algorithm: ``RS256`` or ``ES256``.
        bits: Of an RSA key.
    """

    def __init__(self, kid: str, algorithm: str, *, bits: int = 2048) -> None:
        self.kid, self.algorithm = kid, algorithm
        self._private: Any = (
            rsa.generate_private_key(public_exponent=65_537, key_size=bits)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )

    def token(self, claims: Mapping[str, Any], **header: Any) -> str:
        """Sign *claims*, whatever they are; a header of None is left out."""
        names = {"kid": self.kid, **header}
        headers = {name: value for name, value in names.items() if value is not None}
        return jwt.PyJWS().encode(json.dumps(dict(claims)).encode(), self._private, self.algorithm, headers)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half, as providers publish it."""
        to_jwk = RSAAlgorithm.to_jwk if self.algorithm == "RS256" else ECAlgorithm.to_jwk
        members: dict[str, Any] = json.loads(to_jwk(self._private.public_key()))
        members.pop("key_ops", None)
        return {**members, "kid": self.kid, "use": "sig", "alg": self.algorithm}


def jwk_set(*keys: Any) -> bytes:
    """Return what a provider publishes."""
    jwks = [each.jwk if isinstance(each, SigningKey) else each for each in keys]
    return json.dumps({"keys": jwks}).encode()


async def verify_on_the_host(algorithm: str, key: Mapping[str, str], signed: bytes, signature: bytes) -> bool:
    """`VerifySignature` outside the Worker."""
    try:
        if algorithm == "RS256":
            public: Any = RSAAlgorithm.from_jwk(dict(key))
            public.verify(signature, signed, padding.PKCS1v15(), SHA256())
        else:
            public = ECAlgorithm.from_jwk(dict(key))
            r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
            public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


class IdentityProvider(ThreadingHTTPServer):
    """
    Publishes keys.  Use it as a context.

    Attributes:
        body: What it answers.
        status: With which status.
        asked: How often it was asked.
        answering: Cleared to keep askers waiting.
    """

    daemon_threads = True

    def __init__(self, *keys: SigningKey) -> None:
        super().__init__(("127.0.0.1", 0), _Publish)
        self.body = jwk_set(*keys)
        self.status = 200
        self.asked = 0
        self.answering = threading.Event()
        self.answering.set()

    @property
    def url(self) -> str:
        """The address of the keys."""
        return f"http://127.0.0.1:{self.server_address[1]}/.well-known/jwks.json"

    def claims(self, **others: Any) -> dict[str, Any]:
        """Return claims of tenant ``acme`` in its name; None leaves one out."""
        claims = {
            "iss": "https://id.example",
            "aud": ["chat", "other"],
            "sub": "ann",
            "org_id": "acme",
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
            **others,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self.shutdown()
        self.server_close()


class _Publish(BaseHTTPRequestHandler):
    server: IdentityProvider

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.answering.wait(60)
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass
