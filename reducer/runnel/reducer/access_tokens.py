"""Access tokens of people's programs: short-lived JWTs that stand for a token of the network.

They are signed with the reducer's own key (Ed25519), and good for as long as the token that they stand for is: that one
is looked up with each request, so revoking it ends them at once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runnel.common.errors import Unauthenticated
from runnel.reducer.service import AccessToken, Caller

ACCESS_TOKEN_S = 3600.0

_ALGORITHM = "EdDSA"
_AUDIENCE = "runnel.people"


class AccessTokens:
    """Issues and verifies access tokens.

    Args:
        private_key: raw Ed25519 key of 32 bytes.
        clock: Unix time in seconds.
        ttl_s: seconds for which one is good.
    """

    def __init__(
        self, private_key: bytes, clock: Callable[[], float] = time.time, *, ttl_s: float = ACCESS_TOKEN_S
    ) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._clock = clock
        self._ttl_s = ttl_s

    def issue(self, caller: Caller) -> AccessToken:
        """Return one that stands for the token of ``caller``; role and organisation are in it for who reads it."""
        now = self._clock()
        claims = {
            "aud": _AUDIENCE,
            "sub": caller.token_id,
            "role": caller.role.value,
            "org": caller.organisation,
            "iat": int(now),
            "exp": int(now + self._ttl_s),
            "jti": secrets.token_hex(8),
        }
        return AccessToken(token=jwt.encode(claims, self._key, algorithm=_ALGORITHM), expires_in_s=self._ttl_s)

    def token_id(self, text: str) -> str:
        """Return the id of the token that an access token stands for.

        Raises:
            Unauthenticated: it is expired, or was not issued here.
        """
        try:
            claims = jwt.decode(
                text,
                self._key.public_key(),
                algorithms=[_ALGORITHM],  # never what the token itself names
                audience=_AUDIENCE,
                # The time is compared below, with the clock of this object.
                options={"require": ["exp", "sub", "aud"], "verify_exp": False, "verify_iat": False},
            )
            token_id, expires = str(claims["sub"]), float(claims["exp"])
        except (jwt.PyJWTError, KeyError, ValueError, TypeError) as error:
            raise Unauthenticated(
                "The access token was not issued by this network.",
                hint="Ask for one at /auth/connect/token.",
                reason=type(error).__name__,
            ) from error
        if self._clock() >= expires:
            raise Unauthenticated(
                f"The access token expired {self._clock() - expires:.0f} s ago.",
                hint="Ask for another at /auth/connect/token.",
            )
        return token_id


def looks_like_one(text: str) -> bool:
    """Whether ``text`` has the shape of a JWT; tokens of the network have no dots."""
    return text.count(".") == 2
