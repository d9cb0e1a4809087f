"""kill -9 of the reducer once a session has another package, before any round has begun with it."""

from __future__ import annotations

import signal

import httpx
import pytest

from runnel.common.crash_points import CrashPoint
from runnel.compute_package import pack
from tests.chaos.adding_network import TRAIN, VALIDATE, AddingNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 4


def test_each_round_is_of_one_package_and_the_update_is_not_lost(network: AddingNetwork, work: tuple[str, str]) -> None:
    folder = network.folder / "later"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN.replace('["RUNNEL_ROUND"]', '["RUNNEL_ROUND"] + " later"'))
    (folder / "validate.py").write_text(VALIDATE)
    later = network.sdk.packages.push(pack(folder, network.folder / "later.tar.gz").path).digest
    network.crash("reducer", CrashPoint.PACKAGE_UPDATED)
    session = network.start_session(work, ROUNDS)
    # Not by the SDK, which would ask until the reducer is there again.
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{network.http}/api/v1/sessions/{session}/update", json={"package": later}, timeout=30)
    assert network.until_dead("reducer", timeout_s=60) == -signal.SIGKILL
    network.relaunch("reducer")
    network.require_exact(session, ROUNDS)
    network.require_nothing_held()
    shown = network.sdk.sessions.show(session)
    assert shown.package == later
    packages = {round_.round: round_.package for round_ in shown.rounds}
    border = min(number for number, package in packages.items() if package == later)
    assert packages == {number: later if number >= border else work[0] for number in range(1, ROUNDS + 1)}
    for name in network.steps:
        lines = [line.split() for line in (network.folder / f"{name}.txt.runs").read_text().splitlines()]
        ran = {int(line[1]): line[2:] == ["later"] for line in lines if line[0] == session}
        assert ran == {number: package == later for number, package in packages.items()}, name
    assert {model.round: model.package for model in network.sdk.models.list(session=session)} == packages
