"""Where a session is, as its runner knows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.aggregation import FedBuff, make_strategy
from runnel.common.protocol import BlobRef, Gather, PackageSignature
from runnel.compute_package import ServerCode
from runnel.reducer.domain.values import SessionConfig, SessionStatus
from runnel.reducer.store import ledger, registry
from runnel.reducer.store.tables import ModelRow, PackageRow, RoundRow


@dataclass(slots=True, kw_only=True)
class Position:
    """Where the session is; a copy of its row, kept up by the runner alone."""

    session_id: str
    organisation: str
    config: SessionConfig
    seed: int
    package: BlobRef
    model_id: str
    model: BlobRef
    model_format: str  # of its seed: what packages that don't say theirs are given
    optimizer_state: str | None
    round: int
    history: tuple[SessionStatus, ...]
    signatures: tuple[PackageSignature, ...] = ()  # of the package
    server: ServerCode | None = None  # what the package does here; None: nothing, or it is not wanted
    phase_since: float = field(default_factory=time.monotonic)
    round_since: float | None = None  # when this process began the round, if it did
    superseded: BlobRef | None = None  # the model before, if this process made the one after it

    @property
    def gather(self) -> Gather:
        """What combiners answer a training order with."""
        if self.server is not None and self.server.aggregator is not None:
            return Gather.UPDATES
        strategy = make_strategy(self.config.strategy, self.config.strategy_options)
        return Gather.UPDATES if strategy.gathers else Gather.SUM

    @property
    def buffered(self) -> FedBuff | None:
        """How updates of earlier rounds count; None: they do not."""
        return make_strategy(self.config.strategy, self.config.strategy_options).buffered

    @property
    def selects(self) -> bool:
        """Whether the package chooses the clients."""
        return self.server is not None and self.server.selects

    def run(self, package: PackageRow) -> None:
        """Have a package in place of the present one."""
        self.package = BlobRef(sha256=package.digest, size_bytes=package.size_bytes)
        self.signatures = registry.package_signatures(package)
        self.server = server_code(package, self.config)

    @property
    def phase(self) -> SessionStatus:
        """The present phase."""
        return self.history[-1]


async def position_of(tx: AsyncSession, session_id: str) -> Position:
    """Read where a session is; ``tx`` is an open database session."""
    row = await ledger.require_session(tx, session_id)
    model_id = row.model_id
    current = await tx.get(RoundRow, (session_id, row.round))
    if row.phase == SessionStatus.VALIDATING.value and current is not None and current.model_id is not None:
        model_id = current.model_id
    model = await tx.get_one(ModelRow, model_id)
    package = await tx.get_one(PackageRow, (row.organisation_id, row.package_digest))
    config = ledger.config_from_json(row.config)
    return Position(
        session_id=row.id,
        organisation=row.organisation_id,
        config=config,
        seed=row.seed,
        package=BlobRef(sha256=package.digest, size_bytes=package.size_bytes),
        model_id=model.id,
        model=BlobRef(sha256=model.digest, size_bytes=model.size_bytes),
        model_format=model.format,
        optimizer_state=model.optimizer_state,
        round=row.round,
        history=(SessionStatus(row.phase),),
        signatures=registry.package_signatures(package),
        server=server_code(package, config),
    )


def server_code(package: PackageRow, config: SessionConfig) -> ServerCode | None:
    """Return what a package does at the reducer in a session; None: nothing, or it is not wanted."""
    return ServerCode.from_json(package.manifest.get("server")) if config.server_functions else None
