"""Images with the algorithm tools of vantage6 as they are released, and an algorithm of our own on top."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.docker.operator_images import ran
from tests.docker_engine import base_image, docker, with_base

REQUIREMENTS = Path(__file__).with_name("vantage6_requirements.txt")

ALGORITHM = """
import json, os, socket
from vantage6.algorithm.tools.decorators import algorithm_client, data, metadata

@data(1)
def partial(frame, column):
    return {"sum": float(frame[column].sum()), "count": int(frame[column].count())}

@metadata
def look(metadata, away):
    refused = []
    for address in away:
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError as error:
            refused.append(type(error).__name__)
    return {
        "env": {k: v for k, v in os.environ.items() if k.isupper()},
        "task": metadata.task_id,
        "organization": metadata.organization_id,
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "uid": os.getuid(),
        "refused": refused,
    }

@algorithm_client
def central(client, column, organizations=None):
    known = client.organization.list()
    asked = organizations or [each["id"] for each in known]
    call = {"method": "partial", "kwargs": {"column": column}, "padding": "x" * 100_000}
    task = client.task.create(input_=call, organizations=asked, name="partial")
    results = client.wait_for_results(task_id=task["id"])
    runs = client.run.from_task(task["id"])
    count = sum(each["count"] for each in results)
    return {
        "organizations": [each["name"] for each in known],
        "average": sum(each["sum"] for each in results) / count,
        "results": len(results),
        "status": sorted(each["status"] for each in runs),
        "newest first": [each["id"] for each in runs] == sorted((each["id"] for each in runs), reverse=True),
        "one": client.result.get(max(each["id"] for each in runs if each["status"] == "completed")) is not None,
        "task": client.task.get(task["id"])["parent"]["id"],
        "collaboration": client.collaboration.get()["id"],
        "refused": client.request("task", method="post", json={"image": "other"}),
    }
"""
_RUN = "from vantage6.algorithm.tools.wrap import wrap_algorithm; wrap_algorithm()"


def _wheelhouse() -> Path:
    """Return a folder with the wheels, from the index of this machine, kept in the cache of the tests."""
    asked = "import sys; print('{0}.{1}'.format(*sys.version_info))"
    version = ran("run", "--rm", "--network", "none", base_image(), "python3", "-c", asked).strip()
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel-tests"
    folder = cache / f"vantage6-{key}"
    if not folder.exists():
        beside = cache / f"vantage6-{key}.{os.getpid()}.part"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run(
            [*command, f"--python-version={version}", f"--dest={beside}", f"--requirement={REQUIREMENTS}"],
            check=True,
            capture_output=True,
            text=True,
        )
        beside.replace(folder)
    return folder


@functools.cache
def algorithm_image() -> str:
    """Return the name of the image, which the engine keeps."""
    text = REQUIREMENTS.read_text() + ALGORITHM + base_image()
    name = f"runnel-test-vantage6:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if docker("image", "inspect", name, check=False).returncode == 0:
        return name
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copytree(_wheelhouse(), context / "wheels")
        (context / "averages.py").write_text(ALGORITHM)
        install = "pip install --break-system-packages --no-index --no-deps /wheels/*.whl && rm -r /wheels"
        lines = [
            "COPY wheels /wheels",
            f"RUN {install}",
            "COPY averages.py /usr/local/lib/python3/dist-packages/averages.py",
            "ENV PKG_NAME=averages PYTHONPATH=/usr/local/lib/python3/dist-packages",
            f'CMD ["python3", "-c", "{_RUN}"]',
        ]
        (context / "Dockerfile").write_text(with_base(lines))
        ran("build", "--network", "none", "--tag", name, "--build-arg", f"BASE_IMAGE={base_image()}", str(context))
    return name
