"""``runnel client files``: a place for files at a site, for its containers to fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.component_options import (
    ConfigOption,
    Format,
    FormatOption,
    GraceOption,
    Level,
    LevelOption,
    run_component,
)


def files(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="An address that containers and uploaders reach. [default: 127.0.0.1:5001]"
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Of the files. [default: client-files]")] = None,
    readers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR", help="Network that may fetch files. [default: the loopback and Docker's usual bridge]"
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Uploads have to bring it; better given as RUNNEL_FILES_TOKEN.")
    ] = None,
    max_file_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="Of one file. [default: 1GiB]")] = None,
    keep_free_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="So much of the disk stays free. [default: 1GiB]")
    ] = None,
    grace_s: GraceOption = None,
    config: ConfigOption = None,
    log_level: LevelOption = Level.info,
    log_format: FormatOption = Format.console,
) -> None:
    """Take files from others and give them to this machine's containers, and to nobody else.

    Every setting can also be given as RUNNEL_FILES_… in the environment or in a TOML file.
    """
    from runnel.client.file_service import FileServiceSettings, run_file_service

    run_component(
        FileServiceSettings,
        run_file_service,
        flags={
            "listen": listen,
            "folder": folder,
            "readers": readers,
            "token": token,
            "max_file_bytes": max_file_bytes,
            "keep_free_bytes": keep_free_bytes,
            "grace_s": grace_s,
        },
        prefix="RUNNEL_FILES_",
        config=config,
        level=log_level,
        log_format=log_format,
    )
