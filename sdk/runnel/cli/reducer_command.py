"""``runnel reducer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.component_options import (
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


def reducer(
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where combiners and clients attach. [default: 127.0.0.1:7400]"),
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where people and programs ask. [default: 127.0.0.1:7480]")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Database, models and packages. [default: reducer-state]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the network. [default: reducer]")] = None,
    insecure: InsecureOption = None,
    allow_plaintext: PlaintextOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    direct_clients: Annotated[
        int | None, typer.Option(help="Clients served here while no combiner has room. [default: 64]")
    ] = None,
    grace_s: GraceOption = None,
    config: ConfigOption = None,
    log_level: LevelOption = Level.info,
    log_format: FormatOption = Format.console,
) -> None:
    """Run a reducer: the control plane. It holds packages, models and sessions.

    The first start makes an operator's token in DIR/operator.token. Once it serves, DIR/endpoints.json has its addresses.
    Every setting can also be given as RUNNEL_REDUCER_… in the environment or in a TOML file.
    """
    from runnel.reducer.app import run_reducer
    from runnel.reducer.settings import ReducerSettings

    flags = {
        "rpc": rpc,
        "http": http,
        "state": state,
        "name": name,
        "insecure": insecure,
        "allow_plaintext": allow_plaintext,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "direct_clients": direct_clients,
        "grace_s": grace_s,
    }
    run_component(
        ReducerSettings,
        run_reducer,
        flags=flags,
        prefix="RUNNEL_REDUCER_",
        config=config,
        level=log_level,
        log_format=log_format,
    )
