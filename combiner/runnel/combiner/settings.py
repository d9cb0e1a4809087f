"""Settings of a combiner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runnel.common.ids import valid_name
from runnel.common.settings import OWN_PREFIX_ONLY, AdvertisedBlobPort, BlobPort, Bytes, checked


class CombinerSettings(BaseModel):
    """Read from flags, ``RUNNEL_COMBINER_…``, a TOML file and these defaults, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = Field(description="HOST:PORT of the reducer, or of a combiner that relays joins.")
    listen: str = Field("127.0.0.1:7500", description="HOST:PORT on which clients are served; port 0 picks one.")
    advertise: str | None = Field(
        None,
        description="HOST:PORT that clients are told; by default where it listens, and for all addresses the one from"
        " which it calls the network.",
    )
    blob_port: BlobPort = 0
    advertise_blob_port: AdvertisedBlobPort = None
    state: Path = Field(
        Path("combiner-state"), description="Folder for scratch files; nothing in it must outlive the process."
    )
    name: Annotated[str, checked(valid_name)] | None = Field(
        None, description="Name in the network; by default from its identity."
    )
    parent: str = Field("", description="Name of the combiner to attach to; by default the reducer itself.")
    relay_joins: bool = Field(
        False, description="Nodes that can't reach the reducer may ask here for their place; their tokens pass through."
    )
    token: SecretStr | None = Field(None, description="Token of the role combiner.")
    insecure: bool = Field(False, description="No tokens and no TLS; on the loopback only.")
    allow_plaintext: bool = Field(False, description="No TLS, also beyond the loopback.")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain, for clients.")
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    tls_ca: Path | None = Field(
        None, description="PEM file of the authorities that sign the network; by default the system's."
    )
    capacity: int = Field(1000, ge=1, description="How many nodes may attach.")
    heartbeat_s: float = Field(10.0, gt=0, description="Nodes silent for three times as long are taken for gone.")
    isolated_after_s: float = Field(30.0, gt=0, description="Without a way up for so long, clients are sent elsewhere.")
    # Elsewhere it means something else.
    metrics: str | None = Field(
        None,
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="HOST:PORT on which Prometheus reads metrics, in plain HTTP without a token; by default none.",
    )
    keep_bytes: Bytes = Field(4 << 30, description="Models and packages kept for those below, in all.")
    grace_s: float = Field(10.0, ge=0, description="Seconds to end what is under way when the process is told to stop.")
