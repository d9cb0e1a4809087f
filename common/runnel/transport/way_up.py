"""How a node below finds and trusts the network: its identity, its TLS and the rules for plain text."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import structlog

from runnel.common.disk import read_json, write_json
from runnel.common.errors import BadSettings, CorruptData, NotFound
from runnel.transport.addresses import is_loopback, parse_address
from runnel.transport.tls import ClientTls, ServerTls

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a node is across restarts."""

    node_id: str
    name: str


def load_or_create_identity(state: Path, *, kind: str, name: str | None) -> Identity:
    """Return the identity in ``state``, made at the first start; ``name`` overrides the stored one and is stored.

    Raises:
        CorruptData: the identity file is not readable as one.
    """
    path = state / "identity.json"
    try:
        stored = read_json(path)
        known = Identity(node_id=str(stored["node_id"]), name=str(stored["name"]))
    except NotFound:
        node_id = secrets.token_hex(16)
        known = Identity(node_id=node_id, name=name or f"{kind}-{node_id[:8]}")
    except (KeyError, TypeError) as err:
        raise CorruptData(
            f"{path} is not an identity file.", hint="Remove it; the node is then a new one to the network."
        ) from err
    identity = Identity(node_id=known.node_id, name=name or known.name)
    write_json(path, {"node_id": identity.node_id, "name": identity.name}, mode=0o600)
    return identity


def require_loopback(*addresses: str) -> None:
    """Refuse ``--insecure`` for anything but the loopback.

    Raises:
        BadSettings: an address is not of the loopback.
    """
    for address in addresses:
        if not is_loopback(parse_address(address, key="address").host):
            raise BadSettings(
                f"--insecure means no tokens and no TLS, and {address} is not a loopback address.",
                hint="Use tokens with --tls-cert and --tls-key, or stay on 127.0.0.1.",
                address=address,
            )


def server_tls(cert: Path | None, key: Path | None, *addresses: str, allow_plaintext: bool) -> ServerTls | None:
    """Return the TLS of a server, or None when plain text is fine: on the loopback, or because a person said so.

    Raises:
        BadSettings: one of certificate and key is missing, or both and an address is reachable from elsewhere.
    """
    if (cert is None) != (key is None):
        raise BadSettings("TLS needs both --tls-cert and --tls-key; one of them is missing.")
    if cert is not None and key is not None:
        return ServerTls(cert_file=cert, key_file=key)
    for address in addresses:
        if not allow_plaintext and not is_loopback(parse_address(address, key="address").host):
            raise BadSettings(
                f"{address} can be reached from other machines, so it needs --tls-cert and --tls-key.",
                hint="--allow-plaintext serves it without, for networks that are protected otherwise.",
                address=address,
            )
    return None


def client_tls(network: str, ca_file: Path | None, *, plaintext: bool) -> ClientTls | None:
    """Return the TLS towards ``network``, or None for plain text: on the loopback without a CA, or on request.

    Raises:
        BadSettings: the file of the authorities can't be read.
    """
    if ca_file is not None:
        tls = ClientTls(ca_file=ca_file)
        tls.credentials()
        return tls
    if plaintext or is_loopback(parse_address(network, key="network").host):
        return None
    return ClientTls(ca_file=None)
