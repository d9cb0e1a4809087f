"""Algorithms on vantage6's own tools, in containers of a real engine, through a real network."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_leftovers import labels_of, sweep
from runnel.client.tasks.run_network import run_network
from runnel.client.tasks.vantage6_files import Profile
from runnel.client.tasks.vantage6_image import detect_profile
from runnel.common.errors import EntryPointFailed
from runnel.common.protocol import TaskOrder
from runnel.common.tasks import task_spec
from runnel.common.tasks.site_numbers import site_number
from tests.docker.algorithm_images import algorithm_image
from tests.docker.hub import output_at_hub
from tests.docker_engine import docker, engine_host, networks
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LIGHT = 11


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[LocalNetwork]:
    """A network with a combiner and a real client ``hub``, whose data are the ages 40 and 60."""
    image_host = engine_host()
    data = tmp_path / "ages.csv"
    data.write_text("Age\n40\n60\n")
    async with LocalNetwork(tmp_path / "net") as made:
        await made.start_combiner("c1")
        await made.start_client("hub", data={"default": str(data)}, docker_host=image_host)
        yield made
        identity = json.loads((made.folder / "hub" / "identity.json").read_text())["node_id"]
    assert networks(identity) == []


async def result_of(net: LocalNetwork, method: str, *, central: bool = False, **kwargs: Any) -> Any:
    """Run a function at the hub and return its result."""
    payload = json.dumps({"method": method, "args": [], "kwargs": kwargs}).encode()
    spec = {
        "executors": [{"image": algorithm_image()}],
        "contract": "vantage6",
        "central": central,
        "databases": ["default"],
        "payload": {"data": base64.b64encode(payload).decode()},
    }
    return (await output_at_hub(net, spec)).json()


def partial(order: TaskOrder) -> dict[str, bytes]:
    """Answer as the partial function does at a site with one person of the age 20; ``bad`` fails."""
    spec = task_spec(order.spec, source="test")
    assert spec.payload is not None
    assert spec.payload.blob is not None  # it has 100,000 letters
    if order.client == "bad":
        raise EntryPointFailed("It ended with 1.")
    return {"output": b'{"sum": 20.0, "count": 1}'}


async def test_a_central_function_averages_over_more_sites_than_a_page_has(net: LocalNetwork) -> None:
    names = [f"light-{number:02}" for number in range(LIGHT)] + ["bad"]
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(TaskClient(net.reducer.rpc_address, name, prefer="c1", produce=partial))
        await net.until_attached(*names)
        told = await result_of(net, "central", central=True, column="Age")
        assert sorted(told["organizations"]) == sorted([*names, "hub"])
        # One failed: it is told, and ended none of the others.
        assert told["results"] == LIGHT + 1
        assert told["status"] == [*["completed"] * (LIGHT + 1), "crashed"]
        assert told["average"] == (40 + 60 + 20 * LIGHT) / (2 + LIGHT)
        assert told["newest first"]
        assert told["one"]
        assert (told["task"], told["collaboration"]) == (1, 1)
        assert told["refused"] == {"msg": "Container-token is not valid"}
        some = [site_number("light-00"), site_number("light-01"), "hub"]
        told = await result_of(net, "central", central=True, column="Age", organizations=some[:2])
        assert (told["results"], told["average"]) == (2, 20.0)


async def test_a_partial_function_finds_what_it_looks_for_and_reaches_nothing(net: LocalNetwork) -> None:
    host, _, port = net.reducer.rpc_address.rpartition(":")
    told = await result_of(net, "look", away=[[host, int(port)]])
    env = told["env"]
    assert env["INPUT_FILE"] == "/mnt/data/task-000000001/input"
    assert env["USER_REQUESTED_DATABASE_LABELS"] == "default"
    assert (env["DEFAULT_DATABASE_URI"], env["DEFAULT_DATABASE_TYPE"]) == ("/mnt/data/ages.csv", "csv")
    assert env["TEMPORARY_FOLDER"] == "/mnt/tmp"
    assert told["organization"] == site_number("hub")
    assert told["task"] == 1
    assert told["interfaces"] == ["lo"]
    assert told["uid"] != 0
    assert told["refused"] == ["ConnectionRefusedError"]


async def test_a_site_whose_policy_does_not_say_so_runs_no_central_function(net: LocalNetwork, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[tasks]\nimages = [".*"]\npull = "never"\n')
    await net.start_client("strict", policy=policy, docker_host=engine_host())
    payload = {"data": base64.b64encode(b'{"method": "central"}').decode()}
    spec = {"executors": [{"image": algorithm_image()}], "contract": "vantage6", "central": True, "payload": payload}
    task = (await net.http.post("/tasks", json={"spec": spec, "sites": ["strict"]})).json()["task"]

    async def rejected() -> bool:
        [run] = (await net.http.get(f"/tasks/{task}")).json()["runs"]
        return run["state"] == "rejected" and "central" in run["error"]

    await eventually(rejected)


async def test_the_network_of_a_run_that_was_killed_is_removed_at_the_next_start(tmp_path: Path) -> None:
    labels = labels_of(f"client-of-{tmp_path.name}", tmp_path)
    async with Engine(engine_host(), {}) as engine, run_network(engine, "run-1", labels) as place:
        assert place.name in docker("network", "ls", "--format", "{{.Name}}").stdout
        assert await sweep(engine, labels) == 1
        assert place.name not in docker("network", "ls", "--format", "{{.Name}}").stdout


async def test_for_which_release_an_image_was_made_is_found_in_it(tmp_path: Path) -> None:
    cases = {
        Profile.V4: ["ENV PYTHON_VERSION=3.11.2"],
        Profile.V3: ["""CMD python -c "from vantage6.tools.docker_wrapper import docker_wrapper" """],
        Profile.V5: ["ENV PYTHON_VERSION=3.13.1", _packages("3.13", "algorithm/decorator/__init__.py", "V5")],
        Profile.V4_0: [
            "ENV PYTHON_VERSION=3.10.1",
            _packages("3.10", "algorithm/client/_version.py", 'version_info = (4, 1, 0, "final", 1, 0)'),
        ],
    }
    labels = labels_of(f"client-of-{tmp_path.name}", tmp_path)
    async with Engine(engine_host(), {}) as engine:
        for profile, lines in cases.items():
            name = f"runnel-test-profile:{profile.value}"
            (tmp_path / "Dockerfile").write_text("\n".join([f"FROM {algorithm_image()}", *lines]))
            docker("build", "--network", "none", "--tag", name, str(tmp_path))
            try:
                assert await detect_profile(engine, name, labels) is profile
            finally:
                docker("rmi", name)
        assert await sweep(engine, labels) == 0


def _packages(python: str, path: str, content: str) -> str:
    file = Path(f"/usr/local/lib/python{python}/site-packages/vantage6/{path}")
    return f"RUN mkdir -p {file.parent} && echo '{content}' > {file}"
