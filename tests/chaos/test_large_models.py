"""Large models through cut connections: each transfer goes on at the byte where it broke, and the model is exact.

``RUNNEL_TEST_LARGE_MB`` sets the size of the model. 2048 is what is promised: it takes some minutes, some GB of memory
for the script, which has the model whole, and 20 GB of disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.chaos.large_network import WHOLE, LargeNetwork
from tests.chaos.proxy import Way

LARGE_MB = int(os.environ.get("RUNNEL_TEST_LARGE_MB", "64"))
MODEL_BYTES = LARGE_MB << 20
ROUND_S = 60.0 + LARGE_MB

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120 + 4 * ROUND_S)]


# The ones of a role go before those of all.
NO_BLOB_PORT = {"RUNNEL_REDUCER_BLOB_PORT": "-1", "RUNNEL_COMBINER_BLOB_PORT": "-1"}


@pytest.fixture(scope="module", params=["blob port", "gRPC"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LargeNetwork]:
    environ = NO_BLOB_PORT if request.param == "gRPC" else {}
    with LargeNetwork(tmp_path_factory.mktemp("large"), MODEL_BYTES, **environ) as net:
        net.by_exec = True  # their memory is told
        net.start()
        yield net


@pytest.mark.parametrize(("where", "way"), WHOLE)
def test_a_cut_in_the_middle_costs_what_was_on_its_way(
    network: LargeNetwork, request: pytest.FixtureRequest, where: str, way: Way
) -> None:
    ports = network.proxies[where]
    cuts = ports.cuts
    ports.cut_after(way, int(WHOLE[where, way] * MODEL_BYTES / 2))
    done = network.run_round(ROUND_S)
    print(f"{LARGE_MB} MiB, {where} {way.value}: {done}, {network.peaks()}")
    assert ports.cuts == cuts + 1
    for key, whole in WHOLE.items():
        # An order above that dies takes the sum of its combiner along, so the client's update comes there once more.
        again = 1 if (where, way) == ("reducer", Way.UP) and key == ("c1", Way.UP) else 0
        assert done.moved[key] < 1.3 * whole + again, key
        if "gRPC" in request.node.callspec.id:
            assert done.over_blob_port[key] == 0, key
        else:  # until the cut, at least
            assert done.over_blob_port[key] > 0.45 * whole, key
    network.require_exact()
