"""`runnel reducer backup` of a network at work, and the network that goes on from it somewhere else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from tests.eventually import eventually_blocking
from tests.process.forked_process import run_runnel
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(240)]

STEPS = {"site-1": 3.0, "site-2": 6.0, "site-3": 12.0}
GAIN = 7.0  # the mean of the steps, exact in float64

TRAIN = """
import os, pathlib, sys, time
import numpy as np

data = os.environ["RUNNEL_DATA"]
name, number = os.environ["RUNNEL_CLIENT_NAME"], int(os.environ["RUNNEL_ROUND"])
with open(data + ".runs", "a") as file:
    file.write(f"{number}\\n")
while number == 3 and name == "site-3" and not pathlib.Path(data + ".go").exists():
    time.sleep(0.02)
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + float(open(data).read()) for name in model.files}
np.savez(sys.argv[2], **arrays)
"""
VALIDATE = 'import json, sys\njson.dump({"fine": 1}, open(sys.argv[2], "w"))\n'


def runnel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_runnel(arguments, env=os.environ)


def start_nodes(net: ProcessNetwork, data: Path) -> None:
    net.start_combiner("c1")
    for name, step in STEPS.items():
        (data / f"{name}.txt").write_text(str(step))
        net.start_client(name, data / f"{name}.txt")
    net.until_attached("c1", *STEPS)


def start_session(net: ProcessNetwork, folder: Path, rounds: int) -> str:
    package = folder / "package"
    package.mkdir()
    (package / "train.py").write_text(TRAIN)
    (package / "validate.py").write_text(VALIDATE)
    pushed = net.sdk.packages.push(pack(package, folder / "package.tar.gz").path)
    write_npz(folder / "seed.npz", {"w": np.arange(300_000, dtype=np.float64), "b": np.zeros(3)})
    seed = net.sdk.models.push(folder / "seed.npz")
    started = net.sdk.sessions.start(
        package=pushed.digest, seed=seed.model, rounds=rounds, min_clients=len(STEPS), strategy="fedavgm",
        strategy_options={"learning_rate": 1.0, "momentum": 0.0},
    )  # fmt: skip
    return started.session


def require_right_model(net: ProcessNetwork, session: str, rounds: int) -> None:
    ended = net.until_ended(session, timeout_s=90)
    assert ended["status"] == "finished", ended["reason"]
    net.sdk.models.get(str(ended["model"]), net.folder / "final.npz")
    with np.load(net.folder / "final.npz") as model:
        np.testing.assert_allclose(model["w"], np.arange(300_000) + GAIN * rounds, rtol=1e-12)
        np.testing.assert_allclose(model["b"], np.full(3, GAIN * rounds), rtol=1e-12)
    shown = ended["rounds"]
    assert isinstance(shown, list)
    assert [(r["updates"], r["failed"], r["late"]) for r in shown] == [(3, 0, 0)] * rounds


def until_run(data: Path, name: str, number: int) -> None:
    """Wait until a client has begun a round."""
    path = data / f"{name}.txt.runs"
    eventually_blocking(lambda: path.exists() and str(number) in path.read_text().split(), timeout_s=60)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same-ports", "new-network"])
def test_a_session_goes_on_from_a_backup_that_was_taken_in_its_middle(tmp_path: Path, elsewhere: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    backup = tmp_path / "backup.tar"
    with ProcessNetwork(tmp_path / "net") as net:
        net.start_reducer()
        start_nodes(net, data)
        session = start_session(net, tmp_path, rounds=4)
        until_run(data, "site-3", 3)
        told = runnel("reducer", "backup", "--state", str(net.folder / "reducer"), "-o", str(backup), "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["running"] == [session]
        # Life goes on after the backup: the third round ends, and what it counted is not in the backup.
        (data / "site-3.txt.go").touch()
        require_right_model(net, session, 4)
        for name in (*STEPS, "c1", "reducer"):
            net.kill(name)
        (data / "site-3.txt.go").unlink()
        state = net.folder / "reducer"
        shutil.rmtree(state)
        if not elsewhere:
            again = runnel("reducer", "restore", str(backup), "--state", str(state))
            assert again.returncode == 0, again.stderr
            assert "1 sessions under way" in again.stdout
            for name in ("reducer", "c1", *STEPS):
                net.launch(name)
                net.until_ready(name)
            net.until_attached("c1", *STEPS)
            (data / "site-3.txt.go").touch()
            require_right_model(net, session, 4)
            return
    with ProcessNetwork(tmp_path / "other") as other:
        assert runnel("reducer", "restore", str(backup), "--state", str(other.folder / "reducer")).returncode == 0
        other.start_reducer()
        for name in STEPS:
            shutil.copytree(tmp_path / "net" / name, other.folder / name)  # the clients keep their folders
        start_nodes(other, data)
        (data / "site-3.txt.go").touch()
        require_right_model(other, session, 4)


def test_backups_of_a_network_at_work_are_each_of_one_moment(tmp_path: Path) -> None:
    """Many backups while rounds come and go: each one starts, and its session ends in the right model."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "site-3.txt.go").touch()
    backups = [tmp_path / f"backup-{number}.tar" for number in range(6)]
    with ProcessNetwork(tmp_path / "net") as net:
        net.start_reducer()
        start_nodes(net, data)
        session = start_session(net, tmp_path, rounds=8)
        for number, backup in enumerate(backups):
            until_run(data, "site-1", 1 + number)
            told = runnel("reducer", "backup", "--state", str(net.folder / "reducer"), "-o", str(backup))
            assert told.returncode == 0, told.stderr
        require_right_model(net, session, 8)
        for backup in (backups[1], backups[-1]):
            for name in ("reducer", "c1", *STEPS):
                net.kill(name, signal.SIGTERM)
            shutil.rmtree(net.folder / "reducer")
            told = runnel("reducer", "restore", str(backup), "--state", str(net.folder / "reducer"))
            assert told.returncode == 0, told.stderr
            for name in ("reducer", "c1", *STEPS):
                net.launch(name)
                net.until_ready(name)
            require_right_model(net, session, 8)


def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
    def line(*arguments: str) -> str:
        ended = runnel("reducer", *arguments)
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert "Traceback" not in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        return ended.stderr

    assert "no reducer.db" in line("backup", "--state", str(tmp_path), "-o", str(tmp_path / "b.tar"))
    assert "no file" in line("restore", str(tmp_path / "none"), "--state", str(tmp_path / "new"))
    (tmp_path / "text").write_text("text")
    assert "is not a backup" in line("restore", str(tmp_path / "text"), "--state", str(tmp_path / "new"))
    assert "is not empty" in line("restore", str(tmp_path / "text"), "--state", str(tmp_path))
    misplaced = runnel("reducer", "--state", "x", "backup", "--state", str(tmp_path), "-o", "y")
    assert misplaced.returncode == 2
    assert "come after its name" in misplaced.stderr
