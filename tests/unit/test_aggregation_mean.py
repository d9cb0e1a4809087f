"""The laws of the running weighted sum."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runnel.common import aggregation
from runnel.common.aggregation import SumMemory, WeightedSum
from runnel.common.errors import BadModel, EmptyAggregate, IllegalState, InvalidInput
from runnel.common.tensors import ModelSchema, open_npz, write_npz

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]
Weighted = tuple[float, Arrays]

# Number of examples of a small practice and of a university hospital.
weights = st.floats(1e-3, 1e3)
seeds = st.integers(0, 2**32 - 1)


def a_model(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((7, 3)).astype(np.float32),
        "b": rng.standard_normal(5) * 10.0 ** rng.integers(-8, 8),
        "h": rng.standard_normal(2).astype(np.float16),
        "steps": rng.integers(-1000, 1000, 3),
        "mask": rng.random(4) < 0.5,
    }


SCHEMA = ModelSchema.of(a_model(0))


def flat(arrays: Arrays) -> NDArray[np.float64]:
    return np.concatenate([a.reshape(-1).astype(np.float64) for a in arrays.values()])


def summed(folder: Path, models: Sequence[Weighted], name: str = "sum") -> tuple[Path, WeightedSum]:
    total = WeightedSum(SCHEMA)
    for number, (weight, arrays) in enumerate(models):
        write_npz(folder / "update.npz", arrays)
        with open_npz(folder / "update.npz", source=f"client {number}") as model:
            total.add(model, weight)
    (folder / name).write_bytes(total.finish())
    return folder / name, total


def read(source: Path | memoryview) -> NDArray[np.float64]:
    return np.frombuffer(source if isinstance(source, memoryview) else source.read_bytes(), "<f8")


def close(came: NDArray[np.float64], expected: NDArray[np.float64], models: Sequence[Weighted]) -> bool:
    # Relative to what was added: where terms cancel, no order of additions keeps the digits of the rest.
    scale = sum(w * np.abs(flat(a)) for w, a in models)
    return bool(np.all(np.abs(came - expected) <= 1e-12 * scale))


models_of = st.lists(st.tuples(weights, seeds.map(a_model)), min_size=1, max_size=6)


def test_public_names() -> None:
    assert all(hasattr(aggregation, name) for name in aggregation.__all__)
    assert {"WeightedSum", "reduce_round", "Part", "make_optimizer", "weighted_mean_metrics"} <= set(
        aggregation.__all__
    )


@given(models=models_of)
@settings(deadline=None, max_examples=50)
def test_it_is_the_sum(models: list[Weighted], tmp_path_factory: pytest.TempPathFactory) -> None:
    path, total = summed(tmp_path_factory.mktemp("sum"), models)
    expected = np.sum([w * flat(a) for w, a in models], axis=0)
    assert close(read(path), expected, models)
    assert total.count == len(models)
    assert total.weight == pytest.approx(sum(w for w, _ in models), rel=1e-12)
    assert path.stat().st_size == 8 * SCHEMA.n_params


@given(models=models_of, shuffle=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_order_does_not_matter(
    models: list[Weighted], shuffle: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sum")
    other = list(models)
    shuffle.shuffle(other)
    assert close(read(summed(folder, models, "a")[0]), read(summed(folder, other, "b")[0]), models)


@given(models=models_of, cut=st.integers(0, 6))
@settings(deadline=None, max_examples=50)
def test_merging_equals_adding_in_one_go(
    models: list[Weighted], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sum")
    whole_path, whole = summed(folder, models, "whole")
    merged = WeightedSum(SCHEMA)
    for number, part in enumerate(filter(None, (models[:cut], models[cut:]))):
        path, total = summed(folder, part, f"part{number}")
        merged.merge(path, total.weight, source=f"combiner {number}", count=total.count)
    assert close(read(merged.finish()), read(whole_path), models)
    assert merged.count == whole.count
    assert merged.weight == pytest.approx(whole.weight, rel=1e-12)


def test_blocks_meet_without_gap_or_overlap(tmp_path: Path) -> None:
    arrays: Arrays = {"a": np.arange(200_001.0), "b": np.arange(65_536, dtype=np.float32), "c": np.array(5.0)}
    write_npz(tmp_path / "m.npz", arrays)
    total = WeightedSum(ModelSchema.of(arrays))
    with open_npz(tmp_path / "m.npz", source="client a") as model:
        total.add(model, 2.0)
        total.add(model, 0.5)
    assert np.array_equal(read(total.finish()), 2.5 * flat(arrays))


def a_sum(folder: Path) -> WeightedSum:
    return summed(folder, [(3.0, a_model(1))])[1]


def poisons() -> list[tuple[str, Arrays]]:
    poisoned: list[tuple[str, Arrays]] = []
    for name, number in itertools.product("wbh", (np.nan, np.inf)):
        arrays = a_model(2)
        arrays[name].reshape(-1)[-1] = number
        poisoned.append((f"tensor '{name}'", arrays))
    poisoned.append(("missing", {"w": a_model(2)["w"]}))
    poisoned.append(("too large", a_model(2) | {"b": np.full(5, 1e308)}))
    return poisoned


@pytest.mark.parametrize(("words", "arrays"), poisons())
def test_a_bad_update_changes_nothing_and_is_named(words: str, arrays: Arrays, tmp_path: Path) -> None:
    total = a_sum(tmp_path)
    before = (read(total.finish()).tobytes(), total.weight, total.count)
    write_npz(tmp_path / "bad.npz", arrays)
    with open_npz(tmp_path / "bad.npz", source="client mallory") as model, pytest.raises(BadModel) as caught:
        total.add(model, 2.0)
    assert words in str(caught.value)
    assert caught.value.fields["source"] == "client mallory"
    assert (read(total.finish()).tobytes(), total.weight, total.count) == before


def test_a_damaged_update_changes_nothing(tmp_path: Path) -> None:
    total = a_sum(tmp_path)
    before = read(total.finish()).tobytes()
    rng = np.random.default_rng(0)
    with (tmp_path / "bad.npz").open("wb") as file:
        np.savez_compressed(file, **(a_model(2) | {"mask": rng.random(4) < 0.5}))  # type: ignore[arg-type]
    raw = bytearray((tmp_path / "bad.npz").read_bytes())
    # The checksum of the last tensor, in the directory and before the tensor: all before it is added by then, if adding
    # came first.
    crc = raw[raw.rindex(b"PK\x01\x02") + 16 :][:4]
    damaged = bytes(raw).replace(bytes(crc), b"\0\0\0\0")
    (tmp_path / "bad.npz").write_bytes(damaged)
    with open_npz(tmp_path / "bad.npz", source="client mallory") as model, pytest.raises(BadModel, match="checksum"):
        total.add(model, 1.0)
    assert read(total.finish()).tobytes() == before


@pytest.mark.parametrize("how", ["add", "merge"])
def test_an_update_that_is_in_the_sum_in_part_breaks_it(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "next.npz", a_model(2))
    (tmp_path / "next.f64").write_bytes(summed(tmp_path, [(2.0, a_model(2))])[1].finish())

    def add_next(to: WeightedSum) -> None:
        if how == "merge":
            to.merge(tmp_path / "next.f64", 2.0, source="somebody")
        else:
            with open_npz(tmp_path / "next.npz", source="somebody") as model:
                to.add(model, 2.0)

    def fails_half_way(self: WeightedSum, start: int, values: NDArray[Any], weight: float) -> None:
        if start > 20:
            raise MemoryError
        fold(self, start, values, weight)

    fold = WeightedSum._fold
    total, first = a_sum(tmp_path), WeightedSum(SCHEMA)
    with monkeypatch.context() as patch:
        patch.setattr(WeightedSum, "_fold", fails_half_way)
        for each in (total, first):
            with pytest.raises(MemoryError):
                add_next(each)
    assert total.broken
    for use in (total.finish, lambda: add_next(total)):
        with pytest.raises(IllegalState, match="in part only"):
            use()
    assert not first.broken
    add_next(first)
    assert read(first.finish()).tobytes() == (tmp_path / "next.f64").read_bytes()


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_weights_that_make_no_sense(weight: float, tmp_path: Path) -> None:
    total = a_sum(tmp_path)
    before = (read(total.finish()).tobytes(), total.weight, total.count)
    write_npz(tmp_path / "m.npz", a_model(2))
    with open_npz(tmp_path / "m.npz", source="client m") as model, pytest.raises(InvalidInput, match="client m"):
        total.add(model, weight)
    with pytest.raises(InvalidInput, match="combiner mallory"):
        total.merge(tmp_path / "sum", weight, source="combiner mallory")
    assert (read(total.finish()).tobytes(), total.weight, total.count) == before


def test_weights_whose_sum_is_infinite(tmp_path: Path) -> None:
    zero: Arrays = {name: np.zeros_like(a) for name, a in a_model(0).items()}
    total = summed(tmp_path, [(1.7e308, zero)])[1]
    with open_npz(tmp_path / "update.npz", source="client b") as model, pytest.raises(InvalidInput, match="client b"):
        total.add(model, 1.7e308)
    assert total.weight == 1.7e308


def test_no_update_takes_the_room_of_those_after_it(tmp_path: Path) -> None:
    """What would carry a sum near to overflow is told of whoever sent it, not of the next one."""
    total = a_sum(tmp_path)
    write_npz(tmp_path / "big.npz", a_model(0) | {"b": np.full(5, 1e290)})
    with open_npz(tmp_path / "big.npz", source="client b") as model, pytest.raises(BadModel, match="too large") as told:
        total.add(model, 1.0)
    assert told.value.fields["source"] == "client b"
    write_npz(tmp_path / "good.npz", a_model(1))
    with open_npz(tmp_path / "good.npz", source="client c") as model:
        total.add(model, 1.0)
    assert np.isfinite(read(total.finish())).all()


def bad_sums() -> list[tuple[str, NDArray[np.float64]]]:
    good = np.ones(SCHEMA.n_params)
    poisoned = [("bytes; expected", good[:-1]), ("bytes; expected", np.append(good, 1.0)), ("bytes", good[:0])]
    for number in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[17] = number
        poisoned.append(("NaN or infinity", bad))
    poisoned.append(("no updates of float32 with the weight 2 in all can sum up to", np.full_like(good, 1.7e308)))
    at = SCHEMA.offsets[[spec.name for spec in SCHEMA.tensors].index("b")]
    poisoned.append(("too large", np.where(np.arange(good.size) == at, 1.7e308, good)))
    return poisoned


@pytest.mark.parametrize(("words", "numbers"), bad_sums())
def test_a_bad_sum_changes_nothing_and_is_named(words: str, numbers: NDArray[np.float64], tmp_path: Path) -> None:
    total = a_sum(tmp_path)
    before = (read(total.finish()).tobytes(), total.weight, total.count)
    numbers.astype("<f8").tofile(tmp_path / "bad")
    with pytest.raises(BadModel, match=words) as caught:
        total.merge(tmp_path / "bad", 2.0, source="combiner mallory")
    assert caught.value.fields["source"] == "combiner mallory"
    assert (read(total.finish()).tobytes(), total.weight, total.count) == before


def test_a_sum_of_nothing_has_no_mean() -> None:
    with pytest.raises(EmptyAggregate):
        WeightedSum(SCHEMA).finish()


def test_memory_that_was_used_before_does_not_show(tmp_path: Path) -> None:
    memory, places = SumMemory(), set()
    for seed in (1, 2):
        arrays = a_model(seed)
        write_npz(tmp_path / "m.npz", arrays)
        total = WeightedSum(SCHEMA, memory)
        with open_npz(tmp_path / "m.npz", source="client a") as model:
            total.add(model, 2.0)
            total.add(model, 0.5)
        found = read(total.finish())
        np.testing.assert_array_equal(found, 2.5 * flat(arrays))
        places.add(found.ctypes.data)
        total.release()
    assert len(places) == 1


def test_the_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    array = np.random.default_rng(3).standard_normal((5, 300, 90)).astype(np.float32)
    sums = []
    np.savez(tmp_path / "c.npz", w=array)
    np.savez(tmp_path / "f.npz", w=np.asfortranarray(array))
    np.savez_compressed(tmp_path / "z.npz", w=np.asfortranarray(array))
    for name in "cfz":
        with open_npz(tmp_path / f"{name}.npz", source="client a") as model:
            total = WeightedSum(model.schema)
            total.add(model, 0.3)
            total.add(model, 1.7)
            sums.append(bytes(total.finish()))
    assert sums[0] == sums[1] == sums[2]


def test_memory_is_one_sum(tmp_path: Path) -> None:
    n = 4_000_000
    write_npz(tmp_path / "m.npz", {"w": np.ones(n, np.float32)})
    with open_npz(tmp_path / "m.npz", source="client a") as model:
        tracemalloc.start()
        try:
            total = WeightedSum(model.schema)
            for _ in range(3):
                total.add(model, 2.0)
            (tmp_path / "sum").write_bytes(total.finish())
            total.merge(tmp_path / "sum", total.weight, source="combiner a")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 * n + 4_000_000
