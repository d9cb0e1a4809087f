"""What scripts and clients of PyTaskManager ask of its master, asked of a reducer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from runnel.common.errors import Unauthenticated
from runnel.common.protocol import RunState
from runnel.common.tasks import Contract
from runnel.reducer.domain.task_views import BlobView, TaskFilter, TaskView
from runnel.reducer.domain.values import NodeView, Page, Role
from runnel.reducer.http import HttpServer, create_app
from runnel.reducer.pytaskmanager import PtmMaster
from runnel.reducer.service import Caller
from runnel.reducer.store import access
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import NodeRow
from tests.doubles.reducer_service import InMemoryReducer
from tests.doubles.reducer_state import START, database_in
from tests.doubles.task_service import InMemoryTasks

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("each_database")]

RESEARCHER, VIEWER, SITE, OTHER_SITE = "rnl_researcher", "rnl_viewer", "rnl_site", "rnl_other"
ROLES = {RESEARCHER: Role.RESEARCHER, VIEWER: Role.VIEWER, SITE: Role.CLIENT, OTHER_SITE: Role.CLIENT}
ADD_CLIENT = {
    "name": "johan",
    "email": "johan.vansoest@maastro.nl",
    "institute": "MAASTRO Clinic",
    "country": "Netherlands",
}
LOG_MARK = "=======================INTERNAL FILE LOG====================="


class TasksOfSites(InMemoryTasks):
    """The tasks of :class:`InMemoryTasks`, and the list of nodes, in two pages.

    Fault switch: ``broken`` raises an unexpected error in nodes().
    """

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        super().__init__(folder)
        self.sites = list(sites)
        self.members = [node_view(name) for name in sites]
        self.broken = False
        self.stored: list[bytes] = []

    async def nodes(self, caller: Caller, cursor: str | None, limit: int) -> Page[NodeView]:
        if self.broken:
            raise ZeroDivisionError
        if cursor is None:
            return Page(items=tuple(self.members[:1]), next_cursor="more")
        return Page(items=tuple(self.members[1:]), next_cursor=None)

    async def add_blob(self, caller: Caller, body: AsyncIterator[bytes]) -> BlobView:
        blocks = [block async for block in body]
        self.stored += blocks

        async def again() -> AsyncIterator[bytes]:
            for block in blocks:
                yield block

        return await super().add_blob(caller, again())

    async def started(self) -> list[TaskView]:
        caller = Caller(token_id="", role=Role.OPERATOR, organisation="default")
        page = await self.tasks(caller, TaskFilter(), None, 100)
        return [await self.task(caller, each.task) for each in reversed(page.items)]

    def end(self, task: TaskView, files: Mapping[str, bytes], **changes: Any) -> None:
        for name, data in files.items():
            self.give_out(task.runs[0].run, name, data)
        self.move(task.runs[0].run, RunState.FAILED if changes else RunState.DONE, **changes)


def node_view(name: str, *, kind: str = "client", organisation: str = "default") -> NodeView:
    return NodeView(
        name=name,
        node_id=f"id of {name}",
        kind=kind,
        organisation=organisation,
        status="attached",
        attached_to="reducer",
        version="1",
        platform="",
        address=None,
        first_seen_at=START,
        last_seen_at=START,
    )


class Tokens(InMemoryReducer):
    async def authenticate(self, bearer: str | None, *, client_id: str | None = None) -> Caller:
        if bearer not in ROLES:
            raise Unauthenticated("The token is unknown.")
        return Caller(token_id=f"tok-{bearer}", role=ROLES[bearer], organisation="default")


@dataclass
class Master:
    url: str
    tasks: TasksOfSites
    http: httpx.AsyncClient

    async def get(self, path: str, token: str = RESEARCHER) -> Any:
        answer = await self.http.get(f"{self.url}/ptm/{token}{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any, token: str = RESEARCHER) -> Any:
        answer = await self.http.post(f"{self.url}/ptm/{token}{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def master_in(folder: Path, *sites: str) -> AsyncIterator[Master]:
    folder.mkdir(exist_ok=True)
    async with database_in(folder) as database:
        journal = Journal(database)
        async with journal.transaction() as tx:
            await access.ensure_organisation(tx.session, "default")
            for name in sites:
                if await tx.session.get(NodeRow, name) is None:
                    tx.session.add(
                        NodeRow(
                            name=name,
                            node_id=name,
                            organisation_id="default",
                            kind="client",
                            first_seen_at=START,
                            last_seen_at=START,
                        )
                    )
        tasks = TasksOfSites(folder, sites)
        app = create_app(Tokens(folder), insecure=False, ptm=PtmMaster(tasks, journal))
        async with HttpServer(app, "127.0.0.1:0") as server, httpx.AsyncClient(timeout=60, trust_env=False) as http:
            yield Master(server.url, tasks, http)


async def test_the_lines_of_their_scripts_are_answered_as_there(tmp_path: Path) -> None:
    async with master_in(tmp_path) as master:
        hello = await master.http.get(f"{master.url}/ptm/{RESEARCHER}")
        assert (hello.status_code, hello.text) == (200, "Hello, World")
        assert await master.post("/client/add", ADD_CLIENT) == {"success": True, "clientId": 1}
        [client] = await master.get("/client")
        seen = client.pop("last_seen")
        assert client == {"id": 1, "ip": "127.0.0.1", **ADD_CLIENT}
        assert seen[4] == seen[7] == "-"
        task = {"image": "hello-world", "inputString": "", "runId": "1"}
        assert await master.post("/client/1/task/add", task) == {"success": True, "taskId": 1}
        numbered = {"image": "jvsoest/base_task", "inputString": "echo Hi There!", "runId": 10}
        assert await master.post("/client/1/task/add", numbered) == {"success": True, "taskId": 2}
        assert await master.get("/client/1/task") == [
            {"id": 1, "runId": "1", "input": "", "image": "hello-world"},
            {"id": 2, "runId": "10", "input": "echo Hi There!", "image": "jvsoest/base_task"},
        ]
        assert await master.get("/client/1/task/1/result") == []
        refused = await master.post("/client/1/task/1/result/add", {"response": "Hello, world!"})
        assert refused["success"] is False
        assert "log" in refused["message"]
        told = {"response": "Hello, world!", "log": ""}
        assert await master.post("/client/1/task/1/result/add", told) == {"success": True, "taskId": 1}
        assert await master.get("/client/1/task/1/result") == [{"id": 1, "task": 1, **told}]
        assert [each["id"] for each in await master.get("/client/1/task")] == [2]
        text = await master.http.get(f"{master.url}/ptm/{RESEARCHER}/client/1/task/1/result/output")
        assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", "Hello, world!")


async def test_a_body_is_read_as_json_whatever_it_is_called(tmp_path: Path) -> None:
    async with master_in(tmp_path) as master:
        answer = await master.http.post(
            f"{master.url}/ptm/client/add",
            content=json.dumps(ADD_CLIENT),
            headers={"Content-Type": "application/x-www-form-urlencoded", "Authorization": f"Bearer {RESEARCHER}"},
        )
        assert answer.json() == {"success": True, "clientId": 1}


WRONG: list[tuple[str, object, str]] = [
    ("/client/add", {"name": "a"}, "email"),
    ("/client/add", ADD_CLIENT | {"name": 3}, "name"),
    ("/client/add", [], "not as expected"),
    ("/client/7/task/add", {"image": "a", "inputString": "", "runId": "1"}, "There is no client 7"),
    (
        "/client/99999999999999999999/task/add",
        {"image": "a", "inputString": "", "runId": "1"},
        "There is no client",
    ),
    ("/client/1/task/add", {"image": "a;id", "inputString": "", "runId": "1"}, "should name an image"),
    ("/client/1/task/add", {"image": "a", "inputString": "", "runId": ""}, "1 to 255"),
    ("/client/1/task/add", {"image": "a", "inputString": "\ud800", "runId": "1"}, "not Unicode"),
    ("/client/1/task/9/result/add", {"response": "", "log": ""}, "has no task 9"),
    ("/client/one/task/add", {}, "are numbers"),
]


async def test_errors_have_the_status_200_and_a_message(tmp_path: Path) -> None:
    async with master_in(tmp_path) as master:
        await master.post("/client/add", ADD_CLIENT)
        for path, body, told in WRONG:
            answer = await master.http.post(f"{master.url}/ptm/{RESEARCHER}{path}", content=json.dumps(body))
            assert answer.status_code == 200, path
            assert answer.json()["success"] is False
            assert told in answer.json()["message"], path


async def test_what_is_too_large_is_refused_in_an_answer_that_arrives(tmp_path: Path) -> None:
    async with master_in(tmp_path) as master:
        await master.post("/client/add", ADD_CLIENT)
        task = {"image": "a", "inputString": "x" * (3 << 20), "runId": "1"}
        answer = await master.http.post(f"{master.url}/ptm/{RESEARCHER}/client/1/task/add", json=task)
        assert (answer.status_code, answer.json()["success"]) == (413, False)
        assert await master.get("/client/1/task") == []


async def test_without_a_good_token_nothing_is_told_and_no_token_is_logged(tmp_path: Path) -> None:
    async with master_in(tmp_path) as master:
        with structlog.testing.capture_logs() as lines:
            for path in ("", "/", "/client", "/client/1/task"):
                for url in (f"{master.url}/ptm/rnl_wrong{path}", f"{master.url}/ptm{path}"):
                    answer = await master.http.get(url)
                    assert answer.status_code == 401, url
                    assert answer.json()["success"] is False
                    assert "rnl_wrong" not in answer.text
            master.tasks.broken = True
            assert (await master.http.get(f"{master.url}/ptm/{RESEARCHER}/client")).status_code == 500
        assert [line["path"] for line in lines if line["event"] == "http request failed"] == ["/ptm/client"]
        assert RESEARCHER not in repr(lines)
        nothing = await master.http.get(f"{master.url}/ptm/{RESEARCHER}/nothing/here")
        assert nothing.status_code == 404
        assert RESEARCHER not in nothing.text
        viewer = await master.http.get(f"{master.url}/ptm/{VIEWER}/client")
        assert viewer.json()["success"] is False


async def test_a_polling_site_keeps_its_number_over_restarts_and_minds_its_own_tasks(tmp_path: Path) -> None:
    config = ADD_CLIENT | {"interval": 5, "endpointToken": "secret of the site", "masterUrl": "…"}
    async with master_in(tmp_path) as master:
        assert (await master.post("/client/add", config, SITE))["clientId"] == 1
        assert (await master.post("/client/add", config | {"name": "other"}, OTHER_SITE))["clientId"] == 2
        taken = await master.post("/client/add", config, OTHER_SITE)
        assert taken == {"success": False, "message": "Another site is registered as 'johan'. Choose another name."}
        await master.post("/client/1/task/add", {"image": "a", "inputString": "x", "runId": "1"})
        [before, _] = await master.get("/client")
    assert b"secret of the site" not in b"".join(path.read_bytes() for path in tmp_path.glob("reducer.db*"))
    async with master_in(tmp_path) as master:
        assert (await master.post("/client/add", config, SITE))["clientId"] == 1
        assert [task["id"] for task in await master.get("/client/1/task", SITE)] == [1]
        for token, told in ((OTHER_SITE, "was not registered with this token"), (VIEWER, "does not allow this")):
            for answer in (
                await master.get("/client/1/task", token),
                await master.post("/client/1/task/1/result/add", {"response": "", "log": ""}, token),
            ):
                assert answer["success"] is False
                assert told in answer["message"]
        result = {"response": "r", "log": "l"}
        first = await master.post("/client/1/task/1/result/add", result, SITE)
        # The answer may have been lost.
        assert await master.post("/client/1/task/1/result/add", result, SITE) == first
        assert await master.get("/client/1/task/1/result") == [{"id": 1, "task": 1, **result}]
        [after, _] = await master.get("/client")
        assert after["last_seen"] > before["last_seen"]


async def test_the_networks_clients_have_numbers_and_run_the_tasks(tmp_path: Path) -> None:
    async with master_in(tmp_path, "alpha", "beta") as master:
        master.tasks.members += [node_view("hub", kind="combiner"), node_view("far", organisation="other")]
        sites = await master.get("/client")
        assert [(each["id"], each["name"], each["ip"]) for each in sites] == [(1, "alpha", None), (2, "beta", None)]
        assert [each["id"] for each in await master.get("/client")] == [1, 2]
        registered = await master.post("/client/add", ADD_CLIENT | {"name": "beta"})
        assert registered["success"] is False
        large = "é" * 40_000
        for text, profile in (("echo hi", None), (large, "files")):
            body = {"image": "jvsoest/base_task", "inputString": text, "runId": 10, "profile": profile}
            assert (await master.post("/client/2/task/add", body))["success"] is True
        small, big = await master.tasks.started()
        assert [run.site for run in small.runs] == ["beta"]
        assert small.spec is not None
        assert big.spec is not None
        assert (small.spec.contract, small.spec.group, small.spec.profile) == (Contract.PYTASKMANAGER, "10", None)
        assert small.spec.payload is not None
        assert small.spec.payload.data == b"echo hi"
        assert big.spec.payload is not None
        assert big.spec.payload.blob is not None
        assert big.spec.payload.blob.sha256 in master.tasks.blobs
        assert master.tasks.stored == [large.encode()]
        assert big.spec.profile == "files"
        assert [each["id"] for each in await master.get("/client/2/task")] == [1, 2]
        refused = await master.post("/client/2/task/1/result/add", {"response": "false", "log": ""})
        assert refused["success"] is False
        assert (await master.get("/client/2/task", SITE))["success"] is False


async def test_results_are_the_output_and_the_log_as_their_client_puts_it_together(tmp_path: Path) -> None:
    async with master_in(tmp_path, "alpha") as master:
        await master.get("/client")
        for run_id in "123":
            await master.post("/client/1/task/add", {"image": "a", "inputString": "", "runId": run_id})
        well, badly, _ = await master.tasks.started()
        files = {"output": "résultat".encode(), "stdout": b"out\n", "stderr": b"err\n", "log": b"own"}
        master.tasks.end(well, files)
        master.tasks.end(badly, files | {"output": b""}, exit_code=3, error="The container ended with the status 3.")
        log = f"out\n\r\nerr\n{LOG_MARK}own"
        assert await master.get("/client/1/task/1/result") == [{"id": 1, "task": 1, "response": "résultat", "log": log}]
        [failed] = await master.get("/client/1/task/2/result")
        assert failed["response"] == ""
        assert failed["log"] == f"out\n\r\nerr\n\r\nThe container ended with the status 3.{LOG_MARK}own"
        assert [each["id"] for each in await master.get("/client/1/task")] == [3]
        base = f"{master.url}/ptm/{RESEARCHER}/client/1/task"
        assert (await master.http.get(f"{base}/1/result/output")).text == "résultat"
        assert (await master.http.get(f"{base}/1/result/log")).text == log
        unfinished = await master.http.get(f"{base}/3/result/output")
        assert (unfinished.status_code, unfinished.json()["success"]) == (404, False)


async def test_a_script_combines_what_sites_gave_and_begins_the_next_round(tmp_path: Path) -> None:
    """Each round asks both sites, adds their answers up and hands the sum to the next round."""
    async with master_in(tmp_path, "alpha", "beta") as master:
        sites = [each["id"] for each in await master.get("/client")]
        total = 1
        for _ in range(3):
            body = {"image": "adds-one", "inputString": str(total), "runId": "iteration"}
            asked = [(site, (await master.post(f"/client/{site}/task/add", body))["taskId"]) for site in sites]
            for task in (await master.tasks.started())[-2:]:
                assert task.spec is not None
                assert task.spec.payload is not None
                assert task.spec.payload.data is not None
                master.tasks.end(task, {"output": str(int(task.spec.payload.data) + 1).encode()})
            answers = [(await master.get(f"/client/{site}/task/{task}/result"))[0] for site, task in asked]
            total = sum(int(each["response"]) for each in answers)
        assert total == 22
