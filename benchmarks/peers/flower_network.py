"""Flower in deployment mode: a SuperLink, SuperNodes and the app in ``flower/``, started by Flower's own commands.

The app's strategy is FedAvg that marks when a round begins (``flower/addition/server_app.py``); the rounds' seconds are
the time from mark to mark, the last one's to the return of the strategy. Server processes are the SuperLink and the
ServerApp that it starts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.addition import Row, check_model
from benchmarks.peers.environments import environment, peer_variables
from benchmarks.peers.measured import PeerRounds, free_ports, seconds_between
from benchmarks.process_trees import process_trees

NAME = "Flower"
PACKAGE = "flwr"
_APP = Path(__file__).parent / "flower"
_READY_S = 60.0
_ROUND_S = 180.0
_CONFIG = """[superlink]
default = "benchmarks"

[superlink.benchmarks]
address = "127.0.0.1:{port}"
insecure = true
"""


async def measure(row: Row, seed: Path, folder: Path, environments: Path) -> PeerRounds:
    """Train for the rounds of ``row`` and one before, in ``folder``, which is empty.

    Raises:
        PeerUnavailable: Flower can't be installed.
        ProcessEnded: it failed.
        WrongModel: it did something else.
    """
    own, version = await environment(environments, PACKAGE)
    rounds = row.peer_rounds + 1
    port, *nodes = free_ports(1 + row.clients)
    environ = peer_variables(own, folder)
    (folder / "flwr").mkdir()
    (folder / "flwr/config.toml").write_text(_CONFIG.format(port=port))
    marks, model = folder / "marks.jsonl", folder / "model.npz"
    async with process_trees(folder, environ, server_process) as trees:
        here = ["--insecure", "--host", "127.0.0.1", "--port"]
        superlink = [str(own / "bin/flower-superlink"), *here, str(port), "--disable-runtime-dependency-installation"]
        trees.start("superlink", superlink, counted=True)
        log = trees.log("superlink")
        await trees.until(lambda: "running on http" in log.read_text(), what="SuperLink serves", timeout_s=_READY_S)
        for n, node in enumerate(nodes):
            supernode = [str(own / "bin/flower-supernode"), "--superlink", f"127.0.0.1:{port}", *here, str(node)]
            trees.start(f"supernode-{n}", supernode)
        await trees.until(
            lambda: log.read_text().count("Activated node") >= row.clients, what="all nodes", timeout_s=_READY_S
        )
        values = {"clients": row.clients, "rounds": rounds, "seed": str(seed), "marks": str(marks), "model": str(model)}
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        await trees.run(
            "run",
            [str(own / "bin/flwr"), "run", str(_APP), "benchmarks", "--run-config", config],
            timeout_s=_READY_S,
        )
        await trees.until(
            lambda: marks.exists() and '"written"' in marks.read_text(), what="all rounds", timeout_s=_ROUND_S * rounds
        )
        peaks = trees.peaks
    check_model(seed, model, rounds)
    seconds = seconds_between(marks_in(marks.read_text()), row.peer_rounds)
    return PeerRounds(version=version, seconds=seconds, peaks=peaks)


def marks_in(lines: str) -> list[float]:
    """Return when each round began and the last one ended, as the app's strategy wrote it down."""
    marks = [json.loads(line) for line in lines.splitlines()]
    return [float(mark["at"]) for mark in marks if mark["event"] in {"begins", "ended"}]


def server_process(argv: Sequence[str]) -> str | None:
    """Tell Flower's server processes apart."""
    names = {"flower-superlink": "SuperLink", "flwr-serverapp": "ServerApp", "flower-superexec": "SuperExec"}
    return next((names[Path(word).name] for word in argv[:3] if Path(word).name in names), None)
