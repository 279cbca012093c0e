"""The keys of an identity provider: found, kept, changed, and never confused with a secret; in virtual time."""

import asyncio
import hmac
import json
from collections.abc import Iterable
from typing import Any

import jwt
import pytest
from jwt.utils import base64url_encode

from chatturn.errors import BackendTransportError, ConfigurationError, KeysUnavailable, Unauthenticated
from chatturn.http.auth import BearerAuth, ClaimRules, Principal, authenticator_for
from chatturn.http.token_keys import (
    ASK_AGAIN_S,
    FETCH_S,
    FRESH_S,
    MAX_KEYS_BYTES,
    STALE_S,
    PublishedKeys,
    Secrets,
    read_jws,
)
from chatturn.settings import Settings
from tests.support.identity_provider import SigningKey, jwk_set, verify_on_the_host
from tests.support.transport import HANG, BodyPart, Reply, ScriptedTransport

NOW_S = 1_800_000_000
SECRET = "a secret that is at least 32 bytes long"
RSA, EC, NEXT = SigningKey("r1", "RS256"), SigningKey("e1", "ES256"), SigningKey("r2", "RS256")
CLAIMS = {"tenant": "acme", "sub": "ann", "scope": "turns", "exp": NOW_S + 100_000}
ANN = Principal(tenant_id="acme", user_id="ann", scopes=frozenset({"turns"}))


def published(*keys: Any) -> Reply:
    return Reply(body=[jwk_set(*keys)])


class Service:
    """Who checks tokens, with a provider that answers by a script."""

    def __init__(self, *script: Any, shared: str = "", rules: ClaimRules | None = None) -> None:
        self.transport = ScriptedTransport(script)
        self.reported: list[str] = []
        keys: list[Any] = [
            PublishedKeys(
                "https://id.example/jwks",
                transport=self.transport,
                verify=verify_on_the_host,
                now=self.now,
                report=lambda error: self.reported.append(str(error)),
            )
        ]
        if shared:
            keys.append(Secrets({"AUTH_JWT_SECRET": shared}))
        self._auth = BearerAuth(keys, now=self.now, rules=rules or ClaimRules())

    @staticmethod
    def now() -> float:
        return NOW_S + asyncio.get_running_loop().time()

    @property
    def asked(self) -> int:
        return len(self.transport.exchanges)

    async def who(self, text: str) -> Principal:
        return await self._auth.authenticate({"authorization": f"Bearer {text}"})

    async def refuses(self, text: str) -> bool:
        try:
            await self.who(text)
        except Unauthenticated:
            return True
        return False


@pytest.mark.parametrize("key", [RSA, EC], ids=["RS256", "ES256"])
async def test_a_token_of_a_published_key_is_genuine(key: SigningKey) -> None:
    """Both algorithms; the keys are asked for once, and a token with one other character is none."""
    service = Service(published(RSA, EC))
    text = key.token(CLAIMS)
    head, payload, signature = text.split(".")
    other = head + "." + payload + "." + ("B" if signature[0] == "A" else "A") + signature[1:]

    assert await service.who(text) == ANN
    assert await service.who(key.token({**CLAIMS, "sub": "bob"})) != ANN
    assert await service.refuses(other)
    assert service.asked == 1


async def test_a_token_that_names_no_key_is_tried_with_those_of_its_algorithm() -> None:
    """Not every provider names them."""
    service = Service(published(NEXT, RSA, EC))
    text = RSA.token(CLAIMS, kid=None)

    assert "kid" not in jwt.get_unverified_header(text)
    assert await service.who(text) == ANN


async def test_no_public_key_is_taken_for_a_secret() -> None:
    """HS256 with what everybody can read is the oldest forgery; neither does a secret sign RS256."""
    service = Service(published(RSA, EC), shared=SECRET)
    for public in (json.dumps(RSA.jwk), RSA.jwk["n"], jwk_set(RSA, EC).decode()):
        assert await service.refuses(_with_header({"alg": "HS256", "kid": "r1"}, CLAIMS, key=public))
    genuine = jwt.encode(CLAIMS, SECRET, algorithm="HS256", headers={"kid": "r1"})

    assert await service.who(genuine) == ANN
    assert await Service(published(RSA)).refuses(genuine)
    assert await service.refuses(jwt.encode(CLAIMS, "", algorithm="none", headers={"kid": "r1"}) + "AA")


async def test_the_key_belongs_to_the_algorithm() -> None:
    """The name of an RSA key in an ES256 token finds nothing, nor does another provider's key of the same name."""
    service = Service(published(RSA), published(RSA))

    assert await service.refuses(EC.token(CLAIMS, kid="r1"))
    assert await service.refuses(NEXT.token(CLAIMS, kid="r1"))


async def test_a_new_key_is_found_when_it_is_first_used() -> None:
    """Rotation: the provider signs with it at once; the token of the old key is good as long as that is published."""
    service = Service(published(RSA), published(RSA, NEXT))
    await service.who(RSA.token(CLAIMS))
    await asyncio.sleep(ASK_AGAIN_S)

    assert await service.who(NEXT.token(CLAIMS)) == ANN
    assert await service.who(RSA.token({**CLAIMS, "sub": "bob"})) != ANN
    assert service.asked == 2


async def test_strangers_cannot_make_it_ask_and_ask() -> None:
    """A thousand tokens that name keys nobody has: one look in ten seconds."""
    service = Service(published(RSA), published(RSA), published(RSA))
    await service.who(RSA.token(CLAIMS))
    text = NEXT.token(CLAIMS)
    for _ in range(1_000):
        assert await service.refuses(text)
        await asyncio.sleep(0.015)

    assert service.asked == 2


async def test_a_key_that_was_withdrawn_is_forgotten() -> None:
    """Also for a token that was seen before: within twice the time that keys are kept."""
    service = Service(published(RSA), published(NEXT), published(NEXT), published(NEXT))
    text = RSA.token(CLAIMS)
    await service.who(text)
    await asyncio.sleep(FRESH_S)

    assert await service.refuses(text)


async def test_the_keys_of_before_serve_while_the_provider_is_away() -> None:
    """For an hour; afterwards nobody can be checked, and a retry may help."""
    service = Service(published(RSA), *[Reply(status=500)] * 20)
    await service.who(RSA.token(CLAIMS))
    await asyncio.sleep(STALE_S - 1)
    assert await service.who(RSA.token(CLAIMS)) == ANN
    await asyncio.sleep(FRESH_S)
    with pytest.raises(KeysUnavailable):
        await service.who(RSA.token({**CLAIMS, "sub": "bob"}))

    assert service.reported
    assert all(each == "AUTH_JWKS_URL: status 500" for each in service.reported)


async def test_a_new_key_that_cannot_be_fetched_is_no_bad_token() -> None:
    """It may be genuine, so a retry may help; once the keys were fetched again it is known which."""
    service = Service(published(RSA), Reply(status=500), published(RSA, NEXT))
    await service.who(RSA.token(CLAIMS))
    await asyncio.sleep(ASK_AGAIN_S)
    with pytest.raises(KeysUnavailable):
        await service.who(NEXT.token(CLAIMS))
    assert await service.who(RSA.token({**CLAIMS, "sub": "bob"})) != ANN
    await asyncio.sleep(ASK_AGAIN_S)

    assert await service.who(NEXT.token(CLAIMS)) == ANN


@pytest.mark.parametrize(
    "body",
    [
        [b""],
        [b"<html>"],
        [b"{}"],
        [b'{"keys": 5}'],
        [b'{"keys": []}'],
        [b'{"keys": [5, null, {}, {"kty": 7}]}'],
        [jwk_set({**RSA.jwk, "use": "enc"})],
        [jwk_set({**RSA.jwk, "alg": "RS512"})],
        [jwk_set({**RSA.jwk, "n": RSA.jwk["n"][:100]})],
        [jwk_set({**RSA.jwk, "n": 5})],
        [jwk_set({**EC.jwk, "crv": "P-384"})],
        [jwk_set({"kty": "oct", "k": "A" * 43, "alg": "HS256", "kid": "r1"})],
        [b"[" * 1_000],
        [b" " * 65_536] * 5,
        [b'{"keys"', BackendTransportError("reset", backend="fetch")],
        [b'{"keys"', HANG],
    ],
)
async def test_what_is_no_set_of_keys_checks_nobody(body: Iterable[BodyPart]) -> None:
    """Neither too small a key, nor one for something else, nor a page of HTML, nor a body that does not end."""
    service = Service(Reply(body=body))
    began = asyncio.get_running_loop().time()
    with pytest.raises(KeysUnavailable) as caught:
        await service.who(RSA.token(CLAIMS))

    assert asyncio.get_running_loop().time() - began <= FETCH_S
    assert len(service.reported) == 1
    assert (caught.value.status, caught.value.retryable) == (503, True)
    assert sum(len(each) for each in [b" " * 65_536] * 5) > MAX_KEYS_BYTES


async def test_a_provider_that_hangs_holds_nobody_for_long() -> None:
    """Not even a hundred requests at once, of which eight ask."""
    service = Service(*[HANG] * 8)
    asked = [asyncio.ensure_future(service.who(RSA.token({**CLAIMS, "sub": str(n)}))) for n in range(100)]
    began = asyncio.get_running_loop().time()
    results = await asyncio.gather(*asked, return_exceptions=True)

    assert {type(each) for each in results} == {KeysUnavailable}
    assert service.asked == 8
    assert asyncio.get_running_loop().time() - began == pytest.approx(FETCH_S)


async def test_requests_that_were_dropped_do_not_block_the_keys() -> None:
    """A request of the platform's may vanish with its client, and never say that it has ended."""
    service = Service(*[HANG] * 8, published(RSA))
    gone = [asyncio.ensure_future(service.who(RSA.token({**CLAIMS, "sub": str(n)}))) for n in range(8)]
    await asyncio.sleep(0)
    frozen = [service.transport.exchanges, *gone]  # kept, and never looked at again
    await asyncio.sleep(FETCH_S * 2)

    assert await service.who(RSA.token(CLAIMS)) == ANN
    assert frozen


# Claims


async def test_issuer_and_audience_must_be_those_of_the_settings() -> None:
    """A provider signs for others with the same keys."""
    rules = ClaimRules(issuer="https://id.example", audiences=frozenset({"chat", "chat-beta"}))
    good = {**CLAIMS, "iss": "https://id.example", "aud": "chat"}
    service = Service(published(RSA), rules=rules)

    assert await service.who(RSA.token(good)) == ANN
    assert await service.who(RSA.token({**good, "aud": ["x", "chat-beta"]})) == ANN
    refused: tuple[dict[str, Any], ...] = (
        {"iss": "https://id.example/"},
        {"iss": None},
        {"iss": ["https://id.example"]},
        {"aud": "chat2"},
        {"aud": []},
        {"aud": [["chat"]]},
        {"aud": {"chat": 1}},
        {"aud": None},
    )
    for wrong in refused:
        text = RSA.token({name: value for name, value in {**good, **wrong}.items() if value is not None})
        assert await service.refuses(text), wrong


async def test_a_token_may_not_live_longer_than_the_setting() -> None:
    """Counted from its `iat`; from now, where it has none."""
    service = Service(published(RSA), rules=ClaimRules(longest_life_s=3_600))

    assert await service.who(RSA.token({**CLAIMS, "exp": NOW_S + 3_600})) == ANN
    assert await service.who(RSA.token({**CLAIMS, "iat": NOW_S - 10, "exp": NOW_S + 3_590})) == ANN
    assert await service.refuses(RSA.token({**CLAIMS, "exp": NOW_S + 3_601}))
    assert await service.refuses(RSA.token({**CLAIMS, "iat": NOW_S - 10, "exp": NOW_S + 3_591}))


async def test_a_provider_may_have_another_name_for_the_tenant_and_none_for_the_scope() -> None:
    """Clerk and Auth0 call it `org_id`; Cloudflare Access has no scope."""
    rules = ClaimRules(tenant_claim="org_id", default_scope="turns")
    service = Service(published(RSA), rules=rules)

    assert await service.who(RSA.token({"org_id": "acme", "sub": "ann", "exp": NOW_S + 60})) == ANN
    assert (
        await service.who(RSA.token({"org_id": "acme", "sub": "ann", "exp": NOW_S + 60, "scope": ""}))
    ).scopes == set()


@pytest.mark.parametrize("blank", ["\t", "\n", "\u00a0", "\u2003", "\u3000", "\x1f"])
async def test_scopes_are_separated_by_u_0020_alone(blank: str) -> None:
    """RFC 6749: whoever makes a scope out of a user's text must not be tricked into another one by its blanks."""
    service = Service(published(RSA))
    principal = await service.who(RSA.token({**CLAIMS, "scope": f"read{blank}operate  turns"}))

    assert principal.scopes == {f"read{blank}operate", "turns"}


# The settings


async def test_a_secret_can_be_changed_while_tokens_of_the_old_one_are_in_use() -> None:
    """Whatever key a token names."""
    old = "another secret of at least 32 bytes, too"
    authenticator = authenticator_for(Settings(auth_jwt_secret=SECRET, auth_jwt_secret_previous=old), now=lambda: NOW_S)
    for secret in (SECRET, old):
        text = jwt.encode(CLAIMS, secret, headers={"kid": "anything"})
        assert await authenticator.authenticate({"authorization": f"Bearer {text}"}) == ANN
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate({"authorization": f"Bearer {jwt.encode(CLAIMS, 'x' * 32)}"})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"auth_jwt_secret": SECRET, "auth_jwt_secret_previous": "short"}, "AUTH_JWT_SECRET_PREVIOUS"),
        ({"auth_jwt_secret_previous": SECRET}, "AUTH_JWT_SECRET"),
        ({"auth_jwks_url": "https://id.example/jwks"}, "AUTH_ISSUER"),
        ({"auth_jwks_url": "http://id.example/jwks", "auth_issuer": "x"}, "AUTH_JWKS_URL"),
        ({"auth_jwks_url": "id.example/jwks", "auth_issuer": "x"}, "AUTH_JWKS_URL"),
        ({"auth_jwks_url": "file:///etc/keys", "auth_issuer": "x"}, "AUTH_JWKS_URL"),
        ({"auth_jwks_url": "https://", "auth_issuer": "x"}, "AUTH_JWKS_URL"),
    ],
)
def test_settings_that_would_let_the_wrong_in_are_refused(settings: dict[str, str], named: str) -> None:
    """The setting is named, no secret repeated."""
    authenticator = authenticator_for(
        Settings(**settings),  # type: ignore[arg-type]
        now=lambda: NOW_S,
        published=lambda _url: Secrets({"X": SECRET}),
    )
    with pytest.raises(ConfigurationError) as caught:
        authenticator.check()

    assert caught.value.setting == named
    assert SECRET not in str(caught.value)


def test_what_is_no_token_is_not_read() -> None:
    """Headers that say something else, or more than this service knows."""
    assert read_jws(RSA.token(CLAIMS)) is not None
    for header in ({"crit": ["exp"]}, {"kid": 5}, {"alg": 7}):
        assert read_jws(_with_header({"alg": "RS256", **header})) is None


def _with_header(header: dict[str, Any], claims: Any = None, *, key: str = "") -> str:
    """Make a token without a library that would refuse to: its signature is HMAC-SHA256 with *key*."""
    signed = b".".join(base64url_encode(json.dumps(part).encode()) for part in (header, claims))
    return (signed + b"." + base64url_encode(hmac.digest(key.encode(), signed, "sha256"))).decode()
