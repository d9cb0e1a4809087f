"""The interface of the Task Execution Service and of Federated Data Sharing over HTTP, and py-tes as its client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tes

from runnel.common.protocol import RunState
from runnel.reducer.domain.task_views import RunLineView
from runnel.reducer.http.fds.archives import SUMMARY
from tests.doubles.reducer_service import NOW, OPERATOR_TOKEN, InMemoryReducer
from tests.doubles.serving import serving
from tests.doubles.tes_documents import TaskDocument, TaskPage, TaskServiceInfo
from tests.unit.test_fds_bodies import LEGACY, NODE, TES

pytestmark = pytest.mark.network

HERE = {"tags": {"sites": "site-1"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A reducer that is served, and a client of its root."""

    reducer: InMemoryReducer
    http: httpx.AsyncClient
    url: str

    async def start(self, **said: Any) -> str:
        """Start a task at a site; return its id."""
        answer = await self.http.post("/tasks", json=TES | HERE | said)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def run_of(self, task: str, place: int = 0) -> str:
        view = await self.reducer.task(await self.reducer.authenticate(OPERATOR_TOKEN), task)
        return view.runs[place].run

    async def finish(self, task: str, output: bytes, place: int = 0, *, outputs: bytes = b"", **changes: Any) -> None:
        """Have a run end well with an output."""
        run = await self.run_of(task, place)
        self.reducer.give_out(run, "output", output, "application/zip")
        if outputs:
            self.reducer.give_out(run, "outputs", outputs, "application/zip")
        self.reducer.give_out(run, "stdout", b"hello\n")
        self.reducer.move(run, RunState.DONE, **{"exit_code": 0, **changes})


@asynccontextmanager
async def shared(folder: Path, *, insecure: bool = False) -> AsyncIterator[Shared]:
    async with (
        serving(folder, insecure=insecure) as served,
        httpx.AsyncClient(
            base_url=served.url, headers={"Authorization": f"Bearer {OPERATOR_TOKEN}"}, trust_env=False, timeout=20
        ) as http,
    ):
        yield Shared(reducer=served.reducer, http=http, url=served.url)


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Shared]:
    async with shared(tmp_path) as it:
        yield it


def packed(**files: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


# ---- tasks


async def test_py_tes_creates_lists_gets_and_cancels(net: Shared) -> None:
    client = tes.HTTPClient(net.url, token=OPERATOR_TOKEN, timeout=20)
    wanted = tes.Task(
        name="Summary",
        executors=[tes.Executor(image="alpine", command=["sort", "/data/in"], stdout="/mnt/output/sorted")],
        inputs=[tes.Input(path="/data/in", content="b\na\n")],
        outputs=[tes.Output(path="/out", url="file:///out", type="DIRECTORY")],
        resources=tes.Resources(cpu_cores=2, ram_gb=1),
        volumes=["/shared"],
        tags={"sites": "site-1,site-2", "study": "first"},
    )

    def use() -> None:
        info = client.get_service_info()
        assert info.type == {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}
        first, second = client.create_task(wanted), client.create_task(wanted)
        assert client.get_task(first, "MINIMAL") == tes.Task(id=first, state="QUEUED")
        page = client.list_tasks(view="BASIC", page_size=1)
        assert [task.id for task in page.tasks] == [second]
        rest = client.list_tasks(page_token=page.next_page_token)
        assert [(task.id, task.state) for task in rest.tasks] == [(first, "QUEUED")]
        assert not rest.next_page_token
        client.cancel_task(second)
        client.cancel_task(second)
        assert client.get_task(second, "FULL").state == "CANCELED"
        full = client.get_task(first, "FULL")
        assert full.is_valid()[0], full.is_valid()
        assert full.inputs[0].content == "b\na\n"
        assert client.get_task(first, "BASIC").inputs[0].content is None
        assert full.executors == wanted.executors
        assert full.volumes == wanted.volumes
        assert full.tags == wanted.tags
        assert [log.metadata["site"] for log in full.logs] == ["site-1", "site-2"]

    await asyncio.to_thread(use)


async def test_py_tes_waits_for_the_end_and_reads_the_logs(net: Shared) -> None:
    client = tes.HTTPClient(net.url, user=f"tok-{OPERATOR_TOKEN}", password=OPERATOR_TOKEN)
    task = await net.start()
    net.reducer.move(await net.run_of(task), RunState.RUNNING)
    waiting = asyncio.create_task(asyncio.to_thread(client.wait, task, 20))
    await net.finish(task, packed(a="1"))
    assert (await waiting).state == "COMPLETE"
    log = (await asyncio.to_thread(client.get_task, task, "FULL")).logs[0]
    assert log.start_time is not None
    assert log.outputs[0].path == "/mnt/output"
    assert (log.logs[0].exit_code, log.logs[0].stdout) == (0, "hello\n")


@pytest.mark.parametrize(
    ("body", "status", "shape"),
    [(TES, 200, {"id"}), (LEGACY, 200, {"data"}), (NODE, 201, {"task_id"})],
)
async def test_each_form_is_answered_as_its_clients_read_it(
    net: Shared, body: dict[str, Any], status: int, shape: set[str]
) -> None:
    net.reducer.sites = ["north"]
    answer = await net.http.post("/tasks", json=body)
    assert (answer.status_code, set(answer.json())) == (status, shape)
    listed = (await net.http.get("/tasks")).json()["tasks"]
    assert listed == [{"id": listed[0]["id"], "state": "QUEUED"}]


async def test_the_legacy_form_waits_by_its_own_words(net: Shared) -> None:
    net.reducer.sites = ["north"]
    created = (await net.http.post("/tasks", json=LEGACY)).json()["data"]
    assert created["status"] == "Running"
    task = created["id"]
    assert (await net.http.get(f"/tasks/{task}")).json()["status"] == "Running"
    await net.finish(task, packed(**{"result.csv": "a\n1\n"}))
    assert (await net.http.get(f"/tasks/{task}")).json()["status"] == "complete"
    assert "status" not in (await net.http.get(f"/ga4gh/tes/v1/tasks/{task}")).json()
    document = (await net.http.get(f"/tasks/{task}?view=FULL")).json()
    assert document["tags"] == {"sites": "north"}


async def test_all_that_is_answered_is_as_the_standard_says(net: Shared) -> None:
    net.reducer.sites = ["north", "south"]
    for body in (TES | {"tags": {}}, LEGACY, NODE):
        await net.http.post("/tasks", json=body)
    more = {"inputs": [{"path": "/a", "content": "b"}], "volumes": ["/v"], "resources": {"cpu_cores": 1}}
    task = await net.start(tags={"sites": "north,south"}, outputs=[{"path": "/out.csv"}], **more)
    await net.finish(task, packed(a="1"))
    net.reducer.move(await net.run_of(task, 1), RunState.FAILED, exit_code=3, error="It ended with 3.")
    for prefix in ("/v1", "/ga4gh/tes/v1"):
        for view in ("MINIMAL", "BASIC", "FULL"):
            listed = (await net.http.get(f"{prefix}/tasks?view={view}&page_size=2")).json()
            page = TaskPage.model_validate(listed)
            assert page.next_page_token
            shown = (await net.http.get(f"{prefix}/tasks/{task}?view={view}")).json()
            assert listed["tasks"][0] == shown
            assert (TaskDocument.model_validate(shown).executors is None) == (view == "MINIMAL")
    TaskServiceInfo.model_validate((await net.http.get("/ga4gh/tes/v1/service-info")).json())


async def test_large_files_are_stored_before_the_task(net: Shared) -> None:
    await net.start(inputs=[{"path": "/large", "content": "x" * 100_000}])
    assert list(net.reducer.blobs.values()) == [100_000]


async def test_without_sites_a_task_goes_to_all(net: Shared) -> None:
    task = await net.start(tags={})
    document = (await net.http.get(f"/tasks/{task}?view=BASIC")).json()
    assert [log["metadata"]["site"] for log in document["logs"]] == net.reducer.sites


async def test_lists_are_filtered(net: Shared) -> None:
    first = await net.start(name="alpha", tags={"sites": "site-1", "study": "a"})
    second = await net.start(name="beta", tags={"sites": "site-1", "study": "b"})
    net.reducer.move(await net.run_of(second), RunState.FAILED, exit_code=2, error="It ended with 2.")

    async def found(**query: Any) -> list[str]:
        return [each["id"] for each in (await net.http.get("/tasks", params=query)).json()["tasks"]]

    assert await found() == [second, first]
    assert await found(name_prefix="al") == [first]
    assert await found(state="EXECUTOR_ERROR") == [second]
    assert await found(tag_key="study", tag_value="b") == [second]
    assert await found(tag_key=["study", "sites"], tag_value=["a"]) == [first]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/tasks/tsk-none", None, 404, "no task"),
        ("GET", "/tasks?page_size=2048", None, 400, "page_size"),
        ("GET", "/tasks?view=ALL", None, 400, "view"),
        ("GET", "/tasks?tag_value=a", None, 400, "tag_key"),
        ("POST", "/tasks", b"{", 400, "JSON"),
        ("POST", "/tasks", b"[]", 400, "object"),
        ("POST", "/tasks", b"\xff", 400, "UTF-8"),
        ("POST", "/tasks", b'{"executors": [{"image": "a;b"}]}', 400, "executors.0.image"),
        ("POST", "/tasks", json.dumps(TES | {"tags": {"sites": "nowhere"}}).encode(), 400, "nowhere"),
        ("POST", "/tasks", b'"' + b"x" * (1 << 21), 413, "larger"),
        ("POST", "/tasks/tsk-none:cancel", None, 404, "no task"),
        ("GET", "/tasks/tsk-none/results", None, 404, "no task"),
    ],
)
async def test_errors_say_what_is_wrong(
    net: Shared, method: str, path: str, body: bytes | None, status: int, says: str
) -> None:
    answer = await net.http.request(method, path, content=body)
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert document["status"] == status
    assert says in document["message"]


async def test_validation_names_what_nobody_knows(net: Shared) -> None:
    good = await net.http.post("/tasks/validate", json=TES)
    assert (good.status_code, good.json()) == (200, {"success": "true"})
    odd = await net.http.post("/tasks/validate", json=TES | {"executors": [{"image": "a", "comand": ["x"]}]})
    assert (odd.status_code, odd.json()["success"], odd.json()["unknown"]) == (200, "false", ["executors.0.comand"])
    bad = await net.http.post("/tasks/validate", json={"executors": []})
    assert (bad.status_code, bad.json()["success"]) == (400, "false")
    assert (await net.http.get("/tasks")).json() == {"tasks": []}


async def test_what_the_service_is(net: Shared) -> None:
    shared_info = (await net.http.get("/tasks/service-info")).json()
    assert {"name", "doc", "storage", "registries"} <= shared_info.keys()
    assert shared_info["registries"][1] == {
        "registry_id": "registry.example.org:5000",
        "registry_name": "registry.example.org:5000",
        "registry_host": "registry.example.org:5000",
        "registry_url": "https://registry.example.org:5000",
    }
    standard = (await net.http.get("/ga4gh/tes/v1/service-info")).json()
    assert standard["storage"] == shared_info["storage"] == [f"{net.url}/tasks/"]
    assert {"id", "name", "type", "organization", "version", "storage"} <= standard.keys()
    assert "registries" not in standard
    for path in ("/health_check", "/healthz"):
        answer = await net.http.get(path, headers={"Authorization": ""})
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


# ---- results


async def test_the_results_of_one_site_are_its_output(net: Shared) -> None:
    task, output = await net.start(), packed(**{"result.csv": "a\n1\n"})
    early = await net.http.get(f"/tasks/{task}/results")
    assert (early.status_code, "site-1 (queued)" in early.text) == (409, True)
    await net.finish(task, output)
    for name in ("result", "results"):
        answer = await net.http.get(f"/tasks/{task}/{name}", headers={"Accept": "application/gzip"})
        assert (answer.status_code, answer.content) == (200, output)
        assert answer.headers["content-type"] == "application/zip"


async def test_the_results_of_several_sites_have_a_folder_for_each(net: Shared) -> None:
    task = await net.start(tags={"sites": "site-1,site-2,site-3"})
    await net.finish(task, packed(**{"result.csv": "a\n1\n", "deep/b.txt": "b"}))
    await net.finish(task, b"no zip", place=1)
    net.reducer.move(await net.run_of(task, 2), RunState.FAILED, exit_code=1, error="It ended with 1.")
    answer = await net.http.get(f"/tasks/{task}/results")
    assert answer.status_code == 200
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {
            SUMMARY,
            "site-1/result.csv",
            "site-1/deep/b.txt",
            "site-2/output.zip",
        }
        assert archive.read("site-1/deep/b.txt") == b"b"
        assert archive.read("site-2/output.zip") == b"no zip"
        told = json.loads(archive.read(SUMMARY))
    assert [(each["site"], each["state"], each["output"]) for each in told] == [
        ("site-1", "done", True),
        ("site-2", "done", True),
        ("site-3", "failed", False),
    ]


async def test_further_outputs_are_in_the_same_archive(net: Shared) -> None:
    task = await net.start(outputs=[{"path": "/data/out"}])
    await net.finish(task, packed(a="1"), outputs=packed(**{"data/out/b": "2", "a": "another"}))
    answer = await net.http.get(f"/tasks/{task}/results")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"a": b"1", "data/out/b": b"2"}


async def test_a_task_without_results_says_why(net: Shared) -> None:
    task = await net.start()
    net.reducer.move(await net.run_of(task), RunState.REJECTED, error="The image is none of the site's.")
    answer = await net.http.get(f"/tasks/{task}/results")
    assert (answer.status_code, "none of the site's" in answer.json()["message"]) == (404, True)


async def test_results_wait_for_a_decision_that_is_made_once(net: Shared) -> None:
    task = await net.start()
    nothing = await net.http.post(f"/tasks/{task}/results/approve")
    assert (nothing.status_code, nothing.json()["code"]) == (400, "illegal_state")
    net.reducer.move(await net.run_of(task), RunState.AWAITING_RELEASE)
    assert (await net.http.get(f"/tasks/{task}")).json()["state"] == "PAUSED"
    pending = await net.http.get(f"/tasks/{task}/results")
    assert (pending.status_code, pending.json()) == (400, {"status": "Pending Review"})
    approved = await net.http.post(f"/tasks/{task}/results/approve")
    assert (approved.status_code, approved.json()) == (201, {"status": "Approved Release"})
    again = await net.http.post(f"/tasks/{task}/results/block")
    assert again.status_code == 400


async def test_blocked_results_stay_away(net: Shared) -> None:
    task = await net.start()
    run = await net.run_of(task)
    net.reducer.move(run, RunState.AWAITING_RELEASE)
    blocked = await net.http.post(f"/tasks/{task}/results/block")
    assert (blocked.status_code, blocked.json()) == (201, {"status": "Blocked Release"})
    net.reducer.move(run, RunState.REJECTED, error_code="results_blocked")
    answer = await net.http.get(f"/tasks/{task}/results")
    assert (answer.status_code, answer.json()) == (400, {"status": "Blocked Release"})


async def test_the_logs_of_all_sites(net: Shared) -> None:
    task = await net.start(tags={"sites": "site-1,site-2"})
    for place, run in enumerate([await net.run_of(task, 0), await net.run_of(task, 1)]):
        line = RunLineView(id=place, run=run, at=NOW, stream="stdout", text=f"line {place}")
        net.reducer.lines_of_runs[run] = [line]
    answer = await net.http.get(f"/tasks/{task}/logs")
    assert answer.json() == {"logs": ["site-1: line 0", "site-2: line 1"]}


# ---- who asks


def basic(user: str, secret: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"}


FORM = {"grant_type": "client_credentials"}


async def test_an_access_token_by_client_credentials(net: Shared) -> None:
    answer = await net.http.post("/auth/connect/token", data=FORM, headers=basic("me", OPERATOR_TOKEN))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert (made["token_type"], made["expires_in"]) == ("Bearer", 60)
    used = await net.http.get("/tasks", headers={"Authorization": f"Bearer {made['access_token']}"})
    assert used.status_code == 200
    by_form = FORM | {"client_id": "me", "client_secret": OPERATOR_TOKEN}
    assert (await net.http.post("/auth/connect/token", data=by_form, headers={"Authorization": ""})).status_code == 200


@pytest.mark.parametrize(
    ("form", "headers", "status", "error"),
    [
        (FORM, basic("me", "rnl-wrong"), 401, "invalid_client"),
        (FORM, {"Authorization": ""}, 401, "invalid_client"),
        (FORM, {"Authorization": "Basic ???"}, 401, "invalid_client"),
        (FORM, basic("me", ""), 401, "invalid_client"),
        ({"grant_type": "password"}, basic("me", OPERATOR_TOKEN), 400, "unsupported_grant_type"),
        ({}, basic("me", OPERATOR_TOKEN), 400, "invalid_request"),
    ],
)
async def test_a_token_that_is_not_given(
    net: Shared, form: dict[str, str], headers: dict[str, str], status: int, error: str
) -> None:
    answer = await net.http.post("/auth/connect/token", data=form, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert status != 401 or answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("path", ["/tasks", "/v1/tasks", "/ga4gh/tes/v1/tasks", "/tasks/service-info"])
async def test_who_is_nobody_gets_nothing(net: Shared, path: str) -> None:
    assert (await net.http.get(path, headers={"Authorization": ""})).status_code == 401
    assert (await net.http.get(path, headers={"Authorization": "Bearer rnl-wrong"})).status_code == 401
    other = await net.http.get(path, headers={"project-name": "elsewhere"})
    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
    assert (await net.http.get(path, headers={"project-name": "default"})).status_code == 200


async def test_each_call_is_recorded(net: Shared) -> None:
    task = await net.start()
    for _ in range(3):
        await net.http.get(f"/tasks/{task}")
    for _ in range(2):
        await net.http.get(f"/tasks/{task}/results")
    await net.http.get("/tasks", headers={"project-name": "elsewhere"})
    await net.http.get("/tasks", headers={"Authorization": ""})
    assert [each for each in net.reducer.effects if each[:3] in {"GET", "POS"}] == [
        "POST /tasks 200",
        f"GET /tasks/{task} 200",
        f"GET /tasks/{task}/results 409",
        f"GET /tasks/{task}/results 409",
        "GET /tasks 403",
    ]
