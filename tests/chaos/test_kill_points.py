"""kill -9 of each kind of process at each point where it hurts: the final model is, bit for bit, that of no kill.

Every client adds a constant of its own, so the model tells how often each update was counted: with the steps 3, 6 and
12 and equal weights a round adds exactly 7 to every number, in float64 without any rounding.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest

from runnel.common.crash_points import CrashPoint
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

STEPS = {"site-1": 3.0, "site-2": 6.0, "site-3": 12.0}
GAIN = 7.0
ROUNDS = 2

TRAIN = """
import os, sys
import numpy as np

with open(os.environ["RUNNEL_DATA"]) as file:
    step = float(file.read())
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + step for name in model.files}
np.savez(sys.argv[2], **arrays)
with open(os.environ["RUNNEL_DATA"] + ".runs", "a") as file:
    file.write(os.environ["RUNNEL_SESSION"] + " " + os.environ["RUNNEL_ROUND"] + "\\n")
"""

VALIDATE = """
import json, sys
import numpy as np

with np.load(sys.argv[1]) as model:
    json.dump({"mean": float(model["w"].mean())}, open(sys.argv[2], "w"))
"""

WHO = {
    CrashPoint.SLOTS_STORED: ["reducer"],
    CrashPoint.ASSIGNMENT_ARRIVED: ["reducer"],
    CrashPoint.BLOB_HALF_FETCHED: ["site-1", "c1"],
    CrashPoint.UPDATE_HALF_KEPT: ["site-1"],
    CrashPoint.UPDATE_KEPT: ["site-1"],
    CrashPoint.PAYLOAD_HALF_PUSHED: ["site-1", "c1"],
    CrashPoint.UPDATE_PUSHED: ["site-1"],
    CrashPoint.UPDATE_RECEIVED: ["c1"],
    CrashPoint.UPDATE_FOLDED: ["c1"],
    CrashPoint.SUM_PUSHED: ["c1"],
    CrashPoint.REPORT_RECEIVED: ["reducer"],
    CrashPoint.REPORT_COMMITTED: ["reducer"],
    CrashPoint.SETTLED_ABOVE: ["c1"],
    CrashPoint.SETTLED_RECEIVED: ["site-1"],
    CrashPoint.MODEL_STORED: ["reducer"],
    CrashPoint.ROUND_COMMITTED: ["reducer"],
}
# Up to here the client has not finished its work, so that it may do it again.
UNFINISHED = {CrashPoint.BLOB_HALF_FETCHED, CrashPoint.UPDATE_HALF_KEPT}


def test_every_point_is_tried() -> None:
    assert set(WHO) == set(CrashPoint)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessNetwork]:
    folder = tmp_path_factory.mktemp("kill-points")
    with ProcessNetwork(folder) as net:
        net.start_reducer()
        net.start_combiner("c1")
        net.start_combiner("c2")
        for name, step in STEPS.items():
            (folder / f"{name}.txt").write_text(str(step))
            net.start_client(name, folder / f"{name}.txt", "--prefer", "c2" if name == "site-3" else "c1")
        net.until_attached("c1", "c2", *STEPS)
        yield net


@pytest.fixture(scope="module")
def work(network: ProcessNetwork) -> tuple[str, str]:
    """Return a package and a seed large enough to go in several chunks."""
    folder = network.folder / "package"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "validate.py").write_text(VALIDATE)
    package = network.sdk.packages.push(pack(folder, network.folder / "package.tar.gz").path)
    seed = network.folder / "seed.npz"
    write_npz(seed, {"w": np.arange(400_000, dtype=np.float64), "b": np.zeros(3)})
    return package.digest, network.sdk.models.push(seed).model


def gather_at_c1(network: ProcessNetwork) -> None:
    """Let the clients, who left c1 when it was stopped, come back: c2 goes for a while."""
    network.kill("c2", signal.SIGTERM)

    def all_there() -> bool:
        nodes = {node.name: node.attached_to for node in network.sdk.nodes.list()}
        return all(nodes[name] == "c1" for name in STEPS)

    eventually_blocking(all_there, timeout_s=20)
    network.launch("c2")
    network.until_ready("c2")
    network.until_attached("c2")


@pytest.mark.parametrize(
    ("point", "who"),
    [(point, who) for point, names in WHO.items() for who in names],
    ids=lambda v: getattr(v, "value", v),
)
def test_no_update_is_lost_or_counted_twice(
    network: ProcessNetwork, work: tuple[str, str], point: CrashPoint, who: str
) -> None:
    network.kill(who, signal.SIGTERM)
    network.launch(who, RUNNEL_CRASH_AT=point.value)
    network.until_ready(who)
    network.until_attached("c1", "c2", *STEPS)
    if who == "c1":
        gather_at_c1(network)
    package, seed = work
    session = network.sdk.sessions.start(package=package, seed=seed, rounds=ROUNDS, min_clients=len(STEPS)).session
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.launch(who)
    ended = network.until_ended(session)
    assert ended["status"] == "finished", ended["reason"]
    target = network.folder / "final.npz"
    network.sdk.models.get(str(ended["model"]), target)
    with np.load(target) as model:
        assert np.array_equal(model["w"], np.arange(400_000) + GAIN * ROUNDS)
        assert np.array_equal(model["b"], np.full(3, GAIN * ROUNDS))
    rounds = ended["rounds"]
    assert isinstance(rounds, list)
    assert [(r["updates"], r["failed"], r["late"]) for r in rounds] == [(3, 0, 0)] * ROUNDS
    for name in STEPS:
        runs = (network.folder / f"{name}.txt.runs").read_text().splitlines()
        mine = sorted(line for line in runs if line.startswith(session))
        again = name == who and point in UNFINISHED
        assert len(set(mine)) == ROUNDS
        assert again or len(mine) == ROUNDS, "finished work was done again"
    network.until_ready(who)

    def nothing_held() -> bool:
        return not any(any((network.folder / name / "outbox").iterdir()) for name in STEPS)

    eventually_blocking(nothing_held, timeout_s=20)
