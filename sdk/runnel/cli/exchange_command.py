"""``runnel client exchange``: jobs from a folder, results to a folder, for a site that is attached to no network."""

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


def exchange(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where jobs (.ptmjob) and images are dropped.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where results are put. [default: DIR_output]")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Runs that are held, log. [default: exchange-state]")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What may run here (TOML). [default: any image that is there]")
    ] = None,
    pytaskmanager: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="config.json of PyTaskManager's client: the endpoint that its images find."),
    ] = None,
    docker_host: Annotated[
        str | None, typer.Option(metavar="URL", help="The Docker engine. [default: DOCKER_HOST, or its usual socket]")
    ] = None,
    docker_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Passwords of registries. [default: config.json of DOCKER_CONFIG or ~/.docker]"
        ),
    ] = None,
    docker_files: Annotated[
        str | None,
        typer.Option(metavar="mount|copy", help="How files go to containers. [default: what the engine can]"),
    ] = None,
    parallel: Annotated[int | None, typer.Option(help="Jobs that may run at once. [default: 1]")] = None,
    interval_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Between two looks at the folder. [default: 2]")
    ] = None,
    grace_s: GraceOption = None,
    config: ConfigOption = None,
    log_level: LevelOption = Level.info,
    log_format: FormatOption = Format.console,
) -> None:
    """Carry out each job that is dropped in DIR once, and put its results into a folder beside it.

    Images that are dropped there as files of `docker save` (.dockerimage) are loaded first. Every setting can also be
    given as RUNNEL_EXCHANGE_… in the environment or in a TOML file.
    """
    from runnel.client.exchange import ExchangeSettings, run_exchange

    run_component(
        ExchangeSettings,
        run_exchange,
        flags={
            "folder": folder,
            "output": output,
            "state": state,
            "policy": policy,
            "pytaskmanager": pytaskmanager,
            "docker_host": docker_host,
            "docker_config": docker_config,
            "docker_files": docker_files,
            "parallel": parallel,
            "interval_s": interval_s,
            "grace_s": grace_s,
        },
        prefix="RUNNEL_EXCHANGE_",
        config=config,
        level=log_level,
        log_format=log_format,
    )
