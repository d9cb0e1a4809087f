"""FedBuff: the mean of differences to the models that updates were trained from, discounted by age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.common.aggregation import FedBuff, Update, make_strategy, reduce_updates
from runnel.common.errors import BadModel
from runnel.common.tensors import open_npz, write_npz

pytestmark = pytest.mark.unit

Arrays = dict[str, np.ndarray[Any, Any]]
AGES = st.integers(0, 6)


def arrays(random: np.random.Generator, scale: float = 1.0) -> Arrays:
    return {"w": random.normal(size=(3, 5)) * scale, "b": random.normal(size=4) * scale}


def reduced(folder: Path, updates: list[Update], base: Arrays, rule: FedBuff, **options: Any) -> Arrays:
    write_npz(folder / "base.npz", base)
    optimizer = make_strategy("fedbuff", options).optimizer
    reduce_updates(updates, folder / "base.npz", rule, folder / "next.npz", optimizer=optimizer, block_params=4)
    with open_npz(folder / "next.npz", source="the next") as model:
        return model.arrays()


def written(path: Path, model: Arrays) -> Path:
    write_npz(path, model)
    return path


@settings(max_examples=30, deadline=None)
@given(
    ages=st.lists(AGES, min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
    learning_rate=st.sampled_from([1.0, 0.5]),
)
def test_it_is_the_formula_of_the_paper(
    tmp_path_factory: pytest.TempPathFactory, ages: list[int], seed: int, exponent: float, learning_rate: float
) -> None:
    folder = tmp_path_factory.mktemp("round")
    random = np.random.default_rng(seed)
    rule = FedBuff(staleness_exponent=exponent)
    bases = {age: arrays(random) for age in range(7)}
    weights = random.uniform(0.5, 50.0, len(ages))
    updates, given_models = [], []
    for place, (age, weight) in enumerate(zip(ages, weights, strict=True)):
        update = arrays(random)
        given_models.append(update)
        updates.append(
            Update(
                path=written(folder / f"update-{place}.npz", update),
                source=f"site-{place}",
                weight=float(weight),
                base=written(folder / f"base-{age}.npz", bases[age]) if age else None,
                discount=rule.discount(age),
            )
        )
    result = reduced(folder, updates, bases[0], rule, learning_rate=learning_rate)
    for name, present in bases[0].items():
        moves = sum(
            weight * (1 + age) ** -exponent * (update[name] - bases[age][name])
            for age, weight, update in zip(ages, weights, given_models, strict=True)
        )
        np.testing.assert_allclose(result[name], present + learning_rate * moves / weights.sum(), rtol=1e-9, atol=1e-9)


def test_fresh_updates_make_the_weighted_mean_exactly(tmp_path: Path) -> None:
    base = {"w": np.array([1.0, 2.0])}
    updates = [
        Update(path=written(tmp_path / f"{n}.npz", {"w": np.array([n, 2 * n])}), source=str(n), weight=n)
        for n in (1.0, 3.0)
    ]
    assert reduced(tmp_path, updates, base, FedBuff())["w"].tolist() == [2.5, 5.0]


def test_who_has_moved_nothing_leaves_the_model_alone(tmp_path: Path) -> None:
    # However old: it is the difference that counts, not the old model.
    old, base = {"w": np.array([100.0])}, {"w": np.array([1.0])}
    path = written(tmp_path / "old.npz", old)
    update = Update(path=path, source="a", base=path, discount=FedBuff().discount(9))
    assert reduced(tmp_path, [update], base, FedBuff())["w"].tolist() == [1.0]


def test_an_earlier_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "update.npz", {"w": np.array([1.0])})
    other = written(tmp_path / "other.npz", {"v": np.array([1.0])})
    with pytest.raises(BadModel, match="an earlier global model"):
        reduced(tmp_path, [Update(path=path, source="a", base=other)], {"w": np.array([1.0])}, FedBuff())


def test_the_older_the_less() -> None:
    discounts = [FedBuff().discount(age) for age in range(5)]
    assert discounts == sorted(discounts, reverse=True)
    assert discounts[0] == 1.0
