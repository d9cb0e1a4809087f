"""A script of PyTaskManager asks a reducer, and a client in the network runs its image."""

from __future__ import annotations

import functools
import json
import secrets
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.docker_engine import base_image, docker, engine_host
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def has_result(http: httpx.Client, url: str) -> bool:
    return bool(http.get(url).json())


def test_a_script_of_theirs_iterates_over_two_sites(tmp_path: Path) -> None:
    image = f"runnel-test-ptm:{secrets.token_hex(6)}"
    text = f'FROM {base_image()}\nCMD ["sh", "-c", "sh /input_output/input.txt > /input_output/output.txt"]\n'
    command = ["docker", "--host", engine_host(), "build", "--quiet", "--tag", image, "-"]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)
    data = tmp_path / "data"
    data.touch()
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"endpointUrl": "http://dockerhost:7200", "endpointToken": "a-secret-token"}))
    try:
        with ProcessNetwork(tmp_path / "network") as network, httpx.Client(trust_env=False) as http:
            network.start_reducer()
            with network.together():
                for name in ("alpha", "beta"):
                    more = ("--docker-host", engine_host(), "--pytaskmanager", str(config))
                    network.start_client(name, data, *more)
            for name in ("alpha", "beta"):
                network.until_attached(name)
            master = f"http://{network.http}/ptm"
            sites = {each["name"]: each["id"] for each in http.get(f"{master}/client").json()}
            assert sites.keys() == {"alpha", "beta"}
            total = 1
            script = "old=$(cat /tmp/sum 2>/dev/null); expr ${{old:-0}} + {} | tee /tmp/sum; echo $SPARQL_ENDPOINT >&2"
            for _ in range(2):
                asked = {}
                for site in sites.values():
                    body = {"image": image, "inputString": script.format(total), "runId": "sum"}
                    asked[site] = http.post(f"{master}/client/{site}/task/add", json=body).json()["taskId"]
                answers = []
                for site, task in asked.items():
                    url = f"{master}/client/{site}/task/{task}/result"
                    eventually_blocking(functools.partial(has_result, http, url), timeout_s=60)
                    answers.append(http.get(url).json()[0])
                    assert http.get(f"{master}/client/{site}/task").json() == []
                    assert http.get(f"{url}/output").text == answers[-1]["response"]
                assert all("http://dockerhost:7200\n" in each["log"] for each in answers)
                total = sum(int(each["response"]) for each in answers)
            # 1 at each site, then 2 more at each.
            assert total == 6
            body = {"image": image, "inputString": "echo $endpointToken; exit 2", "runId": "2"}
            task = http.post(f"{master}/client/{sites['beta']}/task/add", json=body).json()["taskId"]
            url = f"{master}/client/{sites['beta']}/task/{task}/result"
            eventually_blocking(lambda: http.get(url).json(), timeout_s=60)
            [failed] = http.get(url).json()
            assert failed["response"] == "[secret of the site]\n"
            assert "2" in failed["log"]
    finally:
        docker("rmi", "--force", image)
