"""What the reducer knows, as plain values: the vocabulary of the engine, the store and the HTTP interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from operator import ge, gt, le, lt
from typing import Any, Generic, TypeVar

DEFAULT_ORGANISATION = "default"

T = TypeVar("T")

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {">=": ge, ">": gt, "<=": le, "<": lt}


class Role(Enum):
    """What a token allows.

    ``operator``: everything. ``initiator``: packages, models, sessions, tasks. ``researcher``: tasks. ``viewer``:
    looking, but not into results of tasks. ``client`` and ``combiner``: joining the network as such a node, nothing
    else.
    """

    OPERATOR = "operator"
    INITIATOR = "initiator"
    RESEARCHER = "researcher"
    VIEWER = "viewer"
    CLIENT = "client"
    COMBINER = "combiner"


class SessionStatus(Enum):
    """Where a session is; the legal transitions are in :mod:`runnel.reducer.domain.lifecycle`."""

    SEEDED = "seeded"
    SELECTING = "selecting"
    TRAINING = "training"
    REDUCING = "reducing"
    VALIDATING = "validating"
    COMMITTED = "committed"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing happens any more unless a person asks for it."""
        return self in {SessionStatus.FINISHED, SessionStatus.STOPPED, SessionStatus.FAILED}


ENDED = tuple(status.value for status in SessionStatus if status.ended)
"""The statuses of sessions in which nothing happens, as they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """End the session when ``metric`` of a validated round compares so with ``threshold``."""

    metric: str
    comparison: str  # one of >= > <= <
    threshold: float

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether the rule ends the session; a metric that nobody measured does not."""
        value = metrics.get(self.metric)
        return value is not None and _COMPARE[self.comparison](value, self.threshold)

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.threshold:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How a session is run.

    ``sample``: how many of the attached clients each round asks; a float in (0, 1] is a fraction, an int a count,
    None all of them. ``over_select``: how many times as many are asked as the sample wants; the round closes when the
    sample is in, and who comes later is late. ``buffer``: a round closes when this many updates are in; None: when all
    asked have answered. ``round_timeout_s``: seconds from the first request of a phase to its close. ``retries``: how
    often a phase that ended with too few updates is opened again before the session fails; what was counted stays
    counted.
    ``validate_every``: validate each n-th round and the last; 0 never. ``compress``: how clients compress their
    updates, as :func:`runnel.common.compression.parse_compression` reads it. ``strategy_options``: see
    :mod:`runnel.common.aggregation.strategies`. ``client_settings``: handed to the package as it is.
    ``random_seed``: of the sampling; None draws one, which is kept with the session. ``keep_models``: files of so many
    newest models are kept, see :mod:`runnel.reducer.engine.retention`; 0: of all, None: as the reducer is set.
    ``server_functions``: whether those of its package are used, if it has any.
    """

    rounds: int
    strategy: str = "fedavg"
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    min_clients: int = 1
    sample: float | int | None = None
    over_select: float = 1.0
    buffer: int | None = None
    round_timeout_s: float = 600.0
    retries: int = 3
    validate_every: int = 1
    compress: str = "none"
    stop_when: StopRule | None = None
    client_settings: Mapping[str, Any] = field(default_factory=dict)
    random_seed: int | None = None
    keep_models: int | None = None
    server_functions: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContribution:
    """What one client gave to a round. ``status``: counted, failed, awaiting, late or open.

    ``staleness``: by how many rounds the model that it was trained from was older than the newest.
    """

    client: str
    work: str
    status: str
    weight: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    elapsed_s: Mapping[str, float] = field(default_factory=dict)
    staleness: int = 0
    error_code: str | None = None
    error: str | None = None
    log_tail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One round. ``seconds``: from selecting to committed; ``phases``: seconds by phase. ``updates``: counted;
    ``failed``: clients that answered with a failure; ``awaiting``: clients whose site does not take the work yet;
    ``late``: asked and nothing of these, when the round closed.
    ``metrics``: means over the validations, weighted by their examples; ``train_metrics``: over the updates.
    ``package``: digest of the compute package that it runs.
    """

    round: int
    status: str
    package: str
    seconds: float | None
    phases: Mapping[str, float]
    updates: int
    late: int
    failed: int
    model: str | None
    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]
    awaiting: int = 0
    clients: tuple[ClientContribution, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session as its people see it. ``phase`` refines ``status`` while it runs; ``model``: the newest one's id.

    ``package``: digest of that of the rounds that have not begun; each round tells its own.
    """

    session: str
    name: str
    organisation: str
    status: str  # running | finished | stopped | failed
    phase: SessionStatus
    reason: str | None
    package: str
    seed: str
    model: str
    config: SessionConfig
    created_at: datetime
    finished_at: datetime | None
    rounds: tuple[RoundView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerView:
    """Who vouches for a package; ``public_key`` and ``signature`` as they are written, ``key_id`` for people."""

    key_id: str
    public_key: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageView:
    """A compute package in the registry; ``digest`` is the SHA-256 of the archive.

    ``uploaded_by``: name of the token, or its id if it has none; None: not known. ``retired_at``: since when no session
    is given it. ``sessions``: how many have it for their next round, ended ones too; ``running_sessions``: ids of those
    that run.
    """

    digest: str
    name: str
    version: str
    size_bytes: int
    organisation: str
    created_at: datetime
    manifest: Mapping[str, Any]
    signatures: tuple[SignerView, ...] = ()
    uploaded_by: str | None = None
    retired_at: datetime | None = None
    sessions: int = 0
    running_sessions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model of the trail. A seed has neither parent nor session. ``participants``: updates by client, with weight.

    ``format``: of the seed as it was uploaded, which packages are given; the file here is ``.npz`` all the same.
    ``removed_at``: when its file was removed because the session keeps only its newest models; None: it is here.
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
    removed_at: datetime | None = None
    metrics: Mapping[str, float]
    participants: tuple[ClientContribution, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A client or combiner. ``attached_to``: name of the node it is attached to now, None when it is away."""

    name: str
    node_id: str
    kind: str
    organisation: str
    status: str  # attached | away
    attached_to: str | None
    version: str
    platform: str
    address: str | None
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token without its secret; ``token`` carries the secret once, in the answer to its creation."""

    id: str
    role: Role
    name: str
    organisation: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """One entry of the append-only log; ``hash`` is SHA-256 over the previous hash and this entry."""

    seq: int
    at: datetime
    kind: str
    session: str | None
    data: Mapping[str, Any]
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    """A line that a client's entry point wrote."""

    id: int
    session: str
    round: int
    work: str
    client: str
    at: datetime
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """The network at a glance."""

    version: str
    organisation: str
    rpc_address: str
    started_at: datetime
    clients_attached: int
    combiners_attached: int
    sessions_running: int
    blobs_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A page of a listing; ``next_cursor`` None at the end."""

    items: tuple[T, ...]
    next_cursor: str | None
