"""What scripts take when nothing starts them but ``fork``: the limit of warm runs.

One interpreter that has imported numpy forks as many children at once as there are clients; each runs ``train.py`` with
its own files, and the round is over when the last has ended. Prints the seconds of each round as JSON.

    python -m benchmarks.forked_scripts TRAIN_PY MODEL CLIENTS ROUNDS
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np  # noqa: F401 - the children shall find it imported


async def forked_seconds(
    script: Path, model: Path, *, clients: int, rounds: int, environ: Mapping[str, str]
) -> list[float]:
    """Return how long so many runs of ``script`` at once take, each time, in an interpreter of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.forked_scripts",
        *(str(script), str(model), str(clients), str(rounds)),
        stdout=asyncio.subprocess.PIPE,
        env=environ,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"forked_scripts ended with {process.returncode}")
    return [float(each) for each in json.loads(said)]


def _rounds(script: Path, model: Path, clients: int, rounds: int) -> list[float]:
    times = []
    with tempfile.TemporaryDirectory(prefix="runnel-forked-") as work:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            children = [_fork(script, model, Path(work) / f"{n}.npz") for n in range(clients)]
            status = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            times.append(time.perf_counter() - began)
            if any(status):
                raise RuntimeError(f"{script.name} ended with {status}")
    return times[1:]  # the first one makes the files


def _fork(script: Path, model: Path, update: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        sys.argv = [script.name, str(model), str(update)]
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    print(json.dumps(_rounds(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
