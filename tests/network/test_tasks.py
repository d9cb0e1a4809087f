"""Tasks through a real reducer and real combiners, at clients that speak the wire and run nothing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from runnel.common.errors import EntryPointFailed, Forbidden, IllegalState, TooLarge
from runnel.common.protocol import (
    BlobRef,
    Failure,
    Member,
    NodeKind,
    ResultFile,
    RunResult,
    RunState,
    TaskNews,
    TaskOrder,
    TaskSettled,
)
from tests.doubles.hostile_node import HostileNode
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

SPEC = {"name": "count", "executors": [{"image": "analysis:1"}]}
ENDED = {"done", "failed", "rejected", "cancelled"}


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[LocalNetwork]:
    async with LocalNetwork(tmp_path) as network:
        yield network


async def start(net: LocalNetwork, *sites: str, spec: dict[str, Any] | None = None, **wanted: Any) -> dict[str, Any]:
    answer = await net.http.post("/tasks", json={"spec": spec or SPEC, "sites": sites} | wanted)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def show(net: LocalNetwork, task: dict[str, Any] | str) -> dict[str, Any]:
    answer = await net.http.get(f"/tasks/{task if isinstance(task, str) else task['task']}")
    answer.raise_for_status()
    return dict(answer.json())


async def ended(net: LocalNetwork, task: dict[str, Any], timeout_s: float = 20.0) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        shown = await show(net, task)
        return shown if shown["finished_at"] else None

    return dict(await eventually(look, timeout_s=timeout_s) or {})


def states(task: dict[str, Any]) -> dict[str, str]:
    return {run["site"]: run["state"] for run in task["runs"]}


async def joined(net: LocalNetwork, *names: str) -> None:
    """Let clients join, and go away."""
    for name in names:
        async with TaskClient(net.reducer.rpc_address, name):
            await net.until_attached(name)
    await eventually(lambda: not any(net.reducer.engine.roster.find(name) for name in names))


async def test_a_task_runs_once_at_each_site_and_its_files_come_back(net: LocalNetwork) -> None:
    await net.start_combiner("c1")
    async with (
        TaskClient(net.reducer.rpc_address, "a", prefer="c1") as a,
        TaskClient(net.reducer.rpc_address, "b", prefer="c1", produce=lambda order: {"output": bytes(300_000)}) as b,
    ):
        await net.until_attached("a", "b")
        task = await start(net, "a", "b")
        done = await ended(net, task)
        assert (done["status"], states(done)) == ("done", {"a": "done", "b": "done"})
        assert a.begun.total() == b.begun.total() == 1
        await eventually(lambda: not a.held and not b.held)
        run_a, run_b = done["runs"]
        assert [(f["name"], f["size_bytes"]) for f in run_a["files"]] == [("stdout", 20), ("stderr", 0)]
        out = await net.http.get(f"/runs/{run_a['run']}/files/stdout")
        assert out.text == f"{run_a['run']} at a\n"
        assert out.headers["content-disposition"] == f'attachment; filename="{run_a["run"]}-stdout.txt"'
        part = await net.http.get(f"/runs/{run_b['run']}/files/output", headers={"Range": "bytes=299998-"})
        assert (part.status_code, part.content) == (206, bytes(2))
        assert (await net.http.get(f"/runs/{run_a['run']}/files/nothing")).status_code == 404

        async def lines() -> list[str]:
            page = (await net.http.get(f"/runs/{run_a['run']}/logs")).json()
            return [line["text"] for line in page["items"]]

        assert await eventually(lines) == ["hello from a"]
        accept = {"Accept": "application/json"}
        events = (await net.http.get(f"/tasks/{task['task']}/events", params={"after": 0}, headers=accept)).json()
        kinds = [(e["kind"], e["data"].get("state")) for e in events["items"] if e["data"].get("site") in (None, "a")]
        assert kinds == [
            ("task.created", None),
            *(("run.state", state) for state in ("assigned", "preparing", "running", "done")),
            ("task.ended", None),
        ]


async def test_a_site_that_is_away_gets_its_run_when_it_returns_and_one_that_fails_is_named(net: LocalNetwork) -> None:
    def fails(order: TaskOrder) -> dict[str, bytes]:
        raise EntryPointFailed("It ended with 1.")

    await joined(net, "late")
    async with TaskClient(net.reducer.rpc_address, "bad", produce=fails):
        await net.until_attached("bad")
        task = await start(net, "bad", "late")
        await eventually(lambda: _state_is(net, task, "bad", "failed"))
        shown = await show(net, task)
        assert (shown["status"], states(shown)["late"]) == ("running", "queued")
        async with TaskClient(net.reducer.rpc_address, "late"):
            done = await ended(net, task)
    assert (done["status"], states(done)) == ("failed", {"bad": "failed", "late": "done"})
    assert (done["runs"][0]["error_code"], done["runs"][0]["exit_code"]) == ("exit_status", 1)


async def _state_is(net: LocalNetwork, task: dict[str, Any], site: str, state: str) -> bool:
    return states(await show(net, task))[site] == state


@pytest.mark.parametrize("stopped", ["reducer", "c1"])
async def test_a_restart_in_the_middle_loses_no_run_and_makes_no_second_result(net: LocalNetwork, stopped: str) -> None:
    combiner = await net.start_combiner("c1")
    async with TaskClient(net.reducer.rpc_address, "a", prefer="c1") as a:
        await net.until_attached("a")
        a.gate.clear()
        tasks = [await start(net, "a") for _ in range(4)]
        await eventually(lambda: len(a.held) == 3)
        await net.stop(stopped)
        await eventually(lambda: not a.link.attached or not combiner.link.attached)
        a.gate.set()
        await eventually(lambda: len(a.finished) == 3)
        if stopped == "reducer":
            await net.start_reducer()
        else:
            await net.start_combiner("c1")
        done = [await ended(net, task) for task in tasks]
        assert {task["status"] for task in done} == {"done"}
        assert set(a.begun.values()) == {1}
        await eventually(lambda: not a.held)
        async with net.reducer.engine._journal.database.read():  # the state is whole
            assert len(net.reducer.engine.tasks.book) == 0


async def test_a_client_that_was_away_while_its_run_was_cancelled_forgets_it(net: LocalNetwork) -> None:
    client = TaskClient(net.reducer.rpc_address, "a")
    async with client:
        await net.until_attached("a")
        client.gate.clear()
        task = await start(net, "a")
        await eventually(lambda: client.begun.total() == 1)
    await eventually(lambda: net.reducer.engine.roster.find("a") is None)
    cancelled = (await net.http.post(f"/tasks/{task['task']}/cancel")).json()
    assert (cancelled["status"], states(cancelled)) == ("cancelled", {"a": "cancelled"})
    again = await net.http.post(f"/tasks/{task['task']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "illegal_state")
    async with client:
        await eventually(lambda: not client.held)
    assert {(each.cancelled, each.reason) for each in client.settled} == {(True, "cancelled")}


async def test_a_run_that_is_at_work_is_stopped_when_its_task_is_cancelled(net: LocalNetwork) -> None:
    async with TaskClient(net.reducer.rpc_address, "a") as client:
        await net.until_attached("a")
        client.gate.clear()
        task = await start(net, "a")
        await eventually(lambda: client.begun.total() == 1)
        await net.http.post(f"/tasks/{task['task']}/cancel")
        await eventually(lambda: not client.held and client.at_work == 0)
        run = (await show(net, task))["runs"][0]
        assert (run["state"], run["error_code"]) == ("cancelled", "cancelled")


async def test_what_has_not_begun_in_time_expires(net: LocalNetwork) -> None:
    await joined(net, "away")
    task = await start(net, "away", expires_in_s=0.3)
    run = (await ended(net, task))["runs"][0]
    assert (run["state"], run["error_code"]) == ("failed", "expired")


async def test_results_that_await_release_are_decided_on_from_afar(net: LocalNetwork) -> None:
    async with TaskClient(net.reducer.rpc_address, "a", review=True) as client:
        await net.until_attached("a")
        tasks = [await start(net, "a") for _ in range(2)]
        for task, release in zip(tasks, (True, False), strict=True):
            await eventually(lambda task=task: _state_is(net, task, "a", "awaiting-release"))  # type: ignore[misc]
            run = (await show(net, task))["runs"][0]["run"]
            answer = await net.http.post(f"/runs/{run}/release", json={"release": release, "reason": "looked at"})
            assert answer.status_code == 200, answer.text
        assert [(await ended(net, task))["status"] for task in tasks] == ["done", "failed"]
        refused = await net.http.post(f"/runs/{run}/release", json={"release": True})
        assert (refused.status_code, refused.json()["code"]) == (409, "illegal_state")
        await eventually(lambda: not client.held)


async def test_a_client_is_given_no_more_than_it_has_room_for(net: LocalNetwork) -> None:
    async with TaskClient(net.reducer.rpc_address, "a", slots=2) as client:
        await net.until_attached("a")
        tasks = [await start(net, "a") for _ in range(12)]
        for task in tasks:
            assert (await ended(net, task))["status"] == "done"
        assert client.most_held <= 3
        assert client.most_at_work <= 2


async def test_many_tasks_over_a_few_clients_drain(net: LocalNetwork) -> None:
    names = [f"site-{number}" for number in range(5)]
    async with AsyncExitStack() as stack:
        await net.start_combiner("c1")
        clients = [
            await stack.enter_async_context(TaskClient(net.reducer.rpc_address, name, prefer="c1")) for name in names
        ]
        await net.until_attached(*names)
        tasks = [await start(net, *names) for _ in range(20)]
        for task in tasks:
            assert (await ended(net, task, 40))["status"] == "done"
        assert [client.begun.total() for client in clients] == [20] * 5
        assert {times for client in clients for times in client.begun.values()} == {1}


# ---- what people get wrong


async def test_what_makes_no_sense_is_refused_with_its_name(net: LocalNetwork) -> None:
    await joined(net, "a")

    async def refused(**wanted: Any) -> tuple[int, str, str]:
        answer = await net.http.post("/tasks", json={"spec": SPEC, "sites": ["a"]} | wanted)
        problem = answer.json()
        return answer.status_code, problem["code"], problem["detail"]

    status, code, detail = await refused(sites=["a", "nobody", "elsewhere"])
    assert (status, code) == (422, "invalid_input")
    assert "nobody, elsewhere" in detail
    assert "Named twice: a." in (await refused(sites=["a", "a"]))[2]
    assert "attached" in (await refused(sites=["*"]))[2]
    blob = {"sha256": "0" * 64, "size_bytes": 5}
    spec = SPEC | {"payload": {"blob": blob}}
    assert "is not stored here" in (await refused(spec=spec))[2]
    status, _, detail = await refused(spec={"executors": [{"image": "a; rm -rf /"}]})
    assert (status, "spec.executors.0.image" in detail) == (422, True)


async def test_a_file_for_tasks_is_stored_once_and_a_task_may_name_it(net: LocalNetwork) -> None:
    data = bytes(200_000)
    stored = (await net.http.post("/blobs", content=data)).json()
    assert (stored["sha256"], stored["size_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    blob = {"sha256": stored["sha256"], "size_bytes": stored["size_bytes"]}
    async with TaskClient(net.reducer.rpc_address, "a") as client:
        await net.until_attached("a")
        client.gate.clear()
        task = await start(net, "a", spec=SPEC | {"inputs": [{"path": "/in/x", "content": {"blob": blob}}]})
        await eventually(lambda: client.held)
        target = net.folder / "fetched"
        await client.link.fetch(BlobRef(**blob), target, deadline_s=10)
        assert target.read_bytes() == data
        client.gate.set()
        await ended(net, task)


async def test_tasks_are_found_by_what_they_are(net: LocalNetwork) -> None:
    await joined(net, "a", "b")
    await start(net, "a", spec=SPEC | {"tags": {"study": "x"}})
    await start(net, "b", spec=SPEC | {"name": "mean", "tags": {"study": "y"}})

    async def found(**query: Any) -> list[str]:
        answer = await net.http.get("/tasks", params=query)
        answer.raise_for_status()
        return [item["name"] for item in answer.json()["items"]]

    assert await found() == ["mean", "count"]
    assert await found(site="a") == await found(name="co") == await found(tag="study=x") == ["count"]
    assert await found(tag="study") == ["mean", "count"]
    assert await found(status="done") == []
    first = (await net.http.get("/tasks", params={"limit": 1})).json()
    assert [item["name"] for item in first["items"]] == ["mean"]
    assert await found(cursor=first["next"]) == ["count"]


async def test_results_go_when_their_time_is_over(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path, keep_results=1 / 86_400) as net:
        async with TaskClient(net.reducer.rpc_address, "a", produce=lambda _: {"output": b"precious"}):
            await net.until_attached("a")
            done = await ended(net, await start(net, "a"))
        run = done["runs"][0]
        path = f"/runs/{run['run']}/files/output"

        async def gone() -> bool:
            return (await net.http.get(path)).status_code == 410

        await eventually(gone)
        assert "--keep-results" in (await net.http.get(path)).json()["hint"]
        blob = net.folder / "reducer" / "blobs" / run["files"][0]["sha256"][:2] / run["files"][0]["sha256"]
        await eventually(lambda: not blob.exists())
        assert (await show(net, done))["runs"][0]["files"] == run["files"]


# ---- hostile clients


def done_news(run: str, client: str, *files: ResultFile) -> TaskNews:
    return TaskNews(run_id=run, client=client, state=RunState.DONE, result=RunResult(exit_code=0, files=files))


class Greedy(HostileNode):
    """It has room for runs, and does with them what a test wants."""

    @property
    def member(self) -> Member:
        return Member(name=self.name, node_id=f"id-{self.name}", kind=NodeKind.CLIENT, task_slots=2)

    async def order(self) -> TaskOrder:
        """Return its newest run."""
        found = await eventually(lambda: [m for m in self.heard if isinstance(m, TaskOrder)])
        return found[-1]


@pytest.mark.parametrize("combiners", [0, 1])
async def test_nobody_speaks_for_the_run_of_another_or_pushes_to_it(net: LocalNetwork, combiners: int) -> None:
    at = None
    if combiners:
        at = (await net.start_combiner("c1")).address
    async with (
        TaskClient(net.reducer.rpc_address, "a", prefer="c1") as honest,
        Greedy(net.reducer.rpc_address, "mallory", at=at) as mallory,
    ):
        await net.until_attached("a", "mallory")
        honest.gate.clear()
        task = await start(net, "a")
        run = task["runs"][0]["run"]
        await eventually(lambda: _state_is(net, task, "a", "running"))
        with pytest.raises((Forbidden, IllegalState)):
            await mallory.push(run, b"poison")
        await mallory.say(done_news(run, "mallory"))
        await mallory.say(done_news(run, "a"))
        assert isinstance(await mallory.refusal(), Forbidden)
        assert states(await show(net, task)) == {"a": "running"}
        honest.gate.set()
        assert states(await ended(net, task)) == {"a": "done"}


async def test_files_that_are_too_large_or_did_not_come_are_no_result(tmp_path: Path) -> None:
    async with (
        LocalNetwork(tmp_path, max_result_bytes=1000) as net,
        Greedy(net.reducer.rpc_address, "mallory") as mallory,
    ):
        await net.until_attached("mallory")
        task = await start(net, "mallory")
        run = (await mallory.order()).run_id
        with pytest.raises(TooLarge, match="at most 1,000"):
            await mallory.push(run, bytes(1001))
        data = b"a" * 600
        await mallory.push(run, data)
        with pytest.raises(TooLarge, match="1,200 bytes together"):
            await mallory.push(run, b"b" * 600)
        ref = BlobRef(sha256="0" * 64, size_bytes=3)
        await mallory.say(done_news(run, "mallory", ResultFile(name="output", media_type="", blob=ref)))
        await mallory.say(TaskNews(run_id=run, client="mallory", state=RunState.RUNNING))
        await eventually(lambda: _state_is(net, task, "mallory", "running"))
        ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=600)
        honest = done_news(run, "mallory", ResultFile(name="output", media_type="", blob=ref))
        await mallory.say(honest, honest)
        failed = RunResult(failure=Failure(code="late", message="second thoughts"))
        await mallory.say(TaskNews(run_id=run, client="mallory", state=RunState.FAILED, result=failed))
        done = await ended(net, task)
        assert states(done) == {"mallory": "done"}
        # Each repetition is answered, none counts.
        await eventually(lambda: len([m for m in mallory.heard if isinstance(m, TaskSettled)]) == 3)
        assert (await show(net, task))["runs"] == done["runs"]
        with pytest.raises(IllegalState):
            await mallory.push(run, b"late")
        # What came of the run and is not named is not kept.
        assert len(list((net.folder / "reducer" / "blobs").glob("??/*"))) == 1
