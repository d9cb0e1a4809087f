"""The benchmark of containers runs; how fast the machine is, is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker_engine import base_image, containers, engine_host

pytestmark = pytest.mark.docker


def test_it_tells_what_each_kind_of_run_costs() -> None:
    environ = os.environ | {"DOCKER_HOST": engine_host(), "RUNNEL_BENCH_IMAGE": base_image()}
    command = [sys.executable, "-m", "benchmarks.containers", "--quick", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert len(figures) == 5
    assert all(each["median"] > 0 for each in figures)
    assert containers("benchmark-mount") == containers("benchmark-copy") == []
