"""Large models through cut connections: each transfer goes on at the byte where it broke, and the model is exact.

``RUNNEL_TEST_LARGE_MB`` sets the size of the model. 2048 is what is promised: it takes some minutes, some GB of memory
for the script, which has the model whole, and 20 GB of disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.common.blobs import digest_file
from runnel.common.endpoints import read_endpoints
from tests.chaos.proxy import FaultyProxy, Way
from tests.process.process_network import ProcessNetwork

LARGE_MB = int(os.environ.get("RUNNEL_TEST_LARGE_MB", "64"))
MODEL_BYTES = LARGE_MB << 20
ROUND_S = 60.0 + LARGE_MB

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120 + 4 * ROUND_S)]

TRAIN = """
import sys
import numpy as np

with np.load(sys.argv[1]) as model:
    w = model["w"]
w += 1
np.savez(sys.argv[2], w=w)
"""


class LargeNetwork(ProcessNetwork):
    """A reducer, a combiner and a client, with a proxy at either hop: ``upper`` before the reducer, ``lower``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.proxies = {"upper": FaultyProxy(), "lower": FaultyProxy()}

    def start(self) -> None:
        upper, lower = self.proxies.values()
        for proxy in (upper, lower):
            proxy.__enter__()
        # Nobody else takes the client, who comes back to where it was cut off.
        self.start_reducer("--keep-models", "1", "--direct-clients", "0")
        upper.target, self.rpc = self.rpc, upper.address
        self.start_combiner("c1", "--advertise", lower.address)
        lower.target = str(read_endpoints(self.folder / "c1").rpc)
        data = self.folder / "data.txt"
        data.touch()
        self.start_client("site-1", data)
        self.until_attached("c1", "site-1")

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for proxy in self.proxies.values():
            proxy.__exit__(None, None, None)

    def peaks(self) -> dict[str, int]:
        """Return the most resident memory of each process, in models."""
        found = {}
        for name in self.components:
            status = Path(f"/proc/{self.process(name).pid}/status").read_text()
            (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
            found[name] = int(peak) * 1024
        return found

    def moved(self) -> dict[tuple[str, Way], float]:
        """Return how often the bytes of the model have gone through each proxy in each direction."""
        return {
            (name, way): size / MODEL_BYTES for name, each in self.proxies.items() for way, size in each.moved.items()
        }


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LargeNetwork]:
    with LargeNetwork(tmp_path_factory.mktemp("large")) as net:
        net.start()
        yield net


@pytest.fixture(scope="module")
def work(network: LargeNetwork) -> dict[str, str]:
    """Push the package and a model of zeros; ``model`` is the newest one, from which the next test goes on."""
    package = network.sdk.packages.push(network.build_package(TRAIN, TRAIN))
    seed = network.folder / "seed.npz"
    np.savez(seed, w=np.broadcast_to(np.float32(0), MODEL_BYTES // 4))
    model = network.sdk.models.push(seed)
    seed.unlink()
    return {"package": package.digest, "model": model.model, "rounds": "0"}


# In models: what goes through, without a cut. The weighted sum is float64.
WHOLE = {("upper", Way.DOWN): 1, ("lower", Way.DOWN): 1, ("lower", Way.UP): 1, ("upper", Way.UP): 2}


@pytest.mark.parametrize(("where", "way"), WHOLE)
def test_a_cut_in_the_middle_costs_what_was_on_its_way(
    network: LargeNetwork, work: dict[str, str], where: str, way: Way
) -> None:
    proxy = network.proxies[where]
    before, cuts = network.moved(), proxy.cuts
    proxy.cut_after(way, WHOLE[where, way] * MODEL_BYTES // 2)
    began = time.monotonic()
    session = network.sdk.sessions.start(
        package=work["package"], seed=work["model"], rounds=1, round_timeout_s=ROUND_S, validate_every=0
    ).session
    ended = network.until_ended(session, ROUND_S)
    seconds = time.monotonic() - began
    assert ended["status"] == "finished", ended["reason"]
    moved = {key: size - before[key] for key, size in network.moved().items()}
    print(f"{LARGE_MB} MiB, {where} {way.value}: {seconds:.1f} s, {moved}, {network.peaks()}")
    assert proxy.cuts == cuts + 1
    for key, whole in WHOLE.items():
        # An order above that dies takes the sum of its combiner along, so the client's update comes there once more.
        again = 1 if (where, way) == ("upper", Way.UP) and key == ("lower", Way.UP) else 0
        assert moved[key] < 1.3 * whole + again, key
    work["model"] = str(ended["model"])
    work["rounds"] = str(int(work["rounds"]) + 1)
    require_exact(network, work)


def require_exact(network: LargeNetwork, work: dict[str, str]) -> None:
    target = network.folder / "got.npz"
    network.sdk.models.get(work["model"], target)
    with np.load(target) as model:
        w = model["w"]
        assert w.shape == (MODEL_BYTES // 4,)
        assert w.min() == w.max() == float(work["rounds"])
    assert digest_file(target).sha256 == network.sdk.models.show(work["model"]).digest
    target.unlink()
