"""Robust rules: the laws of their papers, on files, and an attack that the plain mean does not survive."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as matrix
from numpy.typing import NDArray

from runnel.common.aggregation import (
    Bulyan,
    GatheredFile,
    Gathering,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormClipping,
    Part,
    RobustRule,
    TrimmedMean,
    Update,
    UpdateStack,
    make_optimizer,
    reduce_round,
    reduce_updates,
)
from runnel.common.aggregation.distance_rules import squared_distances
from runnel.common.errors import BadModel, BadSettings, EmptyAggregate, InvalidInput, NotEnoughClients
from runnel.common.protocol import PayloadKind
from runnel.common.tensors import ModelSchema, open_npz, write_npz

pytestmark = pytest.mark.unit

Rows = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

RULES: dict[str, RobustRule] = {
    "median": Median(),
    "trimmed mean": TrimmedMean(beta=0.2),
    "krum": Krum(f=1),
    "multi-krum": MultiKrum(f=1),
    "multi-krum of 2": MultiKrum(f=1, m=2),
    "bulyan": Bulyan(f=1),
    "geometric median": GeometricMedian(),
    "norm clipping": NormClipping(max_norm=5.0),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

laws = settings(deadline=None, max_examples=40)  # files are written and read for each
numbers = st.integers(-50, 50).map(float)


def matrices(least: int = 7, most: int = 11) -> st.SearchStrategy[Rows]:
    """Updates of 1 to 6 elements; whole numbers, so that sums of them are exact."""
    return st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=least, max_size=most).map(
            lambda rows: np.array(rows, np.float64)
        )
    )


def arrays_of(row: NDArray[Any]) -> Arrays:
    """Cut a vector into two tensors, of which one may be empty."""
    return {"a": row[: row.size // 2], "b": row[row.size // 2 :]}


def saved(folder: Path, rows: Sequence[Arrays], weights: Sequence[float] | None = None) -> list[Update]:
    updates = []
    for index, arrays in enumerate(rows):
        path = folder / f"{index}.npz"
        write_npz(path, arrays)
        weight = 1.0 if weights is None else weights[index]
        updates.append(Update(path=path, source=f"client {index}", weight=weight))
    return updates


def aggregated(
    rule: RobustRule,
    rows: Rows,
    *,
    base: NDArray[Any] | None = None,
    weights: Sequence[float] | None = None,
    block_params: int | None = None,
) -> Rows:
    """Aggregate rows of float64 by way of files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_npz(folder / "base.npz", arrays_of(np.zeros(rows.shape[1]) if base is None else base))
        updates = saved(folder, [arrays_of(row) for row in rows], weights)
        reduce_updates(updates, folder / "base.npz", rule, folder / "next.npz", block_params=block_params)
        with open_npz(folder / "next.npz", source="the result") as model:
            return np.concatenate(list(model.arrays().values()))


def tied(rule: RobustRule, rows: Rows) -> bool:
    """Whether Krum may have to choose between equally good updates, which it does by their order."""
    if not isinstance(rule, Krum | MultiKrum | Bulyan):
        return False
    squared = squared_distances(rows)
    pairs = squared[np.triu_indices(len(rows), 1)]
    return len(set(pairs)) < len(pairs)


# ---- laws of all rules


@each_rule
@laws
@given(
    rows=matrix(np.float64, st.tuples(st.integers(7, 9), st.just(6)), elements=st.integers(-999, 999)), data=st.data()
)
def test_the_order_of_updates_does_not_matter(rule: RobustRule, rows: Rows, data: st.DataObject) -> None:
    assume(not tied(rule, rows))
    order = data.draw(st.permutations(range(len(rows))))
    np.testing.assert_allclose(aggregated(rule, rows[order]), aggregated(rule, rows), rtol=1e-9, atol=1e-9)


@each_rule
@laws
@given(rows=matrices(), by=numbers)
def test_moving_all_moves_the_result(rule: RobustRule, rows: Rows, by: float) -> None:
    moved = aggregated(rule, rows + by, base=np.full(rows.shape[1], by))
    np.testing.assert_allclose(moved, aggregated(rule, rows) + by, rtol=1e-9, atol=1e-6)


@each_rule
@laws
@given(
    row=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6).map(np.array),
    k=st.integers(7, 12),
    weight=st.floats(1e-3, 1e3),
)
def test_equal_updates_return_themselves(rule: RobustRule, row: Rows, k: int, weight: float) -> None:
    result = aggregated(rule, np.tile(row, (k, 1)), base=row, weights=[weight] * k)
    np.testing.assert_array_equal(result, row)


@each_rule
@laws
@given(rows=matrices(), block_params=st.integers(1, 7))
def test_the_size_of_blocks_does_not_matter(rule: RobustRule, rows: Rows, block_params: int) -> None:
    np.testing.assert_allclose(
        aggregated(rule, rows, block_params=block_params), aggregated(rule, rows), rtol=1e-9, atol=1e-9
    )


@each_rule
@laws
@given(rows=matrices(), weights=st.lists(st.floats(1e-3, 1e3), min_size=11, max_size=11))
def test_claims_about_weights_move_only_the_rules_that_say_so(
    rule: RobustRule, rows: Rows, weights: list[float]
) -> None:
    if isinstance(rule, GeometricMedian | NormClipping):
        scaled = [2.0**20 * weight for weight in weights[: len(rows)]]
        expected = aggregated(rule, rows, weights=weights[: len(rows)])
        np.testing.assert_allclose(aggregated(rule, rows, weights=scaled), expected, rtol=1e-9, atol=1e-9)
    else:
        np.testing.assert_array_equal(aggregated(rule, rows, weights=weights[: len(rows)]), aggregated(rule, rows))


def bad_updates(count: int, n: int) -> st.SearchStrategy[Rows]:
    anything = st.one_of(numbers, st.floats(-1e308, 1e308))
    return st.lists(st.lists(anything, min_size=n, max_size=n), min_size=count, max_size=count).map(
        lambda rows: np.array(rows, np.float64).reshape(count, n)
    )


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(beta=0.2), TrimmedMean(beta=0.4)], ids=str)
@laws
@given(data=st.data(), honest=matrices(6, 8))
def test_every_element_stays_within_the_honest_ones(rule: RobustRule, data: st.DataObject, honest: Rows) -> None:
    count = 1 if rule == TrimmedMean(beta=0.2) else 2
    rows = np.vstack([data.draw(bad_updates(count, honest.shape[1])), honest])
    result = aggregated(rule, rows)
    assert (result >= honest.min(axis=0)).all()
    assert (result <= honest.max(axis=0)).all()


@laws
@given(data=st.data(), honest=matrices(6, 9))
def test_bulyan_stays_within_twice_the_honest_range_on_each_side(data: st.DataObject, honest: Rows) -> None:
    rows = np.vstack([data.draw(bad_updates(1, honest.shape[1])), honest])
    result = aggregated(Bulyan(f=1), rows)
    low, high = honest.min(axis=0), honest.max(axis=0)
    assert (result >= low - (high - low)).all()
    assert (result <= high + (high - low)).all()


@pytest.mark.parametrize("f", [0, 1, 2])
@laws
@given(rows=matrices())
def test_krum_returns_one_of_its_inputs_with_the_smallest_score(f: int, rows: Rows) -> None:
    result = aggregated(Krum(f=f), rows)
    scores = []
    for row in rows:
        distances = sorted(float(((row - other) ** 2).sum()) for other in rows)
        scores.append(sum(distances[1 : len(rows) - f - 1]))
    assert any((result == row).all() and score == min(scores) for row, score in zip(rows, scores, strict=True))


@pytest.mark.parametrize("scale", [1e3, 1e100, 1e200, 1e308])
@pytest.mark.parametrize("rule", [Krum(f=2), MultiKrum(f=2), Bulyan(f=2), GeometricMedian(), Median()], ids=str)
def test_huge_updates_are_left_behind(rule: RobustRule, scale: float) -> None:
    rng = np.random.default_rng(4)
    honest = rng.normal(size=(9, 40))
    bad = np.vstack([np.full(40, scale), -rng.random(40) * scale])
    result = aggregated(rule, np.vstack([bad, honest]))
    assert np.abs(result).max() <= 3 * np.abs(honest).max()


# ---- each rule by itself


def test_multi_krum_is_the_mean_of_the_best() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [4.0], [100.0], [10.0]])
    # k - f - 2 = 3 neighbours: the scores of 0, 1, 3 and 4 are 26, 14, 14 and 26; of 0 and 4, 4 is closer to the rest.
    np.testing.assert_array_equal(aggregated(MultiKrum(f=1, m=2), rows), [2.0])
    np.testing.assert_array_equal(aggregated(MultiKrum(f=1), rows), [(1 + 3 + 4) / 3])
    np.testing.assert_array_equal(aggregated(MultiKrum(f=1, m=1), rows), aggregated(Krum(f=1), rows))


def test_bulyan_chooses_anew_from_those_that_are_left() -> None:
    # 2 with four neighbours; of those left 3 with three, 1 with two; then 5 and 6.5 have each other, and 5 is closer to
    # the rest; of the last three 6.5 is.
    squared = squared_distances(np.array([[0.0], [1.0], [2.0], [3.0], [5.0], [6.5], [50.0]]))
    assert Bulyan(f=1).choose(squared) == [2, 3, 1, 4, 5]


def test_the_geometric_median_comes_near_its_definition() -> None:
    rng = np.random.default_rng(8)
    rows, weights = rng.normal(size=(9, 3)), rng.random(9) + 0.1

    def cost(point: Rows) -> float:
        return float(weights @ np.linalg.norm(rows - point, axis=1))

    reached = cost(aggregated(GeometricMedian(iterations=60), rows, weights=list(weights)))
    around = [cost(aggregated(GeometricMedian(iterations=60), rows, weights=list(weights)) + d) for d in 1e-3 * rows]
    assert reached <= min(around)
    assert reached < cost(np.median(rows, axis=0))
    assert reached < cost(np.average(rows, axis=0, weights=weights))


def test_the_geometric_median_goes_to_who_has_most_of_the_weight() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    result = aggregated(GeometricMedian(iterations=50), rows, weights=[1.0, 1.0, 5.0])
    np.testing.assert_allclose(result, [0.0, 9.0], atol=1e-4)


@laws
@given(rows=matrices(1, 5), max_norm=st.floats(0.5, 1e3), data=st.data())
def test_norm_clipping_is_the_weighted_mean_of_shortened_updates(
    rows: Rows, max_norm: float, data: st.DataObject
) -> None:
    weights = np.array(data.draw(st.lists(st.floats(0.1, 1e3), min_size=len(rows), max_size=len(rows))))
    base = np.arange(rows.shape[1]) + 0.5
    result = aggregated(NormClipping(max_norm=max_norm), rows, base=base, weights=list(weights))
    norms = np.linalg.norm(rows - base, axis=1, keepdims=True)
    expected = base + np.average((rows - base) / np.maximum(1.0, norms / max_norm), axis=0, weights=weights)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
    assert np.linalg.norm(result - base) <= max_norm * (1 + 1e-9)


def test_norm_clipping_bounds_what_a_huge_update_does() -> None:
    rows = np.vstack([np.zeros((3, 5)), np.full((1, 5), 1e308)])
    np.testing.assert_array_equal(aggregated(NormClipping(max_norm=1.0), rows), np.zeros(5))


# ---- an attack


@pytest.mark.parametrize(
    "rule",
    [Median(), TrimmedMean(beta=0.3), Krum(f=3), MultiKrum(f=3), GeometricMedian()],
    ids=str,
)
def test_sign_flipped_updates_break_the_mean_and_not_the_rule(rule: RobustRule, tmp_path: Path) -> None:
    """Linear regression by 10 sites over 30 rounds; 3 of them send their step reversed and ten times as long."""
    clean = trained(tmp_path, rule=None, bad=0)
    assert trained(tmp_path, rule=None, bad=3) > 1e3 * clean
    assert trained(tmp_path, rule=rule, bad=3) < 0.2
    assert clean < 0.05


def test_clipping_bounds_what_sign_flipped_updates_do(tmp_path: Path) -> None:
    """It does not leave bad updates out: they hold the model away from the truth, as far as the clipping allows."""
    assert trained(tmp_path, rule=None, bad=3, rounds=100) > 1e6
    assert trained(tmp_path, rule=NormClipping(max_norm=0.1), bad=3, rounds=100) < 0.3


def test_sign_flipped_updates_do_not_break_bulyan(tmp_path: Path) -> None:
    assert trained(tmp_path, rule=None, bad=2) > 1.0
    assert trained(tmp_path, rule=Bulyan(f=2), bad=2, sites=11) < 0.2


def trained(folder: Path, rule: RobustRule | None, bad: int, sites: int = 10, rounds: int = 30) -> float:
    """Return how far the trained model is from the truth."""
    rng = np.random.default_rng(2)
    truth = rng.normal(size=8)
    data = [(x := rng.normal(size=(60, 8)), x @ truth + 0.05 * rng.normal(size=60)) for _ in range(sites)]
    model, base, result = np.zeros(8), folder / "base.npz", folder / "next.npz"
    for _ in range(rounds):
        rows = []
        for index, (x, y) in enumerate(data):
            step = -0.3 * x.T @ (x @ model - y) / len(y)
            rows.append({"w": model + (-10.0 * step if index < bad else step)})
        write_npz(base, {"w": model})
        updates = saved(folder, rows)
        if rule is None:
            parts = [Part(path=u.path, kind=PayloadKind.UPDATE, weight=1.0, source=u.source) for u in updates]
            reduce_round(parts, base, make_optimizer("fedavg"), None, result, None)
        else:
            reduce_updates(updates, base, rule, result)
        with open_npz(result, source="the result") as opened:
            model = opened.arrays()["w"]
    return float(np.linalg.norm(model - truth))


# ---- files

MIXED: Arrays = {
    "w": np.arange(24, dtype=np.float32).reshape(4, 6) / 8,
    "steps": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False, True]),
    "level": np.array([250, 3], np.uint8),
}


def mixed(factor: int) -> Arrays:
    return {
        "w": np.asarray(MIXED["w"] * factor, np.float32),
        "steps": np.array(7 * factor, np.int64),
        "none": MIXED["none"],
        "mask": np.array([factor % 2 == 0, False, factor > 1]),
        "level": np.array([250, factor], np.uint8),
    }


def gathered(folder: Path, name: str, models: Sequence[Arrays]) -> Path:
    """Gather models as a combiner does."""
    with Gathering(folder / name, ModelSchema.of(models[0])) as gathering:
        for index, arrays in enumerate(models):
            write_npz(folder / "one.npz", arrays)
            with open_npz(folder / "one.npz", source=f"client {index}") as model:
                gathering.add(model)
        return gathering.finish()


def result_of(folder: Path, updates: Sequence[Update], rule: RobustRule) -> Arrays:
    reduce_updates(updates, folder / "base.npz", rule, folder / "next.npz")
    with open_npz(folder / "next.npz", source="the result") as model:
        return model.arrays()


def test_integers_and_booleans_are_cast_by_the_written_rule(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", MIXED)
    updates = saved(tmp_path, [mixed(1), mixed(2), mixed(4), mixed(5)])
    result = result_of(tmp_path, updates, Median())
    assert {name: array.dtype for name, array in result.items()} == {name: a.dtype for name, a in MIXED.items()}
    np.testing.assert_array_equal(result["w"], MIXED["w"] * 3)
    assert result["steps"] == 21
    assert result["mask"].tolist() == [True, False, True]
    assert result["level"].tolist() == [250, 3]


@pytest.mark.parametrize("limit", [100, 1])
def test_files_of_all_kinds_give_the_same_result(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel.common.aggregation.update_stack.MAX_OPEN_FILES", limit)
    write_npz(tmp_path / "base.npz", MIXED)
    models = [mixed(factor) for factor in range(1, 8)]
    expected = result_of(tmp_path, saved(tmp_path, models), TrimmedMean(beta=0.3))
    first = gathered(tmp_path, "first", models[:2])
    second = gathered(tmp_path, "second", models[2:5])
    deflated: dict[str, Any] = dict(models[5])
    np.savez_compressed(tmp_path / "deflated.npz", **deflated)
    fortran: dict[str, Any] = {name: np.asarray(array, order="F") for name, array in models[6].items()}
    np.savez(tmp_path / "fortran.npz", **fortran)
    others = [
        *(Update(path=first, source="c1", place=place, gathered=2) for place in range(2)),
        *(Update(path=second, source="c2", place=place, gathered=3) for place in range(3)),
        Update(path=tmp_path / "deflated.npz", source="d"),
        Update(path=tmp_path / "fortran.npz", source="f"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    result = result_of(tmp_path, others, TrimmedMean(beta=0.3))
    for name in MIXED:
        np.testing.assert_array_equal(result[name], expected[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_gathered_files_are_the_concatenation_of_what_is_in_them(tmp_path: Path) -> None:
    models = [mixed(factor) for factor in range(1, 6)]
    schema = ModelSchema.of(MIXED)
    left, right = gathered(tmp_path, "left", models[:2]), gathered(tmp_path, "right", models[2:])
    with Gathering(tmp_path / "all", schema) as gathering:
        gathering.merge(left, 2, source="left")
        gathering.merge(right, 3, source="right")
        assert gathering.count == 5
        joined = gathering.finish().read_bytes()
    assert joined == left.read_bytes() + right.read_bytes() == gathered(tmp_path, "flat", models).read_bytes()
    assert len(joined) == 5 * schema.nbytes


@pytest.mark.parametrize(
    "poison",
    [{"w": np.full((4, 6), np.nan, np.float32)}, {"w": np.zeros((6, 4), np.float32)}, {"extra": np.zeros(1)}],
)
def test_a_bad_update_is_named_and_changes_nothing(poison: Arrays, tmp_path: Path) -> None:
    schema = ModelSchema.of(MIXED)
    write_npz(tmp_path / "bad.npz", {**mixed(1), **poison})
    write_npz(tmp_path / "good.npz", mixed(2))
    with Gathering(tmp_path / "all", schema) as gathering:
        for name in ("good.npz", "bad.npz", "good.npz"):
            with open_npz(tmp_path / name, source=name) as model:
                if name == "good.npz":
                    gathering.add(model)
                    continue
                with pytest.raises(BadModel) as caught:
                    gathering.add(model)
                assert caught.value.fields["source"] == "bad.npz"
        assert gathering.count == 2
        content = gathering.finish().read_bytes()
    assert content == gathered(tmp_path, "twice", [mixed(2)] * 2).read_bytes()


def test_a_bad_gathered_file_is_named_and_changes_nothing(tmp_path: Path) -> None:
    arrays: Arrays = {"w": np.ones(5)}
    good = gathered(tmp_path, "good", [arrays, arrays])
    bad = tmp_path / "bad"
    with Gathering(tmp_path / "all", ModelSchema.of(arrays)) as gathering:
        gathering.merge(good, 2, source="c1")
        for content, count in ((good.read_bytes(), 3), (good.read_bytes()[:-1], 2), (np.full(10, np.inf), 2)):
            bad.write_bytes(bytes(content))
            with pytest.raises(BadModel) as caught:
                gathering.merge(bad, count, source="c2")
            assert caught.value.fields["source"] == "c2"
        assert gathering.count == 2
        assert gathering.finish().read_bytes() == good.read_bytes()


def test_nothing_gathered_is_nothing_to_send(tmp_path: Path) -> None:
    with Gathering(tmp_path / "all", ModelSchema.of(MIXED)) as gathering, pytest.raises(EmptyAggregate):
        gathering.finish()


def test_booleans_that_are_neither_are_true(tmp_path: Path) -> None:
    arrays: Arrays = {"mask": np.array([False, True, True])}
    path = gathered(tmp_path, "all", [arrays])
    path.write_bytes(b"\x00\x02\xff")
    schema = ModelSchema.of(arrays)
    with GatheredFile(path, schema, 1, source="c1") as file:
        assert file.block(0, next(schema.spans())).tolist() == [False, True, True]


@each_rule
def test_too_few_updates_are_refused_with_what_is_needed(rule: RobustRule, tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", {"w": np.zeros(3)})
    updates = saved(tmp_path, [{"w": np.ones(3)}] * rule.least_updates)
    reduce_updates(updates, tmp_path / "base.npz", rule, tmp_path / "next.npz")
    (tmp_path / "next.npz").unlink()
    with pytest.raises(NotEnoughClients if rule.least_updates > 1 else EmptyAggregate) as caught:
        reduce_updates(updates[1:], tmp_path / "base.npz", rule, tmp_path / "next.npz")
    if rule.least_updates > 1:
        assert f"at least {rule.least_updates} updates; {rule.least_updates - 1} came" in str(caught.value)
    assert not (tmp_path / "next.npz").exists()


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (Krum(f=3), 9),
        (MultiKrum(f=3), 9),
        (MultiKrum(f=1, m=7), 10),
        (Bulyan(f=2), 11),
        (TrimmedMean(beta=0.1), 10),
        (TrimmedMean(beta=0.3), 4),
        (TrimmedMean(beta=0.49), 3),
    ],
    ids=str,
)
def test_how_many_updates_are_needed(rule: RobustRule, least: int) -> None:
    assert rule.least_updates == least


@laws
@given(beta=st.floats(1e-3, 0.5, exclude_max=True), more=st.integers(0, 200))
def test_the_trimmed_mean_leaves_out_some_and_keeps_some(beta: float, more: int) -> None:
    rule = TrimmedMean(beta=beta)
    k = rule.least_updates + more
    rows = np.zeros((k, 1))
    rows[0], rows[-1] = 1e9, -1e9
    assert rule.of(rows) == [0.0]
    assert math.isclose(float(rule.of(np.ones((k, 1)))[0]), 1.0)


def test_a_bad_update_or_weight_stops_the_round(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", {"w": np.zeros(3)})
    updates = saved(tmp_path, [{"w": np.ones(3)}, {"w": np.array([1.0, np.nan, 0.0])}, {"w": np.ones(3)}])
    with pytest.raises(BadModel) as caught:
        reduce_updates(updates, tmp_path / "base.npz", Median(), tmp_path / "next.npz")
    assert caught.value.fields["source"] == "client 1"
    with pytest.raises(InvalidInput, match="client 2"):
        reduce_updates(
            [updates[0], dataclasses.replace(updates[2], weight=0.0)],
            tmp_path / "base.npz",
            Median(),
            tmp_path / "next.npz",
        )
    assert not (tmp_path / "next.npz").exists()


def test_a_rule_is_followed_by_a_step_without_memory(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", {"w": np.full(3, 2.0), "n": np.array([2])})
    updates = saved(tmp_path, [{"w": np.full(3, 4.0), "n": np.array([4])}])
    half = make_optimizer("fedavg", {"learning_rate": 0.5})
    reduce_updates(updates, tmp_path / "base.npz", Median(), tmp_path / "next.npz", optimizer=half)
    with open_npz(tmp_path / "next.npz", source="the result") as model:
        assert {name: array.tolist() for name, array in model.arrays().items()} == {"w": [3.0] * 3, "n": [4]}
    adam = make_optimizer("fedadam")
    with pytest.raises(BadSettings):
        reduce_updates(updates, tmp_path / "base.npz", Median(), tmp_path / "next.npz", optimizer=adam)


def many(folder: Path, n_params: int, k: int) -> Iterator[Update]:
    rng = np.random.default_rng(1)
    for index in range(k):
        write_npz(folder / f"{index}.npz", {"w": rng.random(n_params, np.float32)})
        yield Update(path=folder / f"{index}.npz", source=f"client {index}")


@each_rule
def test_memory_is_some_blocks(rule: RobustRule, tmp_path: Path) -> None:
    n_params = 1_000_000
    updates = list(many(tmp_path, n_params, 8))
    write_npz(tmp_path / "base.npz", {"w": np.zeros(n_params, np.float32)})
    tracemalloc.start()
    try:
        reduce_updates(updates, tmp_path / "base.npz", rule, tmp_path / "next.npz", block_params=1 << 12)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # one update; eight are 32 MB


def test_blocks_shrink_as_updates_grow_in_number(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", {"w": np.zeros(3)})
    update = saved(tmp_path, [{"w": np.ones(3)}])[0]
    for k in (1, 1000):
        with UpdateStack([update] * k, tmp_path / "base.npz", tmp_path) as stack:
            assert stack.block_params * k * 8 <= 5 << 20
