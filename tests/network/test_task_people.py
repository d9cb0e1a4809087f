"""Tasks as people meet them: the Python interface and the command line, at a real reducer with light clients."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import structlog

from runnel.cli.main import main
from runnel.cli.task_view import event_line
from runnel.common.errors import DeadlineExceeded, EntryPointFailed, Forbidden, IllegalState, InvalidInput, NotFound
from runnel.common.protocol import TaskOrder
from runnel.common.tasks import task_spec
from runnel.sdk import Network, Task
from runnel.sdk.values import Event
from tests.doubles.said import Said
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

T = TypeVar("T")


def answer(order: TaskOrder) -> dict[str, bytes]:
    """Give back what came, as a container would."""
    spec = task_spec(order.spec, source="the test")
    if spec.executors[0].image == "broken:1":
        raise EntryPointFailed("The container ended with 1.")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("result.csv", f"site\n{order.client}\n")
    given = spec.payload.data if spec.payload is not None and spec.payload.data is not None else b"{}"
    return {"stdout": given, "output": out.getvalue()}


@dataclass(slots=True, kw_only=True)
class Bench:
    """A network with two sites, and somebody who works with it."""

    net: LocalNetwork
    clients: dict[str, TaskClient]
    capsys: pytest.CaptureFixture[str]

    async def use(self, act: Callable[[Network], T]) -> T:
        def run() -> T:
            with Network(self.net.reducer.url) as network:
                return act(network)

        return await asyncio.to_thread(run)

    async def runnel(self, *arguments: str) -> Said:
        self.capsys.readouterr()
        status = await asyncio.to_thread(main, ["task", *arguments, "--url", self.net.reducer.url])
        captured = self.capsys.readouterr()
        return Said(status=status, out=captured.out, err=captured.err)


@pytest.fixture
async def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Bench]:
    with structlog.testing.capture_logs():
        async with LocalNetwork(tmp_path) as net, AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(
                    TaskClient(net.reducer.rpc_address, name, produce=answer, review=name == "b")
                )
                for name in ("a", "b")
            }
            await net.until_attached("a", "b")
            yield Bench(net=net, clients=clients, capsys=capsys)


async def test_a_program_runs_a_task_and_reads_what_came_of_it(bench: Bench) -> None:
    def work(network: Network) -> tuple[Task, str, list[str], list[str]]:
        task = network.run_task("count:1", sites=["a"], name="count", input={"column": "age"}, tags={"study": "x"})
        done = task.wait(timeout_s=20)
        run = done.at("a")
        with zipfile.ZipFile(run.save_output(bench.net.folder / "out.zip")) as output:
            result = output.read("result.csv").decode()
        assert run.json("stdout") == {"column": "age"}
        kinds = [event.kind for event in task.watch() if event.seq is not None]
        return done, result, kinds, [each.task for each in network.tasks.list(tags=["study=x"], status="done")]

    done, result, kinds, listed = await bench.use(work)
    assert (done.status, done.counts, result) == ("done", {"done": 1}, "site\na\n")
    assert (kinds[0], kinds[-1]) == ("task.created", "task.ended")
    assert listed == [done.task]
    assert done.at("a").ended
    with pytest.raises(NotFound, match="has no file 'log'"):
        done.at("a").file("log")
    with pytest.raises(NotFound, match="no run at 'z'"):
        done.at("z")


async def test_what_does_not_end_in_time_says_where_and_goes_on(bench: Bench) -> None:
    bench.clients["a"].gate.clear()

    def impatient(network: Network) -> Task:
        task = network.run_task("count:1", sites=["a"])
        with pytest.raises(DeadlineExceeded, match=r"a (queued|assigned|preparing|running)"):
            task.wait(timeout_s=0.3)
        cancelled = task.cancel()
        with pytest.raises(IllegalState):
            task.cancel()
        return cancelled

    assert (await bench.use(impatient)).status == "cancelled"


async def test_a_large_input_is_stored_before_it_is_named(bench: Bench) -> None:
    def work(network: Network) -> Task:
        task = network.run_task("count:1", sites=["a"], input=bytes(100_000), files={"/in/more": b"small"})
        return task.wait(timeout_s=20)

    spec = (await bench.use(work)).spec or {}
    assert spec["payload"]["blob"]["size_bytes"] == 100_000
    assert spec["inputs"][0]["content"] == {"data": "c21hbGw="}
    with pytest.raises(InvalidInput, match="nowhere"):
        await bench.use(lambda network: network.run_task("count:1", sites=["nowhere"]))


async def test_the_command_follows_a_task_and_brings_its_files(bench: Bench, tmp_path: Path) -> None:
    output = tmp_path / "results"
    said = await bench.runnel(
        "run", "count:1", "--site", "a", "--input", "rows=3", "--input", "kind=all", "--wait", "-o", str(output)
    )
    assert said.status == 0, said.err
    assert [line for line in said.out.splitlines() if line.startswith("a: ")][-1] == "a: done"
    assert (output / "a" / "stdout").read_text() == '{"rows": 3, "kind": "all"}'
    assert (output / "a" / "output").exists()
    listed = (await bench.runnel("list", "--json")).document
    assert [task["status"] for task in listed] == ["done"]
    task = listed[0]["task"]
    assert said.out.splitlines()[0] == f"task {task}"
    shown = await bench.runnel("show", task)
    assert "count:1" in shown.out
    assert "done" in shown.out

    async def lines_are_there() -> bool:
        return "a stdout: hello from a" in (await bench.runnel("logs", task)).out

    await eventually(lines_are_there)  # they are written a moment later
    assert "stdout" in (await bench.runnel("results", task)).out


async def test_a_task_that_fails_somewhere_ends_the_command_with_1(bench: Bench) -> None:
    said = await bench.runnel("run", "broken:1", "--site", "a", "--wait")
    assert said.status == 1
    assert "a: failed (exit_status)" in said.out
    said = await bench.runnel("run", "count:1", "--site", "a", "--expires", "soon")
    assert (said.status, "--expires" in said.err) == (1, True)
    said = await bench.runnel("run", "count:1", "--site", "a", "--input", "nonsense")
    assert "KEY=VALUE" in said.err


async def test_results_that_await_release_are_approved_and_rejected(bench: Bench) -> None:
    states = {"approve": "done", "reject": "rejected"}
    for word, state in states.items():
        started = (await bench.runnel("run", "count:1", "--site", "b", "--json")).document
        task = started["task"]

        async def waits(task: str = task) -> bool:
            return (await bench.use(lambda network: network.tasks.show(task).runs[0].state)) == "awaiting-release"

        await eventually(waits)
        said = await bench.runnel("results", task, "--output", "nowhere")
        assert (said.status, f"no result files of {task}: b awaiting-release" in said.err) == (1, True)
        said = await bench.runnel(word, task, "--reason", "looked at it")
        assert said.status == 0, said.err
        assert f"Told b that you {word}.\nWhere the policy listens" in said.out
        done = await bench.use(lambda network, task=task: network.tasks.wait(task, timeout_s=20))  # type: ignore[misc]
        assert done.runs[0].state == state
        assert (await bench.runnel(word, task)).status == 1
        said = await bench.runnel("show", task, "--wait")
        assert said.out.startswith(f"task {task}\n")
    told = {"site": "b", "state": "awaiting-release"}
    waits_there = Event(seq=1, at=None, kind="run.state", session=None, data=told, raw={})
    assert event_line(waits_there) == "b: awaiting-release (somebody there has to look at its results)"


async def test_who_may_only_look_sees_no_description_and_no_result(tmp_path: Path) -> None:
    with structlog.testing.capture_logs():
        async with LocalNetwork(tmp_path, insecure=False, allow_plaintext=True) as net:
            secret = (net.folder / "reducer" / "operator.token").read_text().strip()

            def work() -> None:
                with Network(net.reducer.url, secret) as operator:
                    tokens = {role: operator.tokens.create(role).token for role in ("viewer", "researcher", "client")}
                with Network(net.reducer.url, tokens["viewer"]) as viewer:
                    assert list(viewer.tasks.list()) == []
                    with pytest.raises(Forbidden):
                        viewer.run_task("count:1", sites=["a"])
                    with pytest.raises(Forbidden):
                        viewer.tasks.store(b"data")
                with Network(net.reducer.url, tokens["researcher"]) as researcher:
                    with pytest.raises(InvalidInput, match="No client"):
                        researcher.run_task("count:1", sites=["a"])
                    with pytest.raises(Forbidden):
                        list(researcher.tokens.list())
                with Network(net.reducer.url, tokens["client"]) as client, pytest.raises(Forbidden):
                    list(client.tasks.list())

            await asyncio.to_thread(work)
