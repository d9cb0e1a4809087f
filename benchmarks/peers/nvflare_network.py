"""NVFlare as its proof of concept (POC) provisions it: a server, sites and a job, started by NVFlare's own scripts.

The rounds' seconds are those between the time stamps of *Round n started* in the job's log at the server, the last
one's to *Finished FedAvg*. Server processes are the server and the process that it starts for the job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.addition import Row, check_model
from benchmarks.peers.environments import environment, peer_variables
from benchmarks.peers.measured import PeerRounds, free_ports, seconds_between
from benchmarks.process_trees import process_trees

NAME = "NVFlare"
PACKAGE = "nvflare"
_SCRIPTS = Path(__file__).parent / "nvflare"
_READY_S = 60.0
_ROUND_S = 120.0
_PORT = 8002  # of every POC
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - ")
_MARK = re.compile(r"^\s*(Round \d+ started\.|Finished FedAvg\.)\s*$")


async def measure(row: Row, seed: Path, folder: Path, environments: Path) -> PeerRounds:
    """Train for the rounds of ``row`` and one before, in ``folder``, which is empty.

    Raises:
        PeerUnavailable: NVFlare can't be installed.
        ProcessEnded: it failed.
        WrongModel: it did something else.
    """
    own, version = await environment(environments, PACKAGE)
    rounds = row.peer_rounds + 1
    model = folder / "model.npz"
    async with process_trees(folder, peer_variables(own, folder), server_process) as trees:
        prepare = [str(own / "bin/nvflare"), "poc", "prepare", "-n", str(row.clients)]
        await trees.run("prepare", prepare, timeout_s=_READY_S)
        kits = folder / "poc/example_project/prod_00"
        _adapt(kits, free_ports(1)[0])
        trees.start("server", _start(kits / "server"), counted=True)
        log = trees.log("server")
        await trees.until(lambda: "Server started" in log.read_text(), what="the server serves", timeout_s=_READY_S)
        for n in range(1, row.clients + 1):
            trees.start(f"site-{n}", _start(kits / f"site-{n}"))
        await trees.until(
            lambda: log.read_text().count("Client: New client site-") >= row.clients,
            what="all sites",
            timeout_s=_READY_S,
        )
        submit = [str(own / "bin/python"), str(_SCRIPTS / "submit.py"), str(folder / "job")]
        words = [str(kits / "admin@nvidia.com"), str(row.clients), str(rounds), str(seed), str(model)]
        await trees.run("submit", [*submit, *words], timeout_s=_READY_S)
        await trees.until(
            lambda: len(marks_in(_job_log(kits / "server"))) > rounds, what="all rounds", timeout_s=_ROUND_S * rounds
        )
        peaks = trees.peaks
        marks = marks_in(_job_log(kits / "server"))
    check_model(seed, model, rounds)
    return PeerRounds(version=version, seconds=seconds_between(marks, row.peer_rounds), peaks=peaks)


def marks_in(log: str) -> list[float]:
    """Return when each round began and the last one ended, in seconds, from the log of a job at the server.

    A mark is a line of its own below the line that has the time.
    """
    marks: list[float] = []
    stamp = None
    for line in log.splitlines():
        if found := _STAMP.match(line):
            stamp = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()  # noqa: DTZ007 - differences count
        elif _MARK.match(line) and stamp is not None:
            marks.append(stamp)
    return marks


def server_process(argv: Sequence[str]) -> str | None:
    """Tell NVFlare's server processes apart."""
    names = {"server_train": "server", "runner_process": "job"}
    return next((names[last] for word in argv[:5] if (last := word.rpartition(".")[2]) in names), None)


def _adapt(kits: Path, port: int) -> None:
    """Let the server listen where nobody else does, and load the persistor, which it knows only of its own classes."""
    for file in kits.glob("*/startup/fed_*.json"):
        file.write_text(file.read_text().replace(str(_PORT), str(port)))
    resources = kits / "server/local/resources.json"
    settings = json.loads(resources.read_text())
    settings["class_allow_list"].append("arrays_persistor.ArraysPersistor")
    resources.write_text(json.dumps(settings))


def _start(kit: Path) -> list[str]:
    return ["bash", str(kit / "startup/sub_start.sh"), "--once"]


def _job_log(server: Path) -> str:
    logs = [each / "log.txt" for each in server.iterdir() if (each / "log.txt").exists()]
    return logs[0].read_text() if logs else ""
