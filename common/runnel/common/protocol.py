"""What travels between the tiers, as plain values.

The protobuf messages of ``runnel.rpc.v1`` (the reference documentation of every field) are translated to and from these
at the edge, in :mod:`runnel.transport.messages`; domain code sees only this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from runnel.common.blob_ref import BlobRef as BlobRef

MAX_WEIGHT = 1e18
"""The largest weight of one update. It is a number of examples; with more, one client could make a sum overflow."""

MAX_METRICS = 512
"""Numbers by name in one outcome."""

MAX_METRIC_NAME = 200
"""Characters of a metric's name."""

MAX_EXTRA_BYTES = 256 << 10
"""UTF-8 bytes of all that is no number in one outcome, as JSON."""

MAX_LINE = 16_384
"""Characters of one line of a log; longer ones are cut by the sender."""

MAX_TEXT = 32_768
"""Characters of a failure's message or log tail; longer ones are cut by the sender."""

MAX_DETAIL = 500
"""Characters that tell people how far somebody is; longer ones are cut by the sender."""

WAITING: Mapping[str, str] = {"awaiting_approval": "awaiting approval", "outside_hours": "outside hours"}
"""Codes of failures that only say that a client's site does not take the work yet, and what people read for them.

The client is not asked again before it has attached anew, which it does as soon as that has changed.
"""

REFUSING: Mapping[str, str] = {"policy_refused": "refused by its site"}
"""Codes of failures by which a client's site refuses a package, and what people read for them.

As with :data:`WAITING` the client is not asked again before it has attached anew, but no round waits for it.
"""

MOST_WITHIN_BYTES = 16 << 10
"""The largest model or payload that travels within a message instead of by a call of its own."""


class NodeKind(Enum):
    """What a node is."""

    CLIENT = "client"
    COMBINER = "combiner"


class Work(Enum):
    """What a client is asked to do."""

    TRAIN = "train"
    VALIDATE = "validate"


class Stage(Enum):
    """How far a client is with its work, for people and for closing rounds."""

    PREPARING = "preparing"
    FETCHING = "fetching"
    RUNNING = "running"
    PUSHING = "pushing"
    COUNTED = "counted"
    FAILED = "failed"


class PayloadKind(Enum):
    """What the pushed bytes of a report are."""

    NONE = "none"
    UPDATE = "update"
    WEIGHTED_SUM = "weighted_sum"
    UPDATES = "updates"


class Gather(Enum):
    """What a combiner answers a training order with: the weighted sum, or every update."""

    SUM = "sum"
    UPDATES = "updates"


class RunState(Enum):
    """How far the run of a task is. ``QUEUED`` and ``CANCELLED`` are the reducer's own: no client says them."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    PREPARING = "preparing"
    RUNNING = "running"
    AWAITING_RELEASE = "awaiting-release"
    PUSHING = "pushing"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


ENDED = frozenset({RunState.DONE, RunState.FAILED, RunState.REJECTED, RunState.CANCELLED})
"""States that a run does not leave."""


class Settlement(Enum):
    """What became of a report."""

    COUNTED = "counted"
    LATE = "late"
    DISCARDED = "discarded"


RUN_PREFIX = "run-"
"""The ids of runs begin so: a push under such an id brings a file of that run, any other the answer to an order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSignature:
    """Who vouches for a package: raw Ed25519 ``public_key`` (32 bytes) and ``signature`` (64 bytes), unverified."""

    public_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentKey:
    """One piece of work of a client; with the client's name, the identity under which an update counts once."""

    session_id: str
    round: int
    work: Work

    def __str__(self) -> str:
        return f"{self.session_id}/{self.round}/{self.work.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node somewhere below the receiver. ``runs``: those of tasks that a client holds; ``task_slots``: its room.

    ``catalogue``: SHA-256 in hex of what a client publishes of its data; empty: it publishes nothing.
    """

    name: str
    node_id: str
    kind: NodeKind
    parent: str = ""
    version: str = ""
    platform: str = ""
    holding: tuple[AssignmentKey, ...] = ()
    address: str = ""
    capacity: int = 0
    tls: bool = False
    runs: tuple[str, ...] = ()
    task_slots: int = 0
    catalogue: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a client has no result: ``code`` is that of a :class:`runnel.common.errors.RunnelError`."""

    code: str
    message: str
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one client's work."""

    client: str
    failure: Failure | None = None
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra_json: str = ""
    elapsed_s: Mapping[str, float] = field(default_factory=dict)


# ---- up


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First message up: who attaches and who is below."""

    member: Member
    below: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """I am here; ``credential``: a fresh one, empty when there is no news."""

    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Who came and who went below a combiner; ``left`` are names."""

    joined: tuple[Member, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a client is, and ``others`` of the same order as far as this one."""

    key: AssignmentKey
    order_id: str
    client: str
    stage: Stage
    detail: str = ""
    others: tuple[str, ...] = ()

    @property
    def clients(self) -> tuple[str, ...]:
        """All of whom it tells."""
        return (self.client, *self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line that an entry point (``stdout``, ``stderr``) or the client (``runnel``) wrote; Unix time in ms."""

    at_ms: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLines:
    """Lines of one client's work."""

    key: AssignmentKey
    client: str
    lines: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The one answer to an order. ``payload_data``: the payload itself, where the order lets it come within."""

    key: AssignmentKey
    order_id: str
    outcomes: tuple[Outcome, ...]
    payload_kind: PayloadKind = PayloadKind.NONE
    payload: BlobRef | None = None
    weight: float = 0.0
    payload_data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """These clients are given up for this order; nothing of them was or will be folded under it."""

    order_id: str
    clients: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """A file that a run gave out: ``name`` is ``stdout``, ``stderr``, ``log``, ``output`` or one of its contract."""

    name: str
    media_type: str
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What became of a run.

    ``failure`` None: it did what it should. ``exit_code``: of the executor that ended last; None: none was started.
    ``image_digest``: what ran. ``attempt``: from 1; more when the client was killed during an earlier one.
    """

    failure: Failure | None = None
    exit_code: int | None = None
    files: tuple[ResultFile, ...] = ()
    elapsed_s: Mapping[str, float] = field(default_factory=dict)
    image_digest: str = ""
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskNews:
    """How far a run is; ``result`` with the states that end it, ``lines`` what was written since the last news."""

    run_id: str
    client: str
    state: RunState
    detail: str = ""
    result: RunResult | None = None
    lines: tuple[LogLine, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueNews:
    """What a client publishes of its data: JSON of a :class:`runnel.common.catalogue.Catalogue`, not yet checked."""

    client: str
    document: str


Upward = Hello | Heartbeat | Roster | Progress | LogLines | Report | Released | TaskNews | CatalogueNews

# ---- down


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """First message down. ``credential_public_key``: raw Ed25519 key of 32 bytes, for combiners.

    ``late_digests``: whether a push may name its blob at its end. ``blob_port``: where large blobs travel, or
    0; ``blob_key``: what is shown there.
    """

    name: str
    heartbeat_s: float
    credential_public_key: bytes = b""
    late_digests: bool = False
    blob_port: int = 0
    blob_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An order: work for some clients below the receiver, fenced as one. ``remaining_s`` None: no limit.

    ``compression``: of each client's update, as :func:`runnel.common.compression.parse_compression` reads it.
    ``model_data``: the model itself, or nothing; ``payload_within``: how large a payload may come within a report.
    ``signatures``: of the package; ``organisation``: whose session it is.
    """

    order_id: str
    key: AssignmentKey
    clients: tuple[str, ...]
    package: BlobRef
    model: BlobRef
    model_format: str = "npz"
    client_settings: str = "{}"
    remaining_s: float | None = None
    gather: Gather = Gather.SUM
    compression: str = "none"
    model_data: bytes = field(default=b"", repr=False)
    payload_within: int = 0
    signatures: tuple[PackageSignature, ...] = ()
    organisation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Take no further answers for this order and report now."""

    order_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop and forget: an order (``order_id``), or the work ``key`` at ``clients``."""

    order_id: str = ""
    key: AssignmentKey | None = None
    clients: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """These clients may forget their copy of the report."""

    key: AssignmentKey
    clients: tuple[str, ...]
    settlement: Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Leave and ask ``Directory.Join`` again."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrder:
    """A run of a task for one client. ``spec``: JSON of a :class:`runnel.common.tasks.TaskSpec`, not yet checked.

    ``expires_at_ms``: Unix time by which it has to have begun; None: never. ``parent_run``: of a sub-task.
    """

    run_id: str
    client: str
    task_id: str
    organisation: str
    user: str
    spec: str
    expires_at_ms: int | None = None
    parent_run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettled:
    """The run is over for the network: whatever of it goes on at the client ends, and is forgotten."""

    run_id: str
    client: str
    cancelled: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRelease:
    """What ``user``, who is not at the site, decides about results that await release; the site's policy may listen."""

    run_id: str
    client: str
    release: bool
    user: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueWanted:
    """The client is to say what it publishes of its data."""

    client: str


Downward = (
    Welcome | Assignment | Close | Cancel | Settled | Drain | TaskOrder | TaskSettled | TaskRelease | CatalogueWanted
)
