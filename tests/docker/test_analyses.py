"""Analyses over three sites of a real network, on a real engine: step by step, combined, and as they were tried."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from runnel.sdk import Network
from tests.docker_engine import base_image, docker, engine_host
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "federated-statistics"
SITES = ("site-1", "site-2", "site-3")
IMAGE = "runnel-test-statistics:1"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_cli(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "runnel.cli", *words]
    return subprocess.run(argv, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    network: ProcessNetwork
    tables: dict[str, Path]

    @property
    def url(self) -> str:
        return f"http://{self.network.http}"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("federation")
    docker("build", "--quiet", "--build-arg", f"BASE={base_image()}", "--tag", IMAGE, str(EXAMPLE))
    folders = load("data").split(root / "sites", len(SITES))
    tables = {site: folder / "patients.csv" for site, folder in zip(SITES, folders, strict=True)}
    with ProcessNetwork(root / "network") as network:
        network.start_reducer()
        network.start_combiner("c1")
        for site, table in tables.items():
            network.start_client(site, table, "--prefer", "c1", "--docker-host", engine_host())
        network.until_attached("c1", *SITES)
        network.sdk.close()  # or its idle connections end in the midst of a test
        yield Federation(network=network, tables=tables)


def test_the_example_equals_the_pooled_table(federation: Federation) -> None:
    load("pooling")
    analyse = load("analyse")
    with Network(federation.url) as network:
        found = analyse.analyse(analyse.Sites(network, IMAGE, "*", None))
    rows = []
    for table in federation.tables.values():
        with table.open(newline="") as file:
            rows += list(csv.DictReader(file))
    assert found["moments"]["mean_radius"]["count"] == len(rows) == 569
    mean = sum(float(row["mean_radius"]) for row in rows) / len(rows)
    assert found["moments"]["mean_radius"]["mean"] == pytest.approx(mean, rel=1e-12)
    # Those of scikit-learn without a penalty; tests/unit/test_example_statistics.py fits them anew.
    assert found["regression"]["intercept"]["coefficient"] == pytest.approx(-42.019408, abs=1e-6)
    assert found["regression"]["mean_texture"]["coefficient"] == pytest.approx(0.380559, abs=1e-6)
    assert found["survival"][0][1] == 569


def test_one_of_three_sites_fails_and_one_is_away(federation: Federation, tmp_path: Path) -> None:
    # The third site has no patient of that size.
    command = "sh -c 'cp /mnt/input/patients.csv /mnt/output/; test $(wc -l < /mnt/input/patients.csv) -gt 1'"
    with ProcessNetwork(tmp_path / "network") as network:
        network.start_reducer()
        for site, table in federation.tables.items():
            network.start_client(site, table, "--docker-host", engine_host())
        network.until_attached(*SITES)
        network.kill("site-2")
        words = ["task", "run", base_image(), "--url", f"http://{network.http}", "--command", command]
        words += [word for site in SITES for word in ("--site", site)]
        words += ["--select", "{ patients(where: {mean_radius: {gt: 24}}) { mean_radius malignant } }"]
        argv = [sys.executable, "-m", "runnel.cli", *words, "--output", str(tmp_path / "out"), "--combine", "csv"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:

            def others_are_over() -> bool:
                tasks = list(network.sdk.tasks.list())
                return bool(tasks) and {run.site for run in tasks[0].refresh().runs if run.ended} == {
                    "site-1",
                    "site-3",
                }

            eventually_blocking(others_are_over, timeout_s=60)
            states = {run.site: run.state for run in next(network.sdk.tasks.list()).refresh().runs}
            assert states == {"site-1": "done", "site-2": "queued", "site-3": "failed"}
            network.launch("site-2")
            _, said = running.communicate(timeout=60)
        assert running.returncode == 0, said
        alone = [word for word in words if word not in {"site-1", "site-2"}]
        alone = [word for n, word in enumerate(alone) if word != "--site" or alone[n + 1] == "site-3"]
        refused = run_cli(*alone, "--minimum-sites", "1")
        assert refused.returncode == 1
        assert "0 of 1 sites" in refused.stderr
        assert "site-3: " in refused.stderr
    with (tmp_path / "out" / "combined" / "patients.csv").open(newline="") as file:
        combined = list(csv.DictReader(file))
    assert list(combined[0]) == ["site", "mean_radius", "malignant"]
    assert {row["site"] for row in combined} == {"site-1", "site-2"}
    assert "Combined without site-3." in said
    assert not (tmp_path / "out" / "sites" / "site-3").exists()


def test_a_script_gives_the_same_bytes_alone_in_an_image_and_at_a_site(federation: Federation, tmp_path: Path) -> None:
    asked = ["--select", "{ patients { mean_radius } }", "--input", "step=moments"]
    asked += ["--input", 'columns=["mean_radius"]']
    data = ["--data", f"default={federation.tables['site-2']}"]
    script = str(EXAMPLE / "site_part.py")
    ways = {
        "alone": ["task", "try", script, *data, *asked],
        "image": ["task", "try", "--docker", IMAGE, *data, *asked],
        "site": ["task", "run", IMAGE, "--site", "site-2", "--url", federation.url, *asked],
    }
    given = {}
    for name, words in ways.items():
        ended = run_cli(*words, "--output", str(tmp_path / name), DOCKER_HOST=engine_host())
        assert ended.returncode == 0, (name, ended.stderr)
        folder = tmp_path / name / "site-2" if name == "site" else tmp_path / name
        given[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(given["alone"]) == {"stdout", "stderr", "output.zip"}
    assert given["alone"] == given["image"] == given["site"]
    failed = run_cli("task", "try", script, *data, "--input", "step=none", "--output", str(tmp_path / "bad"))
    assert failed.returncode == 1
    assert "No such file" in (tmp_path / "bad" / "stderr").read_text()
    assert (
        json.loads(run_cli("task", "try", script, *data, *asked, "--output", str(tmp_path / "json"), "--json").stdout)[
            "failure"
        ]
        is None
    )
