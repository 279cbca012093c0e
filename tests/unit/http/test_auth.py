"""Who is asking: only what this service's key signed, for as long as it says."""

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatturn.errors import ConfigurationError, Forbidden, Unauthenticated
from chatturn.http.auth import (
    LEEWAY_S,
    NO_FURTHER_RULES,
    SCOPES,
    Authenticator,
    BearerAuth,
    ClaimRules,
    NoAuth,
    Principal,
    UnconfiguredAuth,
    authenticator_for,
    require_scope,
)
from chatturn.http.token_keys import Secrets
from chatturn.settings import Settings

SECRET = "a secret that is at least 32 bytes long"
NOW_S = 1_800_000_000
CLAIMS: dict[str, Any] = {"tenant": "acme", "sub": "ann", "scope": "turns", "exp": NOW_S + 600}
ANN = Principal(tenant_id="acme", user_id="ann", scopes=frozenset({"turns"}))


class Clock:
    """Stands where it is put."""

    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def token(secret: str = SECRET, /, **claims: Any) -> str:
    members = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(members, secret, algorithm="HS256")


def raw_token(header: bytes, payload: bytes, *, secret: str = SECRET) -> str:
    """Make a token out of any bytes, with a genuine HMAC-SHA256 signature."""
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload))
    signature = hmac.digest(secret.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def bearer_auth(
    now: Callable[[], float] | None = None, *, secret: str = SECRET, rules: ClaimRules = NO_FURTHER_RULES
) -> BearerAuth:
    return BearerAuth([Secrets({"AUTH_JWT_SECRET": secret})], now=now or Clock(), rules=rules)


def authenticate(authenticator: Authenticator, headers: Mapping[str, str]) -> Principal:
    return asyncio.run(authenticator.authenticate(headers))


def test_a_genuine_token_says_who_it_is() -> None:
    """Tenant, subject and scopes come from the claims."""
    scopes = frozenset({"turns", "other"})

    assert authenticate(bearer_auth(), bearer(token())) == ANN
    assert scopes == authenticate(bearer_auth(), bearer(token(scope=" other  turns "))).scopes


def test_the_scheme_is_case_insensitive() -> None:
    """RFC 9110: schemes are."""
    assert authenticate(bearer_auth(), {"authorization": f"bEaReR {token()}"}) == ANN


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YW5uOmFubg==",
        token(),
        f"Bearer  {token()}",
        f"Bearer {token()} {token()}",
        f"Bearer {token()}, Bearer {token()}",
        f"Bearer {token()}\n",
        f"Bearer {token()}=",
        "Bearer a.b.c",
        "Bearer a.b",
        "Bearer ..",
        "Bearer é.é.é",
        "Bearer \ud800",
        "Bearer \0",
        "Bearer " + "a" * 100_000,
    ],
)
def test_what_is_no_bearer_token_is_nobody(header: str) -> None:
    """Any other header is answered alike, without a crash."""
    with pytest.raises(Unauthenticated):
        authenticate(bearer_auth(), {"authorization": header})


def test_without_a_header_there_is_nobody() -> None:
    """A missing header is named."""
    with pytest.raises(Unauthenticated, match="missing"):
        authenticate(bearer_auth(), {})


def test_a_token_of_another_key_is_refused() -> None:
    """A forged signature."""
    with pytest.raises(Unauthenticated, match="signature"):
        authenticate(bearer_auth(), bearer(token("another secret of at least 32 bytes, too")))


@pytest.mark.parametrize("algorithm", ["none", "None", "HS384", "HS512", "RS256", "ES256", "EdDSA", "", None, 1, []])
def test_the_token_does_not_choose_the_algorithm(algorithm: object) -> None:
    """Neither none nor any other algorithm passes, not even with a genuine HS256 signature."""
    header = json.dumps({"typ": "JWT", "alg": algorithm}).encode()

    with pytest.raises(Unauthenticated):
        authenticate(bearer_auth(), bearer(raw_token(header, json.dumps(CLAIMS).encode())))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_genuine_token_of_another_algorithm_is_refused(algorithm: str) -> None:
    """One algorithm, agreed on beforehand."""
    text = jwt.encode(CLAIMS, SECRET * 2, algorithm=algorithm)

    with pytest.raises(Unauthenticated):
        authenticate(bearer_auth(secret=SECRET * 2), bearer(text))


def test_an_unsigned_token_is_refused() -> None:
    """With alg none and no signature at all."""
    text = jwt.encode(CLAIMS, "", algorithm="none")

    for candidate in (text, text + "AA"):
        with pytest.raises(Unauthenticated):
            authenticate(bearer_auth(), bearer(candidate))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"alg": "HS256", "crit": ["exp"]}',
        b'{"alg": "HS256", "b64": false, "crit": ["b64"]}',
        b'{"alg": "HS256", "kid": 5}',
        b"[" * 300,
        b"[" * 5000,
        b'{"alg": "HS256", "x": ' + b"9" * 300 + b"9" * 4500 + b"}",
    ],
)
def test_a_header_that_is_none_is_refused(header: bytes) -> None:
    """Whatever stands in the header, which anybody can write, nothing breaks."""
    with pytest.raises(Unauthenticated):
        authenticate(bearer_auth(), bearer(raw_token(header, json.dumps(CLAIMS).encode())))


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"null",
        b"\xff",
        b"{",
        b"[" * 3000,
        b'{"exp": NaN, "tenant": "a", "sub": "b"}',
        b'{"exp":1,"exp":2}',
    ],
)
def test_claims_that_are_no_json_object_are_refused(payload: bytes) -> None:
    """Even those that were signed with the right key."""
    with pytest.raises(Unauthenticated, match="claims"):
        authenticate(bearer_auth(), bearer(raw_token(b'{"alg":"HS256"}', payload)))


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("tenant", None),
        ("tenant", ""),
        ("tenant", 7),
        ("tenant", "a" * 201),
        ("tenant", "a\nb"),
        ("tenant", "a\0"),
        ("tenant", " acme"),
        ("tenant", "\ud800"),
        ("sub", None),
        ("sub", ""),
        ("sub", ["ann"]),
        ("sub", "a" * 201),
        ("exp", None),
        ("exp", "tomorrow"),
        ("exp", str(NOW_S + 600)),
        ("exp", True),
        ("exp", [NOW_S + 600]),
        ("nbf", "yesterday"),
        ("iat", False),
        ("scope", ["turns"]),
        ("scope", 5),
    ],
)
def test_an_incomplete_or_odd_claim_is_refused_by_name(claim: str, value: object) -> None:
    """The claim that is wrong is the error's field."""
    claims = {name: each for name, each in {**CLAIMS, claim: value}.items() if each is not None}

    with pytest.raises(Unauthenticated, match=claim) as caught:
        authenticate(bearer_auth(), bearer(raw_token(b'{"alg":"HS256"}', json.dumps(claims).encode())))

    assert claim == caught.value.field


@pytest.mark.parametrize("tenant", ["a", "a" * 200, "Ünïcode GmbH", "auth0|65af", "urn:x:y/z", "😀"])
def test_a_tenant_may_have_any_printable_name(tenant: str) -> None:
    """The issuer names tenants; their runs' ids encode the name."""
    assert tenant == authenticate(bearer_auth(), bearer(token(tenant=tenant))).tenant_id


def test_the_claim_of_another_dialect_is_not_a_tenant() -> None:
    """``tid`` is not read: one claim, one meaning."""
    with pytest.raises(Unauthenticated, match="tenant"):
        authenticate(bearer_auth(), bearer(token(tenant=None, tid="acme")))


def test_a_token_ends_at_its_exp_and_the_leeway() -> None:
    """Clocks differ by seconds; tokens do not live longer than that."""
    clock = Clock()
    for now_s, passes in [(NOW_S, True), (NOW_S + 9 + LEEWAY_S, True), (NOW_S + 10 + LEEWAY_S, False)]:
        clock.now_s = now_s
        fresh = bearer_auth(clock)
        if passes:
            assert authenticate(fresh, bearer(token(exp=NOW_S + 10))) == ANN
        else:
            with pytest.raises(Unauthenticated, match="expired"):
                authenticate(fresh, bearer(token(exp=NOW_S + 10)))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_begins_at_its_nbf_and_iat_less_the_leeway(claim: str) -> None:
    """A token from the future is not valid yet."""
    assert authenticate(bearer_auth(), bearer(token(**{claim: NOW_S + LEEWAY_S}))) == ANN
    with pytest.raises(Unauthenticated, match=f"not valid yet, by its {claim}"):
        authenticate(bearer_auth(), bearer(token(**{claim: NOW_S + LEEWAY_S + 1})))


@pytest.mark.parametrize("exp", [NOW_S + 0.5, 1e300, 10**300])
def test_any_number_may_be_an_exp(exp: float) -> None:
    """NumericDate may have a fraction, and far is far."""
    assert authenticate(bearer_auth(), bearer(token(exp=exp))) == ANN


def test_a_remembered_token_still_expires() -> None:
    """What was verified once is not verified again, but its time is looked at each time."""
    clock = Clock()
    remembering, text = bearer_auth(clock), token()
    authenticate(remembering, bearer(text))
    clock.now_s = CLAIMS["exp"] + LEEWAY_S

    with pytest.raises(Unauthenticated, match="expired"):
        authenticate(remembering, bearer(text))
    assert remembering._verified == {}


def test_a_signature_is_looked_at_once() -> None:
    """A token that was seen before costs no signature: it passes even after the key is gone."""
    remembering, text = bearer_auth(), token()
    authenticate(remembering, bearer(text))
    remembering._keys = {}

    assert authenticate(remembering, bearer(text)) == ANN
    with pytest.raises(Unauthenticated):
        authenticate(remembering, bearer(token(sub="bob")))


def test_no_token_is_kept_in_the_clear() -> None:
    """What is remembered cannot be sent by anyone."""
    remembering, text = bearer_auth(), token()
    authenticate(remembering, bearer(text))

    assert text not in repr(vars(remembering))


def test_only_so_many_tokens_are_remembered() -> None:
    """An isolate's memory does not grow with its users, and all of them stay welcome."""
    remembering = bearer_auth()
    texts = [token(sub=f"user-{number}") for number in range(300)]
    for text in texts + texts[:5]:
        authenticate(remembering, bearer(text))

    assert len(remembering._verified) == 256


def test_a_refused_token_is_not_remembered() -> None:
    """Strangers cannot fill the memory."""
    remembering = bearer_auth()
    for text in (token("x" * 32), token(exp=1), token(tenant="")):
        with pytest.raises(Unauthenticated):
            authenticate(remembering, bearer(text))

    assert remembering._verified == {}


@given(st.integers(min_value=0), st.sampled_from("ABCxyz019-_."))
def test_no_changed_character_goes_unnoticed(position: int, character: str) -> None:
    """A token with one other character is another token."""
    text = token()
    position %= len(text)
    changed = text[:position] + character + text[position + 1 :]
    if changed != text:
        with pytest.raises(Unauthenticated):
            authenticate(bearer_auth(), bearer(changed))


@given(st.text())
def test_any_header_is_somebody_or_nobody(header: str) -> None:
    """Nothing but `Unauthenticated` is ever raised."""
    for value in (header, f"Bearer {header}"):
        with pytest.raises(Unauthenticated):
            authenticate(bearer_auth(), {"authorization": value})


def test_a_scope_lets_pass_who_has_it() -> None:
    """And names itself to who has not."""
    require_scope(ANN, ("turns", "other"))
    with pytest.raises(Forbidden, match="'turns'") as caught:
        require_scope(Principal(tenant_id="acme", user_id="ann", scopes=frozenset({"turn"})), ("turns",))

    assert caught.value.field == "scope"


def test_a_token_without_scope_is_genuine_but_may_do_nothing() -> None:
    """No scope is no permission."""
    assert frozenset() == authenticate(bearer_auth(), bearer(token(scope=None))).scopes


# The settings


@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 31, "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"]
)
def test_a_secret_that_cannot_be_a_key_is_a_misconfiguration(secret: str) -> None:
    """The setting is named, the secret is not repeated."""
    with pytest.raises(ConfigurationError, match=r"^AUTH_JWT_SECRET: ") as caught:
        bearer_auth(secret=secret)

    assert not secret or secret not in str(caught.value)


def test_thirty_two_bytes_are_enough() -> None:
    """Bytes, not characters."""
    bearer_auth(secret="é" * 16).check()


def test_unset_settings_refuse_everybody_and_say_why() -> None:
    """A deployment without a secret and without AUTH=off is closed, not open."""
    authenticator = authenticator_for(Settings(), now=Clock())

    assert isinstance(authenticator, UnconfiguredAuth)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="AUTH_JWT_SECRET"):
            authenticator.check()
        with pytest.raises(ConfigurationError, match="AUTH_JWT_SECRET"):
            authenticate(authenticator, bearer(token()))


def test_a_secret_means_bearer_tokens() -> None:
    """The default."""
    authenticator = authenticator_for(Settings(auth_jwt_secret=SECRET), now=Clock())

    authenticator.check()
    assert authenticate(authenticator, bearer(token())) == ANN


def test_auth_off_makes_everyone_the_local_user() -> None:
    """For local development: no token is needed and none is read."""
    authenticator = authenticator_for(Settings(auth="off"), now=Clock())

    authenticator.check()
    expected = Principal(tenant_id="local", user_id="dev", scopes=frozenset(SCOPES))
    assert expected == authenticate(authenticator, bearer("nonsense"))


def test_what_implements_the_protocol() -> None:
    """Type-checked, not run: every authenticator is an `Authenticator`."""
    _: list[Authenticator] = [bearer_auth(), NoAuth(), UnconfiguredAuth(ConfigurationError("X", "y"))]


def test_pyjwt_is_imported_without_what_pyodide_lacks() -> None:
    """In a fresh interpreter that has neither ssl nor cryptography, as in the Worker."""
    program = """
import sys
sys.modules["ssl"] = sys.modules["cryptography"] = None
from chatturn.http import pyjwt
assert "jwt.jwks_client" not in sys.modules and "urllib.request" not in sys.modules
print(pyjwt.verified_payload(sys.argv[1], sys.argv[2].encode()).decode())
"""
    paths = ":".join(sys.path)

    finished = subprocess.run(
        [sys.executable, "-c", program, token(), SECRET],
        env={"PYTHONPATH": paths},
        capture_output=True,
        check=False,
    )

    assert (finished.stderr.decode(), json.loads(finished.stdout)) == ("", CLAIMS)
