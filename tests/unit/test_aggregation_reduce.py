"""From parts and the present global model to the next one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runnel.common.aggregation import Part, WeightedSum, make_optimizer, reduce_round
from runnel.common.aggregation.parts import MAX_OPEN_PARTS
from runnel.common.blobs import digest_file
from runnel.common.errors import BadModel, CorruptData, EmptyAggregate, InvalidInput
from runnel.common.protocol import PayloadKind
from runnel.common.tensors import ModelSchema, open_npz, write_npz

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]
Weighted = tuple[float, Arrays]

seeds = st.integers(0, 2**32 - 1)


def a_model(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((7, 3)).astype(np.float32),
        "steps": rng.integers(-1000, 1000, 3),
        "b": rng.standard_normal(5),
        "mask": rng.random(4) < 0.5,
        "h": rng.standard_normal(2).astype(np.float16),
        "small": rng.integers(0, 256, 3).astype(np.uint8),
    }


SCHEMA = ModelSchema.of(a_model(0))


def update(folder: Path, number: int, weight: float, arrays: Arrays) -> Part:
    path = folder / f"update{number}.npz"
    write_npz(path, arrays)
    return Part(path=path, kind=PayloadKind.UPDATE, weight=weight, source=f"client {number}")


def weighted_sum(folder: Path, number: int, models: Sequence[Weighted]) -> Part:
    total = WeightedSum(SCHEMA)
    for weight, arrays in models:
        part = update(folder, 1000 + number, weight, arrays)
        with open_npz(part.path, source=part.source) as model:
            total.add(model, weight)
    path = folder / f"sum{number}"
    path.write_bytes(total.finish())
    return Part(
        path=path,
        kind=PayloadKind.WEIGHTED_SUM,
        weight=total.weight,
        source=f"combiner {number}",
        updates=total.count,
    )


def read(path: Path) -> Arrays:
    with open_npz(path, source="here", expect=SCHEMA) as model:
        model.verify()
        return model.arrays()


def averaged(folder: Path, parts: Sequence[Part]) -> Arrays:
    write_npz(folder / "base.npz", a_model(99))
    made = reduce_round(parts, folder / "base.npz", make_optimizer("fedavg"), None, folder / "next.npz", None)
    assert made.model == digest_file(folder / "next.npz")
    return read(folder / "next.npz")


def same_floats(a: Arrays, b: Arrays) -> bool:
    # One rounding of the dtype may fall on either side; the numbers of these models are around 1.
    return all(
        np.allclose(a[n].astype(np.float64), b[n].astype(np.float64), rtol=0, atol=4 * np.finfo(a[n].dtype).eps)
        for n in "wbh"
    )


weights = st.floats(1e-3, 1e3)
rounds = st.lists(st.tuples(weights, seeds.map(a_model)), min_size=1, max_size=6)


@given(models=rounds, cuts=st.tuples(st.integers(0, 6), st.integers(0, 6)))
@settings(deadline=None, max_examples=50)
def test_one_combiner_three_combiners_and_no_combiner_give_one_model(
    models: list[Weighted], cuts: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    first, second = sorted(cuts)
    groups = [g for g in (models[:first], models[first:second], models[second:]) if g]
    direct = averaged(folder, [update(folder, i, w, a) for i, (w, a) in enumerate(models)])
    one = averaged(folder, [weighted_sum(folder, 0, models)])
    three = averaged(folder, [weighted_sum(folder, i, g) for i, g in enumerate(groups)])
    mixed = averaged(
        folder,
        [update(folder, i, w, a) for i, (w, a) in enumerate(groups[0])]
        + [weighted_sum(folder, i, g) for i, g in enumerate(groups[1:])],
    )
    total = sum(w for w, _ in models)
    for name in "wb":
        expected = sum(w * a[name].astype(np.float64) for w, a in models) / total
        assert np.allclose(direct[name], expected, rtol=1e-6, atol=1e-6)
    for came in (one, three, mixed):
        assert same_floats(came, direct)
        assert {n: a.dtype for n, a in came.items()} == {n: a.dtype for n, a in direct.items()}


@given(seed=seeds, some=st.lists(weights, min_size=1, max_size=7))
@settings(deadline=None, max_examples=50)
def test_equal_updates_give_that_update(seed: int, some: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("round")
    model = a_model(seed)
    came = averaged(folder, [update(folder, i, w, model) for i, w in enumerate(some)])
    for name in ("w", "h", "steps", "mask", "small"):
        assert came[name].tobytes() == model[name].tobytes()
    # A float64 has no digits to spare for the sum.
    assert np.allclose(came["b"], model["b"], rtol=1e-15 * (len(some) + 2), atol=0)


@given(models=rounds, factor=weights)
@settings(deadline=None, max_examples=50)
def test_scaling_all_weights_changes_nothing(
    models: list[Weighted], factor: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    plain = averaged(folder, [update(folder, i, w, a) for i, (w, a) in enumerate(models)])
    scaled = averaged(folder, [update(folder, i, w * factor, a) for i, (w, a) in enumerate(models)])
    assert same_floats(plain, scaled)


def test_integers_and_booleans_follow_the_rule(tmp_path: Path) -> None:
    one = a_model(0) | {"steps": np.array([1, 2, -3]), "mask": np.array([True, True, False, False])}
    two = a_model(0) | {"steps": np.array([2, 3, -2]), "mask": np.array([True, False, True, False])}
    even = averaged(tmp_path, [update(tmp_path, 0, 1.0, one), update(tmp_path, 1, 1.0, two)])
    assert even["steps"].tolist() == [2, 2, -2]
    assert even["mask"].tolist() == [True, True, True, False]
    heavy = averaged(tmp_path, [update(tmp_path, 0, 1.0, one), update(tmp_path, 1, 3.0, two)])
    assert heavy["steps"].tolist() == [2, 3, -2]
    assert heavy["mask"].tolist() == [True, False, True, False]


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_several_rounds_with_state_in_files(name: str, tmp_path: Path) -> None:
    rule = make_optimizer(name)
    write_npz(tmp_path / "model0.npz", a_model(0))
    expected = {n: a.astype(np.float64) for n, a in a_model(0).items()}
    state = {n: tuple(np.full(a.shape, v) for v in rule.initial()) for n, a in expected.items()}
    state_in: Path | None = None
    for t in range(4):
        models = [(1.0, a_model(10 * t + 1)), (500.0, a_model(10 * t + 2))]
        parts = [update(tmp_path, i, w, a) for i, (w, a) in enumerate(models)]
        came = reduce_round(
            parts,
            tmp_path / f"model{t}.npz",
            make_optimizer(name),  # as after a restart: all that is remembered is in the file
            state_in,
            tmp_path / f"model{t + 1}.npz",
            tmp_path / f"state{t + 1}",
        )
        assert (came.weight, came.updates) == (501.0, 2)
        state_in = came.state
        assert (state_in is None) == (rule.slots == 0)
        for n in ("w", "b", "h"):
            mean = np.sum([w * a[n].astype(np.float64) for w, a in models], axis=0) / 501.0
            expected[n], state[n] = rule.step(expected[n], mean, state[n])
            expected[n] = expected[n].astype(a_model(0)[n].dtype).astype(np.float64)
    got = read(tmp_path / "model4.npz")
    for n in ("w", "b", "h"):
        eps = float(np.finfo(got[n].dtype).eps)
        assert np.allclose(got[n].astype(np.float64), expected[n], rtol=20 * eps, atol=20 * eps)
    # What is not float takes the mean, also under an adaptive rule.
    assert got["steps"].tolist() == np.rint((a_model(31)["steps"] + 500.0 * a_model(32)["steps"]) / 501).tolist()
    if state_in is not None:
        raw = np.fromfile(state_in, "<f8").reshape(rule.slots, SCHEMA.n_params)
        offsets = dict(zip(a_model(0), SCHEMA.offsets, strict=True))
        for slot, initial in enumerate(rule.initial()):
            b = raw[slot, offsets["b"] : offsets["b"] + 5]
            assert np.allclose(b, state["b"][slot], rtol=1e-9)
            assert raw[slot, offsets["steps"] : offsets["steps"] + 3].tolist() == [initial] * 3


def test_state_may_replace_itself(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", a_model(0))
    parts = [update(tmp_path, 0, 1.0, a_model(1))]
    rule = make_optimizer("fedadam")
    for state_in, state_out in ((None, "a"), ("a", "b"), (None, "c"), ("c", "c")):
        before = None if state_in is None else tmp_path / state_in
        reduce_round(parts, tmp_path / "base.npz", rule, before, tmp_path / "next.npz", tmp_path / state_out)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "a").read_bytes()


def test_more_parts_than_may_be_open(tmp_path: Path) -> None:
    count = 2 * MAX_OPEN_PARTS + 57
    parts = [update(tmp_path, i, 1.0 + i, a_model(i)) for i in range(count)]
    total = WeightedSum(SCHEMA)
    for part in parts:
        with open_npz(part.path, source=part.source) as model:
            total.add(model, part.weight)
    path = tmp_path / "sum"
    path.write_bytes(total.finish())
    whole = Part(path=path, kind=PayloadKind.WEIGHTED_SUM, weight=total.weight, source="combiner", updates=count)
    before = {p.name for p in tmp_path.iterdir()} | {"base.npz", "next.npz"}
    assert same_floats(averaged(tmp_path, parts), averaged(tmp_path, [whole]))
    assert {p.name for p in tmp_path.iterdir()} == before


def test_updates_in_fortran_order_and_deflated(tmp_path: Path) -> None:
    plain = [update(tmp_path, i, 1.0 + i, a_model(i)) for i in range(3)]
    expected = averaged(tmp_path, plain)
    others = []
    for i, part in enumerate(plain):
        path = tmp_path / f"other{i}.npz"
        save = np.savez if i else np.savez_compressed
        with path.open("wb") as file:
            save(file, **{n: np.asfortranarray(a) for n, a in a_model(i).items()})  # type: ignore[arg-type]
        others.append(replace(part, path=path))
    came = averaged(tmp_path, others)
    assert {n: a.tobytes() for n, a in came.items()} == {n: a.tobytes() for n, a in expected.items()}


# ---- what goes wrong


def assert_untouched(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith((".", "next", "state_out"))) == []


def test_nothing_to_reduce(tmp_path: Path) -> None:
    with pytest.raises(EmptyAggregate):
        averaged(tmp_path, [])
    assert_untouched(tmp_path)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_weights_that_make_no_sense(weight: float, tmp_path: Path) -> None:
    parts = [update(tmp_path, 0, 1.0, a_model(0)), update(tmp_path, 1, weight, a_model(1))]
    with pytest.raises(InvalidInput, match="client 1"):
        averaged(tmp_path, parts)
    assert_untouched(tmp_path)


@pytest.mark.parametrize(
    "poison",
    [
        {"h": np.array([1.0, np.nan], np.float16)},
        {"b": np.full(5, np.inf)},
        {"b": np.zeros(6)},
        {"extra": np.zeros(1)},
    ],
)
def test_a_bad_update_is_named(poison: Arrays, tmp_path: Path) -> None:
    parts = [update(tmp_path, 0, 1.0, a_model(0)), update(tmp_path, 1, 1.0, a_model(1) | poison)]
    with pytest.raises(BadModel) as caught:
        averaged(tmp_path, parts)
    assert caught.value.fields["source"] == "client 1"
    assert_untouched(tmp_path)


@pytest.mark.parametrize("numbers", [np.ones(3), np.full(SCHEMA.n_params, np.nan), np.full(SCHEMA.n_params, 1.7e308)])
def test_a_bad_sum_is_named(numbers: NDArray[np.float64], tmp_path: Path) -> None:
    numbers.tofile(tmp_path / "bad")
    bad = Part(path=tmp_path / "bad", kind=PayloadKind.WEIGHTED_SUM, weight=1.0, source="combiner mallory")
    with pytest.raises(BadModel) as caught:
        averaged(tmp_path, [bad, bad])
    assert caught.value.fields["source"] == "combiner mallory"
    assert_untouched(tmp_path)


def test_a_part_without_payload(tmp_path: Path) -> None:
    part = replace(update(tmp_path, 0, 1.0, a_model(0)), kind=PayloadKind.NONE)
    with pytest.raises(InvalidInput, match="client 0"):
        averaged(tmp_path, [part])


def test_an_optimizer_that_diverges_does_not_replace_the_model(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", a_model(0))
    parts = [update(tmp_path, 0, 1.0, a_model(1))]
    rule = make_optimizer("fedavgm", {"learning_rate": 1e300})
    with pytest.raises(BadModel, match="session s round 3"):
        reduce_round(
            parts,
            tmp_path / "base.npz",
            rule,
            None,
            tmp_path / "next.npz",
            tmp_path / "state_out",
            source="session s round 3",
        )
    assert_untouched(tmp_path)


def test_state_of_another_size_or_without_a_place(tmp_path: Path) -> None:
    write_npz(tmp_path / "base.npz", a_model(0))
    parts = [update(tmp_path, 0, 1.0, a_model(1))]
    rule = make_optimizer("fedadam")
    np.zeros(5).tofile(tmp_path / "state_in")
    with pytest.raises(CorruptData, match="40 bytes"):
        reduce_round(
            parts,
            tmp_path / "base.npz",
            rule,
            tmp_path / "state_in",
            tmp_path / "next.npz",
            tmp_path / "state_out",
        )
    with pytest.raises(InvalidInput, match="no file to keep"):
        reduce_round(parts, tmp_path / "base.npz", rule, None, tmp_path / "next.npz", None)
    assert_untouched(tmp_path)


def test_memory_is_some_blocks(tmp_path: Path) -> None:
    arrays: Arrays = {"w": np.zeros(4_000_000, np.float32)}
    parts = [update(tmp_path, i, 1.0, arrays) for i in range(4)]
    write_npz(tmp_path / "base.npz", arrays)
    tracemalloc.start()
    try:
        reduce_round(
            parts, tmp_path / "base.npz", make_optimizer("fedyogi"), None, tmp_path / "next.npz", tmp_path / "state"
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
