"""The server of a central function, as its algorithm client sees it, over a network that is a list."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from runnel.client.tasks.vantage6_files import Profile
from runnel.client.tasks.vantage6_proxy import Vantage6Proxy
from runnel.client.tasks.vantage6_subtasks import SubTasks
from runnel.common.blobs import Source
from runnel.common.errors import DeadlineExceeded, Forbidden, RunnelError, Unauthenticated
from runnel.common.protocol import BlobRef, Failure, ResultFile, RunResult, TaskOrder
from runnel.common.tasks import Contract, Executor, TaskSpec, task_spec
from runnel.common.tasks.asks import LookAtTask, NewTask, Site, SitesAsk, SubRun, TaskAnswer, TaskAsk
from runnel.common.tasks.site_numbers import site_number

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

IMAGE = "average:1"
SITES = [f"site-{number:02}" for number in range(12)]


class ListedNetwork:
    """Keeps what it is asked; ``ends`` says how a sub-run at a site has ended."""

    def __init__(self) -> None:
        self.asked: list[NewTask] = []
        self.looks: list[LookAtTask] = []
        self.blobs: dict[str, bytes] = {}
        self.ends: dict[str, SubRun] = {}
        self.fetched = 0
        self.fault: RunnelError | None = None
        self.refusal: RunnelError | None = None  # of new tasks only
        self.pushed: list[str] = []

    async def ask(self, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        assert (ask.run_id, ask.client) == ("run-1", "site-00")
        if self.fault is not None:
            raise self.fault
        match ask.body:
            case SitesAsk():
                return TaskAnswer(sites=tuple(Site(name=name, attached=True) for name in SITES))
            case NewTask() as new:
                if self.refusal is not None:
                    raise self.refusal
                self.asked.append(new)
                return TaskAnswer(task_id=f"tsk-{len(self.asked)}")
            case LookAtTask() as look:
                self.looks.append(look)
                sites = self.asked[int(look.task_id[4:]) - 1].sites
                waiting = {site: SubRun(run_id=f"run-{site}", site=site, state="queued") for site in sites}
                return TaskAnswer(runs=tuple(self.ends.get(site, waiting[site]) for site in sites))

    async def fetch(self, ref: BlobRef, target: Path, *, deadline_s: float) -> None:
        self.fetched += 1
        target.write_bytes(self.blobs[ref.sha256])

    async def push(self, order_id: str, source: Source, ref: BlobRef, *, deadline_s: float) -> None:
        assert isinstance(source, memoryview)
        self.pushed.append(order_id)
        self.blobs[ref.sha256] = bytes(source)

    def ended(self, site: str, output: bytes | None = None, *, exit_code: int = 1) -> None:
        """End the run at a site, well if there is an output."""
        if output is None:
            result = RunResult(failure=Failure(code="exit_status", message="It ended with 1."), exit_code=exit_code)
        else:
            ref = BlobRef(sha256=hashlib.sha256(output).hexdigest(), size_bytes=len(output))
            self.blobs[ref.sha256] = output
            file = ResultFile(name="output", media_type="application/octet-stream", blob=ref)
            result = RunResult(files=(file,), exit_code=0)
        state = "failed" if output is None else "done"
        self.ends[site] = SubRun(run_id=f"run-{site}", site=site, state=state, result=result)


class Bench:
    def __init__(self, network: ListedNetwork, http: httpx.AsyncClient) -> None:
        self.network, self.http = network, http

    async def get(self, path: str, status: int = 200, **params: Any) -> Any:
        answer = await self.http.get(path, params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def create(
        self, *organizations: Any, status: int = 201, data: bytes = b'{"method": "f"}', **more: Any
    ) -> Any:
        text = base64.b64encode(data).decode()
        asked = [each if isinstance(each, dict) else {"id": each, "input": text} for each in organizations]
        body = {"name": "subtask", "image": IMAGE, "collaboration_id": 1, "organizations": asked} | more
        answer = await self.http.post("/task", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    network = ListedNetwork()
    async with serving(network, tmp_path) as made:
        yield made


@asynccontextmanager
async def serving(network: ListedNetwork, folder: Path, profile: Profile = Profile.V4) -> AsyncIterator[Bench]:
    spec = TaskSpec(
        executors=(Executor(image=IMAGE),), contract=Contract.VANTAGE6, databases=("default",), central=True
    )
    order = TaskOrder(run_id="run-1", client="site-00", task_id="tsk-0", organisation="o", user="u", spec="")
    subtasks = SubTasks(order=order, spec=spec, site="site-00", labels=["default"], profile=profile)
    proxy = Vantage6Proxy(
        network,
        subtasks,
        run_id="run-1",
        client="site-00",
        token="the.token",
        answers=folder / "answers",
        most_bytes=1000,
    )
    async with proxy.serving("127.0.0.1") as port:
        headers = {"Authorization": "Bearer the.token"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as http:
            yield Bench(network, http)


NUMBER = site_number("site-00")


async def test_only_the_container_of_the_run_is_let_in(bench: Bench) -> None:
    for shown in (b"", b"Bearer", b"Bearer the.token2", b"Bearer the.toke", b"Bearer \xe9"):
        answer = await bench.http.get("/organization", headers={b"Authorization": shown})
        assert (answer.status_code, answer.json()) == (401, {"msg": "This is not the token of this run."})
    assert await bench.get("/version") == {"version": "4.15.2"}


async def test_organizations_come_in_pages_of_ten(bench: Bench) -> None:
    first = await bench.get("/organization", collaboration_id=1, page=1)
    second = await bench.get("/organization", collaboration_id=1, page=2)
    assert (len(first["data"]), len(second["data"])) == (10, 2)
    assert ("next" in first["links"], "next" in second["links"]) == (True, False)
    assert {each["name"] for each in first["data"] + second["data"]} == set(SITES)
    one = await bench.get(f"/organization/{NUMBER}")
    assert (one["id"], one["name"], one["public_key"]) == (NUMBER, "site-00", "")
    assert len((await bench.get("/organization", per_page=12))["data"]) == 12
    assert await bench.get("/collaboration/1/organization") == [
        *(await bench.get("/organization", per_page=100))["data"]
    ]


async def test_what_the_client_asks_besides_is_answered(bench: Bench) -> None:
    assert await bench.get("/blobstream/status") == {"blob_store_enabled": False}
    assert await bench.get("/vpn/algorithm/addresses", only_children=1) == {"addresses": []}
    assert (await bench.get("/study"))["data"] == []
    assert (await bench.get("/collaboration/1"))["encrypted"] is False
    assert (await bench.get(f"/node/{NUMBER}"))["status"] == "online"
    assert (await bench.get("/task/1"))["id"] == 1
    assert await bench.get("/task/1/status") == {"status": "active"}


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/organization/7", 404, "id=7"),
        ("/collaboration/2", 404, "id=2"),
        ("/task/9", 404, "id=9"),
        ("/task/9/status", 404, "id=9"),
        ("/run/9", 404, "id=9"),
        ("/result?task_id=9", 404, "id=9"),
        ("/organization?page=0", 400, "Pages"),
        ("/organization?per_page=100000", 400, "Pages"),
        ("/organization/..%2f", 400, "number"),
        ("/result?task_id=x", 400, "number"),
        ("/nothing", 404, "Not Found"),
        ("/blobstream", 404, "Not Found"),
    ],
)
async def test_errors_are_told_as_a_vantage6_server_tells_them(
    bench: Bench, path: str, status: int, words: str
) -> None:
    answer = await bench.http.get(path)
    assert answer.status_code == status
    assert words in answer.json()["msg"]


async def test_a_sub_task_has_what_its_parent_has_and_its_own_input(bench: Bench) -> None:
    others = [await _number(bench, "site-01"), await _number(bench, "site-02")]
    task = await bench.create(*others, databases=[{"label": "default"}])
    assert (task["id"], task["parent"]["id"], task["job_id"], task["status"]) == (2, 1, 1, "pending")
    [asked] = bench.network.asked
    assert asked.sites == ("site-01", "site-02")
    spec = task_spec(asked.spec, source="test")
    assert spec.payload is not None
    assert spec.payload.data == b'{"method": "f"}'
    assert (spec.contract, spec.databases, spec.central) == (Contract.VANTAGE6, ("default",), False)
    again = await bench.create(*others, databases=[{"label": "default"}])
    assert again["id"] == 3
    assert bench.network.asked[1].idempotency_key != asked.idempotency_key


async def test_a_run_that_begins_anew_asks_by_the_same_keys(bench: Bench, tmp_path: Path) -> None:
    for _ in range(2):
        await bench.create(await _number(bench, "site-01"))
    network = ListedNetwork()
    async with serving(network, tmp_path) as anew:
        for _ in range(2):
            await anew.create(await _number(anew, "site-01"))
    keys = [each.idempotency_key for each in bench.network.asked]
    assert [each.idempotency_key for each in network.asked] == keys
    assert len(set(keys)) == 2


async def test_sites_with_inputs_of_their_own_are_one_task_to_the_algorithm(bench: Bench) -> None:
    one, two = await _number(bench, "site-01"), await _number(bench, "site-02")
    inputs = [base64.b64encode(json.dumps({"method": name}).encode()).decode() for name in "fg"]
    task = await bench.create({"id": one, "input": inputs[0]}, {"id": two, "input": inputs[1]})
    assert [each.sites for each in bench.network.asked] == [("site-01",), ("site-02",)]
    bench.network.ended("site-01", b"1")
    bench.network.ended("site-02", b"2")
    assert await bench.get(f"/task/{task['id']}/status") == {"status": "completed"}
    assert len((await bench.get("/result", task_id=task["id"]))["data"]) == 2


async def test_a_large_input_is_pushed_before_it_is_named(bench: Bench) -> None:
    data = json.dumps({"method": "f", "kwargs": {"w": "x" * 100_000}}).encode()
    await bench.create(await _number(bench, "site-01"), data=data)
    spec = task_spec(bench.network.asked[0].spec, source="test")
    assert spec.payload is not None
    assert spec.payload.blob is not None
    assert bench.network.blobs[spec.payload.blob.sha256] == data
    assert bench.network.pushed == ["run-1"]


async def test_one_that_fails_ends_none_of_the_others_and_results_come_newest_first(bench: Bench) -> None:
    numbers = [await _number(bench, name) for name in SITES]
    task = (await bench.create(*numbers))["id"]
    bench.network.ended("site-00")
    assert await bench.get(f"/task/{task}/status") == {"status": "active"}
    for name in SITES[1:]:
        bench.network.ended(name, b'{"n": "\xff"}')
    assert await bench.get(f"/task/{task}/status") == {"status": "crashed"}
    assert bench.network.looks[-1].wait_s > 0
    first = await bench.get("/result", task_id=task, page=1)
    second = await bench.get("/result", task_id=task, page=2)
    results = first["data"] + second["data"]
    assert [each["id"] for each in results] == sorted((each["id"] for each in results), reverse=True)
    assert [base64.b64decode(each["result"]) for each in results if each["result"]] == [b'{"n": "\xff"}'] * 11
    assert all(each["blob_storage_used"] is False for each in results)
    assert bench.network.fetched == 1
    runs = (await bench.get("/run", task_id=task, per_page=12))["data"]
    assert sorted({each["status"] for each in runs}) == ["completed", "crashed"]
    assert [each["log"] for each in runs if each["log"]] == ["exit_status: It ended with 1."]
    legacy = await bench.get(f"/task/{task}/result")
    assert len(legacy) == 12
    assert (await bench.get(f"/task/{task}"))["complete"] is True


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"organizations": []}, "organizations"),
        ({"organizations": [{"id": 7, "input": ""}]}, "organization 7"),
        ({"organizations": [{"id": True, "input": ""}]}, "organization True"),
        ({"organizations": [{"id": "../a", "input": ""}]}, "name"),
        ({"organizations": [{"id": NUMBER, "input": "%"}]}, "base64"),
        ({"organizations": [{"id": NUMBER, "input": 1}]}, "base64"),
        ({"organizations": [{"id": NUMBER, "input": ""}], "databases": [{"label": "secrets"}]}, "secrets"),
        ({"organizations": [{"id": NUMBER, "input": ""}], "databases": [1]}, "label"),
    ],
)
async def test_a_task_that_can_not_be_is_refused_and_leaves_nothing(
    bench: Bench, body: dict[str, Any], words: str
) -> None:
    answer = await bench.http.post("/task", json={"image": IMAGE} | body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["msg"]
    assert (await bench.http.post("/task", content=b"[" * 100_000)).status_code == 400
    assert bench.network.asked == []
    assert [each["id"] for each in (await bench.get("/task"))["data"]] == [1]


async def test_another_image_is_refused_as_there(bench: Bench) -> None:
    told = await bench.create(NUMBER, status=401, image="other:1")
    assert told == {"msg": "Container-token is not valid"}
    assert bench.network.asked == []


async def test_what_the_network_refuses_is_told_and_leaves_no_task(bench: Bench) -> None:
    number = await _number(bench, "site-01")
    for fault, status in ((Forbidden("Not this."), 403), (Unauthenticated("Who are you?"), 403)):
        bench.network.refusal = fault
        assert fault.message in (await bench.create(number, status=status))["msg"]
    bench.network.refusal = None
    assert (await bench.create(number))["id"] == 2


async def test_while_the_network_is_away_the_status_is_what_was_known(bench: Bench) -> None:
    task = (await bench.create(await _number(bench, "site-01")))["id"]
    bench.network.fault = DeadlineExceeded("Nobody answered.")
    assert await bench.get(f"/task/{task}/status") == {"status": "pending"}


async def test_a_result_that_is_too_large_is_refused(bench: Bench) -> None:
    task = (await bench.create(await _number(bench, "site-01")))["id"]
    bench.network.ended("site-01", bytes(1001))
    assert "1,001 bytes" in (await bench.get("/result", status=413, task_id=task))["msg"]


async def test_release_5_sends_its_function_beside_its_arguments(bench: Bench) -> None:
    arguments = base64.b64encode(b'{"column": "Age"}').decode()
    await bench.create({"id": await _number(bench, "site-01"), "arguments": arguments}, method="sum", action="a")
    spec = task_spec(bench.network.asked[0].spec, source="test")
    assert spec.payload is not None
    assert spec.payload.data is not None
    assert json.loads(spec.payload.data) == {"method": "sum", "kwargs": {"column": "Age"}, "action": "a"}


async def test_clients_of_release_5_hear_the_two_words_that_they_wait_for(tmp_path: Path) -> None:
    network = ListedNetwork()
    async with serving(network, tmp_path, Profile.V5) as bench:
        number = await _number(bench, "site-01")
        asked = {"id": number, "arguments": base64.b64encode(b"{}").decode()}
        groups = [[{"label": "default"}]]
        task = (await bench.create(asked, method="f", databases=groups))["id"]
        spec = task_spec(network.asked[0].spec, source="test")
        assert spec.payload is not None
        assert json.loads(spec.payload.data or b"")["databases"] == groups
        assert spec.databases == ("default",)
        assert (await bench.get(f"/task/{task}"))["status"] == "awaiting"
        network.ended("site-01")
        assert await bench.get(f"/task/{task}/status") == {"status": "failed"}
        other = (await bench.create({**asked, "id": await _number(bench, "site-02")}, method="f"))["id"]
        network.ended("site-02", b"1")
        assert await bench.get(f"/task/{other}/status") == {"status": "completed"}


async def test_clients_of_releases_2_and_3_get_whole_lists_and_name_one_database(tmp_path: Path) -> None:
    network = ListedNetwork()
    async with serving(network, tmp_path, Profile.V3) as bench:
        whole = await bench.get("/organization", collaboration_id=1)
        assert [each["name"] for each in sorted(whole, key=lambda each: str(each["name"]))] == sorted(SITES)
        assert len(await bench.get("/organization", page=2)) == len(SITES) - 10
        wrapped = await bench.get("/organization", include="metadata", page=2)
        assert wrapped["data"] == await bench.get("/organization", page=2)
        await bench.create(site_number("site-01"), database="default")
        await bench.create(site_number("site-01"), database="another")
        assert [task_spec(each.spec, source="test").databases for each in network.asked] == [("default",), ()]


async def test_tasks_at_once_have_numbers_of_their_own(bench: Bench) -> None:
    number = await _number(bench, "site-01")
    made = await asyncio.gather(*(bench.create(number) for _ in range(5)))
    assert sorted(each["id"] for each in made) == [2, 3, 4, 5, 6]


async def _number(bench: Bench, name: str) -> int:
    await bench.get("/organization")
    return site_number(name)
