"""What the three component commands have in common: reading settings, logs, and the life of the process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel

from runnel.common import crash_points
from runnel.common.allocator import tune_allocator
from runnel.common.lifetime import main_process, report, run_until_signal
from runnel.common.logs import setup_logs
from runnel.common.settings import load_settings

S = TypeVar("S", bound=BaseModel)


class Level(StrEnum):
    """How much is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class Format(StrEnum):
    """How it is logged."""

    console = "console"
    json = "json"


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file (TOML); flags and environment win over it."),
]
LevelOption = Annotated[Level, typer.Option("--log-level", envvar="RUNNEL_LOG_LEVEL", help="How much is logged.")]
FormatOption = Annotated[Format, typer.Option("--log-format", envvar="RUNNEL_LOG_FORMAT", help="Lines or JSON.")]
InsecureOption = Annotated[
    bool | None, typer.Option("--insecure", help="No tokens and no TLS; refused for any address but the loopback.")
]
PlaintextOption = Annotated[
    bool | None, typer.Option("--allow-plaintext", help="No TLS, also beyond the loopback; tokens stay.")
]
CaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="Authorities that sign the network's certificates (PEM)."),
]
CertOption = Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM).")]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Private key (PEM).")]
BlobPortOption = Annotated[
    int | None,
    typer.Option(
        "--blob-port", metavar="PORT", help="Where large blobs are moved, past gRPC; -1: nowhere. [default: a free one]"
    ),
]
AdvertiseBlobPortOption = Annotated[
    int | None,
    typer.Option("--advertise-blob-port", metavar="PORT", help="What nodes are told, if it is published as another."),
]
MetricsOption = Annotated[
    str | None,
    typer.Option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there; by default nowhere."),
]
GraceOption = Annotated[
    float | None, typer.Option("--grace-s", metavar="SECONDS", help="Time to end what is under way when told to stop.")
]


def run_component(
    model: type[S],
    run: Callable[[S, asyncio.Event], Awaitable[None]],
    *,
    flags: Mapping[str, object],
    prefix: str,
    config: Path | None,
    level: Level,
    log_format: Format,
) -> None:
    """Read the settings and run the component until a signal; leaves with the process's exit status."""
    try:
        crash_points.arm(os.environ)
        setup_logs(level.value, log_format.value)
        settings = load_settings(model, flags=flags, environ=os.environ, prefix=prefix, file=config)
    except Exception as error:
        raise typer.Exit(report(error)) from error
    tune_allocator()
    status = main_process(lambda: run_until_signal(lambda stop: run(settings, stop)))
    raise typer.Exit(status)
