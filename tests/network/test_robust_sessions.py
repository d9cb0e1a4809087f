"""Sessions with robust rules: every update reaches the rule, whatever tree it came through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
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
async def network_of(
    folder: Path, layout: str, sites: Mapping[str, float], *, warm: bool = False
) -> AsyncIterator[LocalNetwork]:
    """Start a network; sites go to c1 and c2 unequally, if there are such."""
    async with LocalNetwork(folder) as net:
        for name, parent in LAYOUTS[layout]:
            await net.start_combiner(name, parent=parent)
        homes = ["c1", "c2", "c1"] if LAYOUTS[layout] else [""]
        async with asyncio.TaskGroup() as group:
            for number, (name, step) in enumerate(sites.items()):
                home = homes[number % len(homes)]
                group.create_task(net.start_client(name, step=step, prefer=home, warm=warm))
        yield net


def test_every_robust_strategy_is_tried() -> None:
    # FedBuff gathers too; what it is for is in test_buffered_sessions.py.
    assert set(RULES) == {name for name, kind in STRATEGIES.items() if kind.gathers} - {"fedbuff"}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_the_model_is_that_of_the_rule_itself(tmp_path: Path, layout: str) -> None:
    async with network_of(tmp_path, layout, SITES) as net:
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
        await eventually(lambda: not list((tmp_path / "reducer" / "partials").iterdir()))
        folders = [tmp_path / name / "sums" for name, _ in LAYOUTS[layout]]
        await eventually(lambda: not any(any(folder.iterdir()) for folder in folders))


Law = Callable[[Arrays, list[Arrays]], bool]


def within(model: Arrays, honest: list[Arrays]) -> bool:
    """Tell whether each element lies among those of the honest updates."""
    stacks = {name: np.stack([arrays[name] for arrays in honest]) for name in ("layer/w", "layer/b")}
    return all(((model[n] >= each.min(axis=0)) & (model[n] <= each.max(axis=0))).all() for n, each in stacks.items())


def near(model: Arrays, honest: list[Arrays]) -> bool:
    """Tell whether the model is no further from the mean of the honest updates than one of them is."""
    middle = np.mean([flat(arrays) for arrays in honest], axis=0)
    return bool(np.linalg.norm(flat(model) - middle) <= max(np.linalg.norm(flat(each) - middle) for each in honest))


def not_far(model: Arrays, honest: list[Arrays]) -> bool:
    """Tell whether the model has moved, and by no more than one update may move it."""
    return bool(0 < np.linalg.norm(flat(model) - flat(SEED)) <= MAX_NORM)


def flat(arrays: Arrays) -> np.ndarray[Any, Any]:
    return np.concatenate([arrays[name].ravel().astype(np.float64) for name in ("layer/w", "layer/b")])


MAX_NORM = 20.0
# What each rule promises while one of seven sites is bad; the mean keeps none of it.
LAWS: dict[str, tuple[dict[str, float], Law]] = {
    "median": ({}, within),
    "trimmed_mean": ({"beta": 0.2}, within),
    "krum": ({"f": 1}, within),
    "multi_krum": ({"f": 1}, within),
    "bulyan": ({"f": 1}, within),
    "geometric_median": ({}, near),
    "norm_clipping": ({"max_norm": MAX_NORM}, not_far),
}


async def test_poisoned_updates_move_the_mean_and_not_the_rules(tmp_path: Path) -> None:
    assert set(LAWS) == set(RULES)
    sites = {f"site-{n}": 1.0 + n / 8 for n in range(6)} | {"site-6": -1e6}
    alike = TRAIN.replace("10 + abs(step)", "10").replace("MOVE", MOVE)
    async with network_of(tmp_path, "two combiners", sites, warm=True) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=alike))
        seed = await net.push_model(SEED)
        honest = [moved(step) for name, step in sites.items() if name != "site-6"]
        broken: list[str] = []
        for strategy in ("fedavg", *LAWS):
            options, law = LAWS.get(strategy, ({}, None))
            session = await net.start_session(
                package, seed, rounds=1, min_clients=7, strategy=strategy, strategy_options=options, validate_every=0
            )
            view = await net.until_ended(session)
            assert view["status"] == "finished", view["reason"]
            assert view["rounds"][0]["updates"] == 7
            model = await net.model(view["model"])
            if law is None:
                assert not any(each(model, honest) for each in (within, near, not_far))
            else:
                broken += [] if law(model, honest) else [strategy]
    assert broken == []


async def test_a_malformed_update_is_left_out_and_named(tmp_path: Path) -> None:
    spoiled = TRAIN.replace("MOVE", MOVE + "\nif step == 9.0: moved['layer/b'][2] = np.nan\n")
    sites = {"site-1": 1.0, "site-2": 2.0, "site-3": 3.0, "bad": 9.0}
    async with network_of(tmp_path, "three levels", sites) as net:
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
    async with network_of(tmp_path, "no combiner", {}) as net:
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
