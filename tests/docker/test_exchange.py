"""A site without a network: jobs and images in a folder, results in another, whoever is killed when."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runnel.common.crash_points import CrashPoint
from tests.docker_engine import base_image, containers, docker, engine_host
from tests.eventually import eventually_blocking

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    name = f"runnel-test-exchange:{secrets.token_hex(6)}"
    command_of_it = '["sh", "-c", "sh /input.txt > /output.txt"]'
    text = f"FROM {base_image()}\nLABEL runnel.test=exchange stamp={name}\nCMD {command_of_it}\n"
    command = ["docker", "--host", engine_host(), "build", "--quiet", "--tag", name, "-"]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)
    yield name
    docker("rmi", "--force", name)


class Site:
    """A process of ``runnel client exchange``, started as often as a test likes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = folder / "jobs"
        self.jobs.mkdir()
        self.config = folder / "config.json"
        self.config.write_text(json.dumps({"endpointToken": "a-secret-token", "profile": "files"}))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environ: str) -> None:
        arguments = ["client", "exchange", str(self.jobs), "--state", str(self.folder / "state")]
        arguments += ["--docker-host", engine_host(), "--interval-s", "0.2", "--grace-s", "1"]
        arguments += ["--pytaskmanager", str(self.config)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runnel.cli", *arguments], env=clean | environ, stdout=log, stderr=log
            )

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def drop(self, name: str, **job: Any) -> None:
        beside = self.folder / name
        beside.write_text(json.dumps(job))
        beside.rename(self.jobs / name)

    def results(self, name: str) -> dict[str, Any]:
        path = self.folder / "jobs_output" / name / "result.json"
        eventually_blocking(path.exists, timeout_s=60)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def text(self, name: str, file: str = "output") -> str:
        where = self.folder / "jobs_output" / name / str(self.results(name)["files"][file])
        return where.read_text()

    def settled(self) -> bool:
        return not any((self.folder / "state" / "runs").iterdir())

    @property
    def identity(self) -> str:
        return str(json.loads((self.folder / "state" / "identity.json").read_text())["node_id"])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    engine_host()
    made = Site(tmp_path)
    yield made
    made.end(signal.SIGTERM)
    print((tmp_path / "log").read_text())
    assert containers(made.identity) == []


def test_a_job_and_its_image_are_dropped_and_results_appear(site: Site, image: str) -> None:
    docker("save", image, "--output", str(site.jobs / "image.dockerimage"))
    docker("rmi", "--force", image)
    assert docker("image", "inspect", image, check=False).returncode != 0
    large = "# " + "x" * 70_000
    site.drop("one.ptmjob", id=1, image=image, runId=1, input=f"echo $RUN_ID > /temp/x; echo $endpointToken; {large}")
    site.drop("not a job.ptmjob", id=2)
    site.start()
    assert site.results("one")["state"] == "done"
    assert site.text("one") == "[secret of the site]\n"
    assert site.results("not_a_job")["error"]["code"] == "invalid_input"
    site.drop("two.ptmjob", id=3, image=image, runId=1, input="cat /temp/x; echo err >&2; exit 4")
    (site.jobs / "broken.dockerimage").write_bytes(b"no image")
    two = site.results("two")
    assert (two["state"], two["exitCode"], two["error"]["code"]) == ("failed", 4, "exit_status")
    assert (site.text("two"), site.text("two", "stderr")) == ("1\n", "err\n")
    assert site.results("broken.dockerimage")["state"] == "rejected"
    eventually_blocking(lambda: site.settled() and not any(site.jobs.iterdir()))
    history = sorted(path.name for path in (site.folder / "jobs_history").iterdir())
    assert history == ["broken.dockerimage", "not a job.ptmjob", "one.ptmjob", "two.ptmjob"]
    assert not any((site.folder / "state" / "inputs").iterdir())


@pytest.mark.parametrize(
    ("point", "attempts"),
    [
        (CrashPoint.RUN_HELD, 1),
        (CrashPoint.RUN_BEGUN, 2),
        (CrashPoint.RUN_ENDED, 2),
        (CrashPoint.RUN_PUSHED, 1),
    ],
)
def test_a_job_has_one_result_whenever_the_client_is_killed(
    site: Site, image: str, point: CrashPoint, attempts: int
) -> None:
    site.drop("job.ptmjob", id=1, image=image, runId="r", input="echo begun >> /temp/times; cat /temp/times")
    site.start(RUNNEL_CRASH_AT=point.value)
    assert site.process is not None
    assert site.process.wait(60) == -signal.SIGKILL
    site.start()
    found = site.results("job")
    assert (found["state"], found["attempt"]) == ("done", attempts)
    eventually_blocking(lambda: site.settled() and not any(site.jobs.iterdir()))
    assert [path.name for path in (site.folder / "jobs_output").iterdir()] == ["job"]
    assert [path.name for path in (site.folder / "jobs_history").iterdir()] == ["job.ptmjob"]
    assert site.text("job").splitlines().count("begun") in {1, attempts}
