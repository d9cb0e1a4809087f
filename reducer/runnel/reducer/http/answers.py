"""What people receive as JSON: the reducer's values, as documents that OpenAPI describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import Field

from runnel.reducer.domain.values import (
    ClientContribution,
    EventView,
    LogView,
    ModelView,
    NodeView,
    PackageView,
    Page,
    RoundView,
    SessionConfig,
    SessionView,
    StatusView,
    TokenView,
)
from runnel.reducer.http.document import Document

T = TypeVar("T")
V = TypeVar("V")


class Listing(Document, Generic[T]):
    """A page of a listing."""

    items: list[T]
    next: str | None = Field(description="Give it as `cursor` for the next page; null at the end.")


def listing(page: Page[V], of: Callable[[V], T]) -> Listing[T]:
    """Make the JSON page of a page of values."""
    return Listing(items=[of(item) for item in page.items], next=page.next_cursor)


class Contribution(Document):
    """What one client gave to a round."""

    client: str
    work: str
    status: str = Field(description="counted, failed, awaiting (its site does not take the work yet), late or open")
    weight: float | None
    metrics: dict[str, float]
    extra: dict[str, Any]
    elapsed_s: dict[str, float]
    staleness: int = Field(
        description="By how many rounds the model that it was trained from was older than the newest."
    )
    error_code: str | None
    error: str | None
    log_tail: str | None

    @classmethod
    def of(cls, view: ClientContribution) -> Contribution:
        """Make the document of a contribution."""
        return cls.model_validate(view, from_attributes=True)


class Round(Document):
    """One round of a session."""

    round: int
    status: str
    package: str = Field(description="Digest of the compute package that it runs.")
    seconds: float | None = Field(description="From selecting to committed.")
    phases: dict[str, float] = Field(description="Seconds by phase.")
    updates: int = Field(description="Updates that were counted.")
    late: int = Field(description="Clients that were asked and gave nothing before the round closed.")
    failed: int = Field(description="Clients that answered with a failure.")
    awaiting: int = Field(description="Clients whose site does not take the work yet, or has to approve the package.")
    model: str | None
    metrics: dict[str, float] = Field(description="Means over the validations, weighted by their examples.")
    train_metrics: dict[str, float] = Field(description="Means over the updates, weighted by their examples.")
    clients: list[Contribution] = Field(description="Only when asked for by clients=true.")

    @classmethod
    def of(cls, view: RoundView) -> Round:
        """Make the document of a round."""
        return cls.model_validate(view, from_attributes=True)


class Config(Document):
    """How a session is run."""

    rounds: int
    strategy: str
    strategy_options: dict[str, float]
    min_clients: int
    sample: int | float | None
    over_select: float
    buffer: int | None
    round_timeout_s: float
    retries: int
    validate_every: int
    compress: str
    stop_when: str | None
    client_settings: dict[str, Any]
    random_seed: int | None
    keep_models: int | None
    server_functions: bool

    @classmethod
    def of(cls, config: SessionConfig) -> Config:
        """Make the document of a configuration; the stop rule in its written form."""
        return cls(
            rounds=config.rounds,
            strategy=config.strategy,
            strategy_options=dict(config.strategy_options),
            min_clients=config.min_clients,
            sample=config.sample,
            over_select=config.over_select,
            buffer=config.buffer,
            round_timeout_s=config.round_timeout_s,
            retries=config.retries,
            validate_every=config.validate_every,
            compress=config.compress,
            stop_when=None if config.stop_when is None else str(config.stop_when),
            client_settings=dict(config.client_settings),
            random_seed=config.random_seed,
            keep_models=config.keep_models,
            server_functions=config.server_functions,
        )


class Session(Document):
    """A session as its people see it."""

    session: str
    name: str
    organisation: str
    status: str = Field(description="running, finished, stopped or failed")
    reason: str | None = Field(description="Why it was stopped or has failed, or what the reducer waits for.")
    phase: str = Field(description="Refines the status while it runs.")
    rounds: list[Round]
    model: str = Field(description="Id of the newest model.")
    package: str = Field(description="Digest of the compute package of the rounds that have not begun.")
    seed: str = Field(description="Id of the model from which training started.")
    config: Config
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, view: SessionView) -> Session:
        """Make the document of a session."""
        return cls(
            session=view.session,
            name=view.name,
            organisation=view.organisation,
            status=view.status,
            reason=view.reason,
            phase=view.phase.value,
            rounds=[Round.of(item) for item in view.rounds],
            model=view.model,
            package=view.package,
            seed=view.seed,
            config=Config.of(view.config),
            created_at=view.created_at,
            finished_at=view.finished_at,
        )


class Signer(Document):
    """Who vouches for a package."""

    key_id: str = Field(description="The first 16 digits of the SHA-256 of the public key, for people to compare.")
    public_key: str
    signature: str


class Package(Document):
    """A compute package in the registry."""

    digest: str = Field(description="SHA-256 of the archive, in hex.")
    name: str
    version: str
    size_bytes: int
    organisation: str
    created_at: datetime
    manifest: dict[str, Any]
    signatures: list[Signer] = Field(description="Verified; whom to believe is for each site to say.")
    uploaded_by: str | None = Field(description="Name of the token that brought it, or its id; null: not known.")
    retired_at: datetime | None = Field(description="Since when no session is given it; null: sessions may be.")
    sessions: int = Field(description="How many have it for their next round, ended ones too.")
    running_sessions: list[str] = Field(description="Ids of those that run.")

    @classmethod
    def of(cls, view: PackageView) -> Package:
        """Make the document of a package."""
        return cls.model_validate(view, from_attributes=True)


class Model(Document):
    """A model of the trail. A seed has neither parent nor session."""

    model: str
    digest: str = Field(description="SHA-256 of the file, in hex.")
    size_bytes: int
    format: str = Field(
        description="Of the seed as it was uploaded: npz or safetensors. Packages that don't say theirs are given this;"
        " the file that is kept, and downloaded, is .npz."
    )
    n_params: int
    tensors: int
    parent: str | None
    session: str | None
    round: int | None
    package: str | None
    strategy: str | None
    organisation: str
    created_at: datetime
    removed_at: datetime | None = Field(
        description="When its file was removed, as its session keeps only its newest models; null: it is here."
    )
    metrics: dict[str, float]
    participants: list[Contribution] = Field(description="Updates by client, with their weights.")

    @classmethod
    def of(cls, view: ModelView) -> Model:
        """Make the document of a model."""
        return cls.model_validate(view, from_attributes=True)


class Node(Document):
    """A client or combiner."""

    name: str
    node_id: str
    kind: str
    organisation: str
    status: str = Field(description="attached or away")
    attached_to: str | None = Field(description="Name of the node it is attached to; null when it is away.")
    version: str
    platform: str
    address: str | None
    first_seen_at: datetime
    last_seen_at: datetime

    @classmethod
    def of(cls, view: NodeView) -> Node:
        """Make the document of a node."""
        return cls.model_validate(view, from_attributes=True)


class Token(Document):
    """A token; `token` carries its secret once, in the answer to its creation."""

    id: str
    role: str
    name: str
    organisation: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    token: str | None

    @classmethod
    def of(cls, view: TokenView) -> Token:
        """Make the document of a token."""
        return cls(
            id=view.id,
            role=view.role.value,
            name=view.name,
            organisation=view.organisation,
            created_at=view.created_at,
            expires_at=view.expires_at,
            revoked_at=view.revoked_at,
            token=view.token,
        )


class Event(Document):
    """One entry of the append-only log; `hash` is SHA-256 over the previous hash and this entry."""

    seq: int
    at: datetime
    kind: str
    session: str | None
    data: dict[str, Any]
    previous_hash: str
    hash: str

    @classmethod
    def of(cls, view: EventView) -> Event:
        """Make the document of an event."""
        return cls.model_validate(view, from_attributes=True)


class Line(Document):
    """A line that a client's entry point wrote."""

    id: int
    session: str
    round: int
    work: str
    client: str
    at: datetime
    stream: str
    text: str

    @classmethod
    def of(cls, view: LogView) -> Line:
        """Make the document of a line."""
        return cls.model_validate(view, from_attributes=True)


class Status(Document):
    """The network at a glance."""

    version: str
    organisation: str
    rpc_address: str
    started_at: datetime
    clients_attached: int
    combiners_attached: int
    sessions_running: int
    blobs_bytes: int

    @classmethod
    def of(cls, view: StatusView) -> Status:
        """Make the document of the status."""
        return cls.model_validate(view, from_attributes=True)


def session_document(view: SessionView) -> Mapping[str, Any]:
    """Return a session as JSON-ready values, exactly as the HTTP interface answers it."""
    return Session.of(view).model_dump(mode="json")


def round_document(view: RoundView) -> Mapping[str, Any]:
    """Return a round as JSON-ready values, as it stands in a session's document and in ``round.committed``."""
    return Round.of(view).model_dump(mode="json")
