"""Sessions whose clients compress their updates: through combiners, straight to the reducer, and for robust rules."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from structlog.testing import capture_logs

from runnel.client import delivery as delivery_module
from runnel.combiner import combiner as combiner_module
from runnel.combiner import partials as partials_module
from tests.doubles.hostile_node import HostileNode
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork, network, write_package
from tests.small_disk import small_disk

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

Arrays = dict[str, np.ndarray[Any, Any]]

SEED: Arrays = {
    "w": np.linspace(-1, 1, 40_000, dtype=np.float32).reshape(200, 200),
    "b": np.zeros(7, np.float32),
    "steps": np.array([3], np.int64),
}

# What a site adds differs from element to element, and is about its own number.
TRAIN = """
import json, os, sys
import numpy as np

with open(os.environ["RUNNEL_DATA"]) as file:
    step = float(file.read())
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] for name in model.files}
for name, array in arrays.items():
    wave = np.cos(np.arange(array.size) + step).reshape(array.shape)
    arrays[name] = (array + (step * (2 + wave)).astype(array.dtype)).astype(array.dtype)
np.savez(sys.argv[2], **arrays)
with open(sys.argv[2] + "-metadata", "w") as file:
    json.dump({"num_examples": step}, file)
"""


def moved(step: float) -> Arrays:
    """What a site adds in each round."""
    waves = {name: np.cos(np.arange(array.size) + step).reshape(array.shape) for name, array in SEED.items()}
    return {name: (step * (2 + waves[name])).astype(array.dtype) for name, array in SEED.items()}


async def left_at(net: LocalNetwork, site: str) -> Arrays:
    """What the counted updates of a site left untold, once it has heard that they count."""
    await eventually(lambda: not any((net.folder / site / "outbox").iterdir()))
    (file,) = (net.folder / site / "leftovers").glob("*/*")
    with np.load(file) as loaded:
        return {name: loaded[name] for name in loaded.files}


async def start(net: LocalNetwork, **config: Any) -> str:
    folder = net.folder / "package"
    package = await net.push_package(folder if folder.exists() else write_package(folder, train=TRAIN))
    return await net.start_session(package, await net.push_model(SEED), **{"validate_every": 0} | config)


async def trained(net: LocalNetwork, **config: Any) -> Arrays:
    """The model at the end of a session."""
    view = await net.until_ended(await start(net, **config))
    assert view["status"] == "finished", view["reason"]
    return await net.model(view["model"])


WAIT = """
import os, time
while os.path.exists(os.environ["RUNNEL_DATA"] + ".wait"):
    time.sleep(0.02)
"""
LARGE: Arrays = {"w": np.zeros(600_000, np.float32)}


@pytest.mark.parametrize("where", ["reducer", "c1"])
async def test_who_has_no_room_to_decode_an_update_says_so_and_gets_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(delivery_module, "_PUSH_AGAIN_S", 0.05)
    monkeypatch.setattr(combiner_module, "_NO_ROOM_PAUSE_S", 0.05)
    monkeypatch.setattr(partials_module, "_AGAIN_S", 0.05)
    combiners = 1 if where == "c1" else 0
    with small_disk(tmp_path / where, 48 << 20) as disk, capture_logs() as logs:

        def said() -> list[str]:
            return [line["event"] for line in logs]

        async with network(tmp_path, combiners=combiners, clients=2, direct_clients=2) as net:
            waiting = [tmp_path / f"site-{number}.txt.wait" for number in (1, 2)]
            for file in waiting:
                file.touch()
            package = await net.push_package(write_package(tmp_path / "package", train=WAIT + TRAIN))
            config = {"rounds": 1, "min_clients": 2, "retries": 0, "validate_every": 0, "compress": "top-k:0.05"}
            session = await net.start_session(package, await net.push_model(LARGE), **config)
            waiting[0].unlink()
            if where == "reducer":
                await eventually(lambda: counted(net, session, 1), timeout_s=30)
                with disk.filled(1 << 20):  # for the update as it comes, and not as it is
                    waiting[1].unlink()
                    await eventually(lambda: "no room for a payload" in said(), timeout_s=20)
            else:
                partials = net.combiners["c1"]._partials
                fold = await eventually(lambda: next(iter(partials._folds.values()), None), timeout_s=30)
                assert fold is not None
                await eventually(lambda: fold.clients == ["site-1"], timeout_s=20)
                async with fold._turn:
                    waiting[1].unlink()
                    await eventually(lambda: net.combiners["c1"]._payloads._whole == {}, timeout_s=20)
                    await eventually(lambda: fold._turn._waiters, timeout_s=20)
                    full = contextlib.ExitStack()
                    full.enter_context(disk.filled(1 << 20))
                with full:
                    await eventually(lambda: "no room to fold an update" in said(), timeout_s=20)
                    await eventually(lambda: "no room for an update" in said(), timeout_s=20)  # it is offered again
            view = await net.until_ended(session)
            assert view["status"] == "finished", view["reason"]
            assert (view["rounds"][0]["updates"], view["rounds"][0]["failed"]) == (2, 0)


async def counted(net: LocalNetwork, session: str, number: int) -> bool:
    view = await net.session(session, clients=True)
    return [client["status"] for each in view["rounds"] for client in each["clients"]].count("counted") == number


@pytest.mark.parametrize("combiners", [0, 1])
async def test_what_arrived_and_what_is_left_is_all_that_was_to_be_told(tmp_path: Path, combiners: int) -> None:
    async with network(tmp_path, combiners=combiners, clients=2, direct_clients=2) as net:
        model = await trained(net, rounds=2, min_clients=2, compress="top-k:0.05+zstd")
        left = {site: await left_at(net, site) for site in ("site-1", "site-2")}
        assert list((tmp_path / "reducer").rglob("*.plain")) == []
    means = {name: moved(1.0)[name] / 3 + moved(2.0)[name] * 2 / 3 for name in SEED}
    assert np.array_equal(model["steps"], SEED["steps"] + 2 * np.rint(means["steps"]))
    np.testing.assert_allclose(model["b"], 2 * means["b"], rtol=1e-6)
    wanted = SEED["w"] + 2 * means["w"]
    assert np.abs(model["w"] - wanted).max() > 1
    wanted = wanted - (left["site-1"]["w"] / 3 + left["site-2"]["w"] * 2 / 3)
    np.testing.assert_allclose(model["w"], wanted, atol=2e-5)


async def test_each_compression_through_combiners_and_for_a_rule_that_sees_every_update(tmp_path: Path) -> None:
    exact = np.median([SEED["w"] + moved(float(n))["w"] for n in (1, 2, 3)], axis=0)
    async with network(tmp_path, combiners=1, clients=3, direct_clients=1) as net:
        for how, error in [("zstd", 1e-6), ("fp16", 5e-3), ("int8+zstd", 4e-2)]:
            model = await trained(net, rounds=1, min_clients=3, strategy="median", compress=how)
            assert np.abs(model["w"] - exact).max() < error, how
        sums = net.folder / "c1" / "sums"
        await eventually(lambda: not any(sums.iterdir()))


async def test_leftovers_outlive_a_restart_of_the_client(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=1) as net:
        session = await start(net, rounds=1, compress="int8")
        view = await net.until_ended(session)
        before = await left_at(net, "site-1")
        await net.stop("site-1")
        assert np.abs(before["w"]).max() > 0
        await net.start_client("site-1")
        (await net.http.post(f"/sessions/{session}/extend", json={"rounds": 1})).raise_for_status()
        view = await net.until_ended(session)
        model = await net.model(view["model"])
        left = (await left_at(net, "site-1"))["w"]
    assert not np.array_equal(left, before["w"])
    np.testing.assert_allclose(model["w"] + left, SEED["w"] + 2 * moved(1.0)["w"], atol=2e-5)


@pytest.mark.parametrize("at", ["combiner", "reducer"])
async def test_a_bomb_is_the_failure_of_its_client_alone(tmp_path: Path, at: str) -> None:
    async with network(tmp_path, combiners=1, clients=2, direct_clients=1) as net:
        address = net.combiners["c1"].address if at == "combiner" else net.reducer.rpc_address
        async with HostileNode(net.reducer.rpc_address, "mallory", at=address) as node:
            await net.until_attached("mallory")
            session = await start(net, rounds=1, min_clients=2, buffer=3, retries=0, compress="int8+zstd")
            order = await node.assignment()
            assert order.compression == "int8+zstd"
            bomb = zstandard.compress(bytes(1 << 27))
            await node.push(order.order_id, bomb)
            await node.say(node.report(order, bomb))
            view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        clients = {c["client"]: c for c in (await net.session(session, clients=True))["rounds"][0]["clients"]}
        assert clients["mallory"]["status"] == "failed"
        assert clients["mallory"]["error_code"] == "bad_model"
        assert "unpacks to more than" in clients["mallory"]["error"]
        assert {clients[name]["status"] for name in ("site-1", "site-2")} == {"counted"}


async def test_a_compression_that_there_is_not_is_refused(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        wanted = {"package": package, "seed": await net.push_model(SEED), "rounds": 1}
        for how in ("gzip", "top-k:2"):
            refused = await net.http.post("/sessions", json=wanted | {"compress": how})
            assert refused.status_code == 422
            assert how in refused.json()["detail"]
        taken = await net.http.post("/sessions", json=wanted | {"compress": "top-k"})
        assert taken.json()["config"]["compress"] == "top-k:0.01"
