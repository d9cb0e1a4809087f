"""``runnel token``: who may do what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from runnel.cli.desk import Desk, command, group

if TYPE_CHECKING:
    from runnel.sdk import Token

app = group("Tokens: who may do what in the network.")


@command(app, "create")
def create(
    desk: Desk,
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="operator, initiator, researcher, viewer, client or combiner.")
    ],
    name: Annotated[str, typer.Option("--name", help="For people: whom or what it is for.")] = "",
    organisation: Annotated[
        str | None, typer.Option("--organisation", metavar="NAME", help="Default: your own.", show_default=False)
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", metavar="SECONDS", help="Until it expires; default: never.", show_default=False),
    ] = None,
) -> None:
    """Make a token and print it, this once."""
    token = desk.network.tokens.create(role, name=name, organisation=organisation, ttl_s=ttl)
    if desk.as_json:
        desk.write_json(token.raw)
        return
    desk.say(str(token.token))
    desk.aside.print(
        f"{token.id} ({token.role}); it is shown only now. Revoke it: runnel token revoke {token.id}",
        markup=False,
        soft_wrap=True,
    )


@command(app, "list")
def list_tokens(desk: Desk) -> None:
    """List tokens, newest first, without their secrets."""
    from runnel.cli.tables import status, table, when

    tokens = list(desk.network.tokens.list())
    if desk.as_json:
        desk.write_json([token.raw for token in tokens])
        return
    made = table("token", "role", "name", "organisation", "made", "state", fold=("name", "organisation"))
    for token in tokens:
        state = status(_state(token))
        made.add_row(token.id, token.role, token.name, token.organisation, when(token.created_at), state)
    desk.console.print(made)


@command(app, "revoke")
def revoke(
    desk: Desk, token_id: Annotated[str, typer.Argument(metavar="ID", help="As `runnel token list` shows it.")]
) -> None:
    """End a token at once."""
    revoked = desk.network.tokens.revoke(token_id)
    if desk.as_json:
        desk.write_json(revoked.raw)
    else:
        desk.say(f"{revoked.id} is revoked.")


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    expired = token.expires_at is not None and token.expires_at <= datetime.now(UTC)
    return "expired" if expired else "good"
