"""The memory of rules that need every update: some blocks, whatever the number of updates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runnel.common.aggregation import (
    Bulyan,
    FedBuff,
    GatheredFile,
    Gathering,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormClipping,
    RobustRule,
    TrimmedMean,
    Update,
    reduce_updates,
)
from runnel.common.tensors import ModelSchema, open_npz, write_npz

pytestmark = pytest.mark.unit

FEW, MANY = 8, 64
N_PARAMS = 140_000  # more than two blocks of FEW updates

RULES: dict[str, RobustRule] = {
    "median": Median(),
    "trimmed mean": TrimmedMean(beta=0.2),
    "krum": Krum(f=1),
    "multi-krum": MultiKrum(f=1),
    "bulyan": Bulyan(f=1),
    "geometric median": GeometricMedian(),
    "norm clipping": NormClipping(max_norm=5.0),
    "fedbuff": FedBuff(),
}


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most that was allocated at a time while ``work`` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a global model, an update, and files of FEW and of MANY updates that differ."""
    made, rng = tmp_path_factory.mktemp("updates"), np.random.default_rng(1)
    write_npz(made / "base.npz", {"w": np.zeros(N_PARAMS, np.float32)})
    write_npz(made / "update.npz", {"w": rng.random(N_PARAMS, np.float32)})
    for count in (FEW, MANY):
        rng.random(count * N_PARAMS, np.float32).tofile(gathered(made, count))
    return made


def gathered(folder: Path, count: int) -> Path:
    return folder / f"{count}.updates"


def schema_of(folder: Path) -> ModelSchema:
    with open_npz(folder / "base.npz", source="the base") as base:
        return base.schema


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_many_updates_are_reduced_in_the_memory_of_few(rule: RobustRule, folder: Path, tmp_path: Path) -> None:
    def reduced(count: int) -> int:
        file = gathered(folder, count)
        updates = [Update(path=file, source=f"client {n}", place=n, gathered=count) for n in range(count)]
        return peak_bytes(lambda: reduce_updates(updates, folder / "base.npz", rule, tmp_path / "next.npz"))

    reduced(FEW)  # what is made once is not counted
    assert reduced(MANY) < 1.25 * reduced(FEW)


def test_many_updates_are_gathered_in_the_memory_of_one(folder: Path, tmp_path: Path) -> None:
    schema = schema_of(folder)

    def added(count: int) -> int:
        def add() -> None:
            with Gathering(tmp_path / "gathered", schema) as gathering:
                for _ in range(count):
                    with open_npz(folder / "update.npz", source="a client") as update:
                        gathering.add(update)

        return peak_bytes(add)

    added(1)
    assert added(MANY) < 1.25 * added(1)


def test_many_updates_of_a_combiner_below_are_taken_in_the_memory_of_few(folder: Path, tmp_path: Path) -> None:
    schema = schema_of(folder)

    def merged(count: int) -> int:
        def merge() -> None:
            with Gathering(tmp_path / "gathered", schema) as gathering:
                gathering.merge(gathered(folder, count), count, source="a combiner")

        return peak_bytes(merge)

    merged(FEW)
    assert merged(MANY) < 1.25 * merged(FEW)


def test_many_updates_of_a_combiner_are_checked_in_the_memory_of_few(folder: Path) -> None:
    schema = schema_of(folder)

    def checked(count: int) -> int:
        def check() -> None:
            with GatheredFile(gathered(folder, count), schema, count, source="a combiner") as file:
                file.require_finite()

        return peak_bytes(check)

    checked(FEW)
    assert checked(MANY) < 1.25 * checked(FEW)
