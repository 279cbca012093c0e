"""
The part of PyJWT that a Worker can import: HS256 signatures.

PyJWT 2.8 and later import their client for key servers, and with it ``ssl`` and ``urllib.request``.  Pyodide
0.28.2 has no ``ssl`` ("No module named 'ssl'"), and the rest costs 0.2 s of every start without a snapshot.
This package asks no key server through PyJWT, so an empty module replaces that client while PyJWT is imported.
"""

import sys
from types import ModuleType
from typing import Final

__all__ = ["hs256_problem", "signed_token", "verified_payload"]

_CLIENT: Final = "jwt.jwks_client"

if "jwt" not in sys.modules:
    sys.modules[_CLIENT] = ModuleType(_CLIENT)
    sys.modules[_CLIENT].PyJWKClient = None  # type: ignore[attr-defined]  # the one name that PyJWT takes from it
    try:
        import jwt
    finally:
        del sys.modules[_CLIENT]  # a later import of the client gets the real one
else:
    import jwt

_ALGORITHM: Final = "HS256"
_JWS: Final = jwt.PyJWS(algorithms=[_ALGORITHM])


def hs256_problem(key: bytes) -> str | None:
    """Return why *key* cannot be an HS256 key, or None."""
    try:
        _JWS.get_algorithm_by_name(_ALGORITHM).prepare_key(key)
    except jwt.InvalidKeyError as exc:
        return str(exc)
    return None


def signed_token(payload: bytes, key: bytes) -> str:
    """Return a compact token that carries *payload*, signed with HS256 and *key*."""
    return _JWS.encode(payload, key, algorithm=_ALGORITHM)


def verified_payload(token: str, key: bytes) -> bytes | None:
    """
    Return the payload that *token* carries if its signature is HS256 with *key*, else None.

    The algorithm is fixed here, not taken from the token: ``none``, RS256 and all others are refused.
    """
    try:
        payload: bytes = _JWS.decode(token, key, algorithms=[_ALGORITHM])
    except jwt.InvalidTokenError:
        return None
    return payload
