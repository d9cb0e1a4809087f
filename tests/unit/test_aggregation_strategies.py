"""Strategies by name: what people may write after --strategy, and what is said when it does not fit."""

from __future__ import annotations

import pytest

from runnel.common.aggregation import (
    OPTIMIZERS,
    STRATEGIES,
    Bulyan,
    FedBuff,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormClipping,
    TrimmedMean,
    make_optimizer,
    make_strategy,
)
from runnel.common.errors import BadSettings

pytestmark = pytest.mark.unit

NEEDED = {"norm_clipping": {"max_norm": 2.0}}


def test_the_robust_rules_gather_and_the_others_do_not() -> None:
    robust = ["fedbuff", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "norm_clipping"]
    assert list(STRATEGIES) == [*OPTIMIZERS, *robust]
    for name, kind in STRATEGIES.items():
        strategy = make_strategy(name, NEEDED.get(name))
        assert kind.gathers == strategy.gathers == (name in robust)
        assert kind.summary
        assert strategy.name == name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_what_they_were(name: str) -> None:
    strategy = make_strategy(name, {"learning_rate": 0.5})
    assert strategy.optimizer == make_optimizer(name, {"learning_rate": 0.5})
    assert strategy.rule is None
    assert strategy.least_updates == 1


@pytest.mark.parametrize(
    ("name", "options", "rule", "least"),
    [
        ("fedbuff", {}, FedBuff(max_staleness=10, staleness_exponent=0.5), 1),
        (
            "fedbuff",
            {"max_staleness": 3.0, "staleness_exponent": 0.0},
            FedBuff(max_staleness=3, staleness_exponent=0),
            1,
        ),
        ("median", {}, Median(), 1),
        ("trimmed_mean", {"beta": 0.25}, TrimmedMean(beta=0.25), 4),
        ("krum", {"f": 2.0}, Krum(f=2), 7),
        ("multi_krum", {"f": 1.0, "m": 5.0}, MultiKrum(f=1, m=5), 8),
        ("bulyan", {}, Bulyan(f=1), 7),
        ("geometric_median", {"iterations": 9.0, "nu": 1e-3}, GeometricMedian(iterations=9, nu=1e-3), 1),
        ("norm_clipping", {"max_norm": 0.5}, NormClipping(max_norm=0.5), 1),
    ],
)
def test_a_rule_has_its_options(name: str, options: dict[str, float], rule: object, least: int) -> None:
    strategy = make_strategy(name, {**options, "learning_rate": 0.5})
    assert strategy.rule == rule
    assert strategy.least_updates == least
    assert strategy.optimizer == make_optimizer("fedavg", {"learning_rate": 0.5})
    assert set(options) <= {*STRATEGIES[name].options, *STRATEGIES[name].required}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("fedsgd", {}, "fedyogi, fedbuff, median"),
        ("fedbuff", {"max_staleness": 1.5}, "integer"),
        ("fedbuff", {"max_staleness": -1.0}, "0 or more"),
        ("fedbuff", {"staleness_exponent": -0.5}, "above 0"),
        ("median", {"beta": 0.1}, "learning_rate"),
        ("median", {"learning_rate": 0.0}, "above 0"),
        ("trimmed_mean", {"beta": 0.5}, "below 0.5"),
        ("trimmed_mean", {"beta": 0.0}, "above 0"),
        ("krum", {"f": 1.5}, "an integer"),
        ("krum", {"f": -1.0}, "0 or more"),
        ("krum", {"f": float("nan")}, "an integer"),
        ("multi_krum", {"m": 0.0}, "1 or more"),
        ("bulyan", {"f": True}, "an integer"),
        ("geometric_median", {"iterations": 0.0}, "1 or more"),
        ("geometric_median", {"nu": 0.0}, "above 0"),
        ("norm_clipping", {}, "needs the option max_norm"),
        ("norm_clipping", {"max_norm": -1.0}, "above 0"),
        ("norm_clipping", {"max_norm": float("inf")}, "above 0"),
    ],
)
def test_what_does_not_fit_is_named(name: str, options: dict[str, float], says: str) -> None:
    with pytest.raises(BadSettings, match=says) as caught:
        make_strategy(name, options)
    assert caught.value.fields["key"] in {"strategy", "max_norm", *options}
