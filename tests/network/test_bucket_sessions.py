"""Sessions whose files are in a bucket: another machine goes on with them, and outages of the store are waited out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.reducer.app import serve_reducer
from runnel.reducer.settings import ReducerSettings
from tests.bucket_server import CREDENTIALS, BucketServer, running_bucket_server
from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

# Counts its runs, and waits while there is a file that says so.
ADD_WHEN_TOLD = (
    """
import os, time
data = os.environ["RUNNEL_DATA"]
with open(data + ".runs", "a") as file:
    file.write("run\\n")
while os.path.exists(data + ".wait"):
    time.sleep(0.02)
"""
    + ADD_CONSTANT
)
SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((200, 3), np.float32), "b": np.zeros(4, np.float64)}


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with running_bucket_server() as running:
        yield running


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def wait_in(folder: Path, client: str) -> Path:
    file = folder / f"{client}.txt.wait"
    file.touch()
    return file


def runs(folder: Path, client: str) -> int:
    return len((folder / f"{client}.txt.runs").read_text().splitlines())


async def begin(net: LocalNetwork, **config: object) -> str:
    package = await net.push_package(write_package(net.folder / "package", train=ADD_WHEN_TOLD))
    return await net.start_session(package, await net.push_model(SEED), **config)


async def settled(net: LocalNetwork, session: str, client: str) -> bool:
    view = await net.session(session, clients=True)
    return any(c["client"] == client and c["status"] == "counted" for r in view["rounds"] for c in r["clients"])


async def require_mean(net: LocalNetwork, model: str, value: float) -> None:
    for array in (await net.model(model)).values():
        np.testing.assert_array_equal(array, np.full_like(array, value))


@pytest.mark.parametrize("database", ["copied", "postgresql"])
async def test_another_machine_with_the_database_goes_on_with_what_was_settled(
    server: BucketServer, tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = server.new_bucket()
    settings = {"blobs": url}
    if database == "postgresql":
        settings["database"] = request.getfixturevalue("cluster").new_database()
    async with network(tmp_path, combiners=0, clients=2, **settings) as net:
        state, waiting = tmp_path / "reducer", wait_in(tmp_path, "site-2")
        session = await begin(net, rounds=2, min_clients=2, strategy="fedavgm", keep_models=1)
        await eventually(lambda: settled(net, session, "site-1"), timeout_s=30)
        assert len([key for key in server.keys(url) if key.startswith("partials/")]) == 1
        await net.stop("reducer")
        for entry in state.iterdir():
            if not entry.name.startswith("reducer.db"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        await net.start_reducer()
        waiting.unlink()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert [runs(tmp_path, client) for client in ("site-1", "site-2")] == [2, 2]  # nothing was done twice
        await require_mean(net, view["model"], (1 + 2) / 2 * (1 + 1.9))  # momentum 0.9, its state came along
        # The package, the seed, the newest model and the state of its optimizer.
        await eventually(lambda: len(server.keys(url) - {"runnel.txt"}) == 4)


@pytest.mark.restarts
async def test_a_store_that_goes_away_in_a_round_is_waited_for(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket(patience_s=0.3)
    # Without a cache every step needs the store.
    async with network(tmp_path, combiners=1, clients=2, blobs=url, blob_cache_bytes=0) as net:
        waiting = wait_in(tmp_path, "site-2")
        session = await begin(net, rounds=2, min_clients=2)
        await eventually(lambda: (tmp_path / "site-2.txt.runs").exists(), timeout_s=30)
        seed = (await net.session(session))["seed"]
        server.stop()
        try:
            answer = await net.http.get(f"/models/{seed}/content")
            assert (answer.status_code, answer.json()["code"]) == (503, "unreachable")
            assert (await net.http.get("/status")).status_code == 200
            waiting.unlink()
            # The combiner's report can't be kept; it is let go and comes again.
            await eventually(lambda: net.reducer.engine.roster.find("c1") is None, timeout_s=30)
            assert (await net.session(session))["status"] == "running"
        finally:
            server.start()
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert [runs(tmp_path, client) for client in ("site-1", "site-2")] == [2, 2]
        await require_mean(net, view["model"], 3.0)
        await eventually(lambda: not [key for key in server.keys(url) if key.startswith("partials/")])
        await eventually(lambda: not list((tmp_path / "reducer" / "partials").iterdir()))


async def test_neither_log_nor_endpoints_nor_answers_have_a_secret(
    server: BucketServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ReducerSettings(
        rpc="127.0.0.1:0", http="127.0.0.1:0", state=tmp_path, insecure=True, blobs=server.new_bucket()
    )
    async with serve_reducer(settings):
        written = [file.read_bytes() for file in tmp_path.iterdir() if file.is_file()]
    told = b"".join(written).decode(errors="replace") + "".join(capsys.readouterr()) + repr(settings)
    assert "s3://bucket-" in told
    assert not [secret for secret in CREDENTIALS.values() if secret in told]
