"""
Authentication: bearer tokens, or one local user for everybody with ``AUTH=off``.

A token is a signed JWT; `chatturn.http.token_keys` checks the signature.  Its claims are read here: ``tenant`` and
``sub`` name the user, ``scope`` the permitted operations, ``exp`` the end, compared with the injected clock.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urlsplit

from chatturn.chat.log.room import holder
from chatturn.errors import ConfigurationError, Forbidden, RequestError, Unauthenticated
from chatturn.http.limits import (
    MAX_ID_CHARACTERS,
    MAX_TOKEN_CHARACTERS,
)
from chatturn.http.strict_json import read_json_object
from chatturn.http.token_keys import Secrets, TokenKeys, read_jws
from chatturn.settings import Settings
from chatturn.transport import is_address

__all__ = [
    "OPERATE",
    "READ_TURNS",
    "RUN_TURNS",
    "SCOPES",
    "Authenticator",
    "BearerAuth",
    "ClaimRules",
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
_REMEMBERED_TOKENS: Final = 256
_REMEMBERED_S: Final = 600
"""After 600 s a token's signature is checked again, since its key may have been withdrawn."""

_THIS_MACHINE: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """
    Who sent a request, and what they may do.

    Attributes:
        tenant_id: The tenant.
        user_id: The user of the tenant.
        scopes: The scopes of the token.
        expires_at_s: The token's end, in seconds since the epoch.  It is not compared: two tokens of one user with the
            same scopes are equal principals.
    """

    tenant_id: str
    user_id: str
    scopes: frozenset[str]
    expires_at_s: float = field(default=math.inf, compare=False)

    @property
    def name(self) -> str:
        """A text that stands for this user of this tenant, and for no other."""
        return holder(self.tenant_id, self.user_id)


class Authenticator(Protocol):
    """Finds out who sent a request."""

    def check(self) -> None:
        """
        Check that the settings allow requests to be authenticated at all.

        Raises:
            ConfigurationError: A setting for that is missing or wrong.
        """

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """
        Return who sent the request with these *headers*.

        Raises:
            Unauthenticated: The headers prove no user.
            KeysUnavailable: The signature cannot be checked at the moment.
            ConfigurationError: As for `check`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """
    What a token's claims must say, apart from the user and the end.

    Attributes:
        issuer: The required ``iss``; "" for any.
        audiences: ``aud`` must name one of these; empty for any.
        longest_life_s: The longest time from ``iat``, or from now without one, to ``exp``.
        tenant_claim: The claim that names the tenant.
        default_scope: The scope of a token without ``scope``.
    """

    issuer: str = ""
    audiences: frozenset[str] = frozenset()
    longest_life_s: float = math.inf
    tenant_claim: str = "tenant"
    default_scope: str = ""


NO_FURTHER_RULES: Final = ClaimRules()
_UNKNOWN: Final[tuple[Principal | None, float]] = (None, 0)


def require_scope(principal: Principal, scopes: Collection[str]) -> None:
    """
    Refuse a *principal* that has none of *scopes*.

    Raises:
        Forbidden: The token has none of *scopes*.
    """
    if principal.scopes.isdisjoint(scopes):
        wanted = " or ".join(map(repr, scopes))
        raise Forbidden(f"the token's scope must contain {wanted}", field="scope")


def authenticator_for(
    settings: Settings, *, now: Callable[[], float], published: Callable[[str], TokenKeys] | None = None
) -> Authenticator:
    """
    Return the authenticator that *settings* ask for; if they are incomplete, one that refuses everybody and says why.

    Args:
        settings: The deployment's settings.
        now: Seconds since the epoch.
        published: Returns the keys that are published at an address; without it, `AUTH_JWKS_URL` is not used.
    """
    if settings.auth == "off":
        return NoAuth()
    try:
        return BearerAuth(_token_keys(settings, published), now=now, rules=_claim_rules(settings))
    except ConfigurationError as error:
        return UnconfiguredAuth(error)


def _token_keys(settings: Settings, published: Callable[[str], TokenKeys] | None) -> list[TokenKeys]:
    keys: list[TokenKeys] = []
    if settings.auth_jwt_secret or not settings.auth_jwks_url:
        shared = {"AUTH_JWT_SECRET": settings.auth_jwt_secret}
        if settings.auth_jwt_secret_previous:
            shared["AUTH_JWT_SECRET_PREVIOUS"] = settings.auth_jwt_secret_previous
        keys.append(Secrets(shared))
    if settings.auth_jwks_url and published is not None:
        keys.append(published(_checked_jwks_url(settings)))
    return keys


def _checked_jwks_url(settings: Settings) -> str:
    if not _is_safe(settings.auth_jwks_url):
        raise ConfigurationError("AUTH_JWKS_URL", "must be an https address")
    if not settings.auth_issuer and not settings.auth_audience:
        # A provider signs the tokens of many services with the same keys; only these claims tell ours from others.
        raise ConfigurationError("AUTH_ISSUER", "or AUTH_AUDIENCE must be set where AUTH_JWKS_URL is")
    return settings.auth_jwks_url


def _is_safe(address: str) -> bool:
    return is_address(address) and (address.startswith("https") or urlsplit(address).hostname in _THIS_MACHINE)


def _claim_rules(settings: Settings) -> ClaimRules:
    return ClaimRules(
        issuer=settings.auth_issuer,
        audiences=frozenset(each.strip() for each in settings.auth_audience.split(",")) - {""},
        longest_life_s=settings.auth_max_life_s or math.inf,
        tenant_claim=settings.auth_tenant_claim,
        default_scope=settings.auth_default_scope,
    )


class BearerAuth:
    """
    Authenticates requests by their bearer tokens.

    Verified tokens are remembered for `_REMEMBERED_S`, by their hash: clients send the same token each time, and PyJWT
    takes 0.25 ms to verify it in WebAssembly.

    Args:
        keys: The keys whose signatures count; no two have an algorithm in common.
        now: Seconds since the epoch.
        rules: What the claims must say, apart from the user and the end.
    """

    def __init__(
        self, keys: Sequence[TokenKeys], *, now: Callable[[], float], rules: ClaimRules = NO_FURTHER_RULES
    ) -> None:
        self._keys = {algorithm: each for each in keys for algorithm in each.algorithms}
        self._now = now
        self._rules = rules
        self._verified: dict[bytes, tuple[Principal, float]] = {}

    def check(self) -> None:
        """Do nothing: an instance is only made from complete settings."""

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return whom the bearer token names."""
        token = _bearer_token(headers.get("authorization", ""))
        digest = hashlib.sha256(token.encode()).digest()
        principal, forget_at_s = self._verified.pop(digest, _UNKNOWN)
        if principal is None or self._now() >= forget_at_s:
            principal, forget_at_s = await self._verify(token), self._now() + _REMEMBERED_S
        if self._now() >= principal.expires_at_s + LEEWAY_S:
            raise Unauthenticated("the token has expired", field="exp")
        self._remember(digest, principal, forget_at_s)
        return principal

    async def _verify(self, token: str) -> Principal:
        jws = read_jws(token)
        if jws is None:
            raise Unauthenticated("the token is not a compact JWT", field="Authorization")
        keys = self._keys.get(jws.algorithm)
        payload = None if keys is None else await keys.payload(jws)
        if payload is None:
            names = " or ".join(sorted(self._keys))
            raise Unauthenticated(
                f"the token's signature is not {names} with a key of this service", field="Authorization"
            )
        try:
            claims = read_json_object(payload)
        except RequestError as exc:
            raise Unauthenticated("the token's claims are not a JSON object", field="Authorization") from exc
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        now, rules = self._now(), self._rules
        for name in ("nbf", "iat"):
            if name in claims and _time(claims, name) > now + LEEWAY_S:
                raise Unauthenticated(f"the token is not valid yet, by its {name}", field=name)
        expires_at_s = _time(claims, "exp")
        if expires_at_s - (_time(claims, "iat") if "iat" in claims else now) > rules.longest_life_s:
            raise Unauthenticated("the token lives longer than this service accepts", field="exp")
        if rules.issuer and claims.get("iss") != rules.issuer:
            raise Unauthenticated("the token's iss is not who makes this service's tokens", field="iss")
        if rules.audiences and rules.audiences.isdisjoint(_audiences(claims.get("aud"))):
            raise Unauthenticated("the token's aud is not this service", field="aud")
        return Principal(
            tenant_id=_name(claims, rules.tenant_claim),
            user_id=_name(claims, "sub"),
            scopes=_scopes(claims.get("scope", rules.default_scope)),
            expires_at_s=expires_at_s,
        )

    def _remember(self, digest: bytes, principal: Principal, forget_at_s: float) -> None:
        if len(self._verified) >= _REMEMBERED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = (principal, forget_at_s)


class NoAuth:
    """Lets everyone in as the same local user: ``AUTH=off``."""

    _LOCAL: Final = Principal(tenant_id="local", user_id="dev", scopes=frozenset(SCOPES))

    def check(self) -> None:
        """Do nothing: no setting is needed."""

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return the local user."""
        del headers
        return self._LOCAL


class UnconfiguredAuth:
    """Refuses everyone, because a setting is missing or wrong."""

    def __init__(self, error: ConfigurationError) -> None:
        self._error = error

    def check(self) -> NoReturn:
        """Refuse."""
        raise self._error.with_traceback(None)

    async def authenticate(self, headers: Mapping[str, str]) -> NoReturn:
        """Refuse."""
        del headers
        self.check()


def _bearer_token(header: str) -> str:
    if not header:
        raise Unauthenticated("the Authorization header is missing", field="Authorization")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("the Authorization header must say Bearer and a token", field="Authorization")
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters", field="Authorization")
    if not token.isascii():
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
    return frozenset(value.split(" ")) - {""}  # U+0020 and nothing else. Source: RFC 6749 section 3.3.


def _audiences(value: object) -> Collection[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]
