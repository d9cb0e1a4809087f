"""``runnel status``: the network at a glance."""

from __future__ import annotations

import typer

from runnel.cli.desk import Desk, command

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@command(app, "status")
def status(desk: Desk) -> None:
    """Show the network at a glance."""
    from runnel.cli.tables import facts, size, when

    now = desk.network.status()
    desk.answer(
        now.raw,
        lambda: facts(
            [
                ("network", desk.network.url),
                ("version", now.version),
                ("nodes attach at", now.rpc_address),
                ("organisation", now.organisation),
                ("up since", when(now.started_at)),
                ("clients", now.clients_attached),
                ("combiners", now.combiners_attached),
                ("sessions running", now.sessions_running),
                ("stored", size(now.blobs_bytes)),
            ]
        ),
    )
