"""A process of very light clients, each with a connection of its own to the node that it is attached to.

Unlike those of ``light_clients.py`` they speak the wire's messages by hand: no files, no threads, no resuming, so that
a few processes can be thousands of clients and most of the machine is left to reducer and combiner.

    python -m benchmarks.light_swarm NETWORK NAME UPDATE

Each line of standard input is a number: so many more clients attach. What happened is told on standard output, one JSON
object a line: ``attached`` when they are, ``round`` when all clients that were asked in it may forget their updates,
with Unix times: of the first that pushed its update, and else of the last. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.descriptors import require_descriptors
from benchmarks.figures import quieten
from runnel.common.blobs import digest_payload
from runnel.common.errors import RunnelError
from runnel.common.protocol import NodeKind
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport import JoinAsk, Place
from runnel.transport.channels import open_channel
from runnel.transport.directory import join
from runnel.transport.identity import bearer_metadata
from runnel.transport.status import rpc_errors
from runnel.transport.wire_values import blob_to_wire

_AT_ONCE = 16
_JOIN_S = 60.0
_HEARTBEAT = pb.Upward(heartbeat=pb.Heartbeat())


class _Round:
    """What became of one round's work in this process; times are Unix times of the last client."""

    def __init__(self) -> None:
        self.asked = self.settled = 0
        self.pushing_at = 0.0  # of the first client
        self.assigned_at = self.fetched_at = self.reported_at = 0.0

    def told(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "settled"}


class Swarm:
    """All clients of this process."""

    def __init__(self, network: str, name: str, update: Path) -> None:
        self._network = network
        self._name = name
        self._update = update.read_bytes()
        self._ref = blob_to_wire(digest_payload(update))
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._clients: list[_Client] = []
        self._group = asyncio.TaskGroup()

    async def run(self) -> None:
        """Do as the lines of standard input say, to their end."""
        loop = asyncio.get_running_loop()
        async with self._group:
            beating = self._group.create_task(self._beat())
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                await self._attach(int(line))
            beating.cancel()
            for client in self._clients:
                client.end()

    async def _attach(self, more: int) -> None:
        require_descriptors(2 * (len(self._clients) + more))
        first = len(self._clients) + 1
        new = [_Client(self, f"{self._name}-{n}") for n in range(first, first + more)]
        for client in new:
            self._group.create_task(client.run())
        self._clients += new
        for client in new:
            await client.attached.wait()
        _say(attached=more)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for client in self._clients:
                if client.attached.is_set() and not client.busy and now - client.said_at >= client.heartbeat_s:
                    await client.say(_HEARTBEAT)

    async def place(self, name: str) -> Place:
        """Ask the directory, over a connection that is closed again."""
        ask = JoinAsk(name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT)
        async with open_channel(self._network, tls=None) as channel:
            return await join(channel, ask, token=None, deadline_s=_JOIN_S)

    def turn(self) -> asyncio.Semaphore:
        """Not all of them come at once."""
        return self._turns

    def assigned(self, key: pb.AssignmentKey) -> _Round:
        """One more is asked."""
        of_round = self._rounds.setdefault((key.session_id, key.round), _Round())
        of_round.asked += 1
        of_round.assigned_at = time.time()
        return of_round

    def settled(self, key: pb.AssignmentKey) -> None:
        """One more may forget what it did."""
        of_round = self._rounds[(key.session_id, key.round)]
        of_round.settled += 1
        if of_round.settled == of_round.asked:
            del self._rounds[(key.session_id, key.round)]
            _say(round=key.round, **of_round.told())

    def report(self, name: str, assignment: pb.Assignment) -> pb.Upward:
        """Return the answer of one client."""
        report = pb.Report(
            key=assignment.key,
            order_id=assignment.order_id,
            outcomes=[pb.Outcome(client=name, weight=1.0)],
            payload_kind=pb.PAYLOAD_KIND_UPDATE,
            payload=self._ref,
            weight=1.0,
            payload_data=self._update if self.goes_within(assignment) else b"",
        )
        return pb.Upward(report=report)

    def goes_within(self, assignment: pb.Assignment) -> bool:
        """Tell whether the update need not be pushed."""
        return len(self._update) <= assignment.payload_within

    def payload(self, order_id: str) -> pb.Chunk:
        """Return the update as the one chunk that it is."""
        return pb.Chunk(blob=self._ref, order_id=order_id, data=self._update)


class _Client:
    def __init__(self, swarm: Swarm, name: str) -> None:
        self.attached = asyncio.Event()
        self.busy = False
        self.heartbeat_s = 0.0
        self.said_at = 0.0
        self._swarm = swarm
        self._name = name
        self._call: Any = None
        self._ended = False

    async def run(self) -> None:
        """Attach and answer, until the end."""
        with rpc_errors(f"the node above {self._name}"):
            async with self._swarm.turn():
                place = await self._swarm.place(self._name)
                channel = open_channel(place.address, tls=None)
                stub: Any = pb_grpc.UplinkStub(channel)
                metadata = bearer_metadata(place.credential)
                self._call = stub.Attach(metadata=metadata)
                hello = pb.Hello()
                myself = pb.Member(name=self._name, node_id=f"id-{self._name}", kind=pb.NODE_KIND_CLIENT)
                getattr(hello, "self").CopyFrom(myself)  # noqa: B009 - no name that Python's own syntax takes here
                await self.say(pb.Upward(hello=hello))
                welcome = await self._call.read()
                self.heartbeat_s = welcome.welcome.heartbeat_ms / 1000
                self.attached.set()
            try:
                while isinstance(wire := await self._call.read(), pb.Downward):
                    which = wire.WhichOneof("body")
                    if which == "assignment":
                        await self._answer(stub, metadata, wire.assignment)
                    elif which == "settled":
                        self._swarm.settled(wire.settled.key)
            except asyncio.CancelledError:
                if not self._ended:
                    raise
            finally:
                await channel.close()
        if not self._ended:
            raise RunnelError(f"{self._name} was sent away.")

    async def say(self, message: pb.Upward) -> None:
        """Send something up."""
        self.said_at = time.monotonic()
        await self._call.write(message)

    async def _answer(self, stub: Any, metadata: Any, assignment: pb.Assignment) -> None:
        self.busy = True
        of_round = self._swarm.assigned(assignment.key)
        size = len(assignment.model_data)
        if not size:
            async for chunk in stub.Fetch(pb.FetchRequest(blob=assignment.model), metadata=metadata):
                size += len(chunk.data)
        if size != assignment.model.size_bytes:
            raise RunnelError(f"{self._name} was given {size} of {assignment.model.size_bytes} bytes.")
        of_round.fetched_at = time.time()
        of_round.pushing_at = of_round.pushing_at or of_round.fetched_at
        if not self._swarm.goes_within(assignment):
            pushing = stub.Push(metadata=metadata)
            await pushing.write(self._swarm.payload(assignment.order_id))
            await pushing.done_writing()
            await pushing
        await self.say(self._swarm.report(self._name, assignment))
        of_round.reported_at = time.time()
        self.busy = False

    def end(self) -> None:
        """Leave."""
        self._ended = True
        if self._call is not None:
            self._call.cancel()


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Run the clients of this process."""
    quieten()
    network, name, update = sys.argv[1:]

    async def run() -> None:
        await Swarm(network, name, Path(update)).run()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    main()
