"""``runnel combiner``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.component_options import (
    AdvertiseBlobPortOption,
    BlobPortOption,
    CaOption,
    CertOption,
    ConfigOption,
    Format,
    FormatOption,
    GraceOption,
    InsecureOption,
    KeyOption,
    Level,
    LevelOption,
    MetricsOption,
    PlaintextOption,
    run_component,
)
from runnel.common.lasting import lasting_imports


def combiner(
    network: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The reducer.")] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where clients attach. [default: 127.0.0.1:7500]")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="What clients are told; by default where it listens.")
    ] = None,
    blob_port: BlobPortOption = None,
    advertise_blob_port: AdvertiseBlobPortOption = None,
    state: Annotated[Path | None, typer.Option(metavar="DIR", help="Scratch space. [default: combiner-state]")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the network, kept in DIR. [default: combiner-…]")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attach to this combiner instead of the reducer.")
    ] = None,
    relay_joins: Annotated[
        bool | None, typer.Option("--relay-joins", help="Nodes that can't reach the reducer may join through here.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Token of the role combiner.")] = None,
    insecure: InsecureOption = None,
    allow_plaintext: PlaintextOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    capacity: Annotated[int | None, typer.Option(help="How many clients may attach. [default: 1000]")] = None,
    metrics: MetricsOption = None,
    grace_s: GraceOption = None,
    config: ConfigOption = None,
    log_level: LevelOption = Level.info,
    log_format: FormatOption = Format.console,
) -> None:
    """Run a combiner: it fans work out to its clients and folds what comes back.

    It keeps nothing that must outlive it. Once it serves, DIR/endpoints.json has its address. Every setting can also be
    given as RUNNEL_COMBINER_… in the environment or in a TOML file.
    """
    with lasting_imports():
        from runnel.combiner.app import run_combiner
        from runnel.combiner.settings import CombinerSettings

    flags = {
        "network": network,
        "listen": listen,
        "advertise": advertise,
        "blob_port": blob_port,
        "advertise_blob_port": advertise_blob_port,
        "state": state,
        "name": name,
        "parent": parent,
        "relay_joins": relay_joins,
        "token": token,
        "insecure": insecure,
        "allow_plaintext": allow_plaintext,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_ca": tls_ca,
        "capacity": capacity,
        "metrics": metrics,
        "grace_s": grace_s,
    }
    run_component(
        CombinerSettings,
        run_combiner,
        flags=flags,
        prefix="RUNNEL_COMBINER_",
        config=config,
        level=log_level,
        log_format=log_format,
    )
