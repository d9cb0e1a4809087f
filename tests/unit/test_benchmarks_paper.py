"""What the benchmark of the FedAvg paper makes of accuracies; that it trains is tested beside the other benchmarks."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.charts import charts
from benchmarks.fedavg_paper import SPLITS, Course, Run, result_of, rounds_to
from benchmarks.figures import Mark, Result, Series
from benchmarks.mnist import NoMnist, mnist_folder, required_mnist_folder

pytestmark = pytest.mark.unit

IID = SPLITS["iid"]


def course(*accuracies: float, seed: int = 0, learning_rate: float = 0.1, several: bool = False) -> Course:
    run = Run(split=IID, learning_rate=learning_rate, seed=seed, rounds=len(accuracies) - 1, several=several)
    return Course(run=run, accuracies=list(accuracies), rounds_s=[1.0] * (len(accuracies) - 1))


def figures_of(*courses: Course) -> dict[str, tuple[float, int]]:
    return {each.name: (each.median, each.runs) for each in result_of(courses).figures}


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20), st.floats(0.01, 1.0))
def test_the_crossing_lies_in_the_round_that_reached_the_level_first(accuracies: list[float], level: float) -> None:
    found = rounds_to(accuracies, level)
    reached = [number for number, accuracy in enumerate(accuracies) if accuracy >= level]
    if found is None:
        assert not reached
    else:
        assert reached[0] - 1 <= found <= reached[0]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.1, 0.96, 0.98], 1.5),
        ([0.1, 0.96, 0.5, 0.6, 0.98], 3.5),  # a fall is none: the best so far counts
        ([0.1, 0.97, 0.98], 1.0),
        ([0.1, 0.96, 0.98, 0.9, 0.99], 1.5),
        ([0.99, 0.1], 0.0),  # the seed model was good enough
    ],
)
def test_rounds_are_those_of_the_papers_curve(accuracies: list[float], expected: float) -> None:
    assert rounds_to(accuracies, 0.97) == pytest.approx(expected)


def test_rounds_are_told_beside_the_papers_when_every_seed_got_there() -> None:
    two = course(0.1, 0.96, 0.98), course(0.1, 0.5, 0.96, 0.98, seed=1)
    found = figures_of(*two)
    assert found["IID: rounds to 97 %"] == pytest.approx((2.0, 2))
    assert found["IID: rounds to 97 % in the paper"] == (87, 1)
    assert found["IID: rounds done"] == (2.5, 2)
    assert found["IID: round"] == (1.0, 5)

    late = course(0.1, 0.5, 0.96, 0.969, seed=2)
    found = figures_of(*two, late)
    assert "IID: rounds to 97 %" not in found
    assert found["IID: rounds to 95 %"][1] == 3
    assert result_of([*two, late]).notes[-1] == "IID, seed 2: 97 % was not reached in 3 rounds, which was the limit."


def test_each_learning_rate_that_is_tried_has_figures_of_its_own() -> None:
    rates = [course(0.1, 0.98, learning_rate=rate, several=True) for rate in (0.1, 0.2)]
    assert {"IID, learning rate 0.1: best accuracy", "IID, learning rate 0.2: best accuracy"} <= set(figures_of(*rates))
    assert "IID learning rate" not in result_of(rates).parameters
    assert result_of([course(0.1, 0.98, learning_rate=0.3)]).parameters["IID learning rate"] == 0.3


def test_the_curve_is_drawn_with_the_level_and_the_papers_rounds() -> None:
    result = result_of([course(0.1, 0.9, 0.96, 0.98)])
    drawn = charts(result.series)
    assert re.findall(r'class="label"[^>]*>([^<]*)<', drawn) == ["97 %", "here 2", "paper 87"]
    again = Result.from_json(json.loads(json.dumps(result.as_json())))
    assert charts(again.series) == drawn
    # Nothing leaves its frame: the axis is long enough for the paper's rounds, what is below 80 % lies on the ground.
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert places[0] == (70.0, 126.0)
    assert places[-1][0] < 90.0
    assert 'x1="366.0" y1="30" x2="366.0" y2="126"' in drawn


def test_a_chart_without_marks_is_as_long_as_its_series_and_begins_at_nothing() -> None:
    flat = Series(name="flat", unit="MB", along="round", x=[1, 2], y=[5.0, 5.0])
    assert 'points="70.0,30.0 366.0,30.0"' in charts([flat])
    assert 'points="70.0,126.0 366.0,126.0"' in charts([dataclasses.replace(flat, y=[0.0, 0.0])])
    longer = dataclasses.replace(flat, marks=[Mark(axis="x", at=3.0, label="later")])
    assert 'points="70.0,30.0 218.0,30.0"' in charts([longer])


def test_without_mnist_the_files_that_lack_and_what_to_pass_are_told(tmp_path: Path) -> None:
    for part in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (tmp_path / part).touch()
    with pytest.raises(NoMnist) as caught:
        required_mnist_folder(tmp_path)
    assert f"should be in {tmp_path}; there is no t10k-labels-idx1-ubyte." in str(caught.value)
    assert "--mnist FOLDER" in str(caught.value)
    assert mnist_folder(tmp_path) is None
    (tmp_path / "t10k-labels-idx1-ubyte").touch()
    assert required_mnist_folder(tmp_path) == mnist_folder(tmp_path) == tmp_path
