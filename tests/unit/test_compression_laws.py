"""The error of each codec is the one that its documentation states, whatever the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runnel.common.compression import decoded_update, encode_update, parse_compression
from runnel.common.compression.top_k import TopK
from runnel.common.errors import BadModel, InvalidInput
from runnel.common.tensors import BLOCK_PARAMS, open_npz, write_npz

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]

LOSSY = ["fp16", "bf16", "int8", "top-k:0.05"]
ALL = [*LOSSY, "zstd", *(f"{name}+zstd" for name in LOSSY)]

EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sent(folder: Path, how: str, base: Arrays, update: Arrays, carried: Path | None = None) -> Arrays:
    """What the receiver makes of ``update``; what it left is the file ``left`` then."""
    compression = parse_compression(how)
    write_npz(folder / "base", base)
    write_npz(folder / "update", update)
    encode_update(
        folder / "update",
        folder / "encoded",
        compression=compression,
        base=folder / "base",
        carried=[] if carried is None else [carried],
        left=folder / "new",
    )
    if (folder / "new").exists():
        (folder / "new").replace(folder / "left")
    with (
        decoded_update(folder / "encoded", compression=compression, base=folder / "base", source="a") as plain,
        open_npz(plain, source="a") as opened,
    ):
        return opened.arrays()


def differences(seed: int, count: int, scale: float, dtype: str = "float32") -> NDArray[Any]:
    """Numbers of many magnitudes, some of them 0."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=count) * scale * 10.0 ** random.integers(-6, 1, count)
    return np.where(random.random(count) < 0.1, 0, numbers).astype(dtype)


def of_zero(folder: Path, how: str, update: NDArray[Any]) -> NDArray[Any]:
    """What arrives of ``update`` when the global model is 0, so that there is no rounding of the sum."""
    return sent(folder, how, {"w": np.zeros_like(update)}, {"w": update})["w"]


many = given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2_000, 5_000),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    dtype=st.sampled_from(["float32", "float64"]),
)


@EXAMPLES
@many
def test_fp16_errs_by_a_2048th_at_most(tmp_path: Path, seed: int, count: int, scale: float, dtype: str) -> None:
    exact = differences(seed, count, scale, dtype)
    error = np.abs(of_zero(tmp_path, "fp16", exact).astype("float64") - exact)
    assert (error <= np.maximum(2.0**-11 * np.abs(exact), 2.0**-25)).all()


@EXAMPLES
@many
def test_bf16_errs_by_a_256th_at_most(tmp_path: Path, seed: int, count: int, scale: float, dtype: str) -> None:
    exact = differences(seed, count, scale, dtype)
    error = np.abs(of_zero(tmp_path, "bf16", exact).astype("float64") - exact)
    assert (error <= 2.0**-8 * np.abs(exact) * (1 + 1e-6)).all()


def test_bf16_rounds_ties_to_even(tmp_path: Path) -> None:
    exact = np.tile(np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20], "float32"), 500)
    assert of_zero(tmp_path, "bf16", exact)[:4].tolist() == [1.0, 1 + 2**-6, -1.0, 1 + 2**-7]


@EXAMPLES
@many
def test_int8_errs_by_half_a_step_of_its_group(tmp_path: Path, seed: int, count: int, scale: float, dtype: str) -> None:
    exact = differences(seed, count, scale, dtype)
    error = np.abs(of_zero(tmp_path, "int8", exact).astype("float64") - exact)
    for at in range(0, count, 1024):
        largest = np.abs(exact[at : at + 1024].astype("float64")).max()
        assert error[at : at + 1024].max() <= largest / 254 * (1 + 1e-4)


def test_the_groups_of_int8_are_apart(tmp_path: Path) -> None:
    exact = np.full(BLOCK_PARAMS + 3000, 1e-3, "float32")
    exact[BLOCK_PARAMS + 1030] = 1e6
    error = np.abs(of_zero(tmp_path, "int8", exact) - exact)
    assert np.flatnonzero(error > 1e-5).tolist() == [
        n for n in range(BLOCK_PARAMS + 1024, BLOCK_PARAMS + 2048) if n != BLOCK_PARAMS + 1030
    ]


@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1_000, 4_099, BLOCK_PARAMS, BLOCK_PARAMS + 1, 2 * BLOCK_PARAMS + 77]),
    fraction=st.sampled_from(["0.001", "0.07", "0.4"]),
    dtype=st.sampled_from(["float32", "float64"]),
    rounding=st.sampled_from([0, 2]),
)
def test_top_k_keeps_the_largest_exactly(
    tmp_path: Path, seed: int, count: int, fraction: str, dtype: str, rounding: int
) -> None:
    exact = np.random.default_rng(seed).normal(size=count)
    exact = (exact.round(rounding) if rounding else exact).astype(dtype)  # rounded ones have many equals
    arrived = of_zero(tmp_path, f"top-k:{fraction}", exact)
    kept = np.flatnonzero(arrived)
    k = int(np.ceil(round(count * float(fraction), 6)))
    ranked = np.abs(exact.astype("float32"))
    assert kept.size <= k
    assert np.array_equal(arrived[kept], exact[kept])
    left_out = np.delete(ranked, kept)
    if kept.size < k:  # all the others are 0
        assert left_out.max() == 0
    else:
        assert left_out.max() <= ranked[kept].min()
    energy = float((exact.astype("float64") ** 2).sum())
    assert float(((exact - arrived).astype("float64") ** 2).sum()) <= (1 - k / count) * energy * (1 + 1e-6) + 1e-30


@pytest.mark.parametrize(
    ("kept", "gaps"),
    [(3, [1, 1, 5]), (4, [1, 1, 2, 3]), (5, [1, 1, 2, 1, 2]), (6, [1, 1, 2, 1, 1, 1])],
)
def test_top_k_takes_the_first_of_equals_also_when_they_lie_in_several_blocks(kept: int, gaps: list[int]) -> None:
    blocks = [np.array(block, "float32") for block in ([1, 2, 0, 1], [-1, 1, 3], [0.5, 1])]
    parts: list[NDArray[Any]] = []
    TopK(fraction=kept / 9).encode(lambda: iter(blocks), 9, parts.append)
    told, values = parts
    assert told.tolist() == gaps
    assert values.tolist() == np.concatenate(blocks)[np.cumsum(told) - 1].tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("how", ["int8", "top-k:0.02", "int8+zstd", "top-k:0.02+zstd"])
def test_with_feedback_what_arrived_and_what_is_left_is_everything(tmp_path: Path, how: str, dtype: str) -> None:
    random = np.random.default_rng(7)
    base = {"w": random.normal(size=(37, 131)).astype(dtype)}
    arrived = told = np.zeros(base["w"].shape)
    carried: Path | None = None
    for _ in range(12):
        update = {"w": (base["w"] + random.normal(size=base["w"].shape) * 0.01).astype(dtype)}
        got = sent(tmp_path, how, base, update, carried)
        carried = tmp_path / "left"
        told = told + update["w"].astype("float64") - base["w"]
        arrived = arrived + got["w"].astype("float64") - base["w"]
        base = got
    assert carried is not None
    with np.load(carried) as left:
        assert left["w"].dtype == ("float64" if dtype == "float64" else "float32")
        assert np.abs(left["w"]).max() > 1e-6
        tolerance = 1e-12 if dtype == "float64" else 2e-6
        assert np.abs(told - arrived - left["w"]).max() < tolerance


@pytest.mark.parametrize("how", ALL)
def test_what_is_no_float_or_small_is_exact(tmp_path: Path, how: str) -> None:
    random = np.random.default_rng(1)
    base: Arrays = {
        "big": np.zeros(5_000, "float32"),
        "count": np.array(41, "int64"),
        "mask": np.zeros(9_000, "bool"),
        "table": np.zeros((60, 70), "uint16"),
        "bias": np.zeros(10, "float32"),
        "none": np.zeros((0, 3), "float32"),
        "scale": np.array(1.0, "float64"),
    }
    update: Arrays = {
        "big": random.normal(size=5_000).astype("float32"),
        "count": np.array(2**53 + 1, "int64"),
        "mask": random.random(9_000) < 0.5,
        "table": random.integers(0, 65536, (60, 70)).astype("uint16"),
        "bias": random.normal(size=10).astype("float32"),
        "none": np.zeros((0, 3), "float32"),
        "scale": np.array(random.normal()),
    }
    got = sent(tmp_path, how, base, update)
    assert list(got) == list(update)
    for name, array in update.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype)
        if name != "big":
            assert np.array_equal(got[name], array), name
    assert np.array_equal(got["big"], update["big"]) == (how == "zstd")


@pytest.mark.parametrize("how", ALL)
def test_a_model_may_be_written_in_any_order(tmp_path: Path, how: str) -> None:
    random = np.random.default_rng(2)
    base: Arrays = {"w": np.asfortranarray(random.normal(size=(50, 90)).astype(">f4"))}
    update: Arrays = {"w": base["w"].astype("float32") + random.normal(size=(50, 90)).astype("float32") * 0.01}
    want = sent(tmp_path, how, {"w": np.ascontiguousarray(base["w"], "float32")}, update)
    np.savez(tmp_path / "odd.npz", w=base["w"])
    with (tmp_path / "odd.npz").open("rb") as file:
        (tmp_path / "base").write_bytes(file.read())
    compression = parse_compression(how)
    encode_update(tmp_path / "update", tmp_path / "encoded", compression=compression, base=tmp_path / "base")
    with (
        decoded_update(tmp_path / "encoded", compression=compression, base=tmp_path / "base", source="a") as plain,
        open_npz(plain, source="a") as opened,
    ):
        assert np.array_equal(opened.arrays()["w"], want["w"])


@pytest.mark.parametrize("how", ALL)
def test_equal_updates_are_equal_bytes_and_leave_no_other_files(tmp_path: Path, how: str) -> None:
    base, update = {"w": np.zeros(9_000, "float32")}, {"w": differences(3, 9_000, 1.0)}
    first = sent(tmp_path, how, base, update)["w"]
    encoded = (tmp_path / "encoded").read_bytes()
    (tmp_path / "left").unlink(missing_ok=True)
    assert np.array_equal(sent(tmp_path, how, base, update)["w"], first)
    assert (tmp_path / "encoded").read_bytes() == encoded
    assert {path.name for path in tmp_path.iterdir()} <= {"base", "update", "encoded", "left"}


@pytest.mark.parametrize(
    ("how", "most"), [("fp16", 0.51), ("bf16", 0.51), ("int8", 0.26), ("top-k:0.01", 0.021), ("top-k", 0.021)]
)
def test_the_bytes_are_those_that_are_stated(tmp_path: Path, how: str, most: float) -> None:
    update = {"w": differences(4, 300_000, 1.0)}
    sent(tmp_path, how, {"w": np.zeros(300_000, "float32")}, update)
    assert (tmp_path / "encoded").stat().st_size < most * (tmp_path / "update").stat().st_size


@pytest.mark.parametrize(
    ("how", "number", "told"),
    [
        ("fp16", 70_000.0, "half precision ends"),
        ("bf16", 1e39, "bfloat16"),
        ("int8", 1e300, "8-bit"),
        ("top-k", 1e308, "far"),
    ],
)
def test_a_difference_that_cannot_be_told_is_refused(tmp_path: Path, how: str, number: float, told: str) -> None:
    base, update = np.zeros(3_000), np.zeros(3_000)
    base[5], update[5] = -number, number
    with pytest.raises(BadModel, match=told):
        sent(tmp_path, how, {"w": base}, {"w": update})
    assert {path.name for path in tmp_path.iterdir()} == {"base", "update"}


def test_tiny_differences_are_zero_in_int8_and_not_lost(tmp_path: Path) -> None:
    exact = np.full(2_000, 1e-40)
    assert not of_zero(tmp_path, "int8", exact).any()
    with np.load(tmp_path / "left") as left:
        assert np.array_equal(left["w"], exact)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        ("none+zstd", "zstd"),
        ("zstd", "zstd"),
        ("fp16", "fp16"),
        ("bf16+zstd", "bf16+zstd"),
        ("int8+zstd", "int8+zstd"),
        ("top-k", "top-k:0.01"),
        ("top-k:0.40", "top-k:0.4"),
        ("top-k:1e-3+zstd", "top-k:0.001+zstd"),
    ],
)
def test_written_forms(text: str, canonical: str) -> None:
    assert str(parse_compression(text)) == canonical
    assert parse_compression(canonical) == parse_compression(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gzip",
        "int4",
        "int8+",
        "int8+gzip",
        "zstd+zstd",
        "zstd+int8",
        "int8:3",
        "top-k:",
        "top-k:0",
        "top-k:0.6",
        "top-k:x",
        "top-k:nan",
        "top-k:-1",
        "INT8",
        "int8 + zstd",
        "none:1",
    ],
)
def test_other_forms_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(InvalidInput, match="compress: ") as caught:
        parse_compression(text)
    assert caught.value.fields["field"] == "compress"
