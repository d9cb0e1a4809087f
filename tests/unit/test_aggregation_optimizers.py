"""Server optimizers against the formulas of the papers, written out with Python floats."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy as np
import pytest

from runnel.common.aggregation import make_optimizer, metrics, optimizers
from runnel.common.errors import BadSettings

pytestmark = pytest.mark.unit

Reference = Callable[[float, list[float]], float]


@pytest.mark.parametrize("module", [optimizers, metrics])
def test_the_documented_examples_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def fedavg(x: float, means: list[float]) -> float:
    for mean in means:
        x = x + 0.7 * (mean - x)
    return x


def fedavgm(x: float, means: list[float]) -> float:
    m = 0.0
    for mean in means:
        m = 0.8 * m + (mean - x)
        x = x + 0.7 * m
    return x


def adaptive(second: Callable[[float, float], float], beta_1: float) -> Reference:
    def run(x: float, means: list[float]) -> float:
        tau, m = 0.01, 0.0
        v = tau**2
        for mean in means:
            delta = mean - x
            m = beta_1 * m + (1 - beta_1) * delta
            v = second(v, delta**2)
            x = x + 0.7 * m / (math.sqrt(v) + tau)
        return x

    return run


def yogi(v: float, square: float) -> float:
    sign = (v > square) - (v < square)
    return v - (1 - 0.95) * square * sign


ADAPTIVE = {"learning_rate": 0.7, "tau": 0.01}
CASES: list[tuple[str, dict[str, float], Reference]] = [
    ("fedavg", {"learning_rate": 0.7}, fedavg),
    ("fedavgm", {"learning_rate": 0.7, "momentum": 0.8}, fedavgm),
    ("fedadagrad", ADAPTIVE, adaptive(lambda v, s: v + s, 0.0)),
    ("fedadagrad", ADAPTIVE | {"beta_1": 0.6}, adaptive(lambda v, s: v + s, 0.6)),
    ("fedadam", ADAPTIVE | {"beta_1": 0.6, "beta_2": 0.95}, adaptive(lambda v, s: 0.95 * v + (1 - 0.95) * s, 0.6)),
    ("fedyogi", ADAPTIVE | {"beta_1": 0.6, "beta_2": 0.95}, adaptive(yogi, 0.6)),
]


@pytest.mark.parametrize(("name", "options", "reference"), CASES)
def test_several_rounds_follow_the_paper(name: str, options: dict[str, float], reference: Reference) -> None:
    rng = np.random.default_rng(3)
    start = rng.standard_normal(9)
    means = [start + rng.standard_normal(9) for _ in range(6)]
    rule = make_optimizer(name, options)
    model = start.copy()
    state = tuple(np.full(9, value) for value in rule.initial())
    assert len(state) == rule.slots
    for mean in means:
        kept = (model.copy(), mean.copy(), [s.copy() for s in state])
        after, after_state = rule.step(model, mean, state)
        assert np.array_equal(model, kept[0])
        assert np.array_equal(mean, kept[1])
        assert all(np.array_equal(a, b) for a, b in zip(state, kept[2], strict=True))
        model, state = after, after_state
    expected = [reference(float(start[i]), [float(mean[i]) for mean in means]) for i in range(9)]
    assert model == pytest.approx(expected, rel=1e-12)


def test_plain_averaging_is_the_mean_bit_for_bit() -> None:
    mean = np.array([0.1, 1e-300, 1e300])
    after, _ = make_optimizer("fedavg").step(np.array([1e9, 1e9, -1e300]), mean, ())
    assert after.tobytes() == mean.tobytes()


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_a_model_that_all_agree_on_stays(name: str) -> None:
    rule = make_optimizer(name)
    base = np.array([1.0, -2.0])
    after, _ = rule.step(base, base.copy(), [np.full(2, value) for value in rule.initial()])
    assert np.array_equal(after, base)


def test_defaults_are_those_documented() -> None:
    assert repr(make_optimizer("fedavg")) == "FedAvg(learning_rate=1.0)"
    assert repr(make_optimizer("fedavgm")) == "FedAvgM(learning_rate=1.0, momentum=0.9)"
    assert repr(make_optimizer("fedadagrad")) == "FedAdagrad(learning_rate=0.1, beta_1=0.0, tau=0.001)"
    assert repr(make_optimizer("fedadam")) == "FedAdam(learning_rate=0.1, beta_1=0.9, tau=0.001, beta_2=0.99)"
    assert repr(make_optimizer("fedyogi")) == "FedYogi(learning_rate=0.1, beta_1=0.9, tau=0.001, beta_2=0.99)"
    assert make_optimizer("fedadam").initial() == (0.0, 1e-6)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fedsgd", {}, "fedavg, fedavgm, fedadagrad, fedadam, fedyogi"),
        ("fedavg", {"momentum": 0.9}, "it has learning_rate"),
        ("fedadagrad", {"beta_2": 0.9}, "learning_rate, beta_1, tau"),
        ("fedavg", {"learning_rate": 0.0}, "above 0"),
        ("fedavg", {"learning_rate": math.nan}, "above 0"),
        ("fedavg", {"learning_rate": math.inf}, "above 0"),
        ("fedadam", {"tau": 0.0}, "above 0"),
        ("fedavgm", {"momentum": 1.0}, "from 0 to below 1"),
        ("fedadam", {"beta_1": -0.1}, "from 0 to below 1"),
        ("fedadam", {"beta_2": "0.9"}, "from 0 to below 1"),
        ("fedadam", {"beta_2": True}, "from 0 to below 1"),
    ],
)
def test_unknown_names_and_bad_values(name: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        make_optimizer(name, options)
