"""``runnel version``: what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import typer

from runnel.cli.desk import Desk, command

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@command(app, "version", local=True)
def version(desk: Desk) -> None:
    """Show the version."""
    document = {"version": version_of("runnel"), "python": platform.python_version(), "platform": platform.platform()}
    if desk.as_json:
        desk.write_json(document)
    else:
        desk.say(f"runnel {document['version']} (Python {document['python']})")
