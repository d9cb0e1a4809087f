"""What goes wrong in a network, in one process: the round goes on, and everybody is told what was wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.client.app import run_client
from runnel.client.settings import ClientSettings
from runnel.combiner import combiner as combiner_module
from runnel.combiner import partials as partials_module
from runnel.combiner.folding import Fold
from runnel.combiner.partials import Partials
from runnel.common.aggregation import WeightedSum
from runnel.common.errors import BadModel, CorruptData, StorageFull, Unreachable
from runnel.reducer.engine import engine as engine_module
from runnel.reducer.engine.exchange import Exchange
from runnel.reducer.engine.reduction import Reduction
from runnel.reducer.store.blobs import FolderBlobs
from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((20, 3), np.float32), "b": np.zeros(4, np.float64)}

SITE_2 = "import os, sys, json, time\nBAD = os.environ['RUNNEL_CLIENT_NAME'] == 'site-2'\n"

BAD_UPDATES = {
    "exits with 3": ("if BAD: print('giving up'); sys.exit(3)\n", "exit_status", "3"),
    "writes no model": ("if BAD: sys.exit(0)\n", "bad_output", "model_out"),
    "writes NaN": ("if BAD: step = float('nan')\n", "bad_model", "not finite|NaN"),
    "writes another shape": ("if BAD: arrays['w'] = arrays['w'][:5]\n", "bad_model", "shape"),
    "writes other names": ("if BAD: arrays['v'] = arrays.pop('w')\n", "bad_model", "'[wv]'"),
    "writes another dtype": (
        "if BAD: step = 1; arrays['b'] = arrays['b'].astype('complex64')\n",
        "bad_model",
        "complex",
    ),
}


def spoil(line: str) -> str:
    """Return the training script with a line for site-2 before it writes its update."""
    lines = ADD_CONSTANT.replace("np.savez(model_out", f"{line}np.savez(model_out")
    return SITE_2 + lines


@pytest.mark.parametrize("what", BAD_UPDATES)
async def test_a_bad_update_is_named_and_the_round_goes_on_without_it(tmp_path: Path, what: str) -> None:
    line, code, text = BAD_UPDATES[what]
    async with network(tmp_path, clients=3) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=spoil(line)))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=2, validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert (view["rounds"][0]["updates"], view["rounds"][0]["failed"]) == (2, 1)
        assert ((await net.model(view["model"]))["w"] == 2.0).all()  # the mean of 1 and 3
        clients = {c["client"]: c for c in (await net.session(session, clients=True))["rounds"][0]["clients"]}
        assert clients["site-2"]["status"] == "failed"
        assert clients["site-2"]["error_code"] == code
        assert re.search(text, clients["site-2"]["error"]), clients["site-2"]["error"]
        if code == "exit_status":
            assert "giving up" in clients["site-2"]["log_tail"]


async def test_an_endless_script_is_ended_by_the_sites_limit(tmp_path: Path) -> None:
    async with network(tmp_path, clients=1) as net:
        await net.start_client("site-2", run_timeout_s=1.0)
        endless = SITE_2 + "while BAD: time.sleep(1)\n" + ADD_CONSTANT
        package = await net.push_package(write_package(tmp_path / "package", train=endless))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=1, validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        clients = {c["client"]: c for c in (await net.session(session, clients=True))["rounds"][0]["clients"]}
        assert clients["site-2"]["error_code"] == "timeout"


async def test_megabytes_of_output_fill_nothing(tmp_path: Path) -> None:
    loud = "for _ in range(40_000): print('x' * 100)\n" + ADD_CONSTANT
    async with network(tmp_path, clients=1) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=loud))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, validate_every=0)
        assert (await net.until_ended(session))["status"] == "finished"

        async def lines() -> list[dict[str, str]]:
            found, cursor = [], None
            while True:
                params = {"limit": "1000"} | ({"cursor": cursor} if cursor else {})
                page = (await net.http.get(f"/sessions/{session}/logs", params=params)).json()
                found += page["items"]
                cursor = page["next"]
                if cursor is None:
                    return found

        async def told() -> bool:
            return any("more were printed" in line["text"] for line in await lines())

        await eventually(told)
        kept = await lines()
        assert 100 < len(kept) <= 5000
        assert sum(len(line["text"]) for line in kept) < 600_000


async def test_a_seed_that_is_no_model_and_a_package_that_is_none_are_refused(tmp_path: Path) -> None:
    async with network(tmp_path, clients=0) as net:
        answer = await net.http.post("/models", content=b"this is not a model")
        assert answer.status_code == 422
        assert answer.json()["code"] == "bad_model"
        pickled = tmp_path / "objects.npz"
        np.savez(pickled, w=np.array([{"a": 1}], dtype=object))
        answer = await net.http.post("/models", content=pickled.read_bytes())
        assert answer.status_code == 422
        assert "object" in answer.json()["detail"]
        answer = await net.http.post("/packages", params={"filename": "x.tar.gz"}, content=b"nothing")
        assert answer.status_code == 422
        assert not any((tmp_path / "reducer" / "blobs").glob("??/*"))


async def test_combiner_loss_moves_its_clients_and_their_finished_updates(tmp_path: Path) -> None:
    # site-1 and site-2 finish at c1, which waits for site-3; c1 goes before it has reported.
    train = (
        SITE_2
        + "import pathlib\n"
        + "if os.environ['RUNNEL_CLIENT_NAME'] == 'site-3':\n"
        + "    while not pathlib.Path(os.environ['RUNNEL_DATA'] + '.go').exists(): time.sleep(0.02)\n"
        + "with open(os.environ['RUNNEL_DATA'] + '.runs', 'a') as f: f.write('x')\n"
        + ADD_CONSTANT
    )
    async with LocalNetwork(tmp_path) as net:
        await net.start_combiner("c1")
        for number in (1, 2, 3):
            await net.start_client(f"site-{number}", step=float(number))
        package = await net.push_package(write_package(tmp_path / "package", train=train))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=3, validate_every=0
        )
        await eventually(
            lambda: (
                {"site-1", "site-2"}
                <= {o.client for order in net.combiners["c1"]._book.orders.values() for o in order.outcomes.values()}
            ),
            timeout_s=30,
        )
        await net.start_combiner("c2")
        await net.stop("c1")
        (tmp_path / "site-3.txt.go").touch()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert view["rounds"][0]["updates"] == 3
        assert ((await net.model(view["model"]))["w"] == 2.0).all()
        for number in (1, 2, 3):  # nobody trained twice
            assert (tmp_path / f"site-{number}.txt.runs").read_text() == "x"


@pytest.mark.parametrize("error", [CorruptData("It was damaged."), BadModel("It is none.")])
async def test_a_sum_that_is_refused_fails_its_round_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_once(monkeypatch, Partials, "_push", error)
    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, min_clients=2, retries=1)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert view["rounds"][0]["updates"] == 2


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception) -> None:
    """Let the first call raise."""
    real, errors = getattr(owner, method), iter([error])

    async def failed_once(*args: Any, **kwargs: Any) -> Any:
        for each in errors:
            raise each
        return await real(*args, **kwargs)

    monkeypatch.setattr(owner, method, failed_once)


def break_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second update get into the sum in part only, once."""
    fold, errors = WeightedSum._fold, iter([MemoryError()])

    def failed_once(self: WeightedSum, start: int, values: Any, weight: float) -> None:
        if start and self.count:
            for error in errors:
                raise error
        fold(self, start, values, weight)

    monkeypatch.setattr(WeightedSum, "_fold", failed_once)


OWN_FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "there is no memory for an update": lambda patch: fail_once(patch, Fold, "add", MemoryError()),
    "an update breaks the sum": break_the_second,
    "there is no file for the sum": lambda patch: fail_once(patch, Partials, "_push", OSError(24, "No more files")),
}


@pytest.mark.parametrize("fault", OWN_FAULTS)
async def test_a_fault_of_the_combiner_costs_no_update_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    OWN_FAULTS[fault](monkeypatch)
    monkeypatch.setattr(combiner_module, "_NO_ROOM_PAUSE_S", 0.05)
    monkeypatch.setattr(partials_module, "_AGAIN_S", 0.05)
    weighted = ADD_CONSTANT + "with open(os.environ['RUNNEL_DATA'] + '.runs', 'a') as f: f.write('x')\n"
    async with network(tmp_path, clients=3) as net:
        package = await net.push_package(write_package(tmp_path / "package", train="import os\n" + weighted))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=2, min_clients=3, retries=0, validate_every=0
        )
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert [(each["updates"], each["failed"]) for each in view["rounds"]] == [(3, 0), (3, 0)]
        assert ((await net.model(view["model"]))["w"] == 4.0).all()
        assert {(tmp_path / f"site-{n}.txt.runs").read_text() for n in (1, 2, 3)} == {"xx"}, "trained twice"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (StorageFull("No room in here."), "the reducer tries again: No room in here."),
        (ZeroDivisionError(), "the reducer tries again: an unexpected ZeroDivisionError; its log has the rest"),
    ],
)
async def test_a_session_that_waits_for_the_reducer_says_so_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    real, stands = Reduction.run, True

    def run(*args: Any, **kwargs: Any) -> Any:
        if stands:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(Reduction, "run", run)
    monkeypatch.setattr(engine_module, "_STALLED_PAUSE_S", 0.2)
    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, min_clients=2)

        async def shown() -> bool:
            one = (await net.http.get(f"/sessions/{session}")).json()
            listed = (await net.http.get("/sessions")).json()["items"][0]
            return all((each["status"], each["reason"]) == ("running", why) for each in (one, listed))

        await eventually(shown, timeout_s=30)
        stands = False
        view = await net.until_ended(session)
        assert (view["status"], view["reason"]) == ("finished", None)
        assert net.reducer.engine.stalled == {}


async def test_a_payload_that_is_gone_from_the_disk_fails_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderBlobs.bring_payload

    async def gone(self: FolderBlobs, file: Path) -> None:
        file.unlink()
        await real(self, file)

    async with network(tmp_path, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        with monkeypatch.context() as patch:
            patch.setattr(FolderBlobs, "bring_payload", gone)
            session = await net.start_session(package, await net.push_model(SEED), rounds=1, min_clients=2)
            view = await net.until_ended(session)
        assert view["status"] == "failed"
        assert re.search("The payload .* is gone. Resume the session", view["reason"])
        answer = await net.http.post(f"/sessions/{session}/resume")
        assert answer.status_code == 200, answer.text
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert ((await net.model(view["model"]))["w"] == 1.5).all()


async def test_a_session_that_begins_again_from_its_ledger_leaves_nothing_at_its_combiners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, failures = Exchange._enter, iter([Unreachable("The database does not answer.")])

    async def failed_once(*args: Any) -> list[str]:
        for failure in failures:
            raise failure
        return await enter(*args)

    monkeypatch.setattr(Exchange, "_enter", failed_once)
    slow = "import os, time\nif os.environ['RUNNEL_CLIENT_NAME'] == 'site-3': time.sleep(6)\n" + ADD_CONSTANT
    async with network(tmp_path, combiners=2, clients=0) as net:
        for client, combiner in (("site-1", "c1"), ("site-2", "c2"), ("site-3", "c2")):
            await net.start_client(client, prefer=combiner)
        package = await net.push_package(write_package(tmp_path / "package", train=slow))
        session = await net.start_session(package, await net.push_model(SEED), rounds=1, min_clients=3)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert view["rounds"][0]["updates"] == 3
        books = [combiner._book for combiner in net.combiners.values()]
        await eventually(lambda: not any(book.orders for book in books))


async def test_a_reducer_that_restarts_goes_on_with_the_round(tmp_path: Path) -> None:
    train = (
        "import os, time, pathlib\n"
        "while not pathlib.Path(os.environ['RUNNEL_DATA'] + '.go').exists(): time.sleep(0.02)\n"
        "with open(os.environ['RUNNEL_DATA'] + '.runs', 'a') as f: f.write('x')\n" + ADD_CONSTANT
    )
    async with network(tmp_path, combiners=2, clients=3) as net:
        (tmp_path / "site-1.txt.go").touch()
        package = await net.push_package(write_package(tmp_path / "package", train=train))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=2, min_clients=3, validate_every=2
        )
        await eventually(lambda: (tmp_path / "site-1.txt.runs").exists(), timeout_s=30)
        await net.stop("reducer")
        (tmp_path / "site-2.txt.go").touch()
        await asyncio.sleep(0.3)
        await net.start_reducer()
        (tmp_path / "site-3.txt.go").touch()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert [r["updates"] for r in view["rounds"]] == [3, 3]
        assert ((await net.model(view["model"]))["w"] == 4.0).all()
        for number in (1, 2, 3):
            assert (tmp_path / f"site-{number}.txt.runs").read_text() == "xx"  # once in each round
        assert await net.reducer.engine._journal.verify() > 0


async def test_a_client_that_restarts_offers_what_it_holds(tmp_path: Path) -> None:
    wait = (
        "import os, time, pathlib\n"
        "if os.environ['RUNNEL_CLIENT_NAME'] == 'site-2':\n"
        "    while not pathlib.Path(os.environ['RUNNEL_DATA'] + '.go').exists(): time.sleep(0.02)\n"
        "with open(os.environ['RUNNEL_DATA'] + '.runs', 'a') as f: f.write('x')\n" + ADD_CONSTANT
    )
    async with network(tmp_path, combiners=1, clients=2) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=wait))
        session = await net.start_session(
            package, await net.push_model(SEED), rounds=1, min_clients=2, validate_every=0
        )
        await eventually(lambda: any((tmp_path / "site-1" / "outbox").glob("*.json")), timeout_s=30)
        await net.stop("site-1")
        await net.start_client("site-1", step=1.0)
        (tmp_path / "site-2.txt.go").touch()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert ((await net.model(view["model"]))["w"] == 1.5).all()
        assert (tmp_path / "site-1.txt.runs").read_text() == "x"
        await eventually(lambda: not (any((tmp_path / "site-1" / "outbox").iterdir())))


async def test_two_clients_of_one_name(tmp_path: Path) -> None:
    async with network(tmp_path, clients=1) as net:
        with pytest.RaisesGroup(pytest.RaisesExc(Exception, match="in use by another client"), flatten_subgroups=True):
            async with asyncio.TaskGroup() as group:
                settings = ClientSettings(
                    network=net.reducer.rpc_address, state=tmp_path / "impostor", name="site-1", insecure=True
                )
                group.create_task(run_client(settings, asyncio.Event(), {}))
        assert net.reducer.engine.roster.clients() == ["site-1"]


async def test_a_tree_of_three_levels_gives_the_same_model(tmp_path: Path) -> None:
    """Combiners attach to combiners: c-top serves c-left and c-right, each with clients of its own."""
    async with network(tmp_path / "flat", combiners=1, clients=4) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        flat = await net.until_ended(
            await net.start_session(package, await net.push_model(SEED), rounds=2, min_clients=4)
        )
        expected = await net.model(flat["model"])
    async with LocalNetwork(tmp_path / "tree") as net:
        await net.start_combiner("c-top")
        await net.start_combiner("c-left", parent="c-top")
        await net.start_combiner("c-right", parent="c-top")
        for number in range(1, 5):
            await net.start_client(f"site-{number}", step=float(number), prefer=("c-left", "c-right")[number % 2])
        assert set(net.reducer.engine.roster._branches) == {"c-top"}
        package = await net.push_package(tmp_path / "package")
        tree = await net.until_ended(
            await net.start_session(package, await net.push_model(SEED), rounds=2, min_clients=4)
        )
        assert tree["status"] == "finished", tree["reason"]
        model = await net.model(tree["model"])
        assert all((model[name] == expected[name]).all() for name in expected)
        assert [r["metrics"] for r in tree["rounds"]] == [r["metrics"] for r in flat["rounds"]]
