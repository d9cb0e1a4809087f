"""Algorithms on the tools of vantage6 2, 3 and 5, each as it is, in containers of a real engine."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import duckdb
import pytest

from runnel.common.errors import EntryPointFailed
from runnel.common.protocol import TaskOrder
from runnel.common.tasks.site_numbers import site_number
from tests.docker.algorithm_images import release_image
from tests.docker.hub import output_at_hub
from tests.docker_engine import engine_host
from tests.doubles.task_client import TaskClient
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[LocalNetwork]:
    """A network with a real client ``hub``, whose data are the ages 40 and 60, as CSV and as Parquet."""
    host = engine_host()
    data = {"default": tmp_path / "ages.csv", "frame": tmp_path / "ages.parquet", "more": tmp_path / "more.parquet"}
    data["default"].write_text("Age\n40\n60\n")
    for label, rows in (("frame", "(40), (60)"), ("more", "(1), (2), (3)")):
        duckdb.sql(f"COPY (SELECT * FROM (VALUES {rows}) AS t(Age)) TO '{data[label]}' (FORMAT parquet)")
    async with LocalNetwork(tmp_path / "net") as made:
        await made.start_combiner("c1")
        files = {label: str(path) for label, path in data.items()}
        await made.start_client("hub", data=files, docker_host=host)
        yield made


async def run(
    net: LocalNetwork, release: str, call: dict[str, Any], *, databases: Sequence[str], central: bool = False
) -> bytes:
    """Run a function at the hub, which finds out by itself for which release its image is; return its output."""
    spec = {
        "executors": [{"image": release_image(release)}],
        "contract": "vantage6",
        "central": central,
        "databases": databases,
        "payload": {"data": base64.b64encode(json.dumps(call).encode()).decode()},
    }
    return (await output_at_hub(net, spec)).content


class Partial:
    """Answers as a partial function does at a site with one person of the age 20; ``bad`` fails."""

    def __init__(self, *, pickled: bool) -> None:
        self._pickled = pickled

    def __call__(self, order: TaskOrder) -> dict[str, bytes]:
        if order.client == "bad":
            raise EntryPointFailed("It ended with 1.")
        result = {"sum": 20.0, "count": 1}
        return {"output": pickle.dumps(result) if self._pickled else json.dumps(result).encode()}


SITES = ["hub", "light", "bad"]


@pytest.mark.parametrize(("release", "sites"), [("2.3", ["hub", "light"]), ("3.11", SITES)])
async def test_a_master_of_release_2_or_3_averages(net: LocalNetwork, release: str, sites: list[str]) -> None:
    async with AsyncExitStack() as stack:
        for name in ("light", "bad"):
            light = TaskClient(net.reducer.rpc_address, name, prefer="c1", produce=Partial(pickled=True))
            await stack.enter_async_context(light)
        await net.until_attached("light", "bad")
        # Its clients of old say in which format they want what comes; without that it is a pickle.
        call = {"method": "central", "output_format": "json", "kwargs": {"column": "Age", "sites": sites}}
        output = await run(net, release, call, databases=["default"], central=True)
        told = json.loads(output.removeprefix(b"json."))
        newer = told.pop("newer", None)
        assert told == {"organizations": sorted(SITES), "average": 40.0, "results": 2, "own rows": 2}
        # The client that came with release 3, beside that of release 2.
        assert newer == ([True, True, True, True, 1, []] if release == "3.11" else None)


async def test_release_5_averages_and_finds_its_data_frames(net: LocalNetwork) -> None:
    async with AsyncExitStack() as stack:
        for name in ("light", "bad"):
            light = TaskClient(net.reducer.rpc_address, name, prefer="c1", produce=Partial(pickled=False))
            await stack.enter_async_context(light)
        await net.until_attached("light", "bad")
        call: dict[str, Any] = {"method": "average", "kwargs": {"column": "Age", "sites": SITES}}
        told = json.loads(await run(net, "5.0", call, databases=["frame"], central=True))
        assert told == {
            "organizations": sorted(SITES),
            "average": 40.0,
            "results": 2,
            "status": "failed",
            "runs": ["completed", "completed", "crashed"],
            "one": True,
            "collaboration": 1,
        }
    assert json.loads(await run(net, "5.0", {"method": "two"}, databases=["more", "frame"])) == [3, 2]
    call = {"method": "group", "databases": [[{"label": "frame"}, {"label": "more"}]]}
    told = json.loads(await run(net, "5.0", call, databases=["more", "frame"]))
    assert told == {"rows": {"frame": 2, "more": 3}, "organization": str(site_number("hub"))}
