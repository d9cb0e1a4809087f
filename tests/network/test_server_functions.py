"""Sessions in which the package decides: whom to ask, with which settings, and what the next model is."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from runnel.reducer.app import confinement
from runnel.reducer.server_functions.step import Confinement
from runnel.reducer.settings import ReducerSettings
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork, network

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

# Adds the site's number times what the server said; tells what it was given.
TRAIN = """
import json, os, sys
import numpy as np

with open(sys.argv[1] + "-metadata") as file:
    settings = json.load(file)
step = float(open(os.environ["RUNNEL_DATA"]).read()) * settings.get("factor", 1.0)
with np.load(sys.argv[1]) as model:
    np.savez(sys.argv[2], **{name: (model[name] + step).astype(model[name].dtype) for name in model.files})
with open(sys.argv[2] + "-metadata", "w") as file:
    json.dump({"num_examples": 3, "step": step, "told": settings}, file)
"""
SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(3)}


async def begin(net: LocalNetwork, server: str, *, rounds: int = 1, **config: Any) -> str:
    """Push a package with this ``server.py`` and start a session of it."""
    folder = net.folder / "package"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "server.py").write_text(dedent(server))
    package = await net.push_package(folder)
    options = {"validate_every": 0, "retries": 0} | config
    return await net.start_session(package, await net.push_model(SEED), rounds=rounds, **options)


async def finished(net: LocalNetwork, session: str) -> dict[str, Any]:
    view = await net.until_ended(session)
    assert view["status"] == "finished", view["reason"]
    return await net.session(session, clients=True)


@pytest.mark.usefixtures("each_database")
async def test_the_package_selects_sets_and_aggregates_and_remembers(tmp_path: Path) -> None:
    server = """
        import random
        from fedn.network.combiner.hooks.allowed_import import ServerFunctionsBase, logger, np

        class ServerFunctions(ServerFunctionsBase):
            def __init__(self):
                self.round, self.factor = 0, 1.0

            def client_selection(self, client_ids):
                self.round += 1
                return [name for name in client_ids if name != f"site-{self.round}"]

            def client_settings(self, global_model):
                assert [array.shape for array in global_model] == [(2, 2), (3,)]
                self.factor *= 2
                return {"factor": self.factor}

            def aggregate(self, previous_global, client_updates):
                print("aggregates", sorted(client_updates))
                for name, (model, metadata) in client_updates.items():
                    assert metadata["num_examples"] == 3 and metadata["told"]["kept"] == "yes", metadata
                    assert metadata["step"] == self.factor * int(name[-1])
                models = [model for model, _ in client_updates.values()]
                return [np.median(each, axis=0) for each in zip(*models)]
        """
    async with network(tmp_path, combiners=1, clients=4) as net:
        session = await begin(net, server, rounds=2, min_clients=3, client_settings={"kept": "yes", "factor": 7})
        view = await finished(net, session)
        # Round 1: 2, 3 and 4 times 2, median 6; round 2: 1, 3 and 4 times 4, median 12.
        model = await net.model(view["model"])
        for name, array in SEED.items():
            np.testing.assert_array_equal(model[name], np.full_like(array, 18))
        asked = [[c["client"] for c in r["clients"] if c["work"] == "train"] for r in view["rounds"]]
        assert asked == [["site-2", "site-3", "site-4"], ["site-1", "site-3", "site-4"]]
        trail = (await net.http.get(f"/models/{view['model']}")).json()
        assert trail["strategy"] == "package: aggregate"

        said: list[str] = []
        while len(said) < 2:  # lines are written some time after they were said; the test's time-out ends this
            logs = (await net.http.get(f"/sessions/{session}/logs", params={"client": "reducer:server.py"})).json()
            said = [line["text"] for line in logs["items"] if line["stream"] == "stdout"]
        assert said == [f"aggregates ['site-{first}', 'site-3', 'site-4']" for first in (2, 1)]
    # Of what it remembers only the newest is kept.
    states = [path for path in (tmp_path / "reducer" / "blobs").glob("??/*") if b"tree.npy" in path.read_bytes()]
    assert len(states) == 1
    assert list((tmp_path / "reducer" / "server-functions").iterdir()) == []


async def test_updates_are_handed_over_one_by_one_with_direct_clients_too(tmp_path: Path) -> None:
    # The running mean of FEDn's example, which keeps the global model in its instance.
    server = """
        class ServerFunctions:
            def __init__(self):
                self.model, self.seen, self.total = None, [], 0

            def incremental_aggregate(self, client_id, model, client_metadata, previous_global):
                self.seen.append(client_id)
                self.total += client_metadata["num_examples"]
                self.previous = previous_global
                self.model = model if self.model is None else [a + b for a, b in zip(self.model, model)]

            def get_incremental_aggregate_model(self):
                assert self.seen == sorted(self.seen) and self.total == 3 * len(self.seen), self.seen
                made, self.model, self.seen, self.total = [a / len(self.seen) for a in self.model], None, [], 0
                return made

            def aggregate(self, previous_global, client_updates):
                raise AssertionError("the incremental one goes before")
        """
    async with network(tmp_path, combiners=0, clients=3) as net:
        session = await begin(net, server, rounds=2, min_clients=3, compress="zstd")
        view = await finished(net, session)
        model = await net.model(view["model"])
        for name, array in SEED.items():
            np.testing.assert_array_equal(model[name], np.full_like(array, 4))


async def test_what_fails_is_tried_again_and_then_ends_the_session_with_what_it_said(tmp_path: Path) -> None:
    server = """
        class ServerFunctions:
            def aggregate(self, previous_global, client_updates):
                print("before it fell")
                return {}["missing"]
        """
    async with network(tmp_path, combiners=0, clients=1) as net:
        session = await begin(net, server, retries=1)
        view = await net.until_ended(session)
        assert view["status"] == "failed"
        assert 'aggregate ended with KeyError:\n  File "/package/server.py", line 5, in aggregate' in view["reason"]
        assert view["reason"].endswith("Its last lines:\nbefore it fell")
        events = (await net.http.get("/events", headers={"Accept": "application/json"})).json()["items"]
        assert [e["data"]["attempt"] for e in events if e["kind"] == "server_function.failed"] == [1, 2]
        assert view["rounds"][0]["updates"] == 1
        assert view["model"] == view["seed"]


async def test_who_attaches_meanwhile_is_among_those_of_the_next_try(tmp_path: Path) -> None:
    server = """
        class ServerFunctions:
            def client_selection(self, client_ids):
                return client_ids[1:]
        """
    async with network(tmp_path, combiners=0, clients=2) as net:
        session = await begin(net, server, retries=20, min_clients=2)

        async def failed() -> bool:
            events = (await net.http.get("/events", headers={"Accept": "application/json"})).json()["items"]
            return any(each["kind"] == "server_function.failed" for each in events)

        await eventually(failed, timeout_s=30)
        await net.start_client("site-3")
        view = await finished(net, session)
        assert [c["client"] for c in view["rounds"][0]["clients"]] == ["site-2", "site-3"]


async def test_stopping_a_session_ends_what_its_package_does(tmp_path: Path) -> None:
    server = """
        class ServerFunctions:
            def client_selection(self, client_ids):
                print("waits")
                while True:
                    pass
        """
    async with network(tmp_path, combiners=0, clients=1) as net:
        session = await begin(net, server, retries=3)
        places = tmp_path / "reducer" / "server-functions"
        await eventually(lambda: list(places.glob("step-*/in/*")) or list(places.glob("step-*/unpacked")), timeout_s=20)
        answer = await net.http.post(f"/sessions/{session}/stop")
        assert answer.json()["status"] == "stopped", answer.text
        assert list(places.iterdir()) == []


async def refused(net: LocalNetwork, name: str, server: str, **config: Any) -> tuple[int, str]:
    """Start a session of a package with this ``server.py``; without its functions it has to start."""
    folder = net.folder / name
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "server.py").write_text(server)
    asked = {"package": await net.push_package(folder), "seed": await net.push_model(SEED), "rounds": 1, **config}
    answer = await net.http.post("/sessions", json=asked)
    plain = await net.http.post("/sessions", json=asked | {"server_functions": False})
    assert plain.status_code == 201, plain.text
    await net.http.post(f"/sessions/{plain.json()['session']}/stop")
    return answer.status_code, answer.text


AGGREGATES = "class ServerFunctions:\n    def aggregate(self, *given):\n        return given[0]\n"


async def test_a_session_whose_package_can_not_decide_is_refused_at_its_start(tmp_path: Path) -> None:
    selects = AGGREGATES.replace("aggregate", "client_selection")
    unloadable = AGGREGATES.replace("    def", "    lost = nowhere.f\n    def")
    async with network(tmp_path, combiners=0, clients=0) as net:
        cases: dict[str, tuple[str, dict[str, Any], str]] = {
            "strategy": (
                AGGREGATES,
                {"strategy": "median"},
                "median came, and the package makes the next model itself",
            ),
            "sample": (selects, {"sample": 0.5}, "the package chooses the clients itself"),
            "buffer": (selects, {"strategy": "fedbuff", "buffer": 1}, "fedbuff knows no rounds of clients"),
            "loading": (unloadable, {}, "NameError: name 'nowhere' is not defined"),
        }
        for name, (server, config, says) in cases.items():
            status, text = await refused(net, name, server, **config)
            assert (status, says in text) == (422, True), text


@pytest.mark.parametrize(
    ("reducer", "says"),
    [
        ({"server_functions": "off"}, "it is set to server_functions off"),
        ({"server_functions_signers": ["ed25519:" + "ab" * 32]}, "it is signed by nobody"),
    ],
)
async def test_a_reducer_runs_the_functions_that_its_operator_allows(
    tmp_path: Path, reducer: dict[str, Any], says: str
) -> None:
    async with network(tmp_path, combiners=0, clients=0, **reducer) as net:
        status, text = await refused(net, "package", AGGREGATES)
        assert (status, says in text) == (403, True), text


def test_beyond_the_loopback_none_is_run_unless_the_operator_says_so() -> None:
    assert confinement(ReducerSettings()) is Confinement.OFF
    assert confinement(ReducerSettings(insecure=True)) is Confinement.SANDBOX
    assert confinement(ReducerSettings(server_functions="unconfined")) is Confinement.UNCONFINED
