"""bfloat16 through everything that numbers go through: files, sums, robust rules, compression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runnel.common.aggregation import (
    Gathering,
    Median,
    Part,
    Update,
    WeightedSum,
    make_optimizer,
    reduce_round,
    reduce_updates,
)
from runnel.common.aggregation.gathering import GatheredFile
from runnel.common.compression import decode_update, encode_update, parse_compression
from runnel.common.errors import BadModel
from runnel.common.protocol import PayloadKind
from runnel.common.tensors import (
    ModelSchema,
    cast_block,
    magnitude,
    normalise,
    open_npz,
    round_to_bfloat16,
    write_npz,
)

pytestmark = pytest.mark.unit

BF16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


def bf16(values: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values, np.float32).astype(BF16)


# ---- rounding


def nearest(value: float) -> float:
    """The nearest bfloat16 by looking at both neighbours in exact arithmetic; ties to the even one."""
    low = np.array([value]).astype(np.float32).view(np.uint32)[0] >> 16
    candidates = [int(low) + step for step in (-1, 0, 1)]
    numbers = {
        bits: float(np.array([bits << 16], np.uint32).view(np.float32)[0]) for bits in candidates if 0 <= bits < 1 << 16
    }
    finite = {bits: number for bits, number in numbers.items() if np.isfinite(number)}
    return min(finite.items(), key=lambda pair: (abs(pair[1] - value), pair[0] & 1))[1]


@given(st.floats(-1e38, 1e38, allow_subnormal=True))
def test_a_float64_becomes_the_nearest_bfloat16(value: float) -> None:
    (rounded,) = round_to_bfloat16(np.array([value])).astype(np.float64)
    assert rounded == nearest(value)
    assert np.signbit(rounded) == np.signbit(value)


def test_nothing_is_rounded_twice() -> None:
    """Each value is a tie for who rounds to float32 first, and none in truth."""
    values = np.array([1 + 2**-8 + 2**-40, 1 + 3 * 2**-8 - 2**-40, 1 + 2**-8, -(1 + 2**-8 + 2**-40)])
    assert round_to_bfloat16(values).astype(float).tolist() == [1 + 2**-7, 1 + 2**-7, 1.0, -(1 + 2**-7)]


def test_the_ends_of_the_range() -> None:
    values = np.array([3.3895313892515355e38, 3.4e38, 1e300, -1e300, np.inf, np.nan, -0.0, 2.0**-133, 2.0**-135])
    rounded = round_to_bfloat16(values).astype(float)
    assert rounded[:5].tolist() == [3.3895313892515355e38, np.inf, np.inf, -np.inf, np.inf]
    assert np.isnan(rounded[5])
    assert np.signbit(rounded[6])
    assert rounded[7:].tolist() == [2.0**-133, 0.0]


@given(st.integers(0, (1 << 16) - 1))
def test_every_bfloat16_comes_back(bits: int) -> None:
    one = np.array([bits], np.uint16).view(BF16)
    back = cast_block(one.astype(np.float64), "bfloat16")
    if np.isnan(one.astype(np.float32)).any():
        assert np.isnan(back.astype(np.float32)).all()
    else:
        assert back.view(np.uint16)[0] == bits


# ---- files


def test_what_numpy_writes_is_read_and_what_we_write_is_the_same(tmp_path: Path) -> None:
    arrays = {"w": bf16(np.arange(12)).reshape(3, 4), "empty": bf16([]), "scalar": bf16([1.5]).reshape(())}
    with (tmp_path / "numpy.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    write_npz(tmp_path / "ours.npz", arrays)
    for name in ("numpy.npz", "ours.npz"):
        with open_npz(tmp_path / name, source="here") as model:
            assert model.schema == ModelSchema.of(arrays)
            assert [spec.dtype for spec in model.schema.tensors] == ["bfloat16"] * 3
            came = model.arrays()
        with np.load(tmp_path / name, allow_pickle=False) as plain:
            for key, array in arrays.items():
                assert came[key].dtype == BF16
                assert came[key].tobytes() == array.tobytes()
                assert plain[key].dtype.str == "|V2"
                assert plain[key].view(BF16).tobytes() == array.tobytes()
                assert plain[key].shape == array.shape
    normalise(tmp_path / "numpy.npz", tmp_path / "normal.npz", source="here")
    assert (tmp_path / "normal.npz").read_bytes() == (tmp_path / "ours.npz").read_bytes()


@pytest.mark.parametrize(
    "descr", ["'>V2'", "'|V3'", "'|V1'", "[('a', '<u2')]", "[('a', '|V1'), ('b', '|V1')]", "('|V1', (2,))", "'|S2'"]
)
def test_other_bytes_of_unknown_meaning_are_refused(tmp_path: Path, descr: str) -> None:
    import zipfile

    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n".encode()
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(2)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("w.npy", member)
    with pytest.raises(BadModel, match=r"dtype|malformed") as caught, open_npz(tmp_path / "m.npz", source="mallory"):
        pass
    assert caught.value.fields["source"] == "mallory"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found(tmp_path: Path, bad: float) -> None:
    schema = ModelSchema.of({"w": bf16([1.0])})
    assert magnitude(bf16([1.0, -3.0, 2.0]), schema, 0, "here") == 3.0
    for place in range(3):
        values = bf16([1.0, 2.0, 3.0])
        values[place] = bad
        with pytest.raises(BadModel, match="NaN or infinity in the tensor 'w'"):
            magnitude(values, schema, 0, "mallory")


# ---- aggregation


def written(path: Path, values: NDArray[Any], half: NDArray[Any] | None = None) -> Path:
    write_npz(path, {"w": values, "h": np.zeros(2, np.float16) if half is None else half})
    return path


def test_a_mean_is_taken_in_float64_and_rounded_once(tmp_path: Path) -> None:
    """Neither the sum nor a partial mean of bfloat16 could hold 1 + 2**-7 three times and 1 once."""
    rows = [bf16([1.0, 256.0, -1.0]), bf16([1.0078125, 1.0, -1.0]), bf16([1.0078125, 1.0, 3.0])]
    halves = [np.array([1.0, 2.0], np.float16), np.array([1.0009765625, 2.0], np.float16), np.zeros(2, np.float16)]
    schema = ModelSchema.of({"w": rows[0], "h": halves[0]})
    total = WeightedSum(schema)
    for place, (row, half) in enumerate(zip(rows, halves, strict=True)):
        with open_npz(written(tmp_path / f"{place}.npz", row, half), source=str(place)) as update:
            total.add(update, 1.0 + place)
    mean = np.frombuffer(total.finish(), "<f8") / total.weight
    weights = np.array([1.0, 2.0, 3.0])
    exact = weights @ np.array([row.astype(float) for row in rows]) / 6
    assert np.allclose(mean[:3], exact, rtol=1e-15)
    assert cast_block(mean[:3], "bfloat16").astype(float).tolist() == [nearest(value) for value in exact]


def test_equal_updates_return_themselves_bit_for_bit(tmp_path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    values = every[(every & 0x7F80) != 0x7F80].view(BF16)
    schema = ModelSchema.of({"w": values})
    write_npz(tmp_path / "m.npz", {"w": values})
    total = WeightedSum(schema)
    for weight in (3.0, 7.0):
        with open_npz(tmp_path / "m.npz", source="here") as update:
            total.add(update, weight)
    mean = np.frombuffer(total.finish(), "<f8") / total.weight
    assert cast_block(mean, "bfloat16").tobytes() == values.tobytes()


def test_gathered_updates_are_read_back(tmp_path: Path) -> None:
    values = bf16(np.arange(70_000) % 251)
    schema = ModelSchema.of({"w": values, "b": np.zeros(2, np.float16)})
    write_npz(tmp_path / "m.npz", {"w": values, "b": np.ones(2, np.float16)})
    gathering = Gathering(tmp_path / "all", schema)
    for _ in range(2):
        with open_npz(tmp_path / "m.npz", source="here", expect=schema) as update:
            gathering.add(update)
    gathering.close()
    with GatheredFile(tmp_path / "all", schema, 2, source="here") as gathered:
        gathered.require_finite()
        came = np.concatenate([gathered.block(1, span) for span in schema.spans() if span.tensor == 0])
    assert came.dtype == BF16
    assert came.tobytes() == values.tobytes()


# ---- compression


@pytest.mark.parametrize("how", ["zstd", "fp16", "bf16", "int8", "top-k:0.1", "int8+zstd", "bf16+zstd"])
def test_compressed_updates_of_bfloat16_arrive(tmp_path: Path, how: str) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(4000)
    new = base + 0.1 * rng.standard_normal(4000)
    write_npz(tmp_path / "base.npz", {"w": bf16(base), "b": bf16([1.0])})
    write_npz(tmp_path / "new.npz", {"w": bf16(new), "b": bf16([2.0])})
    compression = parse_compression(how)
    encode_update(
        tmp_path / "new.npz",
        tmp_path / "packed",
        compression=compression,
        base=tmp_path / "base.npz",
        left=tmp_path / "left",
    )
    decode_update(
        tmp_path / "packed", tmp_path / "came.npz", compression=compression, base=tmp_path / "base.npz", source="site"
    )
    expect = ModelSchema.of({"w": bf16(base), "b": bf16([1.0])})
    with open_npz(tmp_path / "came.npz", source="site", expect=expect) as model:
        came = model.arrays()
    assert came["b"].astype(float).tolist() == [2.0]
    error = np.abs(came["w"].astype(float) - bf16(new).astype(float))
    if how in {"zstd", "fp16", "bf16", "bf16+zstd"}:
        assert not error.any()  # no smaller than the numbers themselves, so these are sent exactly
    elif how.startswith("int8"):
        # Half a step of the scale, and the rounding of the result to bfloat16.
        assert (error <= 0.5 / 127 + 2.0**-8 * np.abs(new)).all()
    else:
        assert np.count_nonzero(error == 0) >= 400


# ---- rules and optimizers


ROWS = [[1.0, -2.0, 3.0], [1.0078125, -2.0, 4.0], [100.0, -2.0, 3.5]]


def test_a_robust_rule_gives_bfloat16(tmp_path: Path) -> None:
    updates = [
        Update(path=written(tmp_path / f"{place}.npz", bf16(row)), source=str(place), weight=1.0)
        for place, row in enumerate(ROWS)
    ]
    reduce_updates(updates, written(tmp_path / "base.npz", bf16([0.0, 0, 0])), Median(), tmp_path / "next.npz")
    with open_npz(tmp_path / "next.npz", source="the result") as model:
        median = model.arrays()["w"]
    assert median.dtype == BF16
    assert median.astype(float).tolist() == [1.0078125, -2.0, 3.5]


def test_an_optimizer_steps_in_float64_and_rounds_once(tmp_path: Path) -> None:
    base = written(tmp_path / "base.npz", bf16([1.0, 1.0, 1.0]))
    parts = [
        Part(path=written(tmp_path / f"{place}.npz", bf16(row)), kind=PayloadKind.UPDATE, weight=1.0, source=str(place))
        for place, row in enumerate(ROWS)
    ]
    optimizer = make_optimizer("fedavgm", {"learning_rate": 0.5, "momentum": 0.9})
    reduce_round(parts, base, optimizer, None, tmp_path / "next.npz", tmp_path / "state")
    with open_npz(tmp_path / "next.npz", source="the result") as model:
        came = model.arrays()["w"]
    mean = np.mean([bf16(row).astype(float) for row in ROWS], axis=0)
    assert came.astype(float).tolist() == [nearest(value) for value in 1.0 + 0.5 * (mean - 1.0)]
