"""Settings of a reducer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from runnel.common.errors import InvalidInput
from runnel.common.ids import valid_name
from runnel.common.settings import OWN_PREFIX_ONLY, AdvertisedBlobPort, BlobPort, Bytes, checked
from runnel.compute_package import read_public_key

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")


def _registry(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise InvalidInput(
            f"{text!r} is no host of a registry.", hint="Give HOST or HOST:PORT, as registry.example.org."
        )
    return text


def _public_key(text: str) -> str:
    read_public_key(text)
    return text


class ReducerSettings(BaseModel):
    """Read from flags, ``RUNNEL_REDUCER_…``, a TOML file and these defaults, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rpc: str = Field(
        "127.0.0.1:7400", description="HOST:PORT on which combiners and clients are served; port 0 picks one."
    )
    blob_port: BlobPort = 0
    advertise_blob_port: AdvertisedBlobPort = None
    http: str = Field("127.0.0.1:7480", description="HOST:PORT on which people are served; port 0 picks one.")
    state: Path = Field(Path("reducer-state"), description="Folder of the database, the models and the packages.")
    database: str | None = Field(
        None,
        repr=False,  # it may have a password in it
        description="URL of the database, postgresql://user:password@host/name; by default SQLite in the state folder.",
    )
    lease_s: float = Field(
        15.0, ge=1, description="Another reducer may take over a PostgreSQL database after so many seconds of silence."
    )
    blobs: str | None = Field(
        None,
        repr=False,  # a password does not belong there, and may be there nevertheless
        description="URL of a bucket for models, packages and payloads, s3://bucket/prefix?endpoint=https://host; by"
        " default the state folder.",
    )
    blob_cache_bytes: Bytes = Field(
        4 << 30, description="Of a bucket's models and packages so much is kept as local files, beside those in use."
    )
    metrics: Literal["token", "open"] = Field(
        "token",
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="Who may read /metrics where HTTP is served beyond the loopback: those with a token, or everybody.",
    )
    name: Annotated[str, checked(valid_name)] = Field("reducer", description="Name of this reducer in the network.")
    insecure: bool = Field(False, description="No tokens and no TLS; on the loopback only.")
    allow_plaintext: bool = Field(False, description="Tokens, but no TLS, also beyond the loopback.")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain, for gRPC and HTTP.")
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    heartbeat_s: float = Field(10.0, gt=0, description="Nodes silent for three times as long are taken for gone.")
    credential_ttl_s: float = Field(600.0, ge=10, description="A revoked token works no longer than this.")
    direct_clients: int = Field(
        64, ge=0, description="Clients served by the reducer itself while no combiner has room."
    )
    max_package_bytes: Bytes = Field(1 << 30, description="Largest archive that is taken.")
    max_model_bytes: Bytes = Field(8 << 30, description="Largest seed model that is taken.")
    keep_models: int = Field(
        0, ge=0, description="Keep the files of so many newest models of a session that does not say itself; 0: of all."
    )
    max_result_bytes: Bytes = Field(8 << 30, description="Most that the files of one run of a task may have together.")
    keep_results: float = Field(
        7.0, ge=0, description="Days for which results of tasks, and files stored for tasks, are kept; 0: for ever."
    )
    server_functions: Literal["off", "sandbox", "unconfined"] | None = Field(
        None,
        description="Whether functions of packages are run here: not at all, behind walls (Linux), or with all that"
        " this process can reach; by default sandbox with insecure, else off.",
    )
    server_functions_signers: list[Annotated[str, checked(_public_key)]] = Field(
        default_factory=list,
        description="Run those of packages only that one of these public keys (ed25519:…) signed; by default of all.",
    )
    server_functions_memory_bytes: Bytes = Field(4 << 30, description="Memory of one step of them.")
    server_functions_timeout_s: float = Field(600.0, gt=0, description="Seconds that one step of them may take.")
    registries: list[Annotated[str, checked(_registry)]] = Field(
        default_factory=list,
        description="Registries, as registry.example.org, that the service's description for Federated Data Sharing"
        " names to researchers; what runs is each site's to say.",
    )
    grace_s: float = Field(10.0, ge=0, description="Seconds to end what is under way when the process is told to stop.")
