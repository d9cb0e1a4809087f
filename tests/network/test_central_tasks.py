"""Runs that ask for sub-tasks: through a real combiner and a real reducer, at clients that run nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runnel.common.errors import EntryPointFailed, Forbidden, IllegalState, InvalidInput, NotFound
from runnel.common.protocol import BlobRef, TaskOrder
from runnel.common.tasks import TaskSpec, task_spec
from runnel.common.tasks.asks import LookAtTask, NewTask, SitesAsk, SubRun, TaskAnswer, TaskAsk
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

PARTIAL: dict[str, Any] = {"executors": [{"image": "average:1"}], "contract": "vantage6"}
CENTRAL = PARTIAL | {"central": True, "databases": ["default"]}


def spec_of(**other: Any) -> str:
    return TaskSpec(**(PARTIAL | other)).as_json()


class Central:
    """A central run that is under way at a client, and asks."""

    def __init__(self, net: LocalNetwork, client: TaskClient, run_id: str, task: str) -> None:
        self.net, self.client, self.run_id, self.task = net, client, run_id, task

    async def ask(self, body: SitesAsk | NewTask | LookAtTask) -> TaskAnswer:
        ask = TaskAsk(run_id=self.run_id, client=self.client.name, body=body)
        return await self.client.link.ask(ask, deadline_s=50)

    async def create(self, *sites: str, key: str = "k", **spec: Any) -> str:
        return (await self.ask(NewTask(spec=spec_of(**spec), sites=sites, idempotency_key=key))).task_id

    async def look(self, task_id: str, wait_s: float = 15.0) -> dict[str, SubRun]:
        return {run.site: run for run in (await self.ask(LookAtTask(task_id=task_id, wait_s=wait_s))).runs}


async def started(net: LocalNetwork, site: str, spec: dict[str, Any]) -> tuple[str, str]:
    answer = await net.http.post("/tasks", json={"spec": spec, "sites": [site]})
    assert answer.status_code == 201, answer.text
    task = answer.json()
    return task["task"], task["runs"][0]["run"]


@asynccontextmanager
async def central(folder: Path, spec: dict[str, Any] = CENTRAL) -> AsyncIterator[Central]:
    """A network with a central run that goes on at ``hub``, below a combiner."""
    async with LocalNetwork(folder) as net:
        await net.start_combiner("c1")
        async with TaskClient(net.reducer.rpc_address, "hub", prefer="c1") as hub:
            await net.until_attached("hub")
            hub.gate.clear()
            task, run_id = await started(net, "hub", spec)
            await eventually(lambda: run_id in hub.held)
            try:
                yield Central(net, hub, run_id, task)
            finally:
                hub.gate.set()


def fails(order: TaskOrder) -> dict[str, bytes]:
    raise EntryPointFailed("It ended with 1.")


async def test_a_run_asks_for_a_task_at_other_sites_and_gets_their_results(tmp_path: Path) -> None:
    def output(order: TaskOrder) -> dict[str, bytes]:
        payload = task_spec(order.spec, source="test").payload
        assert payload is not None
        return {"output": payload.data or b""}

    async with central(tmp_path) as run:
        address = run.net.reducer.rpc_address
        async with TaskClient(address, "a", prefer="c1", produce=output) as a, TaskClient(address, "b", produce=fails):
            await run.net.until_attached("a", "b")
            a.gate.clear()
            assert [site.name for site in (await run.ask(SitesAsk())).sites] == ["a", "b", "hub"]
            payload = {"data": base64.b64encode(b"{}")}
            task = await run.create("a", "b", payload=payload)
            assert await run.create("a", "b", payload=payload) == task
            assert await run.create("a", payload=payload, key="other") != task
            looking = asyncio.create_task(run.look(task, 45.0))
            await eventually(lambda: len(a.held) == 2)
            assert not looking.done()
            early = await run.look(task, 0.0)
            assert early["a"].state != "done"
            assert early["a"].result is None
            a.gate.set()
            async with asyncio.timeout(25):  # at once, and not when its wait is over
                runs = await looking
            assert (runs["a"].state, runs["b"].state) == ("done", "failed")
            assert runs["b"].result is not None
            assert runs["b"].result.failure is not None
            assert runs["b"].result.failure.code == "exit_status"
            assert runs["a"].result is not None
            [file] = runs["a"].result.files
            await run.client.link.fetch(file.blob, tmp_path / "output", deadline_s=10)
            assert (tmp_path / "output").read_bytes() == b"{}"
            shown = (await run.net.http.get(f"/tasks/{task}")).json()
            assert shown["parent_run"] == run.run_id


async def test_a_file_that_a_run_pushed_is_an_input_of_its_sub_task(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    blob = {"blob": {"sha256": ref.sha256, "size_bytes": ref.size_bytes}}
    async with central(tmp_path) as run, TaskClient(run.net.reducer.rpc_address, "a") as a:
        await run.net.until_attached("a")
        with pytest.raises(InvalidInput, match=ref.sha256):
            await run.create("a", payload=blob)
        await run.client.link.push(run.run_id, memoryview(data), ref, deadline_s=10)
        task = await run.create("a", payload=blob)
        assert (await run.look(task))["a"].state == "done"
        await a.link.fetch(ref, tmp_path / "input", deadline_s=10)
        assert (tmp_path / "input").read_bytes() == data


async def test_nobody_asks_in_the_name_of_another(tmp_path: Path) -> None:
    async with central(tmp_path) as run, TaskClient(run.net.reducer.rpc_address, "a", prefer="c1") as a:
        await run.net.until_attached("a")
        a.gate.clear()
        other, _ = await started(run.net, "a", CENTRAL)
        del other
        with pytest.raises(Forbidden):
            await a.link.ask(TaskAsk(run_id=run.run_id, client="hub", body=SitesAsk()), deadline_s=10)
        with pytest.raises(Forbidden, match="has no run"):
            await a.link.ask(TaskAsk(run_id=run.run_id, client="a", body=SitesAsk()), deadline_s=10)
        task = await run.create("a")
        await eventually(lambda: len(a.held) == 2)
        mine = next(run_id for run_id, order in a.held.items() if not order.parent_run)
        with pytest.raises(NotFound, match="no sub-task"):
            await a.link.ask(TaskAsk(run_id=mine, client="a", body=LookAtTask(task_id=task)), deadline_s=10)
        a.gate.set()


BEYOND: list[tuple[dict[str, Any], str]] = [
    ({"executors": [{"image": "other:1"}]}, "other images"),
    ({"contract": "plain"}, "another contract"),
    ({"databases": ["default", "secrets"]}, "other databases"),
    ({"selections": [{"query": "{ patients { age } }"}]}, "other selections"),
    ({"group": "another"}, "another group"),
    ({"central": True}, "to be central itself"),
]


async def test_a_sub_task_has_no_more_than_its_parent_and_is_for_sites_that_there_are(tmp_path: Path) -> None:
    async with central(tmp_path) as run:
        for asked, words in BEYOND:
            with pytest.raises(Forbidden, match=words):
                await run.create("hub", **asked)
        with pytest.raises(InvalidInput, match="nowhere"):
            await run.create("nowhere")


async def test_a_task_that_is_not_central_asks_for_nothing(tmp_path: Path) -> None:
    async with central(tmp_path, {"executors": [{"image": "average:1"}]}) as run:
        with pytest.raises(Forbidden, match="not central"):
            await run.ask(SitesAsk())


async def test_when_the_run_is_over_so_are_its_sub_tasks_and_its_questions(tmp_path: Path) -> None:
    async with central(tmp_path) as run, TaskClient(run.net.reducer.rpc_address, "a") as a:
        await run.net.until_attached("a")
        a.gate.clear()
        task = await run.create("a")
        await eventually(lambda: len(a.held) == 1)
        looking = asyncio.create_task(run.look(task, 45.0))
        endings = run.net.reducer.engine.tasks.endings
        await eventually(lambda: task in endings._watching)  # else the run may be over before it asks
        (await run.net.http.post(f"/tasks/{run.task}/cancel")).raise_for_status()
        assert (await looking)["a"].state == "cancelled"
        await eventually(lambda: not a.held)
        with pytest.raises(IllegalState, match="has ended"):
            await run.create("a", key="again")
        a.gate.set()
