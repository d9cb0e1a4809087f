"""Ports for servers of tests that stop and start again."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

_given: set[int] = set()


def lasting_port() -> int:
    """Return a free port that nobody gets for a connection while its server is away: below the ephemeral ones.

    No port is given twice in one process: who was given it may not listen yet.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
