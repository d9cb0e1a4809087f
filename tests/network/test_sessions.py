"""Sessions over a whole network in one process: every number that a person sees is the right one."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runnel.reducer.engine import exchange, runner
from tests.eventually import eventually, let_pass
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

SEED: dict[str, np.ndarray[Any, Any]] = {"layer/w": np.zeros((3, 2), np.float32), "layer/b": np.zeros(4, np.float64)}
WEIGHT_BY_NAME = "10.0 ** (3 * (int(os.environ['RUNNEL_CLIENT_NAME'][-1]) - 1))"  # 1, 1000, 1000000, …


async def test_rounds_end_in_the_mean_of_all_updates(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=2, clients=3) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        arrays = SEED | {"steps": np.zeros((), np.int64)}
        seed = await net.push_model(arrays)
        session = await net.start_session(package, seed, rounds=2, min_clients=3)
        view = await net.until_ended(session)
        assert view["status"] == "finished"
        assert [r["updates"] for r in view["rounds"]] == [3, 3]
        assert [r["metrics"]["mean"] for r in view["rounds"]] == [2.0, 4.0]  # the mean of 1, 2, 3, twice
        model = await net.model(view["model"])
        assert list(model) == list(arrays)
        assert {name: a.dtype for name, a in model.items()} == {name: a.dtype for name, a in arrays.items()}
        assert all((array == 4).all() for array in model.values())
        trail = (await net.http.get(f"/models/{view['model']}")).json()
        assert trail["round"] == 2
        assert trail["session"] == session
        assert trail["package"] == package
        assert sorted(p["client"] for p in trail["participants"]) == ["site-1", "site-2", "site-3"]
        parent = (await net.http.get(f"/models/{trail['parent']}")).json()
        assert parent["parent"] == seed


async def run_with(folder: Path, homes: list[int], package: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Run two rounds with ``homes[i]`` clients at combiner i, whose weights differ by 1000 each."""
    async with LocalNetwork(folder) as net:
        number = 0
        for index, clients in enumerate(homes):
            await net.start_combiner(f"c{index}")
            for _ in range(clients):
                number += 1
                await net.start_client(f"site-{number}", step=0.1 * number, prefer=f"c{index}")
        seed = await net.push_model({"w": np.full((50, 7), 0.25, np.float32), "b": np.arange(11, dtype=np.float64)})
        session = await net.start_session(
            await net.push_package(package), seed, rounds=2, min_clients=number, validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        nodes = (await net.http.get("/nodes")).json()["items"]
        at = [sum(n["attached_to"] == f"c{i}" for n in nodes if n["kind"] == "client") for i in range(len(homes))]
        assert at == homes
        return await net.model(view["model"])


async def test_one_combiner_and_three_unequal_ones_give_the_same_model(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", weight=WEIGHT_BY_NAME)
    one = await run_with(tmp_path / "one", [4], package)
    three = await run_with(tmp_path / "three", [1, 2, 1], package)
    weights = 1000.0 ** np.arange(4)
    step = float((weights * 0.1 * np.arange(1, 5)).sum() / weights.sum())
    np.testing.assert_allclose(one["b"], np.arange(11) + 2 * step, rtol=1e-9)
    for name in one:
        np.testing.assert_allclose(three[name], one[name], rtol=1e-6)


async def test_a_client_without_a_combiner_is_served_by_the_reducer_and_moves_on_when_one_comes(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=0, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        seed = await net.push_model(SEED)
        first = await net.until_ended(await net.start_session(package, seed, rounds=1, min_clients=2))
        assert first["rounds"][0]["metrics"]["mean"] == 1.5
        assert net.reducer.engine.roster.direct_clients() == ["site-1", "site-2"]
        await net.start_combiner("c1")
        roster = net.reducer.engine.roster
        await eventually(lambda: not roster.direct_clients() and len(roster.clients()) == 2)
        second = await net.until_ended(await net.start_session(package, first["model"], rounds=1, min_clients=2))
        assert second["rounds"][0]["metrics"]["mean"] == 3.0


async def test_stop_resume_and_extend(tmp_path: Path) -> None:
    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(package, await net.push_model(SEED), rounds=50, min_clients=2)
        await net.until_round(session, 2)
        stopped = (await net.http.post(f"/sessions/{session}/stop")).json()
        assert stopped["status"] == "stopped"
        committed = [r for r in stopped["rounds"] if r["seconds"] is not None]
        assert stopped["model"] in {r["model"] for r in committed}
        again = await net.http.post(f"/sessions/{session}/stop")
        assert again.status_code == 409
        assert again.headers["content-type"] == "application/problem+json"
        resumed = await net.http.post(f"/sessions/{session}/resume")
        assert resumed.json()["status"] == "running"
        await net.until_round(session, len(committed) + 2)
        await net.http.post(f"/sessions/{session}/stop")
        # A finished session goes on by as many rounds as are added, from its own model.
        short = await net.start_session(package, await net.push_model(SEED), rounds=1, min_clients=2)
        assert (await net.until_ended(short))["status"] == "finished"
        await net.http.post(f"/sessions/{short}/extend", json={"rounds": 2})
        view = await net.until_ended(short)
        assert [r["metrics"]["mean"] for r in view["rounds"]] == [1.5, 3.0, 4.5]


async def test_two_sessions_at_once_with_packages_of_their_own(tmp_path: Path) -> None:
    async with network(tmp_path, clients=2) as net:
        up = await net.push_package(write_package(tmp_path / "up"))
        down = await net.push_package(
            write_package(tmp_path / "down", train=ADD_CONSTANT.replace("array + step", "array - step"))
        )
        seed = await net.push_model(SEED)
        one = await net.start_session(up, seed, rounds=3, min_clients=2)
        two = await net.start_session(down, seed, rounds=3, min_clients=2)
        assert (await net.until_ended(one))["rounds"][-1]["metrics"]["mean"] == 4.5
        assert (await net.until_ended(two))["rounds"][-1]["metrics"]["mean"] == -4.5


async def test_a_stop_rule_ends_the_session_as_finished(tmp_path: Path) -> None:
    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=50, min_clients=2, stop_when="mean>=4.5"
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished"
        assert len(view["rounds"]) == 3
        assert "mean>=4.5" in view["reason"]


async def test_a_server_optimizer_keeps_its_state_over_a_restart(tmp_path: Path) -> None:
    async def final(folder: Path, *, restart: bool) -> np.ndarray[Any, Any]:
        async with network(folder, combiners=1, clients=2) as net:
            package = await net.push_package(write_package(folder / "package"))
            session = await net.start_session(
                package,
                await net.push_model({"w": np.zeros(5)}),
                rounds=2,
                min_clients=2,
                strategy="fedadam",
                strategy_options={"learning_rate": 0.1},
            )
            assert (await net.until_ended(session))["status"] == "finished"
            if restart:
                await net.stop("reducer")
                await net.start_reducer()
                await net.until_attached("site-1", "site-2")
            await net.http.post(f"/sessions/{session}/extend", json={"rounds": 2})
            view = await net.until_ended(session)
            assert len(view["rounds"]) == 4
            return (await net.model(view["model"]))["w"]

    plain = await final(tmp_path / "plain", restart=False)
    assert (await final(tmp_path / "restarted", restart=True) == plain).all()
    assert plain.std() == 0
    assert plain[0] != 0


async def test_a_buffer_closes_the_round_and_who_comes_later_is_late(tmp_path: Path) -> None:
    slow = "import os, time\nif os.environ['RUNNEL_CLIENT_NAME'] == 'site-3': time.sleep(1000)\n" + ADD_CONSTANT
    async with network(tmp_path, combiners=2, clients=3) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=slow))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=2, min_clients=2, buffer=2, validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished"
        assert [(r["updates"], r["late"], r["failed"]) for r in view["rounds"]] == [(2, 1, 0), (2, 1, 0)]
        assert ((await net.model(view["model"]))["layer/w"] == 3.0).all()


async def test_a_time_out_closes_the_round_with_at_least_min_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import os, time\nif os.environ['RUNNEL_CLIENT_NAME'] == 'site-2': time.sleep(1000)\n" + ADD_CONSTANT
    async with network(tmp_path, clients=2) as net:
        net.http.headers["Connection"] = "close"  # an idle one the server would close when it is let pass
        package = await net.push_package(write_package(tmp_path / "package", train=slow))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, round_timeout_s=60, validate_every=0
        )
        folded = net.combiners["c1"].folded
        await eventually(lambda: dict(folded.items())[("folded",)] == 1, timeout_s=50)  # that of site-1
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60)
        monkeypatch.setattr(runner, "time", later)
        monkeypatch.setattr(exchange, "time", later)
        let_pass(60)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert (view["rounds"][0]["updates"], view["rounds"][0]["late"]) == (1, 1)
        assert ((await net.model(view["model"]))["layer/w"] == 1.0).all()


async def test_too_few_updates_fail_the_round_and_then_the_session_with_the_reason(tmp_path: Path) -> None:
    broken = "import os, sys\nif os.environ['RUNNEL_CLIENT_NAME'] == 'site-2': sys.exit(3)\n" + ADD_CONSTANT
    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=broken))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, min_clients=2, retries=1)
        view = await net.until_ended(session)
        assert view["status"] == "failed"
        assert "1 of at least 2 updates after 2 attempts" in view["reason"]
        assert "site-2" in view["reason"]
        assert "3" in view["reason"]


async def test_a_session_without_clients_says_so(tmp_path: Path) -> None:
    async with network(tmp_path, clients=0) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, round_timeout_s=3)
        view = await net.until_ended(session)
        assert view["status"] == "failed"
        assert "0 clients are attached" in view["reason"]
        # With a client there, it goes on where it ended.
        await net.start_client("site-1")
        await net.http.post(f"/sessions/{session}/resume")
        assert (await net.until_ended(session))["status"] == "finished"


async def test_sampling_asks_so_many_and_not_always_the_same(tmp_path: Path) -> None:
    async with network(tmp_path, clients=4) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=4, min_clients=1, sample=2, random_seed=7, validate_every=0
        )
        assert (await net.until_ended(session))["status"] == "finished"
        view = await net.session(session, clients=True)
        asked = [frozenset(c["client"] for c in r["clients"] if c["work"] == "train") for r in view["rounds"]]
        assert all(len(names) == 2 for names in asked)
        assert len(set(asked)) > 1


async def test_log_lines_and_client_settings_reach_the_other_end(tmp_path: Path) -> None:
    train = (
        "import sys, json, os\n"
        "settings = json.load(open(sys.argv[1] + '-metadata'))\n"
        "print('rate', settings['rate'], flush=True)\n"
        "print('a warning', file=sys.stderr)\n" + ADD_CONSTANT
    )
    async with network(tmp_path, clients=1) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=train))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, client_settings={"rate": 0.5})
        assert (await net.until_ended(session))["status"] == "finished"

        async def stored() -> list[dict[str, Any]]:
            return list((await net.http.get(f"/sessions/{session}/logs")).json()["items"])

        async def both() -> bool:
            return {"stdout", "stderr"} <= {line["stream"] for line in await stored()}

        await eventually(both)
        items = await stored()
        lines = {(line["stream"], line["text"]) for line in items}
        assert {("stdout", "rate 0.5"), ("stderr", "a warning")} <= lines
        assert {(line["client"], line["round"]) for line in items} == {("site-1", 1)}
        clients = (await net.session(session, clients=True))["rounds"][0]["clients"]
        validated = next(c for c in clients if c["work"] == "validate")
        assert validated["extra"] == {"note": "text is kept"}


async def test_over_selection_asks_more_and_leaves_the_slowest(tmp_path: Path) -> None:
    slow = "import os, time\nif os.environ['RUNNEL_CLIENT_NAME'] == 'site-3': time.sleep(1000)\n" + ADD_CONSTANT
    async with network(tmp_path, clients=3) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=slow))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=2, sample=2, over_select=1.5, validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert [(r["updates"], r["late"]) for r in view["rounds"]] == [(2, 1), (2, 1)]
        refused = await net.http.post(
            "/sessions", json={"package": package, "seed": "x", "rounds": 1, "over_select": 2}
        )
        assert refused.status_code == 422
        assert "over_select" in refused.json()["detail"]


async def test_a_seed_is_removed_with_its_file_unless_a_session_or_another_model_has_it(tmp_path: Path) -> None:
    async with network(tmp_path, clients=1) as net:
        package, seed = await net.push_package(write_package(tmp_path / "package")), await net.push_model(SEED)
        again, other = await net.push_model(SEED), await net.push_model(SEED | {"more": np.ones(3, np.float32)})

        def files() -> int:
            return len(list((tmp_path / "reducer" / "blobs").glob("??/*")))

        assert files() == 3
        for model, left in ((again, 3), (other, 2)):
            assert (await net.http.delete(f"/models/{model}")).json()["model"] == model
            assert (await net.http.get(f"/models/{model}")).status_code == 404
            assert files() == left
        session = await net.until_ended(await net.start_session(package, seed, rounds=1))
        for model in (seed, session["model"]):
            refused = await net.http.delete(f"/models/{model}")
            assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert len(await net.model(seed)) == len(SEED)
        events = (await net.http.get("/events", params={"after": 0}, headers={"Accept": "application/json"})).json()
        removed = [event["data"]["models"] for event in events["items"] if event["kind"] == "model.removed"]
        assert removed == [[again], [other]]


async def test_only_the_newest_models_keep_their_files_and_the_trail_stays(tmp_path: Path) -> None:
    async with network(tmp_path, clients=2, keep_models=9) as net:
        package, seed = await net.push_package(write_package(tmp_path / "package")), await net.push_model(SEED)
        session = await net.start_session(
            package, seed, rounds=5, min_clients=2, keep_models=2, strategy="fedadam", strategy_options={"tau": 1.0}
        )
        view = await net.until_ended(session)
        assert view["config"]["keep_models"] == 2
        models = [item["model"] for item in view["rounds"]]
        listed = {m["model"]: m["removed_at"] for m in (await net.http.get("/models")).json()["items"]}
        assert [listed[model] is not None for model in models] == [True, True, True, False, False]
        assert listed[seed] is None
        files = list((tmp_path / "reducer" / "blobs").glob("??/*"))
        assert len(files) == 5  # package, seed, two models, one state of the optimizer
        gone = await net.http.get(f"/models/{models[0]}/content")
        assert gone.status_code == 410
        assert (gone.json()["code"], gone.json()["fields"]["model"]) == ("gone", models[0])
        assert models[4] in gone.json()["hint"]
        refused = await net.http.post("/sessions", json={"package": package, "seed": models[1], "rounds": 1})
        assert refused.status_code == 410
        assert (await net.model(models[4]))["layer/b"].shape == (4,)
        shown = (await net.http.get(f"/models/{models[1]}")).json()
        assert shown["parent"] == models[0]
        assert len(shown["participants"]) == 2
        # What ended goes on from its newest model and its optimizer's state.
        await net.http.post(f"/sessions/{session}/extend", json={"rounds": 1})
        assert (await net.until_ended(session))["status"] == "finished"
