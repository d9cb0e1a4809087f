"""A network of real processes whose client runs a package in containers."""

from __future__ import annotations

import hashlib
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel.common.tensors import open_npz, write_npz
from runnel.compute_package import pack
from tests.docker_engine import base_image, containers, engine_host, forget_images, with_base
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

TRAIN = """
import os, sys, time
import numpy as np
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + float(open(os.environ["RUNNEL_DATA"]).read()) for name in model.files}
print("in the image:", open("/opt/word").read().strip(), flush=True)
while os.path.exists("/runnel/data/wait"):
    time.sleep(0.05)
np.savez(sys.argv[2], **arrays)
"""
FILES = {"train.py": TRAIN, "Dockerfile": with_base(["RUN echo here > /opt/word"])}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[ProcessNetwork]:
    engine_host()
    with ProcessNetwork(tmp_path / "network") as made:
        made.start_reducer()
        yield made
    forget_images(hashlib.sha256((tmp_path / "network" / "package.tar.gz").read_bytes()).hexdigest())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("2")
    return path


def start_session(network: ProcessNetwork, files: dict[str, str]) -> str:
    folder = network.folder / "package"
    folder.mkdir()
    # A package that the engine has not seen before.
    for name, text in (files | {"stamp": secrets.token_hex(8)}).items():
        (folder / name).write_text(text)
    archive = pack(folder, network.folder / "package.tar.gz").path
    seed = network.folder / "seed.npz"
    write_npz(seed, {"w": np.ones(3, np.float32)})
    package = network.sdk.packages.push(archive)
    model = network.sdk.models.push(seed)
    started = network.sdk.sessions.start(
        package=package.digest, seed=model.model, rounds=2, validate_every=0, retries=0, round_timeout_s=60
    )
    return started.session


def node_id(network: ProcessNetwork, name: str) -> str:
    [found] = [node for node in network.sdk.nodes.list() if node.name == name]
    return found.node_id


def test_a_client_trains_in_containers_through_its_own_death(network: ProcessNetwork, data: Path) -> None:
    folder = data.parent / "data"
    folder.mkdir()
    data.rename(folder / "number")
    (folder / "wait").touch()
    runtime = ("--runtime", "docker", "--docker-host", engine_host(), "--docker-image", base_image())
    network.start_client("site", folder, *runtime)
    network.until_attached("site")
    files = FILES | {"train.py": TRAIN.replace('os.environ["RUNNEL_DATA"]', 'os.environ["RUNNEL_DATA"] + "/number"')}
    session = start_session(network, files)
    identity = node_id(network, "site")
    eventually_blocking(lambda: len(containers(identity)) == 1, timeout_s=60)
    network.kill("site", signal.SIGKILL)
    assert len(containers(identity)) == 1
    (folder / "wait").unlink()
    network.launch("site")
    network.until_ready("site")
    ended = network.until_ended(session)
    assert ended["status"] == "finished", ended
    network.kill("site", signal.SIGTERM)
    assert containers(identity) == []
    model = network.folder / "model.npz"
    network.sdk.models.get(str(network.sdk.sessions.show(session).model), model)
    with open_npz(model, source="test") as opened:
        assert opened.arrays()["w"].tolist() == [5, 5, 5]
    log = network.log_of("site")
    assert log.count("image built") == 1
    assert "containers of an earlier start were removed" in log
    lines = [line.text for line in network.sdk.sessions.logs(session)]
    assert lines.count("in the image: here") >= 2
    assert any(line.startswith("docker: Step 1/") for line in lines)


def test_a_client_without_containers_refuses_such_a_package(network: ProcessNetwork, data: Path) -> None:
    network.start_client("site", data)
    network.until_attached("site")
    session = start_session(network, FILES)
    ended = network.until_ended(session)
    assert ended["status"] == "failed"
    assert "this client runs entry points as processes" in str(ended)

    def told() -> bool:
        return any("Start the client with --runtime docker" in line.text for line in network.sdk.sessions.logs(session))

    eventually_blocking(told)
