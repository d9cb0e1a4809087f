"""Who calls: short-lived signed credentials (JWT, RFC 7519, signed with Ed25519, RFC 8037).

The reducer issues them at ``Directory.Join``; every node that others attach to verifies them with the reducer's public
key and needs to ask nobody. Its libraries are loaded by those who do so, not by clients.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from runnel.common.errors import BadSettings, Unauthenticated
from runnel.common.protocol import NodeKind
from runnel.transport.identity import NodeIdentity

_ALGORITHM = "EdDSA"
_AUDIENCE = "runnel.uplink"
_KEY_BYTES = 32
_REMEMBERED = 1 << 16  # far more than can be attached; they go with their time


class CredentialIssuer:
    """Issues credentials.

    Args:
        private_key: raw Ed25519 key of 32 bytes.
        clock: Unix time in seconds.
    """

    def __init__(self, private_key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._clock = clock

    @property
    def public_key(self) -> bytes:
        """Raw key of 32 bytes with which the credentials are verified."""
        return self._key.public_key().public_bytes_raw()

    def issue(self, identity: NodeIdentity, ttl_s: float) -> str:
        """Return a credential that is good for ``ttl_s`` seconds."""
        now = self._clock()
        claims = {
            "aud": _AUDIENCE,
            "sub": identity.name,
            "nid": identity.node_id,
            "kind": identity.kind.value,
            "org": identity.organisation,
            "iat": int(now),
            "exp": int(now + ttl_s),
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)


class CredentialVerifier:
    """Verifies credentials.

    Args:
        public_key: raw Ed25519 key of 32 bytes, of the issuer.
        clock: Unix time in seconds.
        leeway_s: by how much the clocks of issuer and verifier may differ.
    """

    def __init__(self, public_key: bytes, clock: Callable[[], float] = time.time, *, leeway_s: float = 30.0) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(public_key)
        self._clock = clock
        self._leeway_s = leeway_s
        self._good: OrderedDict[str, tuple[NodeIdentity, float]] = OrderedDict()

    def verify(self, token: str | None) -> NodeIdentity:
        """Return whom the credential was issued to.

        Raises:
            Unauthenticated: there is none, it is expired, or it was not signed by the issuer.
        """
        if not token:
            raise Unauthenticated("The call carries no credential.", hint="Ask Directory.Join for one.")
        # A node shows the same credential with every call until it gets the next one: its signature is checked once.
        known = self._good.get(token)
        identity, expires = known or self._signed(token)
        if self._clock() >= expires + self._leeway_s:
            raise Unauthenticated(
                f"The credential of {identity.name} expired {self._clock() - expires:.0f} s ago.",
                hint="Join again; if that happens often, compare the clocks of the machines.",
                node=identity.name,
            )
        if known is None:
            self._good[token] = (identity, expires)
            self._forget_old()
        return identity

    def _forget_old(self) -> None:
        """Drop from the oldest on what is expired, and what is beyond the limit."""
        over = self._clock() - self._leeway_s
        while len(self._good) > _REMEMBERED or next(iter(self._good.values()))[1] <= over:
            self._good.popitem(last=False)

    def _signed(self, token: str) -> tuple[NodeIdentity, float]:
        """Check the signature; return whom the credential was issued to and until when (Unix time)."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],  # never what the token itself names
                audience=_AUDIENCE,
                # Times are compared below, with the clock of this object.
                options={"require": ["exp", "sub", "aud"], "verify_exp": False, "verify_iat": False},
            )
            identity = NodeIdentity(
                name=str(claims["sub"]),
                node_id=str(claims["nid"]),
                kind=NodeKind(claims["kind"]),
                organisation=str(claims["org"]),
            )
            expires = float(claims["exp"])
        except (jwt.PyJWTError, UnsupportedAlgorithm, KeyError, ValueError, TypeError) as error:
            raise Unauthenticated(
                "The credential was not issued by this network.",
                hint="Join again; was the reducer set up anew?",
                reason=type(error).__name__,
            ) from error
        return identity, expires


def new_key() -> bytes:
    """Return a new private Ed25519 key, 32 raw bytes."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def load_or_create_key(path: Path) -> bytes:
    """Return the private key in ``path`` (32 raw bytes), making it with mode 0600 if there is no such file.

    Raises:
        BadSettings: the file holds something else.
    """
    with suppress(FileNotFoundError):
        return _checked_key(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new_key())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: its key is the one
            os.link(temporary, path)
    finally:
        temporary.unlink()
    return _checked_key(path)


def _checked_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise BadSettings(
            f"{path} must hold a key of {_KEY_BYTES} bytes and has {len(key)}.",
            hint="Restore it from a backup, or delete it: then a new one is made and all nodes join again.",
        )
    return key
