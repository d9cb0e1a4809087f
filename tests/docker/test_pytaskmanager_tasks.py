"""Images of PyTaskManager on a real engine: their files, variables, names and the folder of a run id."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runnel.client.domain.policy import ANYTHING, Policy
from runnel.client.domain.task_policy import Pull, TaskPolicy
from runnel.client.tasks.pytaskmanager import PyTaskManagerContract
from runnel.client.tasks.site_tasks import SiteTasks
from runnel.common.protocol import RunState, TaskNews
from runnel.common.tasks import Contract
from runnel.common.tasks.pytaskmanager import pytaskmanager_task
from tests.docker_engine import base_image, containers, docker, engine_host
from tests.doubles.task_network import TaskNetwork, client_of, order, site

pytestmark = pytest.mark.docker

TOKEN = "a-secret-of-the-endpoint"
SETTINGS = {
    "endpoint_url": "http://dockerhost:7200/repositories/data",
    "endpoint_type": "SPARQL",
    "endpoint_token": TOKEN,
    "docker_host": "192.0.2.17",
}


def made(command: str) -> str:
    """Build an image as theirs are: without arguments it does ``command``."""
    name = f"runnel-test-ptm:{secrets.token_hex(6)}"
    text = f'FROM {base_image()}\nLABEL runnel.test=ptm\nCMD ["sh", "-c", "{command}"]\n'
    subprocess.run(
        ["docker", "--host", engine_host(), "build", "--quiet", "--tag", name, "-"],
        input=text,
        text=True,
        check=True,
        capture_output=True,
    )
    return name


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    name = made("sh /input_output/input.txt > /input_output/output.txt")
    yield name
    docker("rmi", "--force", name)


@pytest.fixture(scope="module")
def older_image() -> Iterator[str]:
    name = made("sh /input.txt > /output.txt; echo own >> /log.txt; echo kept > /output/x; echo $RUN_ID > /temp/id")
    yield name
    docker("rmi", "--force", name)


@pytest.fixture
def network_name() -> Iterator[str]:
    """A network that leads nowhere: without any, a container has no names of others."""
    name = f"runnel-test-ptm-{secrets.token_hex(6)}"
    docker("network", "create", "--internal", "--label", "runnel.test=ptm", name)
    yield name
    docker("network", "rm", name)


class Site:
    def __init__(self, tasks: SiteTasks, network: TaskNetwork) -> None:
        self._tasks = tasks
        self.network = network
        self._runs = 0

    def give(self, image: str, text: str, *, run_id: str = "1", profile: str | None = None) -> str:
        self._runs += 1
        spec = pytaskmanager_task(image=image, run_id=run_id, text=text.encode(), profile=profile, source="a test")
        self._tasks.received(order(f"run-{self._runs}", spec))
        return f"run-{self._runs}"

    async def run(self, image: str, text: str, **choices: Any) -> TaskNews:
        return await self.network.ended(self.give(image, text, **choices), timeout_s=60)

    def text(self, end: TaskNews, name: str = "output") -> str:
        return self.network.content(end, name).decode()


@asynccontextmanager
async def site_with(folder: Path, policy: Policy = ANYTHING, *, engine: bool = True) -> AsyncIterator[Site]:
    network = TaskNetwork()
    async with site(
        folder,
        network,
        host=engine_host() if engine else None,
        policy=policy,
        contracts={Contract.PYTASKMANAGER: PyTaskManagerContract()},
        settings={Contract.PYTASKMANAGER: SETTINGS},
    ) as tasks:
        yield Site(tasks, network)
    assert not containers(client_of(folder))


def allowing(**rules: Any) -> Policy:
    return dataclasses.replace(ANYTHING, tasks=TaskPolicy(**rules))


async def test_an_image_that_runs_its_input_returns_its_text(tmp_path: Path, image: str, older_image: str) -> None:
    async with site_with(tmp_path / "s") as here:
        end = await here.run(image, "echo Hi There! é")
        assert end.state is RunState.DONE, end
        assert here.text(end) == "Hi There! é\n"
        older = await here.run(older_image, "echo as before", profile="files", run_id="../odd id")
        assert older.state is RunState.DONE, older
        assert here.text(older) == "as before\n"
        assert here.text(older, "log") == "own\n"
        assert here.network.unzipped(older, "files") == {"x": b"kept\n"}


async def test_variables_and_the_name_of_the_host_are_there_and_the_token_stays(
    tmp_path: Path, image: str, network_name: str
) -> None:
    script = """
printf '%s\\n' "$RUN_ID" "$SPARQL_ENDPOINT" "$endpointUrl" "$endpointType"
printf %s "$endpointToken" | sha256sum
grep -w dockerhost /etc/hosts
env | tee /input_output/log.txt; env >&2
"""
    policy = allowing(pull=Pull.NEVER, networks=frozenset({network_name}))
    async with site_with(tmp_path / "s", policy) as here:
        end = await here.run(image, script, run_id="1")
        assert end.state is RunState.DONE, end
        endpoint = SETTINGS["endpoint_url"]
        told = here.text(end).splitlines()
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        assert told[:5] == ["1", endpoint, endpoint, "SPARQL", f"{digest}  -"]
        assert re.fullmatch(r"192\.0\.2\.17\s+dockerhost", told[5])
        for name in ("output", "log", "stderr"):
            assert "endpointToken=[secret of the site]" in here.text(end, name)
        said = repr(here.network.news) + repr(here.network.files)
        assert "endpointToken=[secret of the site]" in said
        assert TOKEN not in said
    kept = b"".join(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept


async def test_tasks_of_one_run_id_share_its_folder_and_nothing_else(tmp_path: Path, image: str) -> None:
    async with site_with(tmp_path / "s") as here:
        await here.run(image, "echo 1 > /tmp/state", run_id="iteration")
        # Both at once: each waits until it has seen the other in the folder that they share.
        script = (
            "cp /tmp/state /input_output/log.txt; touch /tmp/NAME; for n in $(seq 400); do [ -e /tmp/OTHER ] && break;"
            " sleep 0.1; done; echo NAME; ls /tmp /input_output"
        )
        ends = []
        for name, other in (("a", "b"), ("b", "a")):
            text = script.replace("NAME", name).replace("OTHER", other)
            ends.append(here.give(image, text, run_id="iteration"))
        for name, run in zip("ab", ends, strict=True):
            end = await here.network.ended(run, timeout_s=60)
            assert here.text(end, "log") == "1\n"
            files = ["a", "b", "state", "", "/input_output:", "input.txt", "log.txt", "output.txt"]
            assert here.text(end).split("\n") == [name, "/input_output:", *files[-3:], "", "/tmp:", *files[:3], ""]
        other_run = await here.run(image, "ls /tmp", run_id="another")
        assert here.text(other_run) == ""


async def test_streams_log_and_status_are_kept_apart_and_a_bad_end_is_a_failure(tmp_path: Path, image: str) -> None:
    script = "echo response; echo out > /dev/stderr; echo own > /input_output/log.txt; exit 3"
    async with site_with(tmp_path / "s") as here:
        end = await here.run(image, script)
        assert end.state is RunState.FAILED
        assert end.result is not None
        assert end.result.exit_code == 3
        assert end.result.failure is not None
        assert end.result.failure.code == "exit_status"
        found = {name: here.text(end, name) for name in ("output", "stdout", "stderr", "log")}
        assert found == {"output": "response\n", "stdout": "", "stderr": "out\n", "log": "own\n"}


async def test_an_image_is_pulled_before_it_runs_and_the_registrys_word_is_told(tmp_path: Path, image: str) -> None:
    asked: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/v2/":
            return web.json_response({})
        told = {"code": "MANIFEST_UNKNOWN", "message": "this registry knows no such thing"}
        return web.json_response({"errors": [told]}, status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    name = f"127.0.0.1:{runner.addresses[0][1]}/ptm:1"
    await asyncio.to_thread(docker, "tag", image, name)
    try:
        async with site_with(tmp_path / "s", allowing(pull=Pull.ALWAYS)) as here:
            end = await here.run(name, "echo never")
        assert end.state is RunState.FAILED
        assert end.result is not None
        assert end.result.failure is not None
        assert "this registry knows no such thing" in end.result.failure.message
        assert end.result.exit_code is None
        assert "/v2/ptm/manifests/1" in asked
        # The engine has it, and a site that fetches only what is missing runs it.
        async with site_with(tmp_path / "t", allowing(pull=Pull.MISSING)) as here:
            assert (await here.run(name, "echo there")).state is RunState.DONE
    finally:
        await asyncio.to_thread(docker, "rmi", "--force", name)
        await runner.cleanup()


async def test_only_images_of_the_consortium_run_whatever_their_name_would_do_to_a_shell(
    tmp_path: Path, image: str
) -> None:
    evil = 'myConsortium/x:1; touch "/tmp/$(id)"'
    # Without an engine: who is refused is refused before anything is asked of one.
    async with site_with(tmp_path / "s", allowing(images=("myconsortium/.*:.*",)), engine=False) as here:
        for name in ("jvsoest/base_task:1", "evil/myconsortium/x:1", "myconsortium/x", image):
            end = await here.run(name, "")
            assert end.state is RunState.REJECTED, name
            assert end.result is not None
            assert end.result.failure is not None
            assert "rule images" in end.result.failure.message
        spec = pytaskmanager_task(image="a:1", run_id="1", text=b"", source="a test").as_json()
        here._tasks.received(order("run-evil", spec.replace("a:1", evil.replace('"', '\\"'))))
        end = await here.network.ended("run-evil")
        assert end.result is not None
        assert end.result.failure is not None
        assert (end.state, end.result.failure.code) == (RunState.FAILED, "invalid_input")
    identity = docker("image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
    for digest, state in ((identity, RunState.DONE), ("sha256:" + "0" * 64, RunState.REJECTED)):
        async with site_with(tmp_path / digest[-8:], allowing(digests=frozenset({digest}))) as here:
            assert (await here.run(image, "")).state is state
