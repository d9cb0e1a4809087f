"""Who may ask for what."""

from __future__ import annotations

from runnel.common.errors import Forbidden
from runnel.reducer.domain.values import DEFAULT_ORGANISATION, Role
from runnel.reducer.service import Caller

READERS = frozenset({Role.OPERATOR, Role.INITIATOR, Role.RESEARCHER, Role.VIEWER})
INITIATORS = frozenset({Role.OPERATOR, Role.INITIATOR})
RESEARCHERS = frozenset({Role.OPERATOR, Role.INITIATOR, Role.RESEARCHER})
OPERATORS = frozenset({Role.OPERATOR})


def require(caller: Caller, roles: frozenset[Role]) -> None:
    """Refuse a caller of another role.

    Raises:
        Forbidden: the role of the caller is none of ``roles``.
    """
    if caller.role not in roles:
        wanted = ", ".join(sorted(role.value for role in roles))
        raise Forbidden(f"A token of the role {caller.role.value} does not allow this; it takes one of: {wanted}.")


def realm(caller: Caller) -> str | None:
    """Return the organisation whose nodes and tokens the caller may see and manage; None: those of all.

    Only operators of the organisation that the reducer was set up with run the network; everybody else, operators of
    other organisations included, sees their own.
    """
    if caller.role is Role.OPERATOR and caller.organisation == DEFAULT_ORGANISATION:
        return None
    return caller.organisation


def require_realm(caller: Caller, organisation: str) -> None:
    """Refuse a caller who manages another organisation than its own without running the network.

    Raises:
        Forbidden: it does.
    """
    if realm(caller) not in {None, organisation}:
        raise Forbidden(
            f"An operator of {caller.organisation} makes tokens for {caller.organisation}, not for {organisation}.",
            hint="Ask the operator of the network.",
        )
