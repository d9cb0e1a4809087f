"""Sessions with FedBuff: nobody waits for the slow, and what the slow give counts once, discounted by its age."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]

SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((3, 2), np.float64), "b": np.zeros(5, np.float64)}
STEPS = {"fast-1": 1.0, "fast-2": 2.0, "slow": 8.0}
WEIGHTS = {"fast-1": 10.0, "fast-2": 20.0, "slow": 40.0}
# Each run leaves a mark. The slow one waits for a file; the fast ones wait for theirs from their fourth run on, so that
# the session does not end before the test has seen what it wants.
TRAIN = (
    """
import os, time
own = os.environ["RUNNEL_DATA"]
with open(own + ".runs", "a") as file:
    file.write("x")
slow = os.environ["RUNNEL_CLIENT_NAME"] == "slow"
wait = slow or os.path.getsize(own + ".runs") > 3
while wait and not os.path.exists(os.path.join(os.path.dirname(own), "go-slow" if slow else "go-fast")):
    time.sleep(0.02)
"""
    + ADD_CONSTANT
)


@contextlib.asynccontextmanager
async def network_of(folder: Path, slow_at: str = "c1") -> AsyncIterator[LocalNetwork]:
    async with LocalNetwork(folder) as net:
        for name in ("c1", "c2"):
            await net.start_combiner(name)
        for name, step in STEPS.items():
            await net.start_client(name, step=step, prefer=slow_at if name == "slow" else "c2")
        yield net


async def begin(net: LocalNetwork, **config: Any) -> str:
    weight = f"dict({', '.join(f'{n.replace(chr(45), chr(95))}={w}' for n, w in WEIGHTS.items())})"
    weight += '[os.environ["RUNNEL_CLIENT_NAME"].replace("-", "_")]'
    package = await net.push_package(write_package(net.folder / "package", train=TRAIN, weight=weight))
    wanted = {"rounds": 6, "strategy": "fedbuff", "buffer": 2, "min_clients": 1, "validate_every": 2, **config}
    session = await net.start_session(package, await net.push_model(SEED), **wanted)
    await eventually((net.folder / "slow.txt.runs").exists, timeout_s=30)
    return session


def go(net: LocalNetwork, who: str) -> None:
    (net.folder / f"go-{who}").touch()


async def trained(net: LocalNetwork, session: str) -> dict[int, list[Mapping[str, Any]]]:
    """Return the training of each round, once each update has moved the model as it should have."""
    view = await net.session(session, clients=True)
    level = 0.0
    rounds = {r["round"]: [c for c in r["clients"] if c["work"] == "train"] for r in view["rounds"]}
    for made in view["rounds"]:
        counted = [c for c in rounds[made["round"]] if c["status"] == "counted"]
        assert made["updates"] == len(counted)
        assert all(c["weight"] == WEIGHTS[c["client"]] for c in counted)
        moves = sum(c["weight"] * STEPS[c["client"]] / (1 + c["staleness"]) ** 0.5 for c in counted)
        level += moves / sum(c["weight"] for c in counted)
        if made["metrics"]:
            assert made["metrics"]["mean"] == pytest.approx(level, rel=1e-12)
    for array in (await net.model(view["model"])).values():
        np.testing.assert_allclose(array, level, rtol=1e-12)
    return rounds


def of_slow(rounds: Mapping[int, list[Mapping[str, Any]]]) -> list[tuple[int, str, int]]:
    return [(n, c["status"], c["staleness"]) for n, given in rounds.items() for c in given if c["client"] == "slow"]


async def test_nobody_waits_for_the_slow_whose_update_counts_later(tmp_path: Path) -> None:
    async with network_of(tmp_path) as net:
        session = await begin(net)
        await net.until_round(session, 3)
        assert (tmp_path / "slow.txt.runs").read_text() == "x"
        assert of_slow(await trained_so_far(net, session)) == [(1, "open", 0)]
        go(net, "slow")
        await eventually(lambda: has_counted(net, session), timeout_s=30)
        go(net, "fast")
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert [r["updates"] >= 2 for r in view["rounds"]] == [True] * 6
        rounds = await trained(net, session)
        assert of_slow(rounds)[0] == (4, "counted", 3)
        # Nothing waits any more at any tier.
        await eventually(lambda: not list((tmp_path / "reducer" / "partials").iterdir()))
        await eventually(lambda: not any((tmp_path / "slow" / "outbox").iterdir()))


async def has_counted(net: LocalNetwork, session: str) -> bool:
    return "counted" in {status for _, status, _ in of_slow(await trained_so_far(net, session))}


async def trained_so_far(net: LocalNetwork, session: str) -> dict[int, list[Mapping[str, Any]]]:
    view = await net.session(session, clients=True)
    return {r["round"]: [c for c in r["clients"] if c["work"] == "train"] for r in view["rounds"]}


@pytest.mark.parametrize("lost", ["reducer", "c1", "slow"])
async def test_who_goes_away_meanwhile_loses_no_update(tmp_path: Path, lost: str) -> None:
    async with network_of(tmp_path) as net:
        session = await begin(net, rounds=8)
        await net.until_round(session, 2)
        await net.stop(lost)
        if lost == "reducer":
            await net.start_reducer()
        elif lost == "slow":
            await net.start_client("slow", step=STEPS["slow"])
        await net.until_attached(*STEPS)
        go(net, "slow")
        await eventually(lambda: has_counted(net, session), timeout_s=30)
        go(net, "fast")
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        rounds = await trained(net, session)
        counted = [each for each in of_slow(rounds) if each[1] == "counted"]
        assert counted
        asked_for = [n - age for n, _, age in counted]
        assert asked_for[0] == 1
        assert len(set(asked_for)) == len(asked_for), "an update counted twice"


async def test_what_would_be_too_old_is_called_off_and_late(tmp_path: Path) -> None:
    async with network_of(tmp_path) as net:
        go(net, "fast")
        session = await begin(net, strategy_options={"max_staleness": 1.0}, rounds=5)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        found = of_slow(await trained(net, session))
        # Asked again once it was called off, so that it is late for more than one round; never counted.
        assert {status for _, status, _ in found} == {"late"}
        assert [n for n, _, _ in found][:2] == [1, 3]


async def test_it_is_stopped_and_goes_on(tmp_path: Path) -> None:
    async with network_of(tmp_path) as net:
        session = await begin(net)
        await net.until_round(session, 3)
        stopped = (await net.http.post(f"/sessions/{session}/stop")).json()
        assert stopped["status"] == "stopped"
        go(net, "slow")
        go(net, "fast")
        (await net.http.post(f"/sessions/{session}/resume")).raise_for_status()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert "late" in {status for _, status, _ in of_slow(await trained(net, session))}


async def test_all_may_be_failures(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as net:
        await net.start_client("site-1")
        package = await net.push_package(write_package(tmp_path / "package", train="raise SystemExit(3)"))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=2, strategy="fedbuff", buffer=3, retries=1
        )
        view = await net.until_ended(session)
        assert view["status"] == "failed"
        assert "0 of at least 1 updates after 2 attempts" in view["reason"]


async def test_fewer_than_a_buffer_make_a_round_when_nobody_is_left(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as net:
        await asyncio.gather(*(net.start_client(f"site-{n}", step=float(n)) for n in (1, 2)))
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=2, strategy="fedbuff", buffer=5, validate_every=1
        )
        view = await net.until_ended(session)
        assert [(r["updates"], r["metrics"]["mean"]) for r in view["rounds"]] == [(2, 1.5), (2, 3.0)]


async def test_a_buffer_has_to_be_given(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        seed = await net.push_model(SEED)
        answer = await net.http.post(
            "/sessions", json={"package": package, "seed": seed, "rounds": 1, "strategy": "fedbuff"}
        )
        assert answer.status_code == 422
        assert "buffer" in answer.json()["detail"]
