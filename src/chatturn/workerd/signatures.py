"""Signatures, verified with public keys by WebCrypto."""

from collections.abc import Mapping
from typing import Any, Final

import js
from pyodide.ffi import JsException, to_js

from chatturn.workerd.ffi import js_object, settled, started

__all__ = ["verify_signature"]

# WebCrypto's parameters for each algorithm of RFC 7518: to import the key, and to verify.
_ALGORITHMS: Final[Mapping[str, Mapping[str, str]]] = {
    "RS256": {"name": "RSASSA-PKCS1-v1_5", "hash": "SHA-256"},
    "ES256": {"name": "ECDSA", "namedCurve": "P-256", "hash": "SHA-256"},
}


async def verify_signature(algorithm: str, key: Mapping[str, str], signed: bytes, signature: bytes) -> bool:
    """Say whether a signature is genuine; see `VerifySignature`.  With a key that WebCrypto refuses, none is."""
    subtle, parameters = js.crypto.subtle, js_object(_ALGORITHMS[algorithm])
    importing = subtle.importKey.bind(subtle, "jwk", js_object(key), parameters, False, to_js(["verify"]))
    try:
        imported = await settled(started(importing))
        verifying = subtle.verify.bind(subtle, parameters, imported, to_js(signature), to_js(signed))
        genuine: Any = await settled(started(verifying))
    except JsException:
        return False
    return genuine is True
