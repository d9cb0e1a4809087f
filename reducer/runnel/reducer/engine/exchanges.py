"""The exchanges of a session that are under way: one, or several while updates are buffered."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator

from runnel.common.protocol import AssignmentKey, BlobRef, PackageSignature, Work
from runnel.reducer.domain.collection import Collection, SlotState
from runnel.reducer.engine.exchange import Aside, Exchange, Network
from runnel.reducer.engine.position import Position
from runnel.reducer.engine.small_blobs import small_model
from runnel.reducer.store import ledger, registry
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import RoundRow


class Exchanges:
    """Opens and ends the exchanges of one session.

    Args:
        position: where the session is; not modified.
        network: the nodes below.
        journal: the durable state.
        blobs: where models lie.
        new_order_id: returns an unused name for an order.
        wake: is called after each change.
    """

    def __init__(
        self,
        position: Position,
        *,
        network: Network,
        journal: Journal,
        blobs: Blobs,
        new_order_id: Callable[[], str],
        wake: Callable[[], None],
    ) -> None:
        self._position = position
        self._network = network
        self._journal = journal
        self._blobs = blobs
        self._new_order_id = new_order_id
        self._wake = wake
        self._under_way: dict[AssignmentKey, Exchange] = {}
        self._updates = 0  # in the buffer
        self._aside: dict[str, Aside] = {}
        self._package = position.package.sha256  # of the rounds to come

    def __iter__(self) -> Iterator[Exchange]:
        return iter(list(self._under_way.values()))

    def find(self, key: AssignmentKey) -> Exchange | None:
        """Return the exchange of this work if it is under way."""
        return self._under_way.get(key)

    def busy(self) -> set[str]:
        """Return who is still at work for an earlier round, whose update is to be buffered."""
        if self._position.buffered is None:
            return set()
        at_work = (SlotState.OPEN, SlotState.ASKED, SlotState.NOTED)
        return {client for each in self for client in each.collection.clients_in(*at_work)}

    def aside(self) -> dict[str, str]:
        """Return the clients whose site does not take the work of the session's package, or not yet, and why."""
        return {client: each.why for client, each in self._aside.items() if each.package == self._package}

    def _awaiting(self) -> int:
        here = [each for each in self._aside.values() if each.package == self._package]
        return sum(not each.refuses for each in here)

    def willing(self) -> list[str]:
        """Return the attached clients that may be asked, sorted."""
        aside = self.aside()
        return [client for client in self._network.clients(self._position.organisation) if client not in aside]

    def show_willing(self) -> None:
        """Tell people how many clients there are while the round waits for enough of them."""
        self._journal.show(
            self._position.session_id,
            self._position.organisation,
            {
                "round": self._position.round,
                "work": "select",
                "asked": self._position.config.min_clients,
                "counted": len(self.willing()),
                "failed": len(self.aside()) - self._awaiting(),
                "awaiting": self._awaiting(),
                "stages": self.aside(),
            },
        )

    def arrived(self, clients: Iterable[str]) -> None:
        """Ask again those whose site did not take the work: they attach anew when that has changed."""
        for client in clients:
            self._aside.pop(client, None)
            for exchange in self:
                exchange.arrived(client)
        self._wake()

    async def replace_waiting(self, exchange: Exchange) -> None:
        """Ask others in place of those whose site does not take the work, as far as too few are left without them."""
        collection, position = exchange.collection, self._position
        counts = collection.counts
        able = counts.asked - counts.awaiting - counts.failed - counts.late
        missing = collection.needed - able
        if not (counts.awaiting or counts.refused) or missing <= 0 or exchange.position.selects:
            return
        spare = [client for client in self.willing() if client not in collection.slots]
        draw = random.Random(f"{position.seed}/{position.round}/{counts.asked}")  # noqa: S311
        chosen = draw.sample(spare, min(missing, len(spare)))
        if chosen:
            async with self._journal.transaction() as tx:
                await ledger.open_slots(tx.session, collection.key, chosen)
            collection.invite(chosen)
            self._wake()

    def signed(self, package: str, signatures: tuple[PackageSignature, ...]) -> None:
        """Somebody vouches for a package: that may be what a site waits for."""
        for exchange in self:
            if exchange.position.package.sha256 == package:
                exchange.position.signatures = signatures
        self.arrived([client for client, each in self._aside.items() if each.package == package])

    def moved(self, package: str) -> None:
        """The rounds to come have another package, which a site may take that did not take the one before."""
        self._package = package
        self._wake()

    async def open(self, key: AssignmentKey) -> Exchange:
        """Take over the slots of the present phase, or of an earlier round's training, as they are stored."""
        if (exchange := self._under_way.get(key)) is not None:
            return exchange
        position = dataclasses.replace(self._position)
        buffers = position.buffered is not None and key.work is Work.TRAIN
        needed = position.config.min_clients if key.work is Work.TRAIN else 0
        collection = Collection(key=key, wanted=None, new_order_id=self._new_order_id, singly=buffers, needed=needed)
        async with self._journal.database.read(short=True) as tx:
            stored = await ledger.slot_states(tx, key)
            collection.restore({client: SlotState(state) for client, state in stored.items()})
            # A round keeps the package that it began with, whatever the session has been given since.
            # Who vouches for it may have been said while the session runs.
            package = await registry.package_of_round(tx, position.organisation, key.session_id, key.round)
            position.run(package)
            round_row = await tx.get(RoundRow, (key.session_id, key.round))
            if round_row is not None and round_row.client_settings is not None:
                position.config = dataclasses.replace(position.config, client_settings=round_row.client_settings)
            if buffers:
                base = await ledger.base_of_round(tx, key.session_id, key.round)
                position.model = BlobRef(sha256=base.digest, size_bytes=base.size_bytes)
        exchange = Exchange(
            collection,
            position=position,
            network=self._network,
            journal=self._journal,
            blobs=self._blobs,
            wake=self._wake,
            show=self._show_buffer if buffers else None,
            aside=self._aside,
            # Of single orders too many may wait at once for one node.
            model_data=b"" if buffers else await small_model(self._blobs, position.model),
        )
        self._under_way[key] = exchange
        return exchange

    def end(self, exchange: Exchange, reason: str) -> None:
        """Tell the clients of a fenced exchange, once its end is durable, to forget what was not counted."""
        exchange.call_off(reason)
        del self._under_way[exchange.collection.key]

    # ---- the buffer

    async def take_up_earlier_rounds(self) -> None:
        """Go on with what clients were asked for before this process began."""
        session_id = self._position.session_id
        async with self._journal.database.read() as tx:
            rounds = await ledger.open_rounds(tx, session_id)
        for number in rounds:
            await self.open(AssignmentKey(session_id=session_id, round=number, work=Work.TRAIN))

    async def call_off_stale(self, max_staleness: int) -> None:
        """End the training of rounds whose updates would be older than that."""
        for exchange in self:
            if exchange.collection.key.round < self._position.round - max_staleness:
                await self._retire(exchange)

    async def look(self, current: Exchange) -> tuple[int, float | None]:
        """Do what is to be done now.

        Returns:
            The number of updates for this round, and until when to wait for more (monotonic seconds); None: nobody is
            left who could answer.
        """
        waits = []
        for exchange in self:
            until = exchange.advance()
            if until is not None:
                waits.append(until)
            elif exchange is not current:
                await self._retire(exchange)
        async with self._journal.database.read(short=True) as tx:
            partials = await ledger.partials(tx, self._position.session_id, self._position.round)
        self._updates = sum(len(partial.clients or ()) for partial in partials)
        return self._updates, min(waits, default=None)

    async def _retire(self, exchange: Exchange) -> None:
        """End an earlier round's training: who has not answered is late."""
        exchange.fence()
        async with self._journal.transaction() as tx:
            await ledger.mark_late(tx.session, exchange.collection.key)
        self.end(exchange, "the update would be too old")

    def _show_buffer(self) -> None:
        self._journal.show(
            self._position.session_id,
            self._position.organisation,
            {
                "round": self._position.round,
                "work": Work.TRAIN.value,
                "asked": self._position.config.buffer,
                "counted": self._updates,
                "failed": sum(each.collection.counts.failed for each in self),
                "awaiting": self._awaiting(),
                "stages": {client: stage for each in self for client, stage in each.stages.items()},
            },
        )
