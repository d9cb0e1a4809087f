"""A task by py-tes on a real engine: its files, shared volumes, outputs, and what is told of them."""

from __future__ import annotations

import asyncio
import io
import secrets
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tes

from tests.docker_engine import base_image, docker, engine_host
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = pytest.mark.docker


def three_steps(image: str, *, fails: bool = False) -> tes.Task:
    last = "cat /shared/n; echo $UNIT >&2; cp /shared/n /mnt/output/n.txt; cp /shared/n /data/out/"
    return tes.Task(
        name="lines",
        inputs=[
            tes.Input(path="/data/in.txt", content="b\na\n"),
            tes.Input(path="/data/big.txt", content="x\n" * 50_000),
        ],
        outputs=[
            tes.Output(path="/mnt/output", url="file:///nowhere", type="DIRECTORY"),
            tes.Output(path="/data/out", url="file:///nowhere", type="DIRECTORY"),
        ],
        volumes=["/shared"],
        executors=[
            tes.Executor(
                image=image, command=["sort"], stdin="/data/in.txt", stdout="/mnt/output/sorted.txt", workdir="/tmp"
            ),
            tes.Executor(image=image, command=["sh", "-c", "cat /data/*.txt | wc -l > /shared/n"]),
            tes.Executor(image=image, command=["sh", "-c", f"{last}; exit {5 if fails else 0}"], env={"UNIT": "lines"}),
        ],
        tags={"sites": "north"},
    )


async def test_a_task_of_several_executors_by_py_tes(tmp_path: Path) -> None:
    image = base_image()
    async with LocalNetwork(tmp_path) as net:
        await net.start_client("north", docker_host=engine_host())
        client = tes.HTTPClient(net.reducer.url, timeout=20)

        def run(task: tes.Task) -> tes.Task:
            return client.get_task(client.wait(client.create_task(task), 60).id, "FULL")

        good = await asyncio.to_thread(run, three_steps(image))
        assert good.state == "COMPLETE", good
        log = good.logs[0]
        assert [each.exit_code for each in log.logs] == [0, 0, 0]
        assert (log.logs[-1].stdout, log.logs[-1].stderr) == ("a\nb\n50002\n", "lines\n")
        assert log.start_time <= log.end_time
        async with httpx.AsyncClient(base_url=net.reducer.url, trust_env=False) as http:
            answer = await http.get(f"/tasks/{good.id}/results")
            with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
        assert files == {"sorted.txt": b"a\nb\n", "n.txt": b"50002\n", "data/out/n": b"50002\n"}
        bad = await asyncio.to_thread(run, three_steps(image, fails=True))
        assert (bad.state, bad.logs[0].logs[-1].exit_code) == ("EXECUTOR_ERROR", 5)
        assert bad.logs[0].logs[-1].stderr == "lines\n"


@pytest.fixture
def copying() -> Iterator[str]:
    """An image that gives out what it was given."""
    name = f"runnel-test-fds:{secrets.token_hex(6)}"
    command = "cat $CA_INPUT_FOLDER/patients.csv > $CA_OUTPUT_FOLDER/patients.csv"
    text = f'FROM {base_image()}\nLABEL runnel.test=fds\nCMD ["sh", "-c", "{command}"]\n'
    build = ["docker", "--host", engine_host(), "build", "--quiet", "--tag", name, "-"]
    subprocess.run(build, input=text, text=True, check=True, capture_output=True)
    yield name
    docker("rmi", "--force", name)


async def test_three_forms_select_the_same_data(tmp_path: Path, copying: str) -> None:
    rows = "".join(f"{number},{'mf'[number % 2]},{number}\n" for number in range(20, 60))
    table = tmp_path / "patients.csv"
    table.write_text(f"age,sex,secret\n{rows}")
    name, _, tag = copying.partition(":")
    select = "{ patients { age sex } }"
    sql = {"query": "SELECT age, sex FROM patients", "dialect": "postgres"}
    folders: dict[str, Any] = {"inputs": {"patients.csv": "/mnt/input"}, "outputs": {"results": "/mnt/output"}}
    bodies: list[dict[str, Any]] = [
        {"inputs": [{"content": select}], "executors": [{"image": copying}]},
        {"task": {"queryInput": {"selectionQuery": select}, "container": {"name": name, "tag": tag}}},
        {"db_query": sql, "executors": [{"image": copying}], "tags": {"dataset_name": "north"}} | folders,
    ]
    given = []
    async with LocalNetwork(tmp_path) as net:
        await net.start_client("north", docker_host=engine_host(), data={"default": str(table)})
        async with httpx.AsyncClient(base_url=net.reducer.url, trust_env=False) as http:
            for body in bodies:
                created = (await http.post("/tasks", json=body)).json()
                task = created.get("id") or created.get("task_id") or created["data"]["id"]

                async def ended(task: str = task) -> bool:
                    state = (await http.get(f"/tasks/{task}")).json()["state"]
                    return state not in {"QUEUED", "INITIALIZING", "RUNNING"}

                await eventually(ended, timeout_s=60)
                answer = await http.get(f"/tasks/{task}/results")
                assert answer.status_code == 200, answer.text
                with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
                    given.append(archive.read("patients.csv"))
    assert given[0].splitlines()[:2] == [b"age,sex", b"20,m"]
    assert len(given[0].splitlines()) == 41
    assert given == [given[0]] * 3
