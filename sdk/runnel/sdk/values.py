"""What the network answers, as plain values; each keeps the document it was made of in ``raw``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

ENDED = frozenset({"finished", "stopped", "failed"})
"""The statuses in which nothing happens any more unless a person asks for it."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one client gave to a round. ``elapsed_s``: seconds by stage.

    ``status``: counted, failed, awaiting (its site does not take the work yet), late or open.

    ``staleness``: by how many rounds the model that it was trained from was older than the newest.
    """

    client: str
    work: str
    status: str
    weight: float | None
    metrics: Mapping[str, float]
    extra: Mapping[str, Any]
    elapsed_s: Mapping[str, float]
    staleness: int
    error_code: str | None
    error: str | None
    log_tail: str | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round. ``updates``: counted; ``late``: asked, but silent until it closed; ``seconds`` None until it ended.

    ``awaiting``: clients whose site does not take the work yet: it has to approve the package, or by its hours.
    ``package``: digest of the compute package that it runs.

    ``metrics`` are means over the validations, ``train_metrics`` over the updates, both weighted by their examples.
    """

    round: int
    status: str
    package: str
    seconds: float | None
    phases: Mapping[str, float]
    updates: int
    late: int
    failed: int
    awaiting: int
    model: str | None
    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]
    clients: tuple[Contribution, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session: ``status`` is running, finished, stopped or failed; ``model`` is the id of the newest model.

    ``package``: digest of that of the rounds that have not begun.
    """

    session: str
    name: str
    organisation: str
    status: str
    reason: str | None
    phase: str
    rounds: tuple[Round, ...]
    model: str
    package: str
    seed: str
    config: Mapping[str, Any]
    created_at: datetime
    finished_at: datetime | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who vouches for a package; ``key_id`` is the short fingerprint of ``public_key``."""

    key_id: str
    public_key: str
    signature: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A stored compute package; ``digest`` is the SHA-256 of its archive in hex.

    ``uploaded_by``: name of the token that brought it, or its id. ``retired_at``: since when no session is given it;
    None: sessions may be. ``sessions``: how many have it for their next round; ``running_sessions``: ids of those that
    run.
    """

    digest: str
    name: str
    version: str
    size_bytes: int
    organisation: str
    created_at: datetime
    manifest: Mapping[str, Any]
    signatures: tuple[Signer, ...]
    uploaded_by: str | None
    retired_at: datetime | None
    sessions: int
    running_sessions: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of the trail; a seed has neither parent nor session. ``digest`` is the SHA-256 of its file in hex.

    ``format``: of the seed as it was uploaded; the network keeps ``.npz``.
    ``removed_at``: when the network removed its file, as the session keeps only its newest models; None: it is there.
    """

    model: str
    digest: str
    size_bytes: int
    format: str
    n_params: int
    tensors: int
    parent: str | None
    session: str | None
    round: int | None
    package: str | None
    strategy: str | None
    organisation: str
    created_at: datetime
    removed_at: datetime | None
    metrics: Mapping[str, float]
    participants: tuple[Contribution, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A client or combiner; ``attached_to`` names where it is attached now, None when it is away."""

    name: str
    node_id: str
    kind: str
    organisation: str
    status: str
    attached_to: str | None
    version: str
    platform: str
    address: str | None
    first_seen_at: datetime
    last_seen_at: datetime
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token; ``token`` is its secret, known only to the answer of its creation."""

    id: str
    role: str
    name: str
    organisation: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    token: str | None = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line that a client's entry point wrote."""

    id: int
    session: str
    round: int
    work: str
    client: str
    at: datetime
    stream: str
    text: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The network at a glance."""

    version: str
    organisation: str
    rpc_address: str
    started_at: datetime
    clients_attached: int
    combiners_attached: int
    sessions_running: int
    blobs_bytes: int
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. ``seq`` is None for what passes and is not kept, such as ``progress``."""

    seq: int | None
    at: datetime | None
    kind: str
    session: str | None
    data: Mapping[str, Any]
    raw: Mapping[str, Any] = field(repr=False, compare=False)


def read(kind: type[V], document: Mapping[str, Any], **given: Any) -> V:
    """Make a value of ``kind`` from a document of the network; members that are missing become None or empty.

    ``given``: members that are not taken from the document.
    """
    values: dict[str, Any] = {"raw": document} | given
    for item in fields(kind):  # type: ignore[arg-type]  # all kinds here are dataclasses
        if item.name not in values:
            values[item.name] = _value(item.name, str(item.type), document.get(item.name))
    return kind(**values)


def _value(name: str, annotation: str, value: Any) -> Any:
    if annotation.startswith("datetime"):
        return None if value is None else datetime.fromisoformat(value)
    if annotation.startswith("tuple[str"):
        return tuple(value or ())
    if annotation.startswith("tuple"):
        kind: type[Any] = {"rounds": Round, "signatures": Signer}.get(name, Contribution)
        return tuple(read(kind, item) for item in value or ())
    if annotation.startswith("Mapping"):
        return value or {}
    return value
