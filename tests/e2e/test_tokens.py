"""Tokens of an identity provider in the real workerd: WebCrypto looks at them, and the provider misbehaves."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import StartWorker
from tests.support.client import token
from tests.support.http import http
from tests.support.identity_provider import IdentityProvider, SigningKey
from tests.support.worker import SECRET, Worker, running_worker

pytestmark = pytest.mark.slow

RSA, EC = SigningKey("r1", "RS256"), SigningKey("e1", "ES256")


def variables(provider: IdentityProvider) -> dict[str, str]:
    return {
        "AUTH_JWKS_URL": provider.url,
        "AUTH_ISSUER": "https://id.example",
        "AUTH_AUDIENCE": "chat",
        "AUTH_TENANT_CLAIM": "org_id",
        "AUTH_DEFAULT_SCOPE": "turns",
        "AUTH_MAX_LIFE_S": "3600",
        "AUTH_JWT_SECRET_PREVIOUS": "the secret before, which is 32 bytes long",
    }


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """A provider with an RSA and an EC key."""
    with IdentityProvider(RSA, EC) as provider:
        yield provider


@pytest.fixture(scope="module")
def worker(provider: IdentityProvider) -> Iterator[Worker]:
    """A Worker that trusts it."""
    with running_worker(variables=variables(provider)) as worker:
        yield worker


def ask(worker: Worker, text: str) -> httpx.Response:
    return http.get(f"{worker.url}/v1/sessions/none/turns/0", headers={"authorization": f"Bearer {text}"})


def status(worker: Worker, text: str) -> tuple[int, Any]:
    """Return 404, `not_found`, for somebody who may ask for the turn that there is not."""
    response = ask(worker, text)
    return response.status_code, response.json()["code"]


@pytest.mark.parametrize("key", [RSA, EC], ids=["RS256", "ES256"])
def test_a_token_of_the_provider_is_somebody(worker: Worker, provider: IdentityProvider, key: SigningKey) -> None:
    """By WebCrypto; the same token with another signature, or another's claims, is nobody."""
    text = key.token(provider.claims())
    head, payload, signature = text.split(".")
    other = key.token(provider.claims(sub="bob"))

    assert status(worker, text) == (404, "not_found")
    assert status(worker, f"{head}.{payload}.{signature[::-1]}") == (401, "unauthenticated")
    assert status(worker, f"{head}.{payload}.AA") == (401, "unauthenticated")
    assert status(worker, f"{head}.{other.split('.')[1]}.{signature}") == (401, "unauthenticated")


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://other.example"},
        {"aud": "another"},
        {"aud": None},
        {"org_id": None},
        {"exp": int(time.time()) - 60},
        {"exp": int(time.time()) + 7_200},
        {"nbf": int(time.time()) + 600},
    ],
)
def test_a_token_for_somebody_else_is_nobody(worker: Worker, provider: IdentityProvider, wrong: dict[str, Any]) -> None:
    """Issuer, audience, tenant and times are looked at; what is wrong is named, what the service expects is not."""
    response = ask(worker, RSA.token(provider.claims(**wrong)))

    assert (response.status_code, response.json()["field"]) == (401, next(iter(wrong)))
    assert "id.example" not in response.text


def test_the_services_own_secrets_count_beside_the_provider(worker: Worker, provider: IdentityProvider) -> None:
    """Both of them; and the provider's public key is no secret."""
    import jwt  # noqa: PLC0415 - the tokens of this test alone

    claims = provider.claims()
    for secret in (SECRET, "the secret before, which is 32 bytes long"):
        assert status(worker, jwt.encode(claims, secret)) == (404, "not_found")
    assert status(worker, jwt.encode(claims, RSA.jwk["n"])) == (401, "unauthenticated")
    assert status(worker, token()) == (401, "unauthenticated")  # neither iss nor aud


def test_a_provider_that_hangs_or_fails_is_told_apart_from_a_bad_token(start_worker: StartWorker) -> None:
    """503 within the deadline and a retry, the reason in the log alone; then it answers, and so does the Worker."""
    with IdentityProvider(RSA) as provider:
        worker = start_worker(variables=variables(provider))
        text = RSA.token(provider.claims())
        provider.answering.clear()
        began = time.monotonic()
        hanging = ask(worker, text)
        took = time.monotonic() - began
        health = http.get(f"{worker.url}/healthz")
        provider.status = 500
        provider.answering.set()
        line = worker.logged("auth.keys_failed", seconds=10)

        assert (hanging.status_code, hanging.json()["code"]) == (503, "keys_unavailable")
        assert "retry-after" in hanging.headers
        assert took < 10
        assert health.status_code == 200
        assert "AUTH_JWKS_URL: " in line
        assert provider.url not in line
        assert provider.url not in hanging.text
        provider.status = 200
        deadline = time.monotonic() + 30
        while ask(worker, text).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert status(worker, text) == (404, "not_found")
