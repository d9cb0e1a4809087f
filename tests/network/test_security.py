"""Nodes with a valid credential that lie, flood and pretend: each is refused by a typed error, and the round goes on.

The honest clients site-1 and site-2 add 1 and 2 to a model of zeros, so the model of a round with nothing else in it is
1.5 everywhere, and neither of them may be blamed for what mallory did.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.common.errors import (
    CorruptData,
    Forbidden,
    IllegalState,
    InvalidInput,
    RunnelError,
    TooLarge,
    Unauthenticated,
)
from runnel.common.protocol import (
    Assignment,
    Failure,
    Hello,
    LogLine,
    LogLines,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Progress,
    Released,
    Roster,
    Stage,
    Upward,
)
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import open_channel
from runnel.transport.messages import upward_to_wire
from tests.doubles.engine_net import ListedWay
from tests.doubles.hostile_node import HostileNode, npz, ref_of, register
from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((20, 3), np.float32), "b": np.zeros(4, np.float64)}
UPDATE = npz({name: array + 7 for name, array in SEED.items()})

WAIT = """
import os, pathlib, time
while not pathlib.Path(os.environ["RUNNEL_DATA"] + ".go").exists():
    time.sleep(0.02)
"""

Said = Upward | pb.Upward
Lie = Callable[[HostileNode, Assignment], Said]


@contextlib.asynccontextmanager
async def round_with(folder: Path, at: str) -> AsyncIterator[tuple[LocalNetwork, HostileNode, str]]:
    """Start a session of two honest clients and mallory, who attaches to c1 or straight to the reducer."""
    async with network(folder, clients=2) as net, one_more_round(net, at) as (node, session):
        yield net, node, session


@contextlib.asynccontextmanager
async def one_more_round(net: LocalNetwork, at: str) -> AsyncIterator[tuple[HostileNode, str]]:
    """Start a session of the clients that are there, who wait until they are let go on, and mallory."""
    address = net.combiners["c1"].address if at == "combiner" else net.reducer.rpc_address
    folder = net.folder / "package"
    if not folder.exists():
        write_package(folder, train=WAIT + ADD_CONSTANT)
    for number in (1, 2):
        _word(net, number).unlink(missing_ok=True)
    async with HostileNode(net.reducer.rpc_address, "mallory", at=address) as node:
        await net.until_attached("mallory")
        package = await net.push_package(folder)
        config = {"rounds": 1, "min_clients": 2, "buffer": 2, "validate_every": 0}
        yield node, await net.start_session(package, await net.push_model(SEED), **config)
    await eventually(lambda: net.reducer.engine.roster.find("mallory") is None)


async def goes_on_without(net: LocalNetwork, session: str) -> dict[str, Any]:
    """Require that the session finishes with the honest two and nobody else; return its clients by name."""
    let_go_on(net)
    view = await net.until_ended(session)
    assert view["status"] == "finished", view["reason"]
    assert view["rounds"][0]["updates"] == 2
    assert ((await net.model(view["model"]))["w"] == 1.5).all()
    clients = {c["client"]: c for c in (await net.session(session, clients=True))["rounds"][0]["clients"]}
    assert [clients[name]["status"] for name in ("site-1", "site-2")] == ["counted", "counted"]
    assert clients["mallory"]["status"] != "counted"
    return clients


def let_go_on(net: LocalNetwork) -> None:
    for number in (1, 2):
        _word(net, number).touch()


def _word(net: LocalNetwork, number: int) -> Path:
    return net.folder / f"site-{number}.txt.go"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _outcome(**changes: Any) -> Lie:
    def lie(node: HostileNode, order: Assignment) -> Said:
        wire = upward_to_wire(node.report(order))
        for name, value in changes.items():
            if name == "metrics":
                wire.report.outcomes[0].metrics.update(value)
            else:
                setattr(wire.report.outcomes[0], name, value)
        return wire

    return lie


def _log(client: str = "mallory", at_ms: int = 0, text: str = "x") -> Lie:
    def lie(node: HostileNode, order: Assignment) -> Said:
        wire = upward_to_wire(LogLines(key=order.key, client=client, lines=()))
        wire.log.lines.append(pb.LogLine(at_ms=at_ms, stream="stdout", text=text))
        return wire

    return lie


def _progress(client: str, stage: Stage, *others: str) -> Lie:
    return lambda node, order: Progress(
        key=order.key, order_id=order.order_id, client=client, stage=stage, others=others
    )


def _weighted_sum(node: HostileNode, order: Assignment) -> Said:
    return dataclasses.replace(node.report(order, UPDATE), payload_kind=PayloadKind.WEIGHTED_SUM, weight=1e-9)


def _for(*names: str) -> Lie:
    return lambda node, order: node.report(order, outcomes=tuple(Outcome(client=name) for name in names))


LIES: dict[str, tuple[Lie, type[RunnelError], str]] = {
    "reports for another": (_for("site-1"), Forbidden, "reports for site-1"),
    "reports a failure of another": (
        lambda node, order: node.report(
            order, outcomes=(Outcome(client="site-2", failure=Failure(code="x", message="it broke")),)
        ),
        Forbidden,
        "reports for site-2",
    ),
    "reports twice in one": (_for("mallory", "mallory"), InvalidInput, "has 2"),
    "reports nobody": (_for(), InvalidInput, "has 0"),
    "reports a weighted sum": (_weighted_sum, Forbidden, "weighted sum"),
    "a NaN weight": (_outcome(weight=float("nan")), InvalidInput, "weight must be"),
    "a negative weight": (_outcome(weight=-1.0), InvalidInput, "weight must be"),
    "an infinite weight": (_outcome(weight=float("inf")), InvalidInput, "weight must be"),
    "a weight that outweighs all": (_outcome(weight=1e308), InvalidInput, r"at most 1e\+18"),
    "a NaN metric": (_outcome(metrics={"a": float("nan")}), InvalidInput, "finite number"),
    "ten thousand metrics": (_outcome(metrics={f"m{n}": 1.0 for n in range(10_000)}), InvalidInput, "at most 512"),
    "a metric with a long name": (_outcome(metrics={"m" * 5000: 1.0}), InvalidInput, "at most 200 characters"),
    "notes that are no JSON": (_outcome(extra_json="{oops"), InvalidInput, "should be JSON"),
    "notes that are no object": (_outcome(extra_json="[1]"), InvalidInput, "should be a JSON object"),
    "notes with NaN": (_outcome(extra_json='{"a": NaN}'), InvalidInput, "NaN is no number of JSON"),
    "notes without a bottom": (
        _outcome(extra_json='{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"),
        InvalidInput,
        "nested deeper than 64",
    ),
    "megabytes of notes": (_outcome(extra_json='"' + "x" * 2_000_000 + '"'), InvalidInput, "at most 262,144 bytes"),
    "says it is counted": (_progress("mallory", Stage.COUNTED), Forbidden, "counted"),
    "speaks for another": (_progress("site-1", Stage.RUNNING), Forbidden, "speaks for site-1"),
    "speaks for another too": (
        _progress("mallory", Stage.RUNNING, "site-1"),
        Forbidden,
        "speaks for site-1",
    ),
    "logs for another": (_log("site-1"), Forbidden, "speaks for site-1"),
    "logs at the end of time": (_log(at_ms=(1 << 64) - 1), InvalidInput, "before the year 10000"),
    "logs a line of megabytes": (_log(text="x" * 2_000_000), InvalidInput, "at most 16,384 characters"),
    "pretends to have others below": (
        lambda node, order: Roster(joined=(Member(name="site-1", node_id="id-1", kind=NodeKind.CLIENT),)),
        Forbidden,
        "roster",
    ),
    "says that others left": (lambda node, order: Roster(left=("site-1", "site-2")), Forbidden, "roster"),
    "gives others up": (
        lambda node, order: Released(order_id=order.order_id, clients=("site-1",)),
        Forbidden,
        "released",
    ),
    "a second hello": (lambda node, order: Hello(member=node.member), IllegalState, "hello"),
    "a message that says nothing": (lambda node, order: pb.Upward(), InvalidInput, "without a body"),
    "a message of 20 megabytes": (
        lambda node, order: pb.Upward(progress=pb.Progress(detail="x" * 20_000_000)),
        RunnelError,  # gRPC tells it by the side that sees the end first
        "larger than max|ended|Internal error from Core",
    ),
}


@pytest.mark.parametrize("what", LIES)
async def test_a_client_that_lies_is_refused_and_the_round_goes_on(tmp_path: Path, what: str) -> None:
    lie, kind, words = LIES[what]
    async with network(tmp_path, clients=2) as net:
        for at in ("combiner", "reducer"):
            async with one_more_round(net, at) as (node, session):
                await node.say(lie(node, await node.assignment()))
                with pytest.raises(kind, match=words):
                    raise await node.refusal()
                await goes_on_without(net, session)


async def test_a_client_with_others_below_is_not_let_in(tmp_path: Path) -> None:
    async with network(tmp_path, clients=1) as net:
        claimed = (Member(name="site-1", node_id="id-1", kind=NodeKind.CLIENT),)
        for address in (net.combiners["c1"].address, net.reducer.rpc_address):
            async with HostileNode(net.reducer.rpc_address, "mallory", at=address, below=claimed) as node:
                with pytest.raises(Forbidden, match="1 nodes are below it"):
                    raise await node.refusal()
        assert net.reducer.engine.roster.route("site-1") == "c1"
        assert net.reducer.engine.roster.route("mallory") is None


# ---- payloads


@pytest.mark.parametrize("at", ["combiner", "reducer"])
async def test_payloads_that_are_not_what_they_are_said_to_be(tmp_path: Path, at: str) -> None:
    async with round_with(tmp_path, at) as (net, node, session):
        order_id = (await node.assignment()).order_id
        other = ref_of(UPDATE[:-1] + b"?")
        with pytest.raises(CorruptData, match=other.sha256):
            await node.push(order_id, UPDATE, other)
        with pytest.raises(CorruptData, match=r"got .* bytes at"):
            await node.push(order_id, UPDATE + b"more", ref_of(UPDATE))
        with pytest.raises(TooLarge, match="mallory wants to push 1,000,000,000 bytes"):
            await node.push(order_id, b"x", dataclasses.replace(ref_of(b"x"), size_bytes=1_000_000_000))
        with pytest.raises(InvalidInput, match="A chunk has at most 1048576 bytes"):
            await node.push(order_id, b"x" * 4_000_000, chunk=4_000_000)
        with pytest.raises(IllegalState, match="ord-another"):
            await node.push("ord-another", UPDATE)
        assert not (await node.push(order_id, UPDATE[:10], ref_of(UPDATE))).complete
        await goes_on_without(net, session)
        assert not node.ended.is_set()


@pytest.mark.parametrize("at", ["combiner", "reducer"])
async def test_an_order_of_others_can_not_be_answered(tmp_path: Path, at: str) -> None:
    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=WAIT + ADD_CONSTANT))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=2, validate_every=0
        )
        orders = net.reducer.engine._orders
        await eventually(lambda: orders, timeout_s=20)
        (order_id,) = orders
        key = orders[order_id].collection.key
        address = net.combiners["c1"].address if at == "combiner" else net.reducer.rpc_address
        async with HostileNode(net.reducer.rpc_address, "mallory", at=address) as node:
            with pytest.raises(IllegalState, match=order_id):
                await node.push(order_id, UPDATE)
            broken = Outcome(client="mallory", failure=Failure(code="x", message="it broke"))
            stranger = Assignment(
                order_id=order_id, key=key, clients=("mallory",), package=ref_of(b""), model=ref_of(b"")
            )
            await node.say(
                node.report(stranger, outcomes=(broken,)),
                node.report(stranger, UPDATE),
                node.report(dataclasses.replace(stranger, key=dataclasses.replace(key, round=9))),
                Progress(key=key, order_id=order_id, client="mallory", stage=Stage.RUNNING),
                LogLines(key=key, client="mallory", lines=(LogLine(at_ms=0, stream="stdout", text="I was here"),)),
                LogLines(
                    key=dataclasses.replace(key, session_id="ses-others"),
                    client="mallory",
                    lines=(LogLine(at_ms=0, stream="stdout", text="and there"),),
                ),
            )
            let_go_on(net)
            view = await net.until_ended(session)
            assert view["status"] == "finished", view["reason"]
            assert (view["rounds"][0]["updates"], view["rounds"][0]["failed"]) == (2, 0)
            assert ((await net.model(view["model"]))["w"] == 1.5).all()
            assert not node.ended.is_set()
        logs = (await net.http.get(f"/sessions/{session}/logs")).json()["items"]
        assert [line for line in logs if line["client"] == "mallory"] == []


@pytest.mark.parametrize("at", ["combiner", "reducer"])
@pytest.mark.parametrize("what", ["rubbish", "infinite", "huge", "never pushed"])
async def test_a_payload_that_is_no_update_is_the_senders_failure(tmp_path: Path, what: str, at: str) -> None:
    data, words = {
        "rubbish": (b"this is not a model", "cannot be read as .npz"),
        "infinite": (npz(SEED | {"b": np.full(4, np.inf)}), "mallory"),
        "huge": (npz(SEED | {"b": np.full(4, 1e308)}), "too large"),
        "never pushed": (UPDATE, "mallory"),
    }[what]
    async with round_with(tmp_path, at) as (net, node, session):
        order = await node.assignment()
        if what != "never pushed":
            assert (await node.push(order.order_id, data)).complete
        await node.say(node.report(order, data))
        clients = await goes_on_without(net, session)
        if clients["mallory"]["error"]:  # else the round was closed before
            assert words in clients["mallory"]["error"]


@pytest.mark.parametrize("at", ["combiner", "reducer"])
async def test_an_update_counts_once_however_often_it_is_reported(tmp_path: Path, at: str) -> None:
    async with network(tmp_path, clients=2) as net:
        address = net.combiners["c1"].address if at == "combiner" else net.reducer.rpc_address
        async with HostileNode(net.reducer.rpc_address, "mallory", at=address) as node:
            await net.until_attached("mallory")
            package = await net.push_package(write_package(tmp_path / "package"))
            session = await net.start_session(
                package, await net.push_model(SEED), rounds=1, min_clients=3, validate_every=0
            )
            order = await node.assignment()
            await node.push(order.order_id, UPDATE)
            spoilt = npz({name: array + 1000 for name, array in SEED.items()})
            await node.say(*(node.report(order, UPDATE) for _ in range(20)))
            with contextlib.suppress(IllegalState):  # the second payload comes too late, or is not the reported one
                await node.push(order.order_id, spoilt)
            await node.say(*(node.report(order, spoilt) for _ in range(20)))
            view = await net.until_ended(session)
            assert view["status"] == "finished", view["reason"]
            assert (view["rounds"][0]["updates"], view["rounds"][0]["failed"]) == (3, 0)
            model = await net.model(view["model"])
            assert np.allclose(model["w"], (1 + 2 + 7) / 3)
            assert not node.ended.is_set()
        # Nothing of it stays behind.
        await eventually(lambda: not list((tmp_path / "reducer" / "partials").iterdir()))
        await eventually(lambda: not files_in(tmp_path / "c1" / "spool"))


async def test_what_was_begun_and_never_ended_is_removed(tmp_path: Path) -> None:
    async with round_with(tmp_path, "combiner") as (net, node, session):
        order = await node.assignment()
        big = npz({"w": np.ones(400_000)})
        await node.push(order.order_id, big[:300_000], ref_of(big))
        assert files_in(tmp_path / "c1" / "spool")
        await goes_on_without(net, session)
        await eventually(lambda: not files_in(tmp_path / "c1" / "spool"))
    async with round_with(tmp_path / "again", "reducer") as (net, node, session):
        order = await node.assignment()
        await node.push(order.order_id, big[:300_000], ref_of(big))
        assert files_in(tmp_path / "again" / "reducer" / "spool")
        await goes_on_without(net, session)
        await eventually(lambda: not files_in(tmp_path / "again" / "reducer" / "spool"))


# ---- floods


async def test_a_flood_takes_nobody_down(tmp_path: Path) -> None:
    async with round_with(tmp_path, "combiner") as (net, node, session):
        order = await node.assignment()
        attached = net.reducer.engine.roster
        text = "x" * 16_000
        lines = LogLines(
            key=order.key,
            client="mallory",
            lines=tuple(LogLine(at_ms=0, stream="stdout", text=text) for _ in range(200)),
        )
        progress = Progress(key=order.key, order_id=order.order_id, client="mallory", stage=Stage.RUNNING)
        let_go_on(net)
        async with asyncio.timeout(60):
            await node.say(*[lines] * 40, *[progress] * 10_000)
        await goes_on_without(net, session)
        assert attached.route("mallory") == "c1"
        events = (await net.http.get("/events", headers={"Accept": "application/json"})).json()["items"]
        assert [e["data"]["name"] for e in events if e["kind"] == "node.left"] == []


# ---- combiners


@contextlib.asynccontextmanager
async def hostile_combiner(folder: Path) -> AsyncIterator[tuple[LocalNetwork, HostileNode, str, Assignment]]:
    """A session of site-1 and site-2 at c1, and mallory, a combiner that has the clients ghost-1 and ghost-2."""
    async with network(folder, clients=2) as net:
        address = net.reducer.rpc_address
        ghosts = [Member(name=f"ghost-{n}", node_id=f"id-ghost-{n}", kind=NodeKind.CLIENT) for n in (1, 2)]
        channel = open_channel(address, tls=None)
        for ghost in ghosts:
            await register(channel, ghost)
        await channel.close()
        async with HostileNode(address, "mallory", at=address, kind=NodeKind.COMBINER) as node:
            await node.say(Roster(joined=tuple(ghosts)))
            await net.until_attached("ghost-1", "ghost-2")
            package = await net.push_package(write_package(folder / "package", train=WAIT + ADD_CONSTANT))
            session = await net.start_session(
                package,
                await net.push_model(SEED),
                rounds=1,
                min_clients=2,
                buffer=2,
                round_timeout_s=60,
                validate_every=0,
            )
            order = await node.assignment()
            assert order.clients == ("ghost-1", "ghost-2")
            yield net, node, session, order


async def give_up(node: HostileNode, order: Assignment) -> None:
    """Report for the ghosts, whom the round would wait for."""
    lost = Failure(code="x", message="It is none.")
    await node.say(node.report(order, outcomes=tuple(Outcome(client=name, failure=lost) for name in order.clients)))


GHOSTS = (Outcome(client="ghost-1", weight=1.0), Outcome(client="ghost-2", weight=1.0))
SUMS = {
    "not finite": (np.full(64, np.nan), 2.0, "has NaN or infinity"),
    "infinite": (np.full(64, np.inf), 2.0, "has NaN or infinity"),
    "no sum of such updates": (np.full(64, 1e200), 2.0, "can sum up to"),
    "another size": (np.zeros(63), 2.0, "has 504 bytes; expected were 512"),
    "another weight": (np.zeros(64), 1e9, "its clients sum to 2"),
    "no weight": (np.zeros(64), 0.0, "has the weight 0"),
}


@pytest.mark.parametrize("what", SUMS)
async def test_a_sum_that_is_none_is_refused_whole(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, weight, words = SUMS[what]
    async with hostile_combiner(tmp_path) as (net, node, session, order):
        data = numbers.astype("<f8").tobytes()
        assert (await node.push(order.order_id, data)).complete
        await node.say(node.report(order, data, outcomes=GHOSTS, weight=weight, payload_kind=PayloadKind.WEIGHTED_SUM))
        said: list[str] = []

        def told() -> bool:
            said.append(capsys.readouterr().out)
            return words in "".join(said)

        await eventually(told)
        let_go_on(net)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert view["rounds"][0]["updates"] == 2
        assert ((await net.model(view["model"]))["w"] == 1.5).all()
        assert not node.ended.is_set()


async def test_a_combiner_reports_for_nobody_but_those_it_was_asked_for(tmp_path: Path) -> None:
    async with hostile_combiner(tmp_path) as (net, node, session, order):
        data = np.zeros(64).tobytes()
        await node.push(order.order_id, data)
        stolen = (Outcome(client="site-1", weight=1.0), Outcome(client="site-2", weight=1.0))
        await node.say(
            Progress(key=order.key, order_id=order.order_id, client="site-1", stage=Stage.COUNTED),
            Progress(key=order.key, order_id=order.order_id, client="site-2", stage=Stage.FAILED),
            Released(order_id=order.order_id, clients=("site-1", "site-2")),
            node.report(order, data, outcomes=stolen, weight=2.0, payload_kind=PayloadKind.WEIGHTED_SUM),
        )
        let_go_on(net)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        clients = {c["client"]: c["status"] for c in (await net.session(session, clients=True))["rounds"][0]["clients"]}
        assert (clients["site-1"], clients["site-2"]) == ("counted", "counted")
        assert ((await net.model(view["model"]))["w"] == 1.5).all()


async def test_a_combiner_has_no_part_in_the_orders_of_another(tmp_path: Path) -> None:
    async with hostile_combiner(tmp_path) as (net, node, session, order):
        others = [o for o in net.reducer.engine._orders if o != order.order_id]
        for order_id in others:
            theirs = dataclasses.replace(order, order_id=order_id)
            failed = tuple(Outcome(client=f"site-{n}", failure=Failure(code="x", message="gone")) for n in (1, 2))
            with pytest.raises(IllegalState, match=order_id):
                await node.push(order_id, UPDATE)
            await node.say(
                Progress(key=order.key, order_id=order_id, client="site-1", stage=Stage.FAILED),
                Released(order_id=order_id, clients=("site-1", "site-2")),
                node.report(theirs, outcomes=failed),
                node.report(dataclasses.replace(theirs, key=dataclasses.replace(order.key, round=2))),
            )
        await give_up(node, order)
        let_go_on(net)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert ((await net.model(view["model"]))["w"] == 1.5).all()


@pytest.mark.parametrize(
    ("lie", "kind", "words"),
    [
        (_for("ghost-1", "ghost-1"), InvalidInput, "names a client twice"),
        (lambda node, order: node.report(order, UPDATE), Forbidden, "a single update"),
        (lambda node, order: Roster(joined=(node.member,)), Forbidden, "below itself"),
        (
            lambda node, order: Roster(
                joined=(Member(name="x", node_id="y", kind=NodeKind.COMBINER, address="not an address"),)
            ),
            InvalidInput,
            "HOST:PORT",
        ),
    ],
)
async def test_a_combiner_that_lies_is_refused(tmp_path: Path, lie: Lie, kind: type[RunnelError], words: str) -> None:
    async with hostile_combiner(tmp_path) as (net, node, session, order):
        await node.say(lie(node, order))
        with pytest.raises(kind, match=words):
            raise await node.refusal()
        let_go_on(net)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert ((await net.model(view["model"]))["w"] == 1.5).all()


async def test_a_combiner_brings_nobody_in_who_has_not_joined(tmp_path: Path) -> None:
    async with hostile_combiner(tmp_path) as (net, node, session, order):
        await node.say(
            Roster(
                joined=(
                    Member(name="invented", node_id="id", kind=NodeKind.CLIENT),
                    Member(name="site-1", node_id="not its own", kind=NodeKind.CLIENT),
                    Member(name="ghost-1", node_id="id-ghost-1", kind=NodeKind.CLIENT, platform="told again"),
                )
            )
        )
        roster = net.reducer.engine.roster

        def told_again() -> bool:
            ghost = roster.find("ghost-1")
            return ghost is not None and ghost.platform == "told again"

        await eventually(told_again)
        assert roster.find("invented") is None
        assert roster.route("site-1") == "c1"
        await give_up(node, order)
        let_go_on(net)
        await net.until_ended(session)


async def test_who_has_not_joined_by_this_name_is_not_let_in(tmp_path: Path) -> None:
    """Of two nodes of one name the one that joined last has it, though the other's credential is good for a while."""
    async with network(tmp_path, clients=0) as net:
        address = net.reducer.rpc_address
        async with HostileNode(address, "twin", at=address) as first:
            first._call.cancel()
            await eventually(lambda: net.reducer.engine.roster.find("twin") is None)
            channel = open_channel(address, tls=None)
            await register(channel, Member(name="twin", node_id="id-of-the-second", kind=NodeKind.CLIENT))
            await channel.close()
            with pytest.raises(Unauthenticated, match="another node has its name now"):
                await net.reducer.engine.attached(Hello(member=first.member), ListedWay())
        assert net.reducer.engine.roster.find("twin") is None
