"""The work that Runnel and its peers do in ``rounds``: clients add one to each number of a model of several arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.common.tensors import write_npz

ARRAYS = 8
# A mean of equal float32 numbers may differ by their rounding, and no lost, doubled or foreign update is as near.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Rounds of ``clients`` with a model of ``kilobytes`` (1,000 bytes), as float32 in ``ARRAYS`` equal arrays.

    ``rounds``: how many are measured of Runnel; ``peer_rounds``: of each peer. One more goes before each, unmeasured.
    """

    clients: int
    kilobytes: int
    rounds: int
    peer_rounds: int
    cold: bool = False

    @property
    def name(self) -> str:
        """For people."""
        size = f"{self.kilobytes // 1000} MB" if self.kilobytes >= 1000 else f"{self.kilobytes} KB"
        return f"{self.clients} clients, {size}"

    @property
    def size_bytes(self) -> int:
        """Of the model."""
        return self.kilobytes * 1000


class WrongModel(RuntimeError):
    """What was measured did something else than the work."""


def write_seed(row: Row, path: Path) -> None:
    """Write the model that the rounds begin with: numbers that no compression makes smaller."""
    random = np.random.default_rng(0)
    elements = row.size_bytes // 4 // ARRAYS
    write_npz(path, {f"w{n}": random.standard_normal(elements, np.float32) for n in range(ARRAYS)})


def check_model(seed: Path, model: Path, rounds: int) -> None:
    """Require that ``model`` is what ``rounds`` rounds make of ``seed``; the arrays count, not their names.

    Raises:
        WrongModel: it is not.
    """
    with np.load(seed) as before, np.load(model) as after:
        if len(before.files) != len(after.files):
            raise WrongModel(f"{model.name} has {len(after.files)} arrays and not {len(before.files)}.")
        for first, last in zip(sorted(before.files), sorted(after.files), strict=True):
            was, found = before[first], after[last]
            off = float(np.max(np.abs(found - was - rounds))) if found.shape == was.shape else float("inf")
            if found.dtype != np.float32 or not off < _TOLERANCE:
                raise WrongModel(
                    f"After {rounds} rounds that add 1, {model.name} is off by {off:g} in {last}"
                    f" ({found.dtype}{list(found.shape)}, was {was.dtype}{list(was.shape)})."
                )
