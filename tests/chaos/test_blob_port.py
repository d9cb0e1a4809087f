"""Faults of the blob port alone: gRPC takes over at the byte where a transfer broke, and the round is as ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.large_network import WHOLE, LargeNetwork, Round
from tests.chaos.proxy import Fault, Way
from tests.eventually import eventually_blocking
from tests.lasting_port import lasting_port

MODEL_BYTES = 16 << 20
ROUND_S = 100.0

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LargeNetwork]:
    with LargeNetwork(tmp_path_factory.mktemp("blobs"), MODEL_BYTES) as net:
        net.start()
        yield net


@pytest.fixture
def network(shared: LargeNetwork) -> LargeNetwork:
    """Nobody has lost a connection to a blob port lately, and nobody has a model already."""
    for ports in shared.proxies.values():
        ports.inflict(Fault.NONE)
    shared.again("c1", "site-1")
    eventually_blocking(lambda: [n.attached_to for n in shared.sdk.nodes.list() if n.name == "site-1"] == ["c1"])
    return shared


def require_once(done: Round) -> None:
    """Nothing that had come was sent again but what was on its way."""
    for key, whole in WHOLE.items():
        assert done.moved[key] < 1.3 * whole, key


# Who is not told that the other end is lost waits for 20 s: of that there is one fetch and one push.
BROKEN = [
    *((key, None) for key in WHOLE),
    *((key, Way.UP) for key in WHOLE),
    (("c1", Way.DOWN), Way.DOWN),
    (("reducer", Way.UP), Way.DOWN),
]
LOST = {None: "both ends", Way.UP: "the caller's end", Way.DOWN: "the server's end"}


@pytest.mark.parametrize(
    ("where", "way", "lost"),
    [(*key, lost) for key, lost in BROKEN],
    ids=[f"{where} {way.value}, {LOST[lost]}" for (where, way), lost in BROKEN],
)
def test_a_transfer_that_breaks_goes_on_over_grpc(
    network: LargeNetwork, where: str, way: Way, lost: Way | None
) -> None:
    blobs, whole = network.proxies[where].blobs, WHOLE[where, way]
    cuts = blobs.cuts
    blobs.cut_after(way, int(whole * MODEL_BYTES / 2), lost)
    done = network.run_round(ROUND_S)
    print(f"{where} {way.value}: {done}")
    assert blobs.cuts == cuts + 1
    require_once(done)
    for key, size in WHOLE.items():
        # The way is that of who called: what it pushes after a fetch that broke goes over gRPC as well.
        grpc_all = key[0] == where and (way, key[1]) == (Way.DOWN, Way.UP)
        grpc = 1 if grpc_all else 0.5 if key == (where, way) else 0
        assert done.over_grpc[key] == pytest.approx(grpc * size, abs=0.25 * size), key
    network.require_exact()


@pytest.mark.parametrize("where", ["reducer", "c1"])
@pytest.mark.parametrize("fault", [Fault.HOLE, Fault.RESET])
def test_a_blob_port_that_is_cut_off_is_not_needed(network: LargeNetwork, where: str, fault: Fault) -> None:
    network.proxies[where].blobs.inflict(fault)
    done = network.run_round(ROUND_S)
    print(f"{fault.value} before {where}: {done}")
    require_once(done)
    for key, size in WHOLE.items():
        assert done.over_grpc[key] == pytest.approx(size if key[0] == where else 0, abs=0.25 * size), key
    network.require_exact()


def test_a_blob_port_at_which_nobody_listens_is_not_needed(tmp_path_factory: pytest.TempPathFactory) -> None:
    told = str(lasting_port())
    environ = {"RUNNEL_REDUCER_ADVERTISE_BLOB_PORT": told, "RUNNEL_COMBINER_ADVERTISE_BLOB_PORT": told}
    with LargeNetwork(tmp_path_factory.mktemp("nobody"), MODEL_BYTES, **environ) as network:
        network.start()
        done = network.run_round(ROUND_S)
        print(done)
        require_once(done)
        assert not any(done.over_blob_port.values())
        assert all("large blobs go over gRPC" in network.log_of(name) for name in ("c1", "site-1"))
        network.require_exact()
