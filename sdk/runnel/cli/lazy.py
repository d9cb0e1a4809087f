"""Commands that are imported when they are called, so that ``--help`` answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """Where a command lives (``module:name`` of a function or a group's Typer) and its line in the list of commands."""

    place: str
    help: str


def lazy_app(entries: Mapping[str, Entry], *, help: str, epilog: str) -> typer.Typer:
    """Make the application whose commands are ``entries``."""

    class Commands(TyperGroup):
        """Lists placeholders, calls the real ones."""

        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for name, entry in entries.items():
                self.add_command(TyperCommand(name, help=entry.help, rich_markup_mode=None), name)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, command, rest = super().resolve_command(ctx, args)
            return name, command if name is None else load(name, entries[name]), rest

    app = typer.Typer(
        cls=Commands, help=help, epilog=epilog, no_args_is_help=True, rich_markup_mode=None, add_completion=True
    )
    app.callback()(_options)
    return app


def load(name: str, entry: Entry) -> Any:
    """Import a command and return what Typer makes of it, with the plain help that all commands have."""
    module, _, attribute = entry.place.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name)(found)
        found = app
    command = typer.main.get_command(found)
    command.name = name
    _plain(command)
    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"runnel {version('runnel')}")
        raise typer.Exit


def _plain(command: Any) -> None:
    command.rich_markup_mode = None
    for inner in getattr(command, "commands", {}).values():
        _plain(inner)


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """What the application takes before a command."""
