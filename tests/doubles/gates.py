"""Gates of sites for tests."""

from __future__ import annotations

from pathlib import Path

from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.gate import Gate
from runnel.client.policy_file import default_policy
from runnel.client.reviews import Reviews


def open_gate(state: Path) -> Gate:
    """Return a gate that lets anything in, as on the loopback."""
    state.mkdir(parents=True, exist_ok=True)
    return Gate(
        client="a",
        site=default_policy(loopback=True),
        reviews=Reviews(state),
        audit=AuditLog(state / AUDIT_FILE),
    )
