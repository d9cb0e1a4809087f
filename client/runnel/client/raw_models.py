"""Models as files of nothing but numbers, as two helpers of FEDn have them, to and from ``.npz``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runnel.common.errors import BadModel
from runnel.common.tensors import ModelSchema, NpzWriter, TensorSpec, open_npz


def write_raw(model: Path, target: Path, dtype: str) -> None:
    """Write all elements of the ``.npz`` file ``model`` to ``target``, one tensor after the other. Blocks.

    Args:
        model: a model.
        target: replaced if it exists.
        dtype: that its elements are cast to, such as ``<f4``.
    """
    with open_npz(model, source="the global model") as opened, target.open("wb") as file:
        for block in opened.blocks():
            file.write(block.values.astype(dtype).data)


def read_raw(raw: Path, target: Path, dtype: str, *, schema: ModelSchema | None, source: str) -> None:
    """Write the numbers in ``raw`` as the ``.npz`` file ``target``. Blocks.

    Args:
        raw: numbers of ``dtype``, in the order of ``schema``.
        target: replaced if it exists.
        dtype: of the file, such as ``<f8``.
        schema: of the model that it is; its tensors' dtypes are those of the result. None: one tensor named ``0``.
        source: who wrote it, for messages.

    Raises:
        BadModel: the file has another length than such a model.
        StorageFull: no room.
    """
    kind = np.dtype(dtype)
    size_bytes = raw.stat().st_size
    if schema is None:
        n_params = size_bytes // kind.itemsize
        schema = ModelSchema(tensors=(TensorSpec(name="0", shape=(n_params,), dtype=kind.name),))
    if size_bytes != schema.n_params * kind.itemsize or not size_bytes:
        raise BadModel(
            f"A model of {schema.n_params:,} numbers of {kind.itemsize} bytes ({kind.name}) was expected, "
            f"and {source} wrote {size_bytes:,} bytes.",
            hint="A model of binaryhelper is float64, one of androidhelper float32, and nothing else is in the file.",
        )
    with raw.open("rb") as file, NpzWriter(target, schema) as out:
        for span in schema.spans():
            # float64 is what the writer casts to the dtype of any tensor.
            out.append(np.fromfile(file, dtype=kind, count=span.count).astype(np.float64))
