"""Images with the algorithm tools of vantage6 as they are released, and algorithms of our own on top."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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


LEGACY_ALGORITHM = """
import os, time

def RPC_partial(data, column):
    return {"sum": data[column].sum(), "count": len(data)}

def central(client, data, column, sites):
    known = client.get_organizations_in_my_collaboration()
    call = {"method": "partial", "kwargs": {"column": column}}
    asked = [each["id"] for each in known if each["name"] in sites]
    task = client.create_new_task(input_=call, organization_ids=asked)
    while not client.get_task(task["id"])["complete"]:
        time.sleep(0.05)
    results = client.get_results(task_id=task["id"])
    told = {
        "organizations": sorted(each["name"] for each in known),
        "average": float(sum(each["sum"] for each in results) / sum(each["count"] for each in results)),
        "results": len(results),
        "own rows": len(data),
    }
    try:
        from vantage6.client.algorithm_client import AlgorithmClient
    except ImportError:
        return told
    token = open(os.environ["TOKEN_FILE"]).read().strip()
    newer = AlgorithmClient(token, os.environ["HOST"], os.environ["PORT"], os.environ["API_PATH"])
    told["newer"] = [
        sorted(each["name"] for each in newer.organization.list()) == told["organizations"],
        len(newer.result.get(task["id"])) == len(results),
        newer.task.get(task["id"])["complete"],
        newer.node.get()["id"] == newer.organization_id,
        newer.collaboration.get()["id"],
        newer.vpn.get_addresses(),
    ]
    return told
"""
ALGORITHM_V5 = """
from vantage6.algorithm.decorator import algorithm_client, central, dataframe, dataframes, federated, metadata

@federated
@dataframe(1)
def partial(frame, column):
    return {"sum": float(frame[column].sum()), "count": int(frame[column].count())}

@federated
@dataframe(2)
def two(first, second):
    return [len(first), len(second)]

@federated
@metadata
@dataframes
def group(frames, metadata):
    return {"rows": {name: len(frame) for name, frame in frames.items()}, "organization": metadata.organization_id}

@central
@algorithm_client
def average(client, column, sites):
    known = client.organization.list()
    asked = [each["id"] for each in known if each["name"] in sites]
    task = client.task.create(method="partial", arguments={"column": column}, organizations=asked)
    results = client.wait_for_results(task_id=task["id"])
    runs = client.run.from_task(task["id"])
    return {
        "organizations": sorted(each["name"] for each in known),
        "average": sum(each["sum"] for each in results) / sum(each["count"] for each in results),
        "results": len(results),
        "status": client.task.get(task["id"])["status"],
        "runs": sorted(each["status"] for each in runs),
        "one": client.result.get(max(each["id"] for each in runs if each["status"] == "completed")) is not None,
        "collaboration": client.collaboration.get()["id"],
    }
"""
_RUN_LEGACY = "from vantage6.tools.docker_wrapper import docker_wrapper; docker_wrapper('averages')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What an image of another release of vantage6 has in place of that of 4.15."""

    requirements: tuple[str, ...]
    algorithm: str
    run: str


RELEASES = {
    "2.3": Release(
        requirements=("vantage6-client==2.3.5", "vantage6-common==2.3.5", "pyjwt==1.7.1", "pyfiglet==0.8.post1"),
        algorithm=LEGACY_ALGORITHM,
        run=_RUN_LEGACY,
    ),
    "3.11": Release(
        requirements=("vantage6-client==3.11.1", "vantage6-common==3.11.1", "pyfiglet==0.8.post1"),
        algorithm=LEGACY_ALGORITHM,
        run=_RUN_LEGACY,
    ),
    "5.0": Release(
        requirements=("vantage6-algorithm-tools==5.0.3", "vantage6-common==5.0.3", "pyarrow==16.1.0"),
        algorithm=ALGORITHM_V5,
        run=_RUN,
    ),
}


@functools.cache
def _python_version() -> str:
    asked = "import sys; print('{0}.{1}'.format(*sys.version_info))"
    return ran("run", "--rm", "--network", "none", base_image(), "python3", "-c", asked).strip()


def _wheelhouse(requirements: Sequence[str]) -> Path:
    """Return a folder with the wheels, from the index of this machine, kept in the cache of the tests."""
    version = _python_version()
    text = "\n".join(requirements)
    key = hashlib.sha256(f"{text}{version}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel-tests"
    folder = cache / f"vantage6-{key}"
    if not folder.exists():
        beside = cache / f"vantage6-{key}.{os.getpid()}.part"
        # Release 5 asks for a newer Python than that of the image, whose grammar and library it keeps to.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run(
            [*command, "--ignore-requires-python", f"--python-version={version}", f"--dest={beside}", *requirements],
            check=True,
            capture_output=True,
            text=True,
        )
        try:
            beside.replace(folder)
        except OSError:  # another process was first
            if not folder.exists():
                raise
            shutil.rmtree(beside)
    return folder


@functools.cache
def algorithm_image() -> str:
    """Return the name of the image, which the engine keeps."""
    requirements = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    name = _name_of(*requirements, ALGORITHM, base_image())
    if docker("image", "inspect", name, check=False).returncode == 0:
        return name
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copytree(_wheelhouse(requirements), context / "wheels")
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


@functools.cache
def release_image(number: str) -> str:
    """Return the name of an image on another release of vantage6, which the engine keeps."""
    release = RELEASES[number]
    name = _name_of(*release.requirements, release.algorithm, algorithm_image())
    if docker("image", "inspect", name, check=False).returncode == 0:
        return name
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copytree(_wheelhouse(release.requirements), context / "wheels")
        (context / "averages.py").write_text(release.algorithm)
        pip = "pip --quiet --no-cache-dir"
        replace = (
            f"{pip} uninstall --break-system-packages --yes vantage6-algorithm-tools vantage6-common && "
            f"{pip} install --break-system-packages --no-index --no-deps --ignore-requires-python /wheels/*.whl"
        )
        version = _python_version()
        lines = [
            f"FROM {algorithm_image()}",
            "COPY wheels /wheels",
            f"RUN {replace} && ln -s dist-packages /usr/local/lib/python{version}/site-packages",
            "COPY averages.py /usr/local/lib/python3/dist-packages/averages.py",
            f"ENV PYTHON_VERSION={version}",  # as images of Python have it
            f'CMD ["python3", "-c", "{release.run}"]',
        ]
        (context / "Dockerfile").write_text("\n".join([*lines, ""]))
        ran("build", "--network", "none", "--tag", name, str(context))
    return name


def _name_of(*what: str) -> str:
    return f"runnel-test-vantage6:{hashlib.sha256(chr(10).join(what).encode()).hexdigest()[:12]}"
