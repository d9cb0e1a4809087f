"""``runnel node``: who is in the network."""

from __future__ import annotations

from runnel.cli.desk import Desk, command, group

app = group("Clients and combiners of the network.")


@command(app, "list")
def list_nodes(desk: Desk) -> None:
    """List clients and combiners; those that are away too."""
    from runnel.cli.tables import ago, status, table

    nodes = list(desk.network.nodes.list())
    if desk.as_json:
        desk.write_json([node.raw for node in nodes])
        return
    made = table("name", "kind", "status", "attached to", "seen", "version", "platform", fold=("platform",))
    for node in nodes:
        made.add_row(
            node.name,
            node.kind,
            status(node.status),
            node.attached_to or "",
            ago(node.last_seen_at),
            node.version,
            node.platform,
        )
    desk.console.print(made)
