"""The images of the components on a real engine: what they are, and a network of containers that trains."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme

from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from tests.docker.algorithm_images import algorithm_image
from tests.docker.operator_images import ROLES, ContainerNetwork, build_images, ran
from tests.docker_engine import base_image, containers, docker, engine_host, inspect, networks
from tests.eventually import eventually_blocking

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

# What an image may have beside its base.
MOST_BYTES = {"reducer": 260 << 20, "combiner": 190 << 20, "client": 360 << 20}
TRAIN = """
import os, sys, time
import numpy as np
data = os.environ["RUNNEL_DATA"]
print("trains", flush=True)
while os.path.exists(data + "/wait"):
    time.sleep(0.05)
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + float(open(data + "/number").read()) for name in model.files}
np.savez(sys.argv[2], **arrays)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    engine_host()
    return build_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def network(images: dict[str, str], tmp_path: Path) -> Iterator[ContainerNetwork]:
    with ContainerNetwork(f"runnel-{secrets.token_hex(4)}", images) as made:
        yield made


@pytest.mark.parametrize("role", ROLES)
def test_an_image_is_small_and_not_root(images: dict[str, str], role: str) -> None:
    image = inspect("image", images[role])
    added = image["Size"] - inspect("image", base_image())["Size"]
    print(f"{role}: {added / 1e6:.0f} MB beside the base")
    assert added < MOST_BYTES[role]
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Volumes"] == {"/state": {}}
    assert image["Config"]["Healthcheck"]["Test"] == ["CMD", "runnel", "health"]
    assert image["Config"]["Entrypoint"] == ["runnel", role]
    assert not any("PIP_" in line for line in image["Config"]["Env"])


@pytest.mark.parametrize("role", ["reducer", "combiner"])
def test_it_does_not_serve_plain_text_unless_told(images: dict[str, str], role: str) -> None:
    network = () if role == "reducer" else ("--network=reducer:7400",)
    ended = docker("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", images[role], *network, check=False)
    assert ended.returncode == 2
    assert "needs --tls-cert and --tls-key" in ended.stderr


def readable(folder: Path, *files: Path) -> Path:
    """Let the user of the containers read what is mounted."""
    folder.chmod(0o755)
    for file in (*files, *folder.iterdir()):
        file.chmod(0o644)
    return folder


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    folder = tmp_path / "tls"
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("reducer", "combiner-1", "combiner-2"):
        issued = authority.issue_cert(name, *(["gateway"] if name != "reducer" else []))
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    return readable(folder)


def server_options(tls: Path, name: str, component: str) -> list[str]:
    prefix = f"--env=RUNNEL_{component}_"
    return [f"--volume={tls}:/tls:ro", f"{prefix}TLS_CERT=/tls/{name}.pem", f"{prefix}TLS_KEY=/tls/{name}.key"]


def give(given: Path, train: str) -> str:
    """Write what sessions are of to ``given``; return the option that mounts it."""
    package = given.parent / "package"
    for folder in (package, given):
        folder.mkdir()
    (package / "train.py").write_text(train)
    pack(package, given / "package.tar.gz")
    write_npz(given / "seed.npz", {"w": np.zeros(3, np.float32)})
    (given / "policy.toml").write_text('approve = "anything"\n')
    return f"--volume={readable(given)}:/given:ro"


def trained(network: ContainerNetwork, session: str) -> str:
    """Wait until a session has ended well; return its model."""
    eventually_blocking(lambda: network.runnel("session", "show", session)["status"] != "running", timeout_s=90)
    ended = network.runnel("session", "show", session)
    assert ended["status"] == "finished", ended
    network.runnel("model", "get", ended["model"], "--output", "/tmp/model.npz")
    shown = "import numpy as np; print(np.load('/tmp/model.npz')['w'].tolist())"
    return network.exec(network.reducer, "python", "-c", shown).strip()


def test_a_network_of_containers_trains_through_a_cut(network: ContainerNetwork, tls: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    volume = give(given, TRAIN)
    network.network("centre")
    network.network("sites")
    network.start("reducer", "reducer", ["centre"], *server_options(tls, "reducer", "REDUCER"), volume)
    network.until_well("reducer")

    def token(role: str, name: str) -> list[str]:
        (given / name).write_text(network.runnel("token", "create", "--role", role, "--name", name)["token"])
        (given / name).chmod(0o644)
        return [
            volume,
            f"--env=RUNNEL_{role.upper()}_TOKEN_FILE=/given/{name}",
            f"--env=RUNNEL_{role.upper()}_TLS_CA=/tls/ca.pem",
        ]

    for number in (1, 2):
        name = f"combiner-{number}"
        options = [*server_options(tls, name, "COMBINER"), *token("combiner", name)]
        command = ("--network=reducer:7400", f"--name={name}", f"--advertise={name}:7500", "--relay-joins")
        network.start(
            name, "combiner", ["centre", "sites"], *options, "--env=RUNNEL_COMBINER_HEARTBEAT_S=1", command=command
        )
    for number in (1, 2):
        data = tmp_path / f"data-{number}"
        data.mkdir()
        (data / "number").write_text(str(2 * number))
        readable(data)
        name = f"site-{number}"
        options = [f"--volume={tls}:/tls:ro", f"--volume={data}:/data:ro", *token("client", name)]
        options += ["--health-interval=2s", "--health-retries=1", "--health-start-period=0s"] if number == 2 else []
        command = (
            f"--network=combiner-{number}:7500",
            f"--name={name}",
            "--data=default=/data",
            "--policy=/given/policy.toml",
        )
        network.start(name, "client", ["sites"], *options, command=command)
    containers = ("reducer", "combiner-1", "combiner-2", "site-1", "site-2")
    network.until_well(*containers)

    # Each site sees its combiners, and nothing of the reducer; nobody is root, and nothing but the state is written.
    [reducer] = inspect("container", network.full("reducer"))["NetworkSettings"]["Networks"].values()
    for where, reached in (("combiner-2", True), (reducer["IPAddress"], False)):
        port = 7500 if reached else 7400
        dial = f"import socket; socket.create_connection(('{where}', {port}), timeout=2)"
        done = docker("exec", network.full("site-1"), "python", "-c", dial, check=False)
        assert (done.returncode == 0) == reached, done.stderr
    for name in containers:
        assert network.exec(name, "id", "-u").strip() == "10001"
        refused = docker("exec", "--user=0", network.full(name), "touch", "/opt/runnel/new", check=False)
        assert "Read-only file system" in refused.stderr

    # One site is cut off while it works; the other's update waits for it.
    waiting = tmp_path / "data-2" / "wait"
    waiting.touch()
    choices = ("--rounds", "2", "--min-clients", "2", "--validate-every", "0", "--round-timeout", "300")
    files = ("--package", "/given/package.tar.gz", "--seed", "/given/seed.npz")
    session = network.runnel("session", "start", *files, *choices)["session"]
    logs = ("session", "logs", session, "--client", "site-2")
    eventually_blocking(lambda: any(line["text"] == "trains" for line in network.runnel(*logs)), timeout_s=60)
    ran("network", "disconnect", network.full("sites"), network.full("site-2"))
    network.until_health("site-2", "unhealthy", "attached to nobody")
    waiting.unlink()
    ran("network", "connect", network.full("sites"), network.full("site-2"))
    network.until_health("site-2", "healthy", "attached to combiner-2")
    assert trained(network, session) == "[6.0, 6.0, 6.0]"

    for name in reversed(containers):
        assert network.stop(name) == 0, name


@pytest.fixture
def next_reducer(images: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The reducer's image of another day, which has the role ``next``."""
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "Dockerfile").write_text(f"FROM {images['reducer']}\nLABEL day=next\n")
    images["next"] = f"{images['reducer']}-{secrets.token_hex(4)}"
    ran("build", "--tag", images["next"], str(tmp_path / "next"))
    yield images["next"]
    ran("rmi", images.pop("next"))


IN_A_CONTAINER = """
import os, sys
import numpy as np
print("in", os.getcwd(), os.getuid(), os.path.exists("/state"), flush=True)
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + float(open(os.environ["RUNNEL_DATA"] + "/number").read()) for name in model.files}
np.savez(sys.argv[2], **arrays)
"""


def test_a_client_with_the_engines_socket_and_a_reducer_that_is_backed_up_restored_and_upgraded(
    next_reducer: str, network: ContainerNetwork, tls: Path, tmp_path: Path
) -> None:
    given, data, kept = tmp_path / "given", tmp_path / "data", tmp_path / "backup"
    volume = give(given, IN_A_CONTAINER)
    for folder in (data, kept):
        folder.mkdir()
    (data / "number").write_text("2")
    readable(data)
    socket = Path(engine_host().removeprefix("unix://"))
    network.network("centre")
    network.start("reducer", "reducer", ["centre"], *server_options(tls, "reducer", "REDUCER"), volume)
    network.until_well("reducer")
    (given / "token").write_text(network.runnel("token", "create", "--role", "client", "--name", "site")["token"])
    readable(given)
    options = [
        volume,
        f"--volume={tls}:/tls:ro",
        f"--volume={data}:/data:ro",
        f"--volume={socket}:/var/run/docker.sock",
    ]
    options += ["--env=RUNNEL_CLIENT_TOKEN_FILE=/given/token", "--env=RUNNEL_CLIENT_TLS_CA=/tls/ca.pem"]
    runtime = ("--runtime=docker", f"--docker-image={base_image()}", "--policy=/given/policy.toml")
    network.start(
        "site",
        "client",
        ["centre"],
        *options,
        f"--group-add={socket.stat().st_gid}",
        command=("--network=reducer:7400", "--name=site", "--data=default=/data", *runtime),
    )
    network.until_well("reducer", "site")
    files = ("--package", "/given/package.tar.gz", "--seed", "/given/seed.npz")
    session = network.runnel("session", "start", *files, "--rounds", "1")["session"]
    assert trained(network, session) == "[2.0, 2.0, 2.0]"
    lines = [line["text"] for line in network.runnel("session", "logs", session, "--client", "site")]
    assert "in /runnel/package 10001 False" in lines
    identity = json.loads(network.exec("site", "cat", "/state/identity.json"))["node_id"]
    assert containers(identity) == []

    # As docs/operator.md has it, with an image of another day.
    network.exec("reducer", "runnel", "reducer", "backup", "--state", "/state", "--output", "/state/backup.tar")
    ran("cp", f"{network.full('reducer')}:/state/backup.tar", str(kept / "backup.tar"))
    readable(kept)
    assert network.stop("reducer") == 0
    ran("rm", network.full("reducer"))
    again = ("--rm", "--network=none", "--read-only", "--tmpfs=/tmp", f"--volume={network.full('again')}-state:/state")
    ran("run", *again, f"--volume={kept}:/backup:ro", next_reducer, "restore", "/backup/backup.tar", "--state=/state")
    options = [*server_options(tls, "reducer", "REDUCER"), volume, "--network-alias=reducer"]
    network.start("again", "next", ["centre"], *options)
    network.reducer = "again"
    network.until_well("again", "site")
    assert network.runnel("session", "show", session)["status"] == "finished"
    network.runnel("session", "extend", session, "--rounds", "1")
    assert trained(network, session) == "[4.0, 4.0, 4.0]"
    for name in ("site", "again"):
        assert network.stop(name) == 0, name
    assert containers(identity) == []


LOOK = "cat /mnt/input/ages.csv > /mnt/output/seen; id -u > /mnt/output/user; ls /state /data; true"
TASKS = """
[tasks]
images = [".*"]
pull = "never"
central = true
databases = ["default"]
"""


def test_a_client_in_its_container_runs_tasks_and_central_functions(
    network: ContainerNetwork, tls: Path, tmp_path: Path
) -> None:
    given, data = tmp_path / "given", tmp_path / "data"
    for folder in (given, data):
        folder.mkdir()
    (data / "ages.csv").write_text("Age,name\n40,a\n60,b\n")
    (given / "policy.toml").write_text(TASKS)
    readable(data)
    volume = f"--volume={readable(given)}:/given:ro"
    socket = Path(engine_host().removeprefix("unix://"))
    network.network("centre")
    network.start("reducer", "reducer", ["centre"], *server_options(tls, "reducer", "REDUCER"), volume)
    network.until_well("reducer")
    (given / "token").write_text(network.runnel("token", "create", "--role", "client", "--name", "site")["token"])
    readable(given)
    network.start(
        "site",
        "client",
        ["centre"],
        volume,
        f"--volume={tls}:/tls:ro",
        f"--volume={data}:/data:ro",
        f"--volume={socket}:/var/run/docker.sock",
        f"--group-add={socket.stat().st_gid}",
        "--env=RUNNEL_CLIENT_TOKEN_FILE=/given/token",
        "--env=RUNNEL_CLIENT_TLS_CA=/tls/ca.pem",
        "--env=RUNNEL_CLIENT_POLICY=/given/policy.toml",
        command=("--network=reducer:7400", "--name=site", "--data=default=/data/ages.csv"),
    )
    network.until_well("reducer", "site")

    def outcome(*command: str) -> str:
        task = network.runnel("task", "run", *command, "--site", "site", "--wait")["task"]
        network.runnel("task", "results", task, "--output", f"/tmp/{task}")
        return f"/tmp/{task}/site"

    look = ("--command", f"sh -c '{LOOK}'")
    place = outcome(base_image(), *look, "--select", "{ ages { Age } }")
    shown = network.exec("reducer", "sh", "-c", f"cd {place}; python -m zipfile -e output.zip .; cat seen user stdout")
    assert shown.split() == ["Age", "40", "60", "10001"]

    call = ("--contract", "vantage6", "--input", "method=central", "--input", 'kwargs={"column": "Age"}')
    for chosen in (("--whole-database", "default"), ("--select", "{ ages { Age } }")):
        place = outcome(algorithm_image(), "--central", *call, *chosen)
        told = json.loads(network.exec("reducer", "cat", f"{place}/output"))
        assert (told["average"], told["organizations"], told["status"]) == (50.0, ["site"], ["completed"])
    identity = json.loads(network.exec("site", "cat", "/state/identity.json"))["node_id"]
    assert containers(identity) == []
    assert networks(identity) == []
    for name in ("site", "reducer"):
        assert network.stop(name) == 0, name
