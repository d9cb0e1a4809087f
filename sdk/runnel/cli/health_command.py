"""``runnel health``: is the component of this machine well."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.desk import Desk, command

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@command(app, "health", local=True)
def health(
    desk: Desk,
    state: Annotated[
        Path, typer.Option(metavar="DIR", envvar="RUNNEL_HEALTH_STATE", help="State folder of the component.")
    ],
    timeout_s: Annotated[float, typer.Option("--timeout-s", metavar="SECONDS", help="Time for each answer.")] = 3.0,
) -> None:
    """Ask the reducer, combiner or client that runs with DIR whether it is well.

    A reducer has to serve gRPC and HTTP; a combiner to serve, and to be attached; a client to be attached.

    Exit status 0 says that it is, 1 that it is not, and why. It needs neither a token nor an authority.
    """
    from runnel.common.endpoints import read_endpoints
    from runnel.transport.health import require_well

    endpoints = read_endpoints(state)
    require_well(endpoints, timeout_s=timeout_s)
    if desk.as_json:
        desk.write_json(dataclasses.asdict(endpoints))
        return
    attached = f", attached to {endpoints.attached_to}" if endpoints.attached_to else ""
    serves = " and ".join(address for address in (endpoints.rpc, endpoints.http) if address)
    desk.say(f"well{f', serving at {serves}' if serves else ''}{attached}")
