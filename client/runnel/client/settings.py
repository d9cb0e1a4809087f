"""Settings of a client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runnel.client.runtimes.installs import DEFAULT_MOST_BYTES, DEFAULT_MOST_DAYS, FednSource
from runnel.common.ids import valid_name
from runnel.common.settings import OWN_PREFIX_ONLY, checked


class ClientSettings(BaseModel):
    """Read from flags, ``RUNNEL_CLIENT_…``, a TOML file and these defaults, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = Field(description="HOST:PORT of the reducer, or of a combiner that relays joins.")
    state: Path = Field(Path("client-state"), description="Folder of the identity, the caches and unsettled reports.")
    name: Annotated[str, checked(valid_name)] | None = Field(
        None, description="Name in the network; by default from its identity."
    )
    # RUNNEL_DATA is what entry points read, also when a person tries them out by hand.
    data: dict[str, str] = Field(
        default_factory=dict,
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="Databases that entry points see: NAME=PATH.",
    )
    databases: Path | None = Field(
        None, description="Databases that tasks select from and entry points see, besides those of `data` (TOML)."
    )
    env: list[str] = Field(default_factory=list, description="Further variables for entry points: NAME or NAME=VALUE.")
    token: SecretStr | None = Field(None, description="Token of the role client.")
    insecure: bool = Field(False, description="No tokens and no TLS; on the loopback only.")
    allow_plaintext: bool = Field(False, description="No TLS, also beyond the loopback.")
    tls_ca: Path | None = Field(
        None, description="PEM file of the authorities that sign the network; by default the system's."
    )
    prefer: str = Field("", description="Name of the combiner that it would like.")
    parallel: int = Field(1, ge=1, description="How many entry points may run at once.")
    parallel_tasks: int = Field(
        2, ge=0, description="How many runs of container tasks may go on at once; 0: this client takes none."
    )
    warm: bool = Field(
        True,
        description="Fork runs from interpreters that have imported what is installed, where that can be.",
    )
    installs: bool = Field(
        True, description="Whether environments are built; if not, only those run that are there already."
    )
    find_links: list[str] = Field(
        default_factory=list, description="Folders or addresses with wheels, besides the package index."
    )
    fedn: FednSource = Field(
        FednSource.SHIM, description="What a package gets that requires fedn: a light stand-in, or FEDn itself."
    )
    environments_bytes: int = Field(
        DEFAULT_MOST_BYTES,
        gt=0,
        description="Above it, the environments, images of packages, or of tasks, that were not used for longest go.",
    )
    environments_days: float = Field(
        DEFAULT_MOST_DAYS,
        gt=0,
        description="An environment, or image of a package or task, that was not used for so many days goes.",
    )
    runtime: Literal["process", "docker"] = Field(
        "process", description="How entry points run: as `process`es of this user, or in containers of `docker`."
    )
    docker_host: str | None = Field(
        None, description="Address of the Docker engine; by default `DOCKER_HOST`, or the engine's usual socket."
    )
    docker_config: Path | None = Field(
        None,
        description="Passwords of registries; by default `config.json` of `DOCKER_CONFIG`, or of `~/.docker`.",
    )
    docker_image: str = Field(
        "", description="Image for packages that name none; packages with `ARG BASE_IMAGE` are built on it."
    )
    docker_files: Literal["mount", "copy"] | None = Field(
        None,
        description="How files go to containers; by default `mount` where the engine's host has them, else `copy`.",
    )
    policy: Path | None = Field(
        None,
        description="What may run here (TOML); by default anything on the loopback, else what the site approved.",
    )
    pytaskmanager: Path | None = Field(
        None,
        description="`config.json` of PyTaskManager's client, whose endpoint and `dockerHost` its images find here.",
    )
    run_timeout_s: float | None = Field(None, gt=0, description="The site's own limit for one run of an entry point.")
    # Elsewhere it means something else.
    metrics: str | None = Field(
        None,
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="HOST:PORT on which Prometheus reads metrics, in plain HTTP without a token; by default none.",
    )
    grace_s: float = Field(10.0, ge=0, description="Seconds to end what is under way when the process is told to stop.")
