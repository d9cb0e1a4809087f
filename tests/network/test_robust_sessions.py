"""Sessions with robust rules: every update reaches the rule, whatever tree it came through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.common.aggregation import STRATEGIES, Update, make_strategy, reduce_updates
from runnel.common.protocol import PayloadKind
from runnel.common.tensors import open_npz, write_npz
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]

Arrays = dict[str, np.ndarray[Any, Any]]

SEED: Arrays = {
    "layer/w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "layer/b": np.zeros(5, np.float64),
    "steps": np.array([3], np.int64),
}
SITES = {f"site-{n}": float(n) for n in range(1, 6)} | {"site-6": -40.0, "site-7": -60.0}

# What a site adds differs from element to element and from site to site.
TRAIN = """
import json, os, sys
import numpy as np

with open(os.environ["RUNNEL_DATA"]) as file:
    step = float(file.read())
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] for name in model.files}
MOVE
np.savez_compressed(sys.argv[2], **moved)
with open(sys.argv[2] + "-metadata", "w") as file:
    json.dump({"num_examples": 10 + abs(step)}, file)
with open(os.environ["RUNNEL_DATA"] + ".runs", "a") as file:
    file.write("x")
"""
MOVE = """
moved = {}
for name, array in arrays.items():
    wave = np.cos(np.arange(array.size).reshape(array.shape) * step)
    moved[name] = (array + step * (2 + wave)).astype(array.dtype)
"""

RULES: dict[str, dict[str, float]] = {
    "median": {},
    "trimmed_mean": {"beta": 0.3},
    "krum": {"f": 2},
    "multi_krum": {"f": 2, "m": 3},
    "bulyan": {"f": 1},
    "geometric_median": {"iterations": 3},
    "norm_clipping": {"max_norm": 4.0, "learning_rate": 0.5},
}

LAYOUTS: dict[str, list[tuple[str, str]]] = {
    "no combiner": [],
    "two combiners": [("c1", ""), ("c2", "")],
    "three levels": [("c-top", ""), ("c1", "c-top"), ("c2", "c-top")],
}


def moved(step: float) -> Arrays:
    """Return what a site makes of the seed."""
    names: dict[str, Any] = {"np": np, "arrays": SEED, "step": step}
    exec(MOVE, names)
    return dict(names["moved"])


def expected(folder: Path, strategy: str, options: Mapping[str, float]) -> Arrays:
    """Apply the rule itself to the updates of all sites."""
    folder.mkdir()
    write_npz(folder / "base.npz", SEED)
    updates = []
    for name, step in sorted(SITES.items()):
        write_npz(folder / f"{name}.npz", moved(step))
        updates.append(Update(path=folder / f"{name}.npz", source=name, weight=10 + abs(step)))
    made = make_strategy(strategy, options)
    assert made.rule is not None
    reduce_updates(updates, folder / "base.npz", made.rule, folder / "next.npz", optimizer=made.optimizer)
    with open_npz(folder / "next.npz", source="the rule") as model:
        return model.arrays()


def package_folder(folder: Path, before: str = "") -> Path:
    return write_package(folder / "package", train=before + TRAIN.replace("MOVE", MOVE))


@contextlib.asynccontextmanager
async def network_of(folder: Path, layout: str, **sites: float) -> AsyncIterator[LocalNetwork]:
    """Start a network; sites go to c1 and c2 unequally, if there are such."""
    async with LocalNetwork(folder) as net:
        for name, parent in LAYOUTS[layout]:
            await net.start_combiner(name, parent=parent)
        homes = ["c1", "c2", "c1"] if LAYOUTS[layout] else [""]
        async with asyncio.TaskGroup() as group:
            for number, (name, step) in enumerate(sites.items()):
                group.create_task(net.start_client(name, step=step, prefer=homes[number % len(homes)]))
        yield net


def test_every_robust_strategy_is_tried() -> None:
    # FedBuff gathers too; what it is for is in test_buffered_sessions.py.
    assert set(RULES) == {name for name, kind in STRATEGIES.items() if kind.gathers} - {"fedbuff"}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_the_model_is_that_of_the_rule_itself(tmp_path: Path, layout: str) -> None:
    async with network_of(tmp_path, layout, **SITES) as net:
        package = await net.push_package(package_folder(tmp_path))
        seed = await net.push_model(SEED)
        for strategy, options in RULES.items():
            session = await net.start_session(
                package,
                seed,
                rounds=1,
                min_clients=len(SITES),
                validate_every=0,
                strategy=strategy,
                strategy_options=options,
            )
            view = await net.until_ended(session)
            assert view["status"] == "finished", view["reason"]
            assert view["rounds"][0]["updates"] == len(SITES)
            model = await net.model(view["model"])
            wanted = expected(tmp_path / f"{strategy} by itself", strategy, options)
            for name in SEED:
                np.testing.assert_array_equal(model[name], wanted[name], err_msg=f"{strategy}: {name}")
            trail = (await net.http.get(f"/models/{view['model']}")).json()
            assert trail["strategy"] == strategy
        # Nothing of any update stays, here or below.
        assert not list((tmp_path / "reducer" / "partials").iterdir())
        folders = [tmp_path / name / "sums" for name, _ in LAYOUTS[layout]]
        await eventually(lambda: not any(any(folder.iterdir()) for folder in folders), timeout_s=10)


async def test_poisoned_updates_move_the_mean_and_not_the_rules(tmp_path: Path) -> None:
    sites = {"site-1": 1.0, "site-2": 1.25, "site-3": 1.5, "site-4": 1.75, "site-5": -1e6}
    async with network_of(tmp_path, "two combiners", **sites) as net:
        package = await net.push_package(package_folder(tmp_path))
        seed = await net.push_model(SEED)
        honest = [moved(step) for name, step in sites.items() if name != "site-5"]
        for strategy, options in {"fedavg": {}, "median": {}, "krum": {"f": 1}}.items():
            session = await net.start_session(
                package, seed, rounds=1, min_clients=5, strategy=strategy, strategy_options=options, validate_every=0
            )
            view = await net.until_ended(session)
            assert view["status"] == "finished", view["reason"]
            model = await net.model(view["model"])
            for name in ("layer/w", "layer/b"):
                low = np.min([arrays[name] for arrays in honest], axis=0)
                high = np.max([arrays[name] for arrays in honest], axis=0)
                within = bool(((model[name] >= low) & (model[name] <= high)).all())
                assert within == (strategy != "fedavg"), (strategy, name)


async def test_a_malformed_update_is_left_out_and_named(tmp_path: Path) -> None:
    spoiled = TRAIN.replace("MOVE", MOVE + "\nif step == 9.0: moved['layer/b'][2] = np.nan\n")
    async with network_of(tmp_path, "three levels", **{"site-1": 1.0, "site-2": 2.0, "site-3": 3.0, "bad": 9.0}) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=spoiled))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=3, strategy="median", validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert (view["rounds"][0]["updates"], view["rounds"][0]["failed"]) == (3, 1)
        model = await net.model(view["model"])
        wanted = np.median([moved(step)["layer/b"] for step in (1.0, 2.0, 3.0)], axis=0)
        np.testing.assert_array_equal(model["layer/b"], wanted)
        clients = {c["client"]: c for c in (await net.session(session, clients=True))["rounds"][0]["clients"]}
        assert clients["bad"]["error_code"] == "bad_model"


async def test_a_combiner_that_is_lost_in_a_round_loses_no_update(tmp_path: Path) -> None:
    # site-1 and site-3 finish at c1, which waits for slow; c1 goes before it has reported.
    wait = (
        "import os, pathlib, time\n"
        "if os.environ['RUNNEL_CLIENT_NAME'] == 'slow':\n"
        "    while not pathlib.Path(os.environ['RUNNEL_DATA'] + '.go').exists(): time.sleep(0.02)\n"
    )
    async with LocalNetwork(tmp_path) as net:
        await net.start_combiner("c1")
        for name, step in {"site-1": 1.0, "site-2": 2.0, "slow": 30.0}.items():
            await net.start_client(name, step=step)
        package = await net.push_package(package_folder(tmp_path, wait))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=3, strategy="median", validate_every=0
        )
        await eventually(
            lambda: [fold.clients for fold in net.combiners["c1"]._partials._folds.values() if len(fold.clients) == 2],
            timeout_s=30,
        )
        fold = next(iter(net.combiners["c1"]._partials._folds.values()))
        assert fold.payload_kind is PayloadKind.UPDATES
        await net.start_combiner("c2")
        await net.stop("c1")
        (tmp_path / "slow.txt.go").touch()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert view["rounds"][0]["updates"] == 3
        model = await net.model(view["model"])
        np.testing.assert_array_equal(
            model["layer/b"], np.median([moved(step)["layer/b"] for step in (1.0, 2.0, 30.0)], axis=0)
        )
        for name in ("site-1", "site-2", "slow"):  # nobody trained twice
            assert (tmp_path / f"{name}.txt.runs").read_text() == "x"


async def test_a_session_that_could_not_satisfy_its_rule_is_refused(tmp_path: Path) -> None:
    async with network_of(tmp_path, "no combiner") as net:
        package = await net.push_package(package_folder(tmp_path))
        asked = {"package": package, "seed": await net.push_model(SEED), "rounds": 1}
        krum = {"strategy": "krum", "strategy_options": {"f": 2}, "min_clients": 6}
        answer = await net.http.post("/sessions", json=asked | krum)
        assert answer.status_code == 422
        assert "min_clients: 6" in answer.json()["detail"]
        assert "7 or more for the strategy krum, f=2" in answer.json()["detail"]
        answer = await net.http.post("/sessions", json=asked | {"strategy": "norm_clipping"})
        assert answer.status_code == 422
        assert "max_norm" in answer.text
        answer = await net.http.post("/sessions", json=asked | {"strategy": "fedsgd"})
        assert "bulyan" in answer.text
