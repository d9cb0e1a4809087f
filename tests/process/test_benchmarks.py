"""Each benchmark runs, and what it writes can be read and compared; how fast the machine is, is not tested."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from benchmarks import compare
from benchmarks.figures import Bars, Figure, Result, figure
from benchmarks.mnist import mnist_folder
from benchmarks.peers.environments import PeerUnavailable, environment
from benchmarks.process_trees import ProcessEnded, process_trees
from benchmarks.report import Report, write
from benchmarks.run import BENCHMARKS
from benchmarks.run import main as run_all
from benchmarks.transfer_profile import BLOB_PORT, transfers
from tests.docker_engine import BASE, ENGINE
from tests.needs import in_ci, needs

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]  # all benchmarks run for the first of these

ROOT = Path(__file__).parents[2]


def with_engine() -> dict[str, str]:
    """Return the variables by which benchmarks find the tests' engine, where there is one."""
    host, image = os.environ.get(ENGINE, ""), os.environ.get(BASE, "")
    return dict(os.environ) | ({"DOCKER_HOST": host, "RUNNEL_BENCH_IMAGE": image} if host and image else {})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    needs(mnist_folder(), "MNIST's IDX files in the folder RUNNEL_TEST_MNIST")
    if in_ci():
        needs(os.environ.get(ENGINE) and os.environ.get(BASE), "a Docker engine and its base image")
    path = tmp_path_factory.mktemp("benchmarks") / "quick"
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=with_engine())
    assert done.returncode == 0, done.stderr
    assert "## Targets" in path.with_name("quick.md").read_text()
    return Report.read(path.with_name("quick.json"))


def figures_of(report: Report, benchmark: str) -> dict[str, Figure]:
    (result,) = (each for each in report.results if each.benchmark == benchmark)
    return {each.name: each for each in result.figures}


def test_all_of_them_give_sane_figures(report: Report) -> None:
    without = {"task_start"} if with_engine() == dict(os.environ) else set()
    assert [each.benchmark for each in report.results] == [each for each in BENCHMARKS if each not in without]
    assert report.quick
    assert {"processor", "cores", "memory_gb", "python", "numpy", "grpcio", "load_1min"} <= set(report.machine)
    for result in report.results:
        assert len(result.figures) >= 3
        assert len({each.name for each in result.figures}) == len(result.figures)
        for each in result.figures:
            assert each.runs >= 1
            assert each.low <= each.median <= each.high
            assert math.isfinite(each.median)
            if "overhead" not in each.name:  # a difference, which a busy machine can turn round
                assert each.median >= 0, each


def test_a_round_is_told_by_phase_and_stage(report: Report) -> None:
    found = figures_of(report, "round_overhead")
    for what in ("warm, training only", "warm, with validation"):
        rounds, overhead = found[f"{what}: round"], found[f"{what}: overhead of a round"]
        assert overhead.median == pytest.approx(rounds.median - found[f"{what}: the scripts alone"].median)
        assert rounds.runs == 2
        parts = ("phase training", "phase reducing", "client, train, run", "client, train, push")
        for part in parts:
            assert 0 < found[f"{what}: {part}"].median < rounds.median
    assert "warm, with validation: phase validating" in found
    assert "warm, training only: phase validating" not in found


def test_the_papers_network_trains_with_a_hundred_clients(report: Report) -> None:
    found = figures_of(report, "fedavg_paper")
    assert found["IID: rounds done"].median == 2
    # Ten sites' mean after two rounds: far more than a model that was never trained, or averaged wrongly, has.
    assert found["IID: best accuracy"].median > 80
    (paper,) = (each for each in report.results if each.benchmark == "fedavg_paper")
    assert paper.parameters["clients"] == 100
    assert len(paper.series[0].y) == 3


def test_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def good(_: bool) -> Result:
        return Result(benchmark="good", parameters={}, figures=[figure("it", "s", [1.0])])

    async def bad(_: bool) -> Result:
        raise ZeroDivisionError

    monkeypatch.setattr("benchmarks.run.BENCHMARKS", {"bad": bad, "good": good, "bad too": bad})
    with pytest.raises(SystemExit, match="failed: bad, bad too"):
        run_all(["--quick", "--output", str(tmp_path / "found")])
    assert [each.benchmark for each in Report.read(tmp_path / "found.json").results] == ["good"]
    assert capsys.readouterr().err.count("raise ZeroDivisionError") == 2


def test_without_mnist_the_paper_is_left_out_and_why_is_told(tmp_path: Path) -> None:
    nowhere = {**os.environ, "RUNNEL_TEST_MNIST": str(tmp_path / "nowhere")}
    command = [sys.executable, "-m", "benchmarks.fedavg_paper", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 1
    assert "there is no train-images-idx3-ubyte" in done.stderr
    assert "--mnist FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_an_engine_the_start_of_tasks_is_left_out_and_why_is_told(tmp_path: Path) -> None:
    nowhere = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    command = [sys.executable, "-m", "benchmarks.task_start", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 1
    assert "No Docker engine answers" in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_is_counted_above_the_idle_process(report: Report) -> None:
    found = figures_of(report, "memory")
    combiner = found["1 MB, 2 clients: combiner peak above base"]
    assert combiner.median >= 2  # the sum alone
    assert combiner.median < 60
    assert 30 < found["1 MB, 2 clients: combiner base"].median < 300
    (result,) = (each for each in report.results if each.benchmark == "memory")
    (bars,) = result.bars
    assert list(bars.groups) == ["1 MB, 2 clients"]
    assert set(bars.values) == {"limit 3 models", "combiner", "reducer"}
    (drawn,) = bars.values["combiner"]
    assert drawn == pytest.approx(combiner.median)


def test_disk_is_counted_in_models(report: Report) -> None:
    found = figures_of(report, "disk")
    for role in ("combiner", "reducer"):
        peak = found[f"2 MB, 4 clients: {role} peak"]
        assert peak.median > 2.9  # the models that are kept
        assert peak.verdict == "met"
        # On a busy machine what comes first may last until into the second third.
        assert found[f"2 MB, 4 clients: {role} on average, last third of 12 rounds times the one before"].median > 0


def test_a_transfer_is_told_by_side_and_thread(report: Report) -> None:
    found = figures_of(report, "transfer_profile")
    for way in ("grpc.aio", "blob port"):
        loops = [found[f"{way}: {side}, event loop"].median for side in ("sender", "receiver")]
        assert sum(loops) > 0
        assert found[f"{way}: both sides"].runs == 2
    assert found["grpc.aio: sender, other threads"].runs == 2


async def test_the_profile_of_a_transfer_names_functions() -> None:
    found = await transfers(BLOB_PORT, 1, 1, profile=True)
    for side in ("sender", "receiver"):
        names = [name for name, _ in found["functions"][side]]
        assert any("_socket.socket" in name for name in names), names


def test_rounds_stand_beside_their_limits(report: Report) -> None:
    found = figures_of(report, "rounds")
    row = "2 clients, 4 KB"
    took, limit = found[f"{row}: Runnel, round"], found[f"{row}: limit grpc.aio, round"]
    assert took.runs == 2
    assert found[f"{row}: Runnel, round, times grpc.aio"].median == pytest.approx(took.median / limit.median)
    assert found[f"{row}: limit scripts, round"].median > 0
    for role in ("reducer", "combiner"):
        assert 0.03 < found[f"{row}: Runnel, {role} peak memory"].median < 0.4
    (result,) = (each for each in report.results if each.benchmark == "rounds")
    assert any("FEDn 0.33, quoted" in note for note in result.notes)
    assert [each.unit for each in result.bars] == ["s", "GB"]
    assert result.bars[0].values["Runnel"] == [took.median]


@pytest.mark.parametrize("name", BENCHMARKS)
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


def test_a_limit_or_a_peer_that_got_slower_makes_nothing_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["8 clients, 4 KB: limit numpy, round", "8 clients, 4 KB: Flower, round", "100 MB: grpc.aio alone"]
    reports = []
    for stem, seconds in (("before", 1.0), ("after", 2.0)):
        figures = [figure(name, "s", [seconds]) for name in names]
        reports.append(str(write(report_of(*figures), tmp_path / stem)[0]))
    assert compare.main(reports) == 0
    said = capsys.readouterr().out
    assert said.count("+100 %") == said.count("beside") == len(names)
    assert "0 worse" in said


@pytest.mark.parametrize("text", [None, "# Benchmarks", "{}", "[]", '{"day": 1, "results": [{}]}'])
def test_what_is_no_result_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None) -> None:
    good, _ = write(report_of(figure("pause", "ms", [10, 11, 12])), tmp_path / "good")
    other = tmp_path / "other.json"
    if text is not None:
        other.write_text(text)
    with pytest.raises(SystemExit) as ended:
        compare.main([str(good), str(other)])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(other) in said
    assert ("is no result of `make bench`" in said) is (text is not None)


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


def test_bars_are_drawn_on_a_logarithmic_scale_where_there_are_any(tmp_path: Path) -> None:
    values: dict[str, list[float | None]] = {"limit some": [0.01, None], "one": [0.1, 1.0], "other": [10.0, 100.0]}
    bars = Bars(name="seconds < hours", unit="s", groups=["4 KB", "1 MB"], values=values)
    result = Result(benchmark="some", parameters={}, figures=(figure("pause", "s", [1.0]),), bars=(bars,))
    report = Report(day="2026-01-01", quick=False, machine={"cores": 2}, results=(result,))
    path, markdown = write(report, tmp_path / "some")
    assert Report.read(path) == Report.from_json(report.as_json())
    assert "![some](some-some.svg)" in markdown.read_text()
    picture = ElementTree.fromstring((tmp_path / "some-some.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    above = [each.text for each in picture.iter(f"{space}text") if each.get("class") == "value"]
    assert above == ["0.01", "0.1", "10", "1", "100"]
    colours = {each.get("fill") for each in picture.iter(f"{space}rect")} - {"#fff"}
    assert len(colours) == 3


async def test_a_tree_of_processes_is_measured_and_ends_whole(tmp_path: Path) -> None:
    grandchild = "import os, time; held = b'x' * 80_000_000; print(os.getpid()); time.sleep(600)"
    run = f"subprocess.run([sys.executable, '-u', '-c', {grandchild!r}, 'big'], start_new_session=True)"
    child = f"import subprocess, sys; {run}"

    def name_of(argv: Sequence[str]) -> str | None:
        return "big" if argv[-1] == "big" else None

    async with process_trees(tmp_path, os.environ, name_of) as trees:
        trees.start("tree", [sys.executable, "-u", "-c", child], counted=True)
        log = trees.log("tree")
        await trees.until(lambda: log.read_text().endswith("\n"), what="a line", timeout_s=60)
        await trees.until(lambda: "big" in trees.peaks, what="a peak", timeout_s=60)
        left_the_session = psutil.Process(int(log.read_text()))
        assert left_the_session.is_running()
    assert not left_the_session.is_running()
    assert 80e6 < trees.peaks["big"] < 160e6


async def test_a_process_that_ends_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    last_words = [sys.executable, "-c", "raise SystemExit('no port left')"]
    async with process_trees(tmp_path, os.environ, lambda _: None) as trees:
        with pytest.raises(ProcessEnded, match=r"(?s)some ended with 1.*no port left"):
            await trees.run("some", last_words, timeout_s=60)
    async with process_trees(tmp_path, os.environ, lambda _: None) as trees:
        trees.start("server", last_words)
        with pytest.raises(ProcessEnded, match=r"(?s)server ended with 1.*no port left"):
            await trees.until(lambda: False, what="never", timeout_s=60)


async def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path) -> None:
    offline = dict(os.environ) | {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_NO_CONFIG": "1"}
    with pytest.raises(PeerUnavailable, match=r"uv pip install ended with 1: .*no-such-peer"):
        await environment(tmp_path, "no-such-peer", offline)
    with pytest.raises(PeerUnavailable):  # half an environment is not taken for one
        await environment(tmp_path, "no-such-peer", offline)
