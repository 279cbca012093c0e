"""
Who is asking: bearer tokens, and the one way to do without them.

A token is a JWT signed with HS256.  Its claims ``tenant`` and ``sub`` say who, ``scope`` what for, ``exp``
until when.  PyJWT looks at the signature; the claims are read here, because their times are compared with
the injected clock.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol

from chatturn.errors import ConfigurationError, Forbidden, RequestError, Unauthenticated
from chatturn.http.limits import (
    MAX_ID_CHARACTERS,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKEN_HEADER_CHARACTERS,
)
from chatturn.http.pyjwt import hs256_problem, verified_payload
from chatturn.http.strict_json import read_json_object
from chatturn.settings import Settings

__all__ = [
    "MIN_SECRET_BYTES",
    "OPERATE",
    "READ_TURNS",
    "RUN_TURNS",
    "SCOPES",
    "Authenticator",
    "BearerAuth",
    "NoAuth",
    "Principal",
    "UnconfiguredAuth",
    "authenticator_for",
    "require_scope",
]

RUN_TURNS: Final = "turns"
READ_TURNS: Final = "turns:read"
OPERATE: Final = "operate"

SCOPES: Final[Mapping[str, str]] = {
    RUN_TURNS: "run, stop and read the turns of one's own tenant, and take over those whose worker is lost",
    READ_TURNS: "read them only",
    OPERATE: "list the turns of every tenant",
}

LEEWAY_S: Final = 30
MIN_SECRET_BYTES: Final = 32  # RFC 7518 section 3.2: a key at least as long as the hash
_REMEMBERED_TOKENS: Final = 256

_JWS: Final = re.compile(r"([\w-]+)\.[\w-]+\.[\w-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """
    Who is asking.

    Attributes:
        tenant_id: Whose turns these are.
        user_id: Which of the tenant's users.
        scopes: What the token is for.
        expires_at_s: Until when, in seconds since the epoch; two tokens of one user are one principal.
    """

    tenant_id: str
    user_id: str
    scopes: frozenset[str]
    expires_at_s: float = field(default=math.inf, compare=False)


class Authenticator(Protocol):
    """Finds out who sent a request."""

    def check(self) -> None:
        """
        Look whether requests can be told apart at all.

        Raises:
            ConfigurationError: Not with these settings.
        """

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """
        Return who sent the request with these *headers*.

        Raises:
            Unauthenticated: Nobody that can be proved.
            ConfigurationError: As `check`.
        """


def require_scope(principal: Principal, scopes: Collection[str]) -> None:
    """
    Let *principal* pass only with one of *scopes*.

    Raises:
        Forbidden: The token lacks them.
    """
    if principal.scopes.isdisjoint(scopes):
        wanted = " or ".join(map(repr, scopes))
        raise Forbidden(f"the token's scope must contain {wanted}", field="scope")


def authenticator_for(settings: Settings, *, now: Callable[[], float]) -> Authenticator:
    """
    Return what *settings* ask for; where they are incomplete, what refuses everybody and says why.

    Args:
        settings: Of this deployment.
        now: Seconds since the epoch.
    """
    if settings.auth == "off":
        return NoAuth()
    try:
        return BearerAuth(settings.auth_jwt_secret, now=now)
    except ConfigurationError as error:
        return UnconfiguredAuth(error)


class BearerAuth:
    """
    Bearer tokens signed with one secret.

    Verified tokens are remembered, by their hash, until they expire: clients send the same one again and
    again, and PyJWT takes 0.25 ms for it in WebAssembly.

    Args:
        secret: The key, as UTF-8.
        now: Seconds since the epoch.

    Raises:
        ConfigurationError: The secret cannot be an HS256 key.
    """

    def __init__(self, secret: str, *, now: Callable[[], float]) -> None:
        self._key = _checked_key(secret)
        self._now = now
        self._verified: dict[bytes, Principal] = {}

    def check(self) -> None:
        """Do nothing: an instance is always complete."""

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return who the bearer token says."""
        token = _bearer_token(headers.get("authorization", ""))
        digest = hashlib.sha256(token.encode()).digest()
        remembered = self._verified.get(digest)
        principal = self._verify(token) if remembered is None else remembered
        if self._now() >= principal.expires_at_s + LEEWAY_S:
            self._verified.pop(digest, None)
            raise Unauthenticated("the token has expired", field="exp")
        if remembered is None:
            self._remember(digest, principal)
        return principal

    def _verify(self, token: str) -> Principal:
        payload = verified_payload(token, self._key)
        if payload is None:
            raise Unauthenticated("the token's signature is not HS256 with this service's key", field="Authorization")
        try:
            claims = read_json_object(payload)
        except RequestError as exc:
            raise Unauthenticated("the token's claims are not a JSON object", field="Authorization") from exc
        latest_s = self._now() + LEEWAY_S
        for name in ("nbf", "iat"):
            if name in claims and _time(claims, name) > latest_s:
                raise Unauthenticated(f"the token is not valid yet, by its {name}", field=name)
        return Principal(
            tenant_id=_name(claims, "tenant"),
            user_id=_name(claims, "sub"),
            scopes=_scopes(claims.get("scope", "")),
            expires_at_s=_time(claims, "exp"),
        )

    def _remember(self, digest: bytes, principal: Principal) -> None:
        if len(self._verified) >= _REMEMBERED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = principal


class NoAuth:
    """Lets everyone in as the same local user: ``AUTH=off``."""

    _LOCAL: Final = Principal(tenant_id="local", user_id="dev", scopes=frozenset(SCOPES))

    def check(self) -> None:
        """Do nothing: there is nothing to be set."""

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return the local user."""
        del headers
        return self._LOCAL


class UnconfiguredAuth:
    """Refuses everyone, because a setting is missing."""

    def __init__(self, error: ConfigurationError) -> None:
        self._error = error

    def check(self) -> NoReturn:
        """Refuse."""
        raise self._error.with_traceback(None)

    def authenticate(self, headers: Mapping[str, str]) -> NoReturn:
        """Refuse."""
        del headers
        self.check()


def _checked_key(secret: str) -> bytes:
    setting = "AUTH_JWT_SECRET"
    if not secret:
        raise ConfigurationError(setting, f"is not set; it must have at least {MIN_SECRET_BYTES} bytes")
    key = secret.encode()
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigurationError(setting, f"has {len(key)} bytes, but must have at least {MIN_SECRET_BYTES}")
    if problem := hs256_problem(key):
        raise ConfigurationError(setting, f"cannot be an HS256 key: {problem}")
    return key


def _bearer_token(header: str) -> str:
    if not header:
        raise Unauthenticated("the Authorization header is missing", field="Authorization")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("the Authorization header must say Bearer and a token", field="Authorization")
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters", field="Authorization")
    jws = _JWS.fullmatch(token)
    if jws is None or jws.end(1) > MAX_TOKEN_HEADER_CHARACTERS:
        raise Unauthenticated("the token is not a compact JWT", field="Authorization")
    return token


def _name(claims: Mapping[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise Unauthenticated(f"the token's {claim} must be 1 to {MAX_ID_CHARACTERS} characters", field=claim)
    if not value.isprintable() or value != value.strip():
        raise Unauthenticated(f"the token's {claim} must be printable, without blanks around it", field=claim)
    return value


def _time(claims: Mapping[str, Any], claim: str) -> float:
    value = claims.get(claim)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated(f"the token's {claim} must be a number of seconds since the epoch", field=claim)
    return value


def _scopes(value: object) -> frozenset[str]:
    if not isinstance(value, str):
        raise Unauthenticated("the token's scope must be text, scopes separated by blanks", field="scope")
    return frozenset(value.split())
