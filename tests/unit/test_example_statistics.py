"""The example of federated statistics gives what the pooled table gives."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parents[2] / "examples" / "federated-statistics"
COLUMNS = ["mean_radius", "mean_texture", "mean_smoothness"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"federated_statistics_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pooling, site_part = load("pooling"), load("site_part")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders: list[Path] = load("data").split(tmp_path_factory.mktemp("sites"), 3)
    return folders


@pytest.fixture(scope="module")
def pooled(sites: list[Path]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    rows = []
    for site in sites:
        with (site / "patients.csv").open(newline="") as file:
            rows += list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def ask(sites: list[Path], step: dict[str, Any], output: Path) -> list[Any]:
    """Run the site's script beside each site's table, as a container would."""
    results = []
    for site in sites:
        (site / "input.json").write_text(json.dumps(step))
        place = output / site.name
        place.mkdir(exist_ok=True)
        env = os.environ | {"CA_INPUT_FOLDER": str(site), "CA_OUTPUT_FOLDER": str(place)}
        subprocess.run([sys.executable, EXAMPLE / "site_part.py"], env=env, check=True, capture_output=True)
        results.append(json.loads((place / "result.json").read_text()))
    return results


def test_sites_differ_and_none_is_empty(sites: list[Path]) -> None:
    sizes = [len((site / "patients.csv").read_text().splitlines()) - 1 for site in sites]
    assert sum(sizes) == 569
    assert len(set(sizes)) == 3
    assert min(sizes) > 50


def test_means_and_variances_are_those_of_the_pooled_table(
    sites: list[Path], pooled: dict[str, Any], tmp_path: Path
) -> None:
    found = pooling.pooled_moments(ask(sites, {"step": "moments", "columns": COLUMNS}, tmp_path))
    for name in COLUMNS:
        assert found[name]["count"] == 569
        assert found[name]["mean"] == pytest.approx(pooled[name].mean(), rel=1e-12)
        assert found[name]["variance"] == pytest.approx(pooled[name].var(ddof=1), rel=1e-12)


def test_the_regression_is_that_of_the_pooled_table(sites: list[Path], pooled: dict[str, Any]) -> None:
    tables = []
    for site in sites:
        with (site / "patients.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))

    def step(coefficients: list[float]) -> list[Any]:
        asked = {"outcome": "malignant", "columns": COLUMNS, "coefficients": coefficients}
        return [json.loads(json.dumps(site_part.newton(table, asked))) for table in tables]

    found = pooling.newton_fit(step, COLUMNS)
    x = np.column_stack([pooled[name] for name in COLUMNS])
    # Much smaller steps than its defaults, and no penalty: the maximum of the likelihood.
    scale = x.std(axis=0)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(x / scale, pooled["malignant"])
    expected = dict(zip(COLUMNS, model.coef_[0] / scale, strict=True)) | {"intercept": model.intercept_[0]}
    assert found["steps"] < 15
    for name, value in expected.items():
        assert found[name]["coefficient"] == pytest.approx(value, abs=1e-6, rel=1e-6)
        assert found[name]["standard_error"] > 0


def test_the_survival_curve_is_that_of_the_pooled_table(
    sites: list[Path], pooled: dict[str, Any], tmp_path: Path
) -> None:
    curve = pooling.kaplan_meier(ask(sites, {"step": "events", "time": "months", "event": "died"}, tmp_path))
    survival = 1.0
    times = np.unique(pooled["months"][pooled["died"] == 1])
    assert [point[0] for point in curve] == times.tolist()
    for (_, at_risk, events, found), time in zip(curve, times, strict=True):
        assert at_risk == (pooled["months"] >= time).sum()
        assert events == ((pooled["months"] == time) & (pooled["died"] == 1)).sum()
        survival *= 1 - events / at_risk
        assert found == pytest.approx(survival, rel=1e-12)
    assert 0 < curve[-1][3] < 0.9


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ({"step": "moments", "columns": ["age"]}, "no column 'age'"),
        ({"step": "rows"}, "should be one of moments, newton, events but is 'rows'"),
    ],
)
def test_a_wrong_step_is_told(sites: list[Path], tmp_path: Path, step: dict[str, Any], complaint: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        ask(sites[:1], step, tmp_path)
    assert complaint in caught.value.stderr.decode()
