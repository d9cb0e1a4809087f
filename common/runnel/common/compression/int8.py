"""Differences as integers of 8 bits, with a scale for each group of 1,024."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.common.compression.codec import Blocks, Part, unfit
from runnel.common.errors import BadModel
from runnel.common.tensors import BLOCK_PARAMS

GROUP = 1024
"""Elements that share a scale; a divisor of :data:`runnel.common.tensors.BLOCK_PARAMS`."""

_STEPS = 127
_SMALLEST = np.finfo(np.float32).smallest_normal


@dataclass(frozen=True, slots=True)
class Int8:
    r"""Symmetric 8-bit quantisation with error feedback; 1.004 bytes an element.

    In each group of :data:`GROUP` elements, with :math:`s = \max_i |d_i| / 127` in float32, a difference :math:`d`
    becomes :math:`\hat d = s \cdot \mathrm{round}(d / s)` (ties to even), so :math:`|d - \hat d| \le s / 2`, besides
    the rounding of floats. A group whose :math:`s` is below the smallest normal float32 (1.2e-38) becomes zeros.

    What was left out is added to the next update, so that it is late and not lost: Seide et al. 2014, "1-Bit Stochastic
    Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs"; Karimireddy et al. 2019,
    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes". Rounding is to the nearest and not at random:
    the feedback removes the bias for which random rounding is done, and equal inputs give equal bytes.
    """

    feedback: bool = True

    def parts(self, count: int, dtype: str) -> tuple[Part, ...]:
        """See :class:`Codec`."""
        groups = -(-count // GROUP)
        return (Part(name="int8", count=count, dtype="int8"), Part(name="scale", count=groups, dtype="float32"))

    def encode(self, differences: Callable[[], Blocks], count: int, put: Callable[[NDArray[Any]], None]) -> None:
        """See :class:`Codec`."""
        scales = []
        for block in differences():
            steps, scale = _quantise(block)
            put(steps)
            scales.append(scale)
        for scale in scales:
            put(scale)

    def decode(self, read: Callable[[str, int], Blocks], count: int, dtype: np.dtype[Any]) -> Blocks:
        """See :class:`Codec`."""
        for steps, scale in zip(read("int8", BLOCK_PARAMS), read("scale", BLOCK_PARAMS // GROUP), strict=True):
            if not (np.isfinite(scale).all() and (scale >= 0).all()):
                raise unfit("a scale is negative, NaN or infinite")
            difference = _grouped(steps.astype(dtype))
            with np.errstate(over="ignore"):  # told by whoever checks the sum to be finite
                difference *= scale[:, None].astype(dtype)
            yield difference.reshape(-1)[: steps.size]


def _quantise(block: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    groups = _grouped(block)
    with np.errstate(over="ignore", under="ignore"):
        largest = np.maximum(groups.max(axis=1), -groups.min(axis=1))
        scale = (largest / _STEPS).astype(np.float32)
    if not np.isfinite(scale).all():
        raise BadModel(
            f"The update differs from the global model by {float(largest.max()):g}: no 8-bit scale is so large."
        )
    scale[scale < _SMALLEST] = 0
    divisor = np.where(scale == 0, np.float32(np.inf), scale).astype(block.dtype)
    steps = np.rint(groups / divisor[:, None])
    np.clip(steps, -_STEPS, _STEPS, out=steps)
    return steps.astype(np.int8).reshape(-1)[: block.size], scale


def _grouped(block: NDArray[Any]) -> NDArray[Any]:
    """Return the elements in rows of :data:`GROUP`, the last one filled up with zeros."""
    missing = -block.size % GROUP
    return (np.pad(block, (0, missing)) if missing else block).reshape(-1, GROUP)
