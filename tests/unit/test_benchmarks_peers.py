"""What is read from the logs of peers, and what a run of the benchmark refuses to call a measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.addition import Row, WrongModel, check_model, write_seed
from benchmarks.peers import flower_network, nvflare_network
from benchmarks.peers.environments import peer_variables
from benchmarks.peers.measured import seconds_between

pytestmark = pytest.mark.unit

ROW = Row(clients=2, kilobytes=4, rounds=2, peer_rounds=2)

# Recorded from NVFlare 2.9.0: a server's log of a job; fields and lines between are shortened.
NVFLARE_LOG = """\
2026-11-21 15:44:57,702 - FedAvg - INFO - [run=f099, wf=controller] - Initializing BaseModelController workflow.
2026-11-21 15:44:57,783 - FedAvg - INFO - [run=f099, wf=controller] -
================================================================================
                                 Start FedAvg.                                  \
\n================================================================================

2026-11-21 15:44:57,783 - FedAvg - INFO - [run=f099, wf=controller] - loading initial model from persistor
2026-11-21 15:44:57,817 - FedAvg - INFO - [run=f099, wf=controller] -
--------------------------------------------------------------------------------
                                Round 0 started.                                \
\n--------------------------------------------------------------------------------

2026-11-21 15:44:59,819 - FedAvg - INFO - [run=f099, peer=site-2, task_name=train] - Start persist model on server.
2026-11-21 15:44:59,822 - FedAvg - INFO - [run=f099, peer=site-2, task_name=train] -
--------------------------------------------------------------------------------
                                Round 1 started.                                \
\n--------------------------------------------------------------------------------

2026-11-21 15:45:00,330 - ServerRunner - INFO - [run=f099, peer=site-1] - assigned task to client site-1: name=train
2026-11-21 15:45:02,381 - FedAvg - INFO - [run=f099, peer=site-2, task_name=train] -
--------------------------------------------------------------------------------
                                Round 2 started.                                \
\n--------------------------------------------------------------------------------

2026-11-21 15:45:04,891 - FedAvg - INFO - [run=f099, peer=site-1, task_name=train] -
================================================================================
                                Finished FedAvg.                                \
\n================================================================================

2026-11-21 15:45:04,902 - ServerRunner - INFO - [run=f099, wf=controller] - Workflow: controller finalizing ...
"""

# Recorded from Flower 1.41.0.
FLOWER_MARKS = """\
{"at": 1795275716.1345525, "event": "begins", "round": 1}
{"at": 1795275748.2642257, "event": "begins", "round": 2}
{"at": 1795275764.7312775, "event": "begins", "round": 3}
{"at": 1795275786.1863651, "event": "ended"}
{"at": 1795275786.1901234, "event": "written"}
"""


def test_nvflares_rounds_are_timed_by_the_log_of_its_server() -> None:
    marks = nvflare_network.marks_in(NVFLARE_LOG)
    assert seconds_between(marks, 2) == pytest.approx([2.559, 2.510])
    # Without the last mark the rounds are not over.
    assert len(nvflare_network.marks_in(NVFLARE_LOG.partition("Finished")[0])) == 3


def test_flowers_rounds_are_timed_by_the_marks_of_its_strategy() -> None:
    marks = flower_network.marks_in(FLOWER_MARKS)
    assert seconds_between(marks, 2) == pytest.approx([16.467, 21.455], abs=0.001)


def test_a_missing_round_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="4 marks, not 3"):
        seconds_between([0.0, 1.0, 2.0], 2)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/env/bin/python", "/env/bin/flower-superlink", "--insecure"], "SuperLink"),
        (["/env/bin/python", "/env/bin/flwr-serverapp", "--token", "x"], "ServerApp"),
        (["/env/bin/python", "/env/bin/flwr-clientapp", "--token", "x"], None),
    ],
)
def test_flowers_server_processes_have_names(argv: list[str], name: str | None) -> None:
    assert flower_network.server_process(argv) == name


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["python3", "-u", "-m", "nvflare.private.fed.app.server.server_train", "-m", "/server"], "server"),
        (["/env/bin/python3", "-m", "nvflare.private.fed.app.server.runner_process", "-m", "/server"], "job"),
        (["bash", "/server/startup/sub_start.sh", "--once"], None),
    ],
)
def test_nvflares_server_processes_have_names(argv: list[str], name: str | None) -> None:
    assert nvflare_network.server_process(argv) == name


def test_a_model_that_misses_an_update_is_no_measurement(tmp_path: Path) -> None:
    seed, right, wrong = tmp_path / "seed.npz", tmp_path / "right.npz", tmp_path / "wrong.npz"
    write_seed(ROW, seed)
    assert seed.stat().st_size > ROW.size_bytes
    with np.load(seed) as arrays:
        model = {f"other_{name}": arrays[name] + np.float32(3) for name in arrays.files}
    np.savez(right, **model)
    check_model(seed, right, 3)
    with pytest.raises(WrongModel, match="off by 1"):
        check_model(seed, right, 2)
    model["other_w7"] = model["other_w7"] - np.float32(0.5)  # one of two clients, once
    np.savez(wrong, **model)
    with pytest.raises(WrongModel, match=r"wrong\.npz is off by 0\.5 in other_w7"):
        check_model(seed, wrong, 3)
    np.savez(wrong, **{name: array.astype(np.float64) for name, array in model.items()})
    with pytest.raises(WrongModel, match="float64"):
        check_model(seed, wrong, 3)


def test_peers_see_nothing_of_the_user_and_tell_nobody(tmp_path: Path) -> None:
    variables = peer_variables(tmp_path / "environment", tmp_path)
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert variables["HOME"] == str(tmp_path)
    assert not {key for key in variables if "PROXY" in key.upper() or "TOKEN" in key}
