"""A client that is killed in the midst of a run: one result, nothing lost, no container left."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from runnel.common.crash_points import VARIABLE, CrashPoint
from tests.docker_engine import base_image, docker, engine_host
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

# How often its container is begun where the client is killed at this moment of it.
ATTEMPTS = {
    CrashPoint.RUN_HELD: 1,
    CrashPoint.RUN_BEGUN: 2,
    CrashPoint.RUN_ENDED: 2,
    CrashPoint.RUN_PUSHED: 1,
}
# Who is killed there, above a client that goes on.
ABOVE = {
    CrashPoint.RUN_ARRIVED: "c1",
    CrashPoint.RUN_FILE_RECEIVED: "c1",
    CrashPoint.RUN_SETTLED_ABOVE: "c1",
    CrashPoint.RUN_FILE_KEPT: "reducer",
    CrashPoint.RUN_END_COMMITTED: "reducer",
}
SCRIPT = "open('/mnt/output/answer', 'w').write(open('/mnt/input/data.csv').read()); print('said')"
SELECTION = {"selections": [{"query": "{ data { b } }"}]}


def start(http: httpx.Client) -> str:
    executor = {"image": base_image(), "command": ["python3", "-c", SCRIPT]}
    answer = http.post("/tasks", json={"spec": {"executors": [executor], **SELECTION}, "sites": ["site-1"]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["task"])


def ended(http: httpx.Client, task: str) -> Any:
    def look() -> Any:
        (run,) = http.get(f"/tasks/{task}").json()["runs"]
        return run if run["state"] in ("done", "failed", "rejected", "cancelled") else None

    return eventually_blocking(look, timeout_s=60, state=lambda: http.get(f"/tasks/{task}").json())


def test_a_killed_client_loses_no_run_and_tells_one_end(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path) as network:
        network.start_reducer()
        network.start_combiner("c1")
        data = tmp_path / "data.csv"
        data.write_text("a,b\n1,2\n")
        network.start_client("site-1", data, "--prefer", "c1", "--docker-host", engine_host())
        network.until_attached("c1", "site-1")
        with httpx.Client(base_url=f"http://{network.http}/api/v1", timeout=30) as http:
            for point, attempts in ATTEMPTS.items():
                network.kill("site-1")
                network.launch("site-1", **{VARIABLE: point.value})
                network.until_ready("site-1")
                task = start(http)
                network.until_dead("site-1", 60)
                network.launch("site-1")
                network.until_ready("site-1")
                run = ended(http, task)
                assert run["state"] == "done", (point, run)
                assert run["attempt"] == attempts, point
                assert_whole(http, run)
                runs = network.components["site-1"].state / "runs"
                eventually_blocking(lambda: not any(runs.iterdir()))  # noqa: B023 - called at once


def test_a_killed_reducer_or_combiner_loses_no_run_and_keeps_one_result(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path) as network:
        network.start_reducer("--direct-clients", "0")  # or the client goes on without the combiner
        network.start_combiner("c1")
        data = tmp_path / "data.csv"
        data.write_text("a,b\n1,2\n")
        network.start_client("site-1", data, "--prefer", "c1", "--docker-host", engine_host())
        network.until_attached("c1", "site-1")
        with httpx.Client(base_url=f"http://{network.http}/api/v1", timeout=30) as http:
            for point, killed in ABOVE.items():
                network.kill(killed)
                network.launch(killed, **{VARIABLE: point.value})
                network.until_ready(killed)
                network.until_attached("c1", "site-1")
                task = start(http)
                network.until_dead(killed, 60)
                network.launch(killed)
                network.until_ready(killed)
                run = ended(http, task)
                assert run["state"] == "done", (point, run)
                assert run["attempt"] == 1, point
                assert_whole(http, run)
                runs = network.components["site-1"].state / "runs"
                eventually_blocking(lambda: not any(runs.iterdir()))  # noqa: B023 - called at once
            assert len(http.get("/tasks").json()["items"]) == len(ABOVE)


def assert_whole(http: httpx.Client, run: Any) -> None:
    """All that the run gave out is there, and nothing of it at the engine."""
    assert {each["name"] for each in run["files"]} == {"stdout", "stderr", "output"}
    content = http.get(f"/runs/{run['run']}/files/output").content
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.read("answer") == b"b\n2\n"
    assert http.get(f"/runs/{run['run']}/files/stdout").content == b"said\n"
    assert not docker("ps", "--all", "--quiet", "--filter", f"label=runnel.run={run['run']}").stdout
