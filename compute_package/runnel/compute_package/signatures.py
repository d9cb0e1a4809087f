"""Signatures of compute packages: who vouches for an archive.

A signature is one of Ed25519 (RFC 8032) over the SHA-256 digest of the archive, put behind a text that nothing else
signs, so that a signature of a package can't be passed off as one of something else, nor the other way round. It is
kept beside the archive, in ``ARCHIVE.sig``: one line of JSON for each signer. Public keys are written as ``ed25519:``
and 64 hexadecimal digits; the id of a key is the first 16 digits of the SHA-256 of its 32 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.common.disk import write_bytes
from runnel.common.errors import Conflict, InvalidInput, NotFound
from runnel.common.protocol import PackageSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_SIGNATURES = 16
"""How many signatures a package may have."""

_DOMAIN = b"runnel compute package, version 1\n"
_PREFIX = "ed25519:"
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_FILE_BYTES = 64 << 10


def key_id(public_key: bytes) -> str:
    """Return the short fingerprint of a raw public key, 16 hexadecimal digits, for people to compare."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def public_key_text(public_key: bytes) -> str:
    """Return a raw public key as it is written in files and policies."""
    return f"{_PREFIX}{public_key.hex()}"


def public_key_of(text: str) -> bytes:
    """Return the raw key of 32 bytes that ``text`` writes down.

    Raises:
        InvalidInput: it is no public key.
    """
    digits = text.strip().removeprefix(_PREFIX)
    if not text.strip().startswith(_PREFIX) or _DIGEST.fullmatch(digits) is None:
        raise InvalidInput(
            f"{text.strip()!r:.90} is no public key; expected was {_PREFIX} and 64 hexadecimal digits.",
            hint="It is the line in the file KEY.pub that `runnel package key new KEY` wrote.",
        )
    return bytes.fromhex(digits)


def read_public_key(given: str) -> bytes:
    """Return the public key that ``given`` is, or that the file of this name holds.

    Raises:
        InvalidInput: neither is a public key.
        NotFound: it is no key, and there is no such file.
    """
    if given.startswith(_PREFIX):
        return public_key_of(given)
    return public_key_of(_read_text(Path(given), "public key"))


def new_key(path: Path) -> bytes:
    """Make a key: the private one in ``path`` (PEM, for its owner alone), the public one in ``path.pub``; return that.

    Raises:
        Conflict: one of the files is there; a key is never overwritten.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise Conflict(f"{file} is there already; a key is not overwritten.", hint="Choose another name.")
    if not path.absolute().parent.is_dir():
        raise NotFound(f"There is no folder {path.absolute().parent}.", hint="Make it first.", path=str(path))
    key = Ed25519PrivateKey.generate()
    write_bytes(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    raw = key.public_key().public_bytes_raw()
    write_bytes(public, f"{public_key_text(raw)}\n".encode())
    return raw


def sign(digest: str, key: Path) -> PackageSignature:
    """Sign an archive.

    Args:
        digest: its SHA-256 in hex.
        key: file of the private key, as :func:`new_key` writes it.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it holds no Ed25519 private key, or the digest is none.
    """
    private = _private_key(key)
    return PackageSignature(
        public_key=private.public_key().public_bytes_raw(), signature=private.sign(_message(digest))
    )


def verifies(signature: PackageSignature, digest: str) -> bool:
    """Whether the owner of the key in ``signature`` signed the archive with this SHA-256 (hex)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(signature.public_key).verify(signature.signature, _message(digest))
    except (InvalidSignature, ValueError):  # ValueError: of a key that is no point of the curve
        return False
    return True


def signature_file(archive: Path) -> Path:
    """Return where the signatures of ``archive`` are kept."""
    return archive.with_name(f"{archive.name}.sig")


def read_signatures(archive: Path, digest: str) -> tuple[PackageSignature, ...]:
    """Return the signatures beside ``archive``; none if there is no such file.

    Raises:
        InvalidInput: a line of the file is not what it should be, is of another archive than that with ``digest``, or
            does not verify.
    """
    file = signature_file(archive)
    if not file.exists():
        return ()
    found = []
    for number, line in enumerate(_read_text(file, "signature").splitlines(), start=1):
        signature = _read_line(file, number, line, digest)
        if not verifies(signature, digest):
            raise InvalidInput(
                f"{file}, line {number}: the signature by the key {key_id(signature.public_key)} does not verify.",
                hint="It was changed after it was written; sign the archive again.",
                path=str(file),
            )
        found.append(signature)
    return tuple(found)


def write_signatures(archive: Path, digest: str, signatures: Iterable[PackageSignature]) -> Path:
    """Replace the file of signatures beside ``archive``, the last of each key, and return its path."""
    newest = {signature.public_key: signature for signature in signatures}
    lines = [
        json.dumps(
            {
                "digest": digest,
                "public_key": public_key_text(signature.public_key),
                "signature": signature.signature.hex(),
            }
        )
        for signature in newest.values()
    ]
    file = signature_file(archive)
    write_bytes(file, "".join(f"{line}\n" for line in lines).encode())
    return file


def signature_of(public_key: str, signature: str) -> PackageSignature:
    """Return the signature that two texts write down, a public key and 128 hexadecimal digits.

    Raises:
        InvalidInput: they do not.
    """
    key = public_key_of(public_key)
    if re.fullmatch(f"[0-9a-f]{{{2 * _SIGNATURE_BYTES}}}", signature) is None:
        raise InvalidInput(
            f"{signature!r:.60} is no signature; expected were {2 * _SIGNATURE_BYTES} hexadecimal digits.",
            hint="Sign the archive with: runnel package sign ARCHIVE --key KEY.",
        )
    return PackageSignature(public_key=key, signature=bytes.fromhex(signature))


def _read_line(file: Path, number: int, line: str, digest: str) -> PackageSignature:
    try:
        told: Any = json.loads(line)
        of, key, signature = str(told["digest"]), str(told["public_key"]), str(told["signature"])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"{file}, line {number}, is no signature of a package.",
            hint="Remove the file and sign the archive: runnel package sign ARCHIVE --key KEY.",
            path=str(file),
        ) from error
    if of != digest:
        raise InvalidInput(
            f"{file}, line {number}, is the signature of {of[:16]:.16}, and the archive beside it is {digest[:16]}.",
            hint="The archive was packed anew since: remove the file and sign it again, or push without it.",
            path=str(file),
        )
    return signature_of(key, signature)


def _message(digest: str) -> bytes:
    if _DIGEST.fullmatch(digest) is None:
        raise InvalidInput(f"{digest!r:.80} is no SHA-256; expected were 64 hexadecimal digits.")
    return _DOMAIN + bytes.fromhex(digest)


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read_text(path, "private key")
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: of a key with a password
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def _no_key(path: Path) -> InvalidInput:
    return InvalidInput(
        f"{path} is no Ed25519 private key in PEM without a password.",
        hint="Make one with: runnel package key new FILE.",
        path=str(path),
    )


def _read_text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode()
    except OSError as error:
        raise NotFound(f"The {what} {path} can't be read: {error.strerror}.", path=str(path)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no {what}: it is not text.", path=str(path)) from error
