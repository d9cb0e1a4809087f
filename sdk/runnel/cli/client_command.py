"""``runnel client``: the client itself, and below it what the people of its site do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.component_options import (
    CaOption,
    ConfigOption,
    Format,
    FormatOption,
    GraceOption,
    InsecureOption,
    Level,
    LevelOption,
    MetricsOption,
    PlaintextOption,
    run_component,
)
from runnel.cli.data_commands import add_data
from runnel.cli.exchange_command import exchange
from runnel.cli.file_service_command import files
from runnel.cli.result_commands import add_results
from runnel.cli.site_commands import add_site
from runnel.common.lasting import lasting_imports

app = typer.Typer(add_completion=False, rich_markup_mode=None)
add_site(app)
add_data(app)
app.command("files")(files)
add_results(app)
app.command("exchange")(exchange)


@app.callback(invoke_without_command=True)
def client(
    context: typer.Context,
    network: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The network's reducer.")] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Identity, caches, unsettled reports. [default: client-state]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the network, kept in DIR. [default: client-…]")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A database of this site: RUNNEL_DATA for default, RUNNEL_DATA_NAME."),
    ] = None,
    databases: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More databases, with what may be selected from them (TOML).")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A further variable that entry points see; nothing else leaks."),
    ] = None,
    token: Annotated[str | None, typer.Option(help="Token of the role client.")] = None,
    insecure: InsecureOption = None,
    allow_plaintext: PlaintextOption = None,
    tls_ca: CaOption = None,
    prefer: Annotated[str | None, typer.Option(metavar="NAME", help="The combiner that it would like.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Entry points that may run at once. [default: 1]")] = None,
    parallel_tasks: Annotated[
        int | None, typer.Option(help="Runs of container tasks at once; 0 takes none. [default: 2]")
    ] = None,
    warm: Annotated[
        bool | None,
        typer.Option("--warm/--no-warm", help="Start runs from interpreters that are kept. [default: warm]"),
    ] = None,
    installs: Annotated[
        bool | None,
        typer.Option("--installs/--no-installs", help="Build the environments of packages. [default: installs]"),
    ] = None,
    find_links: Annotated[
        list[str] | None, typer.Option(metavar="DIR_OR_URL", help="Wheels besides those of the package index.")
    ] = None,
    fedn: Annotated[
        str | None,
        typer.Option(metavar="shim|real", help="What a package gets that requires fedn. [default: shim]"),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(metavar="process|docker", help="As processes of this user or in containers. [default: process]"),
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
    docker_image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="For packages that name none; the base of those that ask for it."),
    ] = None,
    docker_files: Annotated[
        str | None,
        typer.Option(metavar="mount|copy", help="How files go to containers. [default: what the engine can]"),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What may run here (TOML). [default: approved packages; anything on the loopback]"
        ),
    ] = None,
    pytaskmanager: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="config.json of PyTaskManager's client: the endpoint that its images find."),
    ] = None,
    run_timeout_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The site's own limit for one run of an entry point.")
    ] = None,
    metrics: MetricsOption = None,
    grace_s: GraceOption = None,
    config: ConfigOption = None,
    log_level: LevelOption = Level.info,
    log_format: FormatOption = Format.console,
) -> None:
    """Run a client beside its data: it attaches to the network by one outbound connection and does what it is asked.

    Entry points see the site's databases and nothing else of this process's environment but what Python needs. Every
    setting can also be given as RUNNEL_CLIENT_… in the environment or in a TOML file.
    """
    if context.invoked_subcommand is not None:
        return
    with lasting_imports():
        from runnel.client.app import run_client
        from runnel.client.settings import ClientSettings

    flags = {
        "network": network,
        "state": state,
        "name": name,
        "data": pairs("data", data),
        "databases": databases,
        "env": env,
        "token": token,
        "insecure": insecure,
        "allow_plaintext": allow_plaintext,
        "tls_ca": tls_ca,
        "prefer": prefer,
        "parallel": parallel,
        "parallel_tasks": parallel_tasks,
        "warm": warm,
        "installs": installs,
        "find_links": find_links,
        "fedn": fedn,
        "runtime": runtime,
        "docker_host": docker_host,
        "docker_config": docker_config,
        "docker_image": docker_image,
        "docker_files": docker_files,
        "policy": policy,
        "pytaskmanager": pytaskmanager,
        "run_timeout_s": run_timeout_s,
        "metrics": metrics,
        "grace_s": grace_s,
    }
    run_component(
        ClientSettings,
        run_client,
        flags=flags,
        prefix="RUNNEL_CLIENT_",
        config=config,
        level=log_level,
        log_format=log_format,
    )


def pairs(option: str, values: list[str] | None) -> dict[str, str] | None:
    """Read ``NAME=VALUE`` options; a value without a name is that of ``default``."""
    if not values:
        return None
    found: dict[str, str] = {}
    for text in values:
        name, separator, value = text.partition("=")
        name, value = (name, value) if separator else ("default", text)
        if not value or name in found:
            problem = "is given twice" if name in found else "is empty"
            raise typer.BadParameter(
                f"{text!r}: {name or 'the name'} {problem}; expected was NAME=PATH.", param_hint=f"--{option}"
            )
        found[name] = value
    return found
