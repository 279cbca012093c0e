"""
The keys that tokens are checked with: this service's own secrets, or the keys that an identity provider publishes.

The kind of key decides the algorithm, never the token: HS256 for secrets, RS256 and ES256 for published keys.  So
nobody can sign with a public key as if it were a secret.

Source:
    RFC 7515 (JWS) sections 4.1 and 5.2; RFC 7517 (JWK) sections 4 and 5; RFC 7518 sections 3.2 to 3.4 and 6.
"""

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from chatturn.errors import BackendTransportError, ConfigurationError, KeysUnavailable, RequestError
from chatturn.http.limits import MAX_TOKEN_HEADER_CHARACTERS
from chatturn.http.pyjwt import hs256_problem, verified_payload
from chatturn.http.strict_json import read_json_object
from chatturn.transport import Transport, TransportRequest

__all__ = ["MIN_SECRET_BYTES", "Jws", "PublishedKeys", "Secrets", "TokenKeys", "VerifySignature", "read_jws"]

MIN_SECRET_BYTES: Final = 32  # RFC 7518 section 3.2: a key at least as long as the hash

FRESH_S: Final = 600
"""For how many seconds published keys are used before they are fetched again."""

STALE_S: Final = 3_600
"""For how many seconds after a fetch its keys are used, if all later fetches fail."""

ASK_AGAIN_S: Final = 10
"""An unknown key id causes a fetch only this many seconds after the last: a stranger's token may name any key id."""

TRY_AGAIN_S: Final = 2
"""The pause after a failed fetch, in seconds."""

FETCH_S: Final = 5
MAX_KEYS_BYTES: Final = 262_144
_MOST_FETCHES: Final = 8
"""The most fetches begun within `FETCH_S`.  Each request has its own fetch: workerd lets none wait for another's."""

_OK: Final = 200

_COMPACT: Final = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]+)", re.ASCII)
_BASE64URL: Final = re.compile(r"[\w-]+", re.ASCII)

# The members of a key that its algorithm needs, each with its least and most characters: RSA of 2,048 to 8,192 bits.
_MEMBERS: Final[Mapping[str, Mapping[str, tuple[int, int]]]] = {
    "RS256": {"n": (342, 1_366), "e": (1, 8)},
    "ES256": {"x": (43, 43), "y": (43, 43)},
}
_KIND: Final[Mapping[str, Mapping[str, str]]] = {"RS256": {"kty": "RSA"}, "ES256": {"kty": "EC", "crv": "P-256"}}

VerifySignature: TypeAlias = Callable[[str, Mapping[str, str], bytes, bytes], Awaitable[bool]]
"""
Says whether a signature is genuine.  Never raises, whatever its arguments hold.

The arguments: the algorithm (``RS256`` or ``ES256``), the key (a JWK with only the members that the algorithm needs),
the signed bytes, and the signature (for ES256, r and s, 32 bytes each).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jws:
    """
    A token in compact form, whose signature is not checked yet.

    Attributes:
        text: The token.
        algorithm: The algorithm that its header names.
        key_id: The id of the key that its header names; None for none.
    """

    text: str
    algorithm: str
    key_id: str | None

    def parts(self) -> tuple[bytes, bytes, bytes]:
        """
        Return the signed bytes, the payload, and the signature.

        Raises:
            ValueError: The payload or the signature is not base64url.
        """
        signed, _, signature = self.text.rpartition(".")
        payload = signed.partition(".")[2]
        return signed.encode(), _decoded(payload), _decoded(signature)


def read_jws(text: str) -> Jws | None:
    """Return *text* as a token; None if it is not a compact JWS, or if this service cannot read its header."""
    parts = _COMPACT.fullmatch(text)
    if parts is None or parts.end(1) > MAX_TOKEN_HEADER_CHARACTERS:
        return None
    try:
        header = read_json_object(_decoded(parts[1]))
    except (RequestError, ValueError):
        return None
    algorithm, key_id = header.get("alg"), header.get("kid")
    # ``crit`` names extensions that a reader must understand; this one understands none.
    if "crit" in header or not isinstance(algorithm, str) or not (key_id is None or isinstance(key_id, str)):
        return None
    return Jws(text=text, algorithm=algorithm, key_id=key_id)


class TokenKeys(Protocol):
    """Keys of one kind."""

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms of their signatures."""

    async def payload(self, token: Jws) -> bytes | None:
        """
        Return the payload of *token*, if one of the keys signed it; else None.

        Args:
            token: A token with one of `algorithms`.

        Raises:
            KeysUnavailable: The keys cannot be fetched at the moment.
        """


class Secrets:
    """
    Secrets that this service shares with the maker of its tokens, for HS256.

    Args:
        shared: The secrets by the names of their settings.  A token may be signed with any of them, so that a secret
            can be changed while tokens of the previous secret are still in use.

    Raises:
        ConfigurationError: One of them cannot be an HS256 key.
    """

    algorithms: Final = frozenset({"HS256"})

    def __init__(self, shared: Mapping[str, str]) -> None:
        self._keys = [_checked_secret(setting, secret) for setting, secret in shared.items()]

    async def payload(self, token: Jws) -> bytes | None:
        """Return the payload of *token*; see `TokenKeys.payload`.  All secrets are tried, whatever its key id."""
        payloads = (verified_payload(token.text, key) for key in self._keys)
        return next((payload for payload in payloads if payload is not None), None)


def _checked_secret(setting: str, secret: str) -> bytes:
    if not secret:
        what = f"is not set; it must have at least {MIN_SECRET_BYTES} bytes"
        raise ConfigurationError(setting, what, lacks=setting)
    key = secret.encode()
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigurationError(setting, f"has {len(key)} bytes, but must have at least {MIN_SECRET_BYTES}")
    if problem := hs256_problem(key):
        raise ConfigurationError(setting, f"cannot be an HS256 key: {problem}")
    return key


class PublishedKeys:
    """
    The keys at an address that an identity provider publishes: a JSON Web Key Set, RS256 and ES256.

    They are fetched when the first token comes, again after `FRESH_S`, and when a token names an unknown key, since
    providers change keys that way.  While a fetch fails, the last keys serve for `STALE_S`.

    Args:
        url: The address of the keys.
        transport: Sends the request for them.
        verify: Checks signatures.
        now: Seconds since the epoch.
        report: Is told why a fetch failed.
    """

    algorithms: Final = frozenset(_MEMBERS)

    def __init__(
        self,
        url: str,
        *,
        transport: Transport,
        verify: VerifySignature,
        now: Callable[[], float],
        report: Callable[[KeysUnavailable], None],
    ) -> None:
        self._request = TransportRequest(url=url, method="GET", headers={"accept": "application/json"})
        self._transport = transport
        self._verify = verify
        self._now = now
        self._report = report
        self._keys: Sequence[_Key] = ()
        self._fetched_at_s = -math.inf
        self._failed_at_s = -math.inf
        self._begun_at_s: list[float] = []

    async def payload(self, token: Jws) -> bytes | None:
        """Return the payload of *token*; see `TokenKeys.payload`."""
        try:
            signed, payload, signature = token.parts()
        except ValueError:
            return None
        for key in await self._keys_for(token):
            if await self._verify(token.algorithm, key.members, signed, signature):
                return payload
        return None

    async def _keys_for(self, token: Jws) -> Sequence["_Key"]:
        if self._now() >= self._fetched_at_s + FRESH_S:
            await self._fetch()
        found = self._find(token)
        if not found and self._now() >= self._fetched_at_s + ASK_AGAIN_S:
            await self._fetch()
            found = self._find(token)
        if not found and self._failed_at_s > self._fetched_at_s:
            # It may be the provider's next key: who is told that the token is bad would log in anew, in vain.
            raise KeysUnavailable("the token's key is not among those at hand, and they cannot be fetched anew")
        return found

    def _find(self, token: Jws) -> Sequence["_Key"]:
        return [
            key
            for key in self._keys
            if key.algorithm == token.algorithm and (token.key_id is None or token.key_id == key.id)
        ]

    async def _fetch(self) -> None:
        """Fetch the keys, unless a fetch has just failed; raise if the keys at hand are older than `STALE_S`."""
        if self._may_fetch():
            try:
                self._keys = await self._fetched()
                self._fetched_at_s = self._now()
            except (BackendTransportError, RequestError, TimeoutError, ValueError) as error:
                self._failed_at_s = self._now()
                self._report(KeysUnavailable(f"AUTH_JWKS_URL: {str(error) or type(error).__name__}"))
        if self._now() >= self._fetched_at_s + STALE_S:
            raise KeysUnavailable("the keys that tokens are checked with cannot be had")

    def _may_fetch(self) -> bool:
        now = self._now()
        # The starts of fetches are counted, since a fetch that is dropped with its client never reports its end.
        self._begun_at_s = [each for each in self._begun_at_s if now < each + FETCH_S]
        if now < self._failed_at_s + TRY_AGAIN_S or len(self._begun_at_s) >= _MOST_FETCHES:
            return False
        self._begun_at_s.append(now)
        return True

    async def _fetched(self) -> Sequence["_Key"]:
        async with asyncio.timeout(FETCH_S), self._transport.send(self._request) as response:
            if response.status != _OK:
                raise ValueError(f"status {response.status}")
            body = b""
            async for chunk in response.chunks():
                body += chunk
                if len(body) > MAX_KEYS_BYTES:
                    raise ValueError(f"more than {MAX_KEYS_BYTES} bytes")
        keys = [key for each in _list(read_json_object(body).get("keys")) if (key := _key(each)) is not None]
        if not keys:
            raise ValueError("no RS256 or ES256 key among the keys")
        return keys


@dataclass(frozen=True, slots=True)
class _Key:
    id: str | None
    algorithm: str
    members: Mapping[str, str]


def _key(jwk: object) -> _Key | None:
    """Read one key of a set; None for one of another kind or for another use."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    for algorithm, kind in _KIND.items():
        if jwk.get("alg", algorithm) == algorithm and all(jwk.get(name) == value for name, value in kind.items()):
            members = {name: jwk[name] for name, size in _MEMBERS[algorithm].items() if _fits(jwk.get(name), *size)}
            if len(members) == len(_MEMBERS[algorithm]):
                return _Key(_text(jwk.get("kid")), algorithm, {**kind, **members})
    return None


def _fits(value: Any, least: int, most: int) -> bool:
    return isinstance(value, str) and least <= len(value) <= most and _BASE64URL.fullmatch(value) is not None


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("no list of keys")  # noqa: TRY004 - wrong as a value, of whatever type
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise ValueError("no base64url") from exc
