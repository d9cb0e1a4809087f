"""Signatures of packages: who vouches for which archive, and what is no such thing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.blobs import digest_file
from runnel.common.errors import Conflict, InvalidInput, NotFound
from runnel.common.protocol import Assignment, AssignmentKey, BlobRef, PackageSignature, Work
from runnel.compute_package import (
    key_id,
    new_key,
    public_key_of,
    public_key_text,
    read_public_key,
    read_signatures,
    sign,
    signature_file,
    signature_of,
    verifies,
    write_signatures,
)
from runnel.transport.messages import downward_from_wire, downward_to_wire

pytestmark = pytest.mark.unit

DIGEST = "ab" * 32


def test_a_signature_is_of_one_digest_by_one_key(tmp_path: Path) -> None:
    ada, eve = new_key(tmp_path / "ada"), new_key(tmp_path / "eve")
    signature = sign(DIGEST, tmp_path / "ada")
    assert signature.public_key == ada
    assert verifies(signature, DIGEST)
    assert not verifies(signature, "cd" * 32)
    assert not verifies(PackageSignature(public_key=eve, signature=signature.signature), DIGEST)


@given(bit=st.integers(0, 511))
def test_no_bit_of_a_signature_may_change(bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    key = tmp_path_factory.mktemp("key") / "ada"
    new_key(key)
    good = sign(DIGEST, key)
    changed = bytearray(good.signature)
    changed[bit // 8] ^= 1 << bit % 8
    assert not verifies(PackageSignature(public_key=good.public_key, signature=bytes(changed)), DIGEST)


def test_the_plain_digest_signed_is_no_signature_of_a_package(tmp_path: Path) -> None:
    public = new_key(tmp_path / "ada")
    private = load_pem_private_key((tmp_path / "ada").read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    elsewhere = private.sign(bytes.fromhex(DIGEST))
    assert not verifies(PackageSignature(public_key=public, signature=elsewhere), DIGEST)


def test_a_private_key_is_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    public = new_key(tmp_path / "ada")
    assert stat.S_IMODE((tmp_path / "ada").stat().st_mode) == 0o600
    assert read_public_key(str(tmp_path / "ada.pub")) == public
    assert read_public_key(public_key_text(public)) == public
    assert key_id(public) == key_id(public_key_of(public_key_text(public)))
    (tmp_path / "ada.pub").unlink()
    with pytest.raises(Conflict, match="not overwritten"):
        new_key(tmp_path / "ada")
    with pytest.raises(NotFound, match="folder"):
        new_key(tmp_path / "nowhere" / "ada")


def test_several_signers_share_a_file_and_sign_again(tmp_path: Path) -> None:
    archive = tmp_path / "p.tar.gz"
    archive.write_bytes(b"anything")
    digest = digest_file(archive).sha256
    assert read_signatures(archive, digest) == ()
    keys = [new_key(tmp_path / name) for name in ("ada", "bob")]
    both = [sign(digest, tmp_path / name) for name in ("ada", "bob", "ada")]
    assert write_signatures(archive, digest, both) == signature_file(archive)
    assert [each.public_key for each in read_signatures(archive, digest)] == keys


def test_a_file_of_signatures_that_does_not_fit_says_why(tmp_path: Path) -> None:
    archive = tmp_path / "p.tar.gz"
    archive.write_bytes(b"anything")
    new_key(tmp_path / "ada")
    write_signatures(archive, DIGEST, [sign(DIGEST, tmp_path / "ada")])
    with pytest.raises(InvalidInput, match="packed anew"):
        read_signatures(archive, "cd" * 32)
    file = signature_file(archive)
    text = file.read_text()
    file.write_text(text.replace('"signature": "', '"signature": "00')[: len(text)])
    with pytest.raises(InvalidInput, match="no signature"):
        read_signatures(archive, DIGEST)
    file.write_text(text[:-8] + ("0000" if text[-8:-4] != "0000" else "1111") + text[-4:])
    with pytest.raises(InvalidInput, match="does not verify"):
        read_signatures(archive, DIGEST)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="not text"):
        read_signatures(archive, DIGEST)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:" + "g" * 64, "ed25519:" + "a" * 63, "a" * 64, "rsa:00"])
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(InvalidInput, match="no public key"):
        public_key_of(text)


def test_what_is_no_private_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(NotFound):
        sign(DIGEST, file)
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"nothing", other, b"-----BEGIN PRIVATE KEY-----\n"):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match="no Ed25519 private key"):
            sign(DIGEST, file)
    new_key(tmp_path / "ada")
    with pytest.raises(InvalidInput, match="SHA-256"):
        sign("ab", tmp_path / "ada")
    with pytest.raises(InvalidInput, match="128"):
        signature_of("ed25519:" + "a" * 64, "ab")


def test_signatures_travel_with_the_order_as_they_are(tmp_path: Path) -> None:
    new_key(tmp_path / "ada")
    order = Assignment(
        order_id="o",
        key=AssignmentKey(session_id="s", round=1, work=Work.TRAIN),
        clients=("a",),
        package=BlobRef(sha256=DIGEST, size_bytes=1),
        model=BlobRef(sha256=DIGEST, size_bytes=1),
        signatures=(sign(DIGEST, tmp_path / "ada"),),
        organisation="north",
    )
    wire = downward_to_wire(order)
    assert downward_from_wire(wire) == order
    wire.assignment.signatures[0].signature = b"short"
    with pytest.raises(InvalidInput, match="a signature of 64"):
        downward_from_wire(wire)
    del wire.assignment.signatures[:]
    wire.assignment.signatures.extend(downward_to_wire(order).assignment.signatures[0] for _ in range(17))
    with pytest.raises(InvalidInput, match="at most 16"):
        downward_from_wire(wire)
