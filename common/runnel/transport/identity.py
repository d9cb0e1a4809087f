"""Who calls, and how it is shown: as the bearer of a credential (:mod:`runnel.transport.credentials`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from runnel.common.protocol import NodeKind

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Whom a credential was issued to."""

    name: str
    node_id: str
    kind: NodeKind
    organisation: str = ""


def bearer(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """Return the bearer token of a call, or None."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip() or None
    return None


def bearer_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that presents ``token``; none for no token."""
    return (("authorization", f"Bearer {token}"),) if token else ()
