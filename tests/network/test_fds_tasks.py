"""The interface of Federated Data Sharing over a real reducer, by real tokens, with clients that run nothing."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tes
from httpx_sse import aconnect_sse

from runnel.common.errors import EntryPointFailed
from runnel.common.protocol import TaskOrder
from runnel.reducer.app import OPERATOR_TOKEN
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork
from tests.network.test_fds_interface import basic, packed

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

BODY = {"name": "count", "executors": [{"image": "analysis:1", "command": ["count"]}]}
RESULT = packed(**{"result.csv": "n\n42\n"})


def counts(order: TaskOrder) -> dict[str, bytes]:
    return {"output": RESULT, "stdout": b"counted\n", "stderr": b""}


def fails(order: TaskOrder) -> dict[str, bytes]:
    raise EntryPointFailed("It ended with 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Secure:
    """A network that asks for tokens."""

    net: LocalNetwork
    url: str
    operator: str

    def as_one(self, headers: dict[str, str]) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20)

    async def token(self, role: str, name: str, **said: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.operator}"}
        answer = await self.net.http.post("/tokens", json={"role": role, "name": name} | said, headers=headers)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def site(self, name: str, **said: Any) -> TaskClient:
        token = await self.token("client", name)
        return TaskClient(self.net.reducer.rpc_address, name, token=token["token"], **said)


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    async with LocalNetwork(tmp_path, insecure=False) as net:
        operator = (tmp_path / "reducer" / OPERATOR_TOKEN).read_text().strip()
        yield Secure(net=net, url=net.reducer.url, operator=operator)


async def access_token(secure: Secure, user: str, secret: str) -> str:
    async with secure.as_one(basic(user, secret)) as http:
        answer = await http.post("/auth/connect/token", data={"grant_type": "client_credentials"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


async def test_researchers_hear_of_their_own_tasks_only(secure: Secure) -> None:
    alice, bob = await secure.token("researcher", "alice"), await secure.token("researcher", "bob")
    async with (
        await secure.site("north", produce=counts),
        secure.as_one({"Authorization": f"Bearer {alice['token']}"}) as for_alice,
        secure.as_one({"Authorization": f"Bearer {bob['token']}"}) as for_bob,
        aconnect_sse(for_bob, "GET", "/api/v1/events") as source,
    ):
        await eventually(lambda: secure.net.reducer.engine.roster.find("north"))
        tasks = []
        for http in (for_alice, for_bob):
            answer = await http.post("/ga4gh/tes/v1/tasks", json=BODY)
            tasks.append(answer.json()["id"])
            await _until_ended(http, tasks[-1])
        streamed = []
        async with asyncio.timeout(20):
            async for event in source.aiter_sse():
                if event.data:
                    streamed.append(json.loads(event.data))
                    if event.event == "task.ended":
                        break
        asked = "/api/v1/events?after=0&limit=1000"
        page = (await for_bob.get(asked, headers={"Accept": "application/json"})).json()["items"]
        bearings = (await for_bob.get("/api/v1/bearings")).json()
    for seen in (streamed, page):
        assert {each["session"] for each in seen} == {None, tasks[1]}
        assert {each["kind"] for each in seen} <= {
            "progress",
            "node.attached",
            "task.created",
            "run.state",
            "task.ended",
        }
        assert "alice" not in json.dumps(seen)
    assert bearings["newest_event"] == page[-1]["seq"]


async def _until_ended(http: httpx.AsyncClient, task: str) -> None:
    async def ended() -> bool:
        return bool((await http.get(f"/ga4gh/tes/v1/tasks/{task}")).json()["state"] == "COMPLETE")

    await eventually(ended, timeout_s=20)


async def test_a_task_by_py_tes_from_its_token_to_its_results(secure: Secure) -> None:
    alice, bob = await secure.token("researcher", "alice"), await secure.token("researcher", "bob")
    given = await access_token(secure, "alice", alice["token"])
    client = tes.HTTPClient(secure.url, token=given)
    task = tes.Task(
        name="count",
        executors=[tes.Executor(image="analysis:1", command=["count"])],
        inputs=[tes.Input(path="/data/large", content="x" * 100_000)],
    )
    async with await secure.site("north", produce=counts), await secure.site("south", produce=fails):
        await eventually(lambda: all(secure.net.reducer.engine.roster.find(name) for name in ("north", "south")))
        task_id = await asyncio.to_thread(client.create_task, task)
        ended = await asyncio.to_thread(client.wait, task_id, 20)
    assert ended.state == "EXECUTOR_ERROR"
    full = await asyncio.to_thread(client.get_task, task_id, "FULL")
    assert [(log.metadata["site"], log.logs[0].exit_code) for log in full.logs] == [("north", 0), ("south", 1)]
    assert (full.logs[0].logs[0].stdout, full.logs[1].system_logs) == ("counted\n", ["It ended with 1."])
    async with secure.as_one({"Authorization": f"Bearer {given}"}) as http:
        answer = await http.get(f"/tasks/{task_id}/results")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.read("north/result.csv") == b"n\n42\n"
        assert (await http.get(f"/tasks/{task_id}/logs")).json()["logs"][0] == "north: hello from north"
    # Tasks are their users' own; who runs the network sees all.
    seen = {}
    for name, secret in (("alice", alice["token"]), ("bob", bob["token"]), ("operator", secure.operator)):
        async with secure.as_one({"Authorization": f"Bearer {secret}"}) as http:
            listed = (await http.get("/tasks")).json()["tasks"]
            run = full.logs[0].metadata["run"]
            statuses = [
                (await http.get(path)).status_code
                for path in (f"/tasks/{task_id}", f"/api/v1/runs/{run}", f"/api/v1/runs/{run}/logs")
            ]
            seen[name] = ([each["id"] for each in listed], statuses)
    assert seen == {
        "alice": ([task_id], [200, 200, 200]),
        "bob": ([], [404, 404, 404]),
        "operator": ([task_id], [200, 200, 200]),
    }
    async with secure.as_one({"Authorization": f"Bearer {secure.operator}"}) as http:
        events = (await http.get("/api/v1/events?after=0&limit=1000", headers={"Accept": "application/json"})).json()
        called = [each["data"] for each in events["items"] if each["kind"] == "api.call"]
        by_alice = {(each["method"], each["path"], each["status"]) for each in called if each["by"] == alice["id"]}
        assert by_alice >= {
            ("POST", "/auth/connect/token", 200),
            ("POST", "/ga4gh/tes/v1/tasks", 200),
            ("GET", f"/tasks/{task_id}/results", 200),
        }
        assert ("GET", f"/tasks/{task_id}", 404) in {
            (each["method"], each["path"], each["status"]) for each in called if each["by"] == bob["id"]
        }
        # What stands for a token ends with it.
        assert (await http.delete(f"/api/v1/tokens/{alice['id']}")).status_code == 200
        refused = await http.get("/tasks", headers={"Authorization": f"Bearer {given}"})
        assert (refused.status_code, "revoked" in refused.text) == (401, True)


async def test_results_are_approved_once_and_gone_after_their_time(tmp_path: Path) -> None:
    async with (
        LocalNetwork(tmp_path, keep_results=1 / 86_400) as net,
        httpx.AsyncClient(base_url=net.reducer.url, trust_env=False, timeout=20) as http,
    ):
        north = TaskClient(net.reducer.rpc_address, "north", produce=counts, review=True)
        async with north:
            await net.until_attached("north")
            north.gate.clear()
            task_id = (await http.post("/tasks", json=BODY)).json()["id"]
            assert (await http.post(f"/tasks/{task_id}/results/approve")).status_code == 400
            north.gate.set()

            async def waits() -> bool:
                return bool((await http.get(f"/tasks/{task_id}/results")).json() == {"status": "Pending Review"})

            await eventually(waits)
        # The site is away: a second decision comes before it hears of the first.
        decisions = [await http.post(f"/tasks/{task_id}/results/{each}") for each in ("approve", "block")]
        assert [each.status_code for each in decisions] == [201, 400]
        assert "to be released already" in decisions[1].json()["message"]
        async with north:

            async def gone() -> bool:
                return (await http.get(f"/tasks/{task_id}/results")).status_code == 410

            await eventually(gone)
            assert (await http.get(f"/tasks/{task_id}/results")).json()["code"] == "gone"
            assert (await http.get(f"/tasks/{task_id}")).json()["state"] == "COMPLETE"
