"""``runnel reducer``, ``runnel reducer backup`` and ``runnel reducer restore``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.component_options import (
    AdvertiseBlobPortOption,
    BlobPortOption,
    CertOption,
    ConfigOption,
    Format,
    FormatOption,
    GraceOption,
    InsecureOption,
    KeyOption,
    Level,
    LevelOption,
    PlaintextOption,
    run_component,
)
from runnel.cli.desk import Desk, command
from runnel.common.errors import BadSettings
from runnel.common.lasting import lasting_imports

if TYPE_CHECKING:
    from runnel.reducer.backup import BackupSummary

reducer = typer.Typer(
    invoke_without_command=True, subcommand_metavar="[backup|restore]", rich_markup_mode=None, add_completion=False
)


@reducer.callback()
def run(
    ctx: typer.Context,
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where combiners and clients attach. [default: 127.0.0.1:7400]"),
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where people and programs ask. [default: 127.0.0.1:7480]")
    ] = None,
    blob_port: BlobPortOption = None,
    advertise_blob_port: AdvertiseBlobPortOption = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Database, models and packages. [default: reducer-state]")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="postgresql://USER@HOST/NAME; a password is safer in RUNNEL_REDUCER_DATABASE, or in ~/.pgpass, than"
            " on the command line. [default: SQLite in DIR]",
        ),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="s3://BUCKET/PREFIX?endpoint=https://HOST for models and packages; credentials come from the AWS_…"
            " variables. [default: files in DIR]",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the network. [default: reducer]")] = None,
    insecure: InsecureOption = None,
    allow_plaintext: PlaintextOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    direct_clients: Annotated[
        int | None, typer.Option(help="Clients served here while no combiner has room. [default: 64]")
    ] = None,
    keep_models: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Keep the files of the newest N models of a session that does not say itself; 0: all. [default: 0]",
        ),
    ] = None,
    keep_results: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Keep results of tasks so long; 0: for ever. [default: 7]"),
    ] = None,
    server_functions: Annotated[
        str | None,
        typer.Option(
            metavar="off|sandbox|unconfined",
            help="Whether functions of packages (server.py) are run here, and what they can reach."
            " [default: sandbox with --insecure, else off]",
        ),
    ] = None,
    server_functions_signers: Annotated[
        list[str] | None,
        typer.Option(
            "--server-functions-signers",
            metavar="KEY_OR_FILE",
            help="Run those of packages only that this public key signed; may be repeated.",
        ),
    ] = None,
    registries: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="A registry that researchers are told of (Federated Data Sharing); repeatable."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="token|open",
            help="Who may read /metrics if HTTP is served beyond the loopback. [default: token]",
        ),
    ] = None,
    grace_s: GraceOption = None,
    config: ConfigOption = None,
    log_level: LevelOption = Level.info,
    log_format: FormatOption = Format.console,
) -> None:
    """Run a reducer: the control plane. It holds packages, models and sessions.

    The first start makes an operator's token in DIR/operator.token. Once it serves, DIR/endpoints.json has its
    addresses. Every setting can also be given as RUNNEL_REDUCER_… in the environment or in a TOML file.

    The commands at the end save its state and bring it back; without one of them the reducer runs.
    """
    flags: dict[str, Any] = {
        "rpc": rpc,
        "http": http,
        "blob_port": blob_port,
        "advertise_blob_port": advertise_blob_port,
        "state": state,
        "database": database,
        "blobs": blobs,
        "name": name,
        "insecure": insecure,
        "allow_plaintext": allow_plaintext,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "direct_clients": direct_clients,
        "keep_models": keep_models,
        "keep_results": keep_results,
        "server_functions": server_functions,
        "server_functions_signers": server_functions_signers,
        "registries": registries,
        "metrics": metrics,
        "grace_s": grace_s,
    }
    if ctx.invoked_subcommand is not None:
        misplaced = [f"--{name.replace('_', '-')}" for name, value in {**flags, "config": config}.items() if value]
        if misplaced:
            raise BadSettings(
                f"{misplaced[0]} before `{ctx.invoked_subcommand}` is an option of the running reducer.",
                hint=f"Options of {ctx.invoked_subcommand} come after its name.",
            )
        return
    with lasting_imports():
        from runnel.reducer.app import run_reducer
        from runnel.reducer.settings import ReducerSettings

    run_component(
        ReducerSettings,
        run_reducer,
        flags=flags,
        prefix="RUNNEL_REDUCER_",
        config=config,
        level=log_level,
        log_format=log_format,
    )


@command(reducer, "backup", local=True)
def backup(
    desk: Desk,
    state: Annotated[Path, typer.Option(metavar="DIR", help="State folder; its reducer may be running.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="What to write; must not exist.")],
) -> None:
    """Save the state of a reducer in one file.

    It has the database, models, packages and keys as they are at one moment, also while the reducer runs.
    """
    from runnel.reducer.backup import back_up

    with desk.transfer("backup") as progress:
        summary = back_up(state, output, progress)
    if desk.as_json:
        desk.write_json(_document(summary))
        return
    desk.say(f"Wrote {output}: {_contents(summary)}.")
    desk.say("It holds the keys of this network: keep it as safe as the reducer itself.")


@command(reducer, "restore", local=True)
def restore(
    desk: Desk,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `runnel reducer backup`.")],
    state: Annotated[Path, typer.Option(metavar="DIR", help="New folder, or an empty one.")],
) -> None:
    """Make a state folder from a backup.

    Every file is verified before any is in its place.
    """
    from runnel.reducer.restore import restore

    with desk.transfer("restore") as progress:
        summary = restore(file, state, progress)
    if desk.as_json:
        desk.write_json(_document(summary) | {"state": str(state)})
        return
    desk.say(f"Restored {state} as it was on {summary.created_at}: {_contents(summary)}.")
    desk.say(
        f"Sessions go on when it runs: runnel reducer --state {state}    Let no other reducer run from this backup."
    )


def _document(summary: BackupSummary) -> dict[str, Any]:
    return {**dataclasses.asdict(summary), "path": str(summary.path), "running": list(summary.running)}


def _contents(summary: BackupSummary) -> str:
    from runnel.cli.tables import size

    running = f", {len(summary.running)} sessions under way" if summary.running else ""
    return f"{summary.files} files, {size(summary.size_bytes)}{running}"
