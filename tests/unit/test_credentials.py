"""Credentials: who is let in, and above all who is not."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import jwt
import pytest

from runnel.common.errors import BadSettings, Unauthenticated
from runnel.common.protocol import NodeKind
from runnel.transport import NodeIdentity, bearer_metadata
from runnel.transport.credentials import CredentialIssuer, CredentialVerifier, load_or_create_key

pytestmark = pytest.mark.unit

KEY = bytes(range(32))
ANNA = NodeIdentity(name="hospital-a", node_id="nod-1", kind=NodeKind.CLIENT, organisation="org-1")


class SetClock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def issuer(clock: SetClock) -> CredentialIssuer:
    return CredentialIssuer(KEY, clock)


@pytest.fixture
def verifier(issuer: CredentialIssuer, clock: SetClock) -> CredentialVerifier:
    return CredentialVerifier(issuer.public_key, clock, leeway_s=30)


@pytest.mark.parametrize("kind", NodeKind)
def test_a_credential_says_whose_it_is(issuer: CredentialIssuer, verifier: CredentialVerifier, kind: NodeKind) -> None:
    identity = NodeIdentity(name="n", node_id="nod-9", kind=kind, organisation="")
    assert verifier.verify(issuer.issue(identity, 60)) == identity
    assert verifier.verify(issuer.issue(ANNA, 60)) == ANNA


def test_the_public_key_has_32_bytes_and_is_not_the_private_one(issuer: CredentialIssuer) -> None:
    assert len(issuer.public_key) == 32
    assert issuer.public_key != KEY


def test_a_credential_expires_after_its_time_and_the_leeway(
    issuer: CredentialIssuer, verifier: CredentialVerifier, clock: SetClock
) -> None:
    token = issuer.issue(ANNA, 60)
    clock.now += 89
    assert verifier.verify(token) == ANNA
    clock.now += 2
    with pytest.raises(Unauthenticated, match="hospital-a expired 31 s ago"):
        verifier.verify(token)


@pytest.mark.parametrize("token", [None, ""])
def test_no_credential_is_refused(verifier: CredentialVerifier, token: str | None) -> None:
    with pytest.raises(Unauthenticated, match="no credential"):
        verifier.verify(token)


def test_another_networks_credential_is_refused(verifier: CredentialVerifier, clock: SetClock) -> None:
    token = CredentialIssuer(bytes(32), clock).issue(ANNA, 60)
    with pytest.raises(Unauthenticated, match="not issued by this network"):
        verifier.verify(token)


def _part(value: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _claims(clock: SetClock) -> dict[str, object]:
    return {
        "aud": "runnel.uplink",
        "sub": "root",
        "nid": "n",
        "kind": "combiner",
        "org": "",
        "exp": clock.now + 60,
    }


def test_an_unsigned_token_is_refused(verifier: CredentialVerifier, clock: SetClock) -> None:
    token = f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(_claims(clock))}."
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


def test_the_public_key_is_no_shared_secret(
    issuer: CredentialIssuer, verifier: CredentialVerifier, clock: SetClock
) -> None:
    """The classical confusion: HS256 with the key that everybody knows."""
    token = jwt.encode(_claims(clock), issuer.public_key, algorithm="HS256")
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


def test_changed_claims_are_refused(issuer: CredentialIssuer, verifier: CredentialVerifier, clock: SetClock) -> None:
    head, _, signature = issuer.issue(ANNA, 60).split(".")
    with pytest.raises(Unauthenticated):
        verifier.verify(f"{head}.{_part(_claims(clock))}.{signature}")


@pytest.mark.parametrize("claim", ["aud", "sub", "nid", "kind", "org", "exp"])
def test_every_claim_is_needed(verifier: CredentialVerifier, clock: SetClock, claim: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    claims = _claims(clock)
    key = Ed25519PrivateKey.from_private_bytes(KEY)
    assert verifier.verify(jwt.encode(claims, key, algorithm="EdDSA")).name == "root"
    del claims[claim]
    with pytest.raises(Unauthenticated):
        verifier.verify(jwt.encode(claims, key, algorithm="EdDSA"))


@pytest.mark.parametrize(("claim", "value"), [("kind", "reducer"), ("exp", "soon"), ("aud", "other"), ("sub", 7)])
def test_odd_claims_are_refused(verifier: CredentialVerifier, clock: SetClock, claim: str, value: object) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    token = jwt.encode({**_claims(clock), claim: value}, Ed25519PrivateKey.from_private_bytes(KEY), algorithm="EdDSA")
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


@pytest.mark.parametrize("token", ["x", "a.b.c", "....", "é.é.é", "\0", "e30.e30.e30", "a" * 10_000])
def test_rubbish_is_refused(verifier: CredentialVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


def test_a_token_is_presented_as_bearer() -> None:
    assert bearer_metadata("t") == (("authorization", "Bearer t"),)
    assert bearer_metadata(None) == ()
    assert bearer_metadata("") == ()


def test_a_key_is_made_once_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "signing.key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_no_key_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(b"short")
    with pytest.raises(BadSettings, match="32 bytes and has 5"):
        load_or_create_key(path)
    assert path.read_bytes() == b"short"


def test_a_known_credential_expires_all_the_same(
    issuer: CredentialIssuer, verifier: CredentialVerifier, clock: SetClock
) -> None:
    token = issuer.issue(ANNA, 60)
    assert verifier.verify(token) == verifier.verify(token) == ANNA
    clock.now += 91
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify(token)


def test_a_signature_is_checked_once(
    issuer: CredentialIssuer, verifier: CredentialVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issuer.issue(ANNA, 60)
    verifier.verify(token)
    monkeypatch.setattr(jwt, "decode", None)  # whoever needs it now is refused
    assert verifier.verify(token) == ANNA
    with pytest.raises(Unauthenticated):
        verifier.verify(issuer.issue(ANNA, 60))


def test_more_credentials_are_remembered_than_clients_attach_until_they_expire(
    issuer: CredentialIssuer, verifier: CredentialVerifier, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [issuer.issue(ANNA, 60) for _ in range(5000)]
    for token in tokens:
        verifier.verify(token)
    with monkeypatch.context() as patch:
        patch.setattr(jwt, "decode", None)  # whoever needs it now is refused
        assert all(verifier.verify(token) == ANNA for token in tokens)
    clock.now += 91
    fresh = issuer.issue(ANNA, 60)
    verifier.verify(fresh)
    assert list(verifier._good) == [fresh]
