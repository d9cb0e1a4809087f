"""Each benchmark runs, and what it writes can be read and compared; how fast the machine is, is not tested."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.figures import Figure, Result, figure
from benchmarks.report import Report, write
from benchmarks.run import BENCHMARKS

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("benchmarks") / "quick"
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "## Targets" in path.with_name("quick.md").read_text()
    return Report.read(path.with_name("quick.json"))


def figures_of(report: Report, benchmark: str) -> dict[str, Figure]:
    (result,) = (each for each in report.results if each.benchmark == benchmark)
    return {each.name: each for each in result.figures}


def test_all_of_them_give_sane_figures(report: Report) -> None:
    assert [each.benchmark for each in report.results] == list(BENCHMARKS)
    assert report.quick
    assert {"processor", "cores", "memory_gb", "python", "numpy", "grpcio", "load_1min"} <= set(report.machine)
    for result in report.results:
        assert len(result.figures) >= 5
        assert len({each.name for each in result.figures}) == len(result.figures)
        for each in result.figures:
            assert each.runs >= 1
            assert each.low <= each.median <= each.high
            assert math.isfinite(each.median)
            if "overhead" not in each.name:  # a difference, which a busy machine can turn round
                assert each.median >= 0, each


def test_a_round_is_told_by_phase_and_stage(report: Report) -> None:
    found = figures_of(report, "round_overhead")
    for what in ("training only", "with validation"):
        rounds, overhead = found[f"{what}: round"], found[f"{what}: overhead of a round"]
        assert overhead.median == pytest.approx(rounds.median - found[f"{what}: the scripts alone"].median)
        assert rounds.runs == 2
        parts = ("phase training", "phase reducing", "client, train, run", "client, train, push")
        for part in parts:
            assert 0 < found[f"{what}: {part}"].median < rounds.median
    assert "with validation: phase validating" in found
    assert "training only: phase validating" not in found


def test_memory_is_counted_above_the_idle_process(report: Report) -> None:
    found = figures_of(report, "memory")
    combiner = found["1 MB, 2 clients: combiner peak above base"]
    assert combiner.median >= 2  # the sum alone
    assert combiner.median < 60
    assert 30 < found["1 MB, 2 clients: combiner base"].median < 300


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "fold_bandwidth"])
def test_each_has_a_command_line(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    assert "--quick" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def report_of(*figures: Figure) -> Report:
    result = Result(benchmark="some", parameters={"runs": 3}, figures=figures)
    return Report(day="2026-01-01", quick=False, machine={"cores": 2}, results=(result,))


def test_a_figure_is_a_median_with_its_spread() -> None:
    some = figure("pause", "ms", [5.0, 1.0, 3.0], target=4.0)
    assert (some.median, some.low, some.high, some.runs, some.verdict) == (3.0, 1.0, 5.0, 3, "met")
    many = figure("pause", "ms", range(101))
    assert (many.median, many.low, many.high) == (50, 10, 90)
    assert dataclasses.replace(some, target=2.0).verdict == "missed"


def test_only_a_change_beyond_the_spread_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, _ = write(report_of(figure("pause", "ms", [10, 11, 12]), figure("peak", "MB", [100])), tmp_path / "before")
    near, _ = write(report_of(figure("pause", "ms", [12, 13, 14]), figure("peak", "MB", [109])), tmp_path / "near")
    slower, _ = write(report_of(figure("pause", "ms", [13, 14, 15]), figure("peak", "MB", [50])), tmp_path / "slower")
    assert compare.main([str(before), str(near)]) == 0
    assert compare.main([str(slower), str(before), "--all"]) == 1  # the peak has doubled
    capsys.readouterr()
    assert compare.main([str(before), str(slower)]) == 1
    said = capsys.readouterr().out
    assert "+27 %" in said
    assert "better" in said
    assert "1 worse" in said


def test_a_target_that_was_met_and_is_missed_is_worse_within_the_spread_too(tmp_path: Path) -> None:
    met, _ = write(report_of(figure("overhead", "ms", [90, 95, 120], target=100)), tmp_path / "met")
    missed, _ = write(report_of(figure("overhead", "ms", [90, 105, 120], target=100)), tmp_path / "missed")
    assert compare.main([str(met), str(missed)]) == 1
    assert compare.main([str(missed), str(met)]) == 0


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = report_of(figure("pause", "ms", [1.0], target=2.0), figure("rate", "GB/s", [3.0], more_is_better=True))
    path, markdown = write(report, tmp_path / "some")
    again = Report.read(path)
    assert json.dumps(again.as_json()) == json.dumps(report.as_json())
    assert "| some: pause | 1.00 ms | < 2.00 | met |" in markdown.read_text()
