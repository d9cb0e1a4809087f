"""Killed while a central function waits for its sub-tasks: it begins anew, and finds those that it asked for before."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docker_engine import base_image, docker, engine_host
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

# As an algorithm on the tools of vantage6 4.1 does it: its partial function ends when it is let.
SCRIPT = """
import base64, json, os, time, urllib.request

def ask(path, body=None):
    token = open(os.environ["TOKEN_FILE"]).read()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    url = f"{os.environ['HOST']}:{os.environ['PORT']}/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
        return json.load(answer)

def partial():
    while not os.path.exists(os.environ["DEFAULT_DATABASE_URI"] + "/go"):
        time.sleep(0.05)
    return 1

def central(image):
    call = base64.b64encode(json.dumps({"method": "partial"}).encode()).decode()
    asked = [{"id": each["id"], "input": call} for each in ask("organization")["data"]]
    task = ask("task", {"image": image, "organizations": asked, "databases": [{"label": "default"}]})["id"]
    while (status := ask(f"task/{task}/status")["status"]) in ("pending", "initializing", "active"):
        time.sleep(0.1)
    results = [json.loads(base64.b64decode(each["result"])) for each in ask(f"result?task_id={task}")["data"]]
    return [status, results]

said = json.load(open(os.environ["INPUT_FILE"]))
result = globals()[said["method"]](**said.get("kwargs", {}))
json.dump(result, open(os.environ["OUTPUT_FILE"], "w"))
"""
SITES = ("hub", "site")


def test_a_killed_client_and_a_killed_reducer_leave_one_result_and_one_sub_task(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path / "net") as network:
        network.start_reducer()
        network.start_combiner("c1")
        with network.together():
            for name in SITES:
                (tmp_path / name).mkdir()
                network.start_client(name, tmp_path / name, "--prefer", "c1", "--docker-host", engine_host())
        network.until_attached("c1", *SITES)
        with httpx.Client(base_url=f"http://{network.http}/api/v1", timeout=30) as http:
            task = start(http)
            first = until_asked(http, task)
            network.kill("hub")
            network.launch("hub")
            network.until_ready("hub")
            # What is told of a run goes forward only, so its attempts are seen at its end.
            eventually_blocking(lambda: network.log_of("hub").count("event=sub-task") == 2, timeout_s=60)
            network.kill("reducer")
            network.launch("reducer")
            network.until_ready("reducer")
            network.until_attached("c1", *SITES)
            for name in SITES:
                (tmp_path / name / "go").touch()
            run = eventually_blocking(lambda: ended(http, task), timeout_s=60, state=lambda: shown(http, task))
            assert run["state"] == "done", run
            assert http.get(f"/runs/{run['run']}/files/output").json() == ["completed", [1, 1]]
            # The same sub-task all the time, and what had not been killed of it was not done again.
            assert run["attempt"] == 2
            runs = {each["site"]: each for each in shown(http, first)["runs"]}
            assert {site: (each["state"], each["attempt"]) for site, each in runs.items()} == {
                "hub": ("done", 2),
                "site": ("done", 1),
            }
            assert len(http.get("/tasks").json()["items"]) == 2
            for each in (run, *runs.values()):
                assert not docker("ps", "--all", "--quiet", "--filter", f"label=runnel.run={each['run']}").stdout
            networks = docker("network", "ls", "--format", "{{.Name}}").stdout
            assert f"runnel-{run['run']}" not in networks


def start(http: httpx.Client) -> str:
    image = base_image()
    call = json.dumps({"method": "central", "kwargs": {"image": image}}).encode()
    spec = {
        "executors": [{"image": image, "command": ["python3", "-c", SCRIPT]}],
        "contract": "vantage6",
        "profile": "v4.0",
        "central": True,
        "databases": ["default"],
        "payload": {"data": base64.b64encode(call).decode()},
    }
    answer = http.post("/tasks", json={"spec": spec, "sites": ["hub"]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["task"])


def shown(http: httpx.Client, task: str) -> Any:
    return http.get(f"/tasks/{task}").json()


def ended(http: httpx.Client, task: str) -> Any:
    [run] = shown(http, task)["runs"]
    return run if run["state"] in ("done", "failed", "rejected", "cancelled") else None


def until_asked(http: httpx.Client, task: str) -> str:
    """Wait until the function waits for its sub-task, which runs at both sites; return that."""

    def look() -> Any:
        others = [each["task"] for each in http.get("/tasks").json()["items"] if each["task"] != task]
        running = [each["state"] == "running" for other in others for each in shown(http, other)["runs"]]
        return others[0] if running == [True, True] else None

    return str(eventually_blocking(look, timeout_s=60, state=lambda: http.get("/tasks").text))
